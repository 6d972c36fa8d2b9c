"""Feature attributions: which elements of a text speak for a prediction, and how faithful the answer is."""

from typing import TYPE_CHECKING

from interpreto_mlops.attributions.base import METHODS, Attributor, Estimate, Game
from interpreto_mlops.attributions.paths import Neighbourhood, Noise, Path
from interpreto_mlops.attributions.queries import Query
from interpreto_mlops.attributions.results import Attribution, AttributionSet, Target
from interpreto_mlops.attributions.simulation import attribution_study, simulatability
from interpreto_mlops.registry import discover

if TYPE_CHECKING:  # for editors and type checkers; the classes themselves are found below
    from interpreto_mlops.attributions.methods.attention_rollout import AttentionRollout as AttentionRollout
    from interpreto_mlops.attributions.methods.attn_lrp import AttnLrp as AttnLrp
    from interpreto_mlops.attributions.methods.banzhaf import Banzhaf as Banzhaf
    from interpreto_mlops.attributions.methods.gradient_shap import GradientShap as GradientShap
    from interpreto_mlops.attributions.methods.input_x_gradient import InputXGradient as InputXGradient
    from interpreto_mlops.attributions.methods.integrated_gradients import IntegratedGradients as IntegratedGradients
    from interpreto_mlops.attributions.methods.kernel_shap import KernelShap as KernelShap
    from interpreto_mlops.attributions.methods.lime import Lime as Lime
    from interpreto_mlops.attributions.methods.occlusion import Occlusion as Occlusion
    from interpreto_mlops.attributions.methods.rfem import Rfem as Rfem
    from interpreto_mlops.attributions.methods.rise import Rise as Rise
    from interpreto_mlops.attributions.methods.saliency import Saliency as Saliency
    from interpreto_mlops.attributions.methods.shapley_sampling import ShapleySampling as ShapleySampling
    from interpreto_mlops.attributions.methods.smooth_grad import SmoothGrad as SmoothGrad
    from interpreto_mlops.attributions.methods.sobol import Sobol as Sobol
    from interpreto_mlops.attributions.methods.square_grad import SquareGrad as SquareGrad
    from interpreto_mlops.attributions.methods.value_zeroing import ValueZeroing as ValueZeroing
    from interpreto_mlops.attributions.methods.var_grad import VarGrad as VarGrad

discover("interpreto_mlops.attributions.methods")
globals().update({method.__name__: method for _, method in METHODS.items()})

__all__ = ["METHODS", "Attribution", "AttributionSet", "Attributor", "Estimate", "Game", "Path", "Query", "Target"]
__all__ += ["Neighbourhood", "Noise", "Path", "attribution_study", "simulatability"]
__all__ += [method.__name__ for _, method in METHODS.items()]
__all__.sort()
