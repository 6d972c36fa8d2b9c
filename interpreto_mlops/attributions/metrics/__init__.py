"""Metrics of attributions: are the elements that an explanation names those that the model uses, and people too?"""

from typing import TYPE_CHECKING

from interpreto_mlops.attributions.metrics.base import METRICS, Metric, TextMetric
from interpreto_mlops.attributions.metrics.evaluation import evaluate
from interpreto_mlops.attributions.metrics.plausibility import spans_of_characters
from interpreto_mlops.attributions.metrics.ranking import FaithfulnessMetric
from interpreto_mlops.attributions.metrics.results import MetricResult, MetricSet, SanityResult
from interpreto_mlops.registry import discover

if TYPE_CHECKING:  # for editors and type checkers; the classes themselves are found below
    from interpreto_mlops.attributions.metrics.curves import Aopc as Aopc
    from interpreto_mlops.attributions.metrics.curves import Deletion as Deletion
    from interpreto_mlops.attributions.metrics.curves import Insertion as Insertion
    from interpreto_mlops.attributions.metrics.curves import InsertionMinusDeletion as InsertionMinusDeletion
    from interpreto_mlops.attributions.metrics.curves import Monotonicity as Monotonicity
    from interpreto_mlops.attributions.metrics.eraser import Comprehensiveness as Comprehensiveness
    from interpreto_mlops.attributions.metrics.eraser import Sufficiency as Sufficiency
    from interpreto_mlops.attributions.metrics.game_metrics import FaithfulnessCorrelation as FaithfulnessCorrelation
    from interpreto_mlops.attributions.metrics.game_metrics import Infidelity as Infidelity
    from interpreto_mlops.attributions.metrics.game_metrics import SensitivityN as SensitivityN
    from interpreto_mlops.attributions.metrics.max_sensitivity import MaxSensitivity as MaxSensitivity
    from interpreto_mlops.attributions.metrics.normalized_aopc import NormalizedAopc as NormalizedAopc
    from interpreto_mlops.attributions.metrics.plausibility import Plausibility as Plausibility
    from interpreto_mlops.attributions.metrics.sanity import SanityCheck as SanityCheck
    from interpreto_mlops.attributions.metrics.soft import SoftComprehensiveness as SoftComprehensiveness
    from interpreto_mlops.attributions.metrics.soft import SoftSufficiency as SoftSufficiency

discover("interpreto_mlops.attributions.metrics")
globals().update({metric.__name__: metric for _, metric in METRICS.items()})

__all__ = ["METRICS", "FaithfulnessMetric", "Metric", "MetricResult", "MetricSet", "SanityResult", "TextMetric"]
__all__ += ["evaluate", "spans_of_characters"]
__all__ += [metric.__name__ for _, metric in METRICS.items()]
__all__.sort()
