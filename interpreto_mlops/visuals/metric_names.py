"""How a metric is presented: its direction and meaning come from where it is registered."""

from __future__ import annotations

from dataclasses import dataclass

from interpreto_mlops.attributions.metrics.base import CONCEPT_FAITHFULNESS
from interpreto_mlops.attributions.metrics.base import METRICS as ATTRIBUTION_METRICS
from interpreto_mlops.concepts.metrics import METRICS as CONCEPT_METRICS

_OF_CONCEPTS = f"{CONCEPT_FAITHFULNESS}/"
_FAITHFULNESS = ("faithfulness/", _OF_CONCEPTS)


@dataclass(frozen=True)
class MetricName:
    """How a metric is presented.

    Arguments:
        name: as in the run schema, `group/metric`.
        higher_is_better: its direction; None when neither is better, or it is not known.
        meaning: one line for a reader who does not know the metric.
    """

    name: str
    higher_is_better: bool | None = None
    meaning: str = ""

    @property
    def title(self) -> str:
        """The name without its group, in words."""
        words = self.name.rsplit("/", 1)[-1].replace("_", " ")
        return f"{words} (concepts)" if self.is_of_concepts else words

    @property
    def is_of_concepts(self) -> bool:
        """Whether it judges explanations of concepts, whose activations stand for probabilities."""
        return self.name.startswith(_OF_CONCEPTS)


def metric_name(name: str) -> MetricName:
    """Return how a metric is presented; an unknown one has no direction and no meaning.

    Arguments:
        name: as in the run schema (`reconstruction/r2`), or without its group for faithfulness metrics (`deletion`).
    """
    if name in CONCEPT_METRICS:
        concept_metric = CONCEPT_METRICS.get(name)
        return MetricName(name, concept_metric.higher_is_better, concept_metric.description)
    registered = name
    for group in _FAITHFULNESS:
        registered = registered.removeprefix(group)
    # One metric may give several results, named after it: `plausibility/auprc`.
    registered = registered if registered in ATTRIBUTION_METRICS else registered.split("/")[0]
    if registered in ATTRIBUTION_METRICS:
        metric = ATTRIBUTION_METRICS.get(registered)
        meaning = _first_sentence(metric.__doc__)
        if name.startswith(_OF_CONCEPTS):
            meaning = meaning.replace("probability", "concept's activation").replace("probabilities", "activations")
        return MetricName(name, metric.higher_is_better, meaning)
    return MetricName(name)


def _first_sentence(docstring: str | None) -> str:
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")
