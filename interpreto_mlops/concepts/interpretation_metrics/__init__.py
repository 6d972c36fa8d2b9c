"""Whether labels say what concepts are: metrics for which a language model judges, writes or rates texts."""

from interpreto_mlops.concepts.interpretation_metrics.base import INTERPRETATION_METRICS, LabelMetric
from interpreto_mlops.concepts.interpretation_metrics.detecting import Detection, Fuzzing
from interpreto_mlops.concepts.interpretation_metrics.judging import Cost
from interpreto_mlops.concepts.interpretation_metrics.rating import Purity, Responsiveness
from interpreto_mlops.concepts.interpretation_metrics.running import score_labels
from interpreto_mlops.concepts.interpretation_metrics.score import InterpretationScore
from interpreto_mlops.concepts.interpretation_metrics.statistics import (
    AnswerMetric,
    Judged,
    clarity,
    detection,
    faithfulness,
    fuzzing,
    purity,
    responsiveness,
)
from interpreto_mlops.concepts.interpretation_metrics.steering import Faithfulness
from interpreto_mlops.concepts.interpretation_metrics.writing import Clarity

__all__ = [
    "INTERPRETATION_METRICS",
    "AnswerMetric",
    "Clarity",
    "Cost",
    "Detection",
    "Faithfulness",
    "Fuzzing",
    "InterpretationScore",
    "Judged",
    "LabelMetric",
    "Purity",
    "Responsiveness",
    "clarity",
    "detection",
    "faithfulness",
    "fuzzing",
    "purity",
    "responsiveness",
    "score_labels",
]
