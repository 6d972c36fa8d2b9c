"""How much concepts matter to what a model says: six methods, one file each, and one frame for every kind of target."""

from interpreto_mlops.concepts.importance.ablation import Ablation
from interpreto_mlops.concepts.importance.attribution import concept_importance, local_importance
from interpreto_mlops.concepts.importance.base import IMPORTANCE, ImportanceMethod, LocalImportance
from interpreto_mlops.concepts.importance.gradient import ConceptGradient
from interpreto_mlops.concepts.importance.gradient_x_activation import GradientXActivation
from interpreto_mlops.concepts.importance.integrated_gradients import IntegratedGradients
from interpreto_mlops.concepts.importance.results import ConceptImportance
from interpreto_mlops.concepts.importance.shapley import Shapley
from interpreto_mlops.concepts.importance.sobol import Sobol

__all__ = [
    "IMPORTANCE",
    "Ablation",
    "ConceptGradient",
    "ConceptImportance",
    "GradientXActivation",
    "ImportanceMethod",
    "IntegratedGradients",
    "LocalImportance",
    "Shapley",
    "Sobol",
    "concept_importance",
    "local_importance",
]
