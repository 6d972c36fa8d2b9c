from __future__ import annotations

import pytest

from interpreto_mlops.attributions.metrics import METRICS as ATTRIBUTION_METRICS
from interpreto_mlops.concepts.metrics import METRICS as CONCEPT_METRICS
from interpreto_mlops.visuals.metric_names import MetricName, metric_name


@pytest.mark.parametrize("name", CONCEPT_METRICS.names())
def test_concept_metrics_say_their_direction_and_meaning(name: str) -> None:
    shown = metric_name(name)
    assert shown.higher_is_better is CONCEPT_METRICS.get(name).higher_is_better
    assert len(shown.meaning) > 10


@pytest.mark.parametrize("name", ATTRIBUTION_METRICS.names())
def test_faithfulness_metrics_do_with_and_without_their_group(name: str) -> None:
    shown = metric_name(f"faithfulness/{name}")
    assert shown.higher_is_better is ATTRIBUTION_METRICS.get(name).higher_is_better
    assert (shown.higher_is_better, shown.meaning) == (metric_name(name).higher_is_better, metric_name(name).meaning)
    assert 10 < len(shown.meaning) < 160


def test_unknown_metrics_claim_nothing() -> None:
    assert metric_name("own/very_new") == MetricName("own/very_new", None, "")
    assert metric_name("own/very_new").title == "very new"


@pytest.mark.parametrize("name", ATTRIBUTION_METRICS.names())
def test_metrics_of_concepts_speak_of_activations(name: str) -> None:
    shown, of_outputs = metric_name(f"concept_faithfulness/{name}"), metric_name(f"faithfulness/{name}")
    assert shown.higher_is_better is of_outputs.higher_is_better
    assert shown.title == f"{of_outputs.title} (concepts)"
    assert "probabilit" not in shown.meaning
    assert ("activation" in shown.meaning) >= ("probabilit" in of_outputs.meaning)
