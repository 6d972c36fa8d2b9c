"""Evidence read back is what was written, whichever run it is in."""

from __future__ import annotations

import numpy as np
import pytest

import interpreto_mlops as im
from interpreto_mlops.attributions import Occlusion, Saliency
from interpreto_mlops.attributions.metrics import Deletion, Insertion
from interpreto_mlops.errors import DataError
from interpreto_mlops.tracking import load_model, log_text_model, reading
from interpreto_mlops.tracking.reading import fingerprint_of, kinds_of, read_explanations, runs_that_explain
from interpreto_mlops.tracking.resolving import resolve

TEXTS = ["the food was great", "the service was never good and the food was bad"]


@pytest.fixture
def explained(user, logged):
    """A registered model and two runs of our own that explain it."""
    store, model = user, load_model(logged.uri, store=user)
    runs = {}
    for method in (Occlusion(model), Saliency(model)):
        explanations = method(TEXTS)
        scores = [metric(model, n_random=3)(explanations) for metric in (Deletion, Insertion)]
        runs[im.log_attributions(explanations, metrics=scores, model=model)] = (explanations, scores)
    return store, logged, model, runs


def test_runs_are_found_by_version_and_by_logged_model_and_hold_what_was_written(explained):
    store, logged, model, written = explained
    for uri in (logged.uri, f"models:/{logged.model_id}", "models:/reviews/latest"):
        found = resolve(store, uri)
        assert {run.info.run_id for run in runs_that_explain(store, found, ["attributions"])} == set(written)
        assert fingerprint_of(store, found) == model.fingerprint
        assert runs_that_explain(store, found, ["concepts"]) == []
    for run_id, (explanations, scores) in written.items():
        (read,) = read_explanations(store, run_id)
        assert kinds_of(store.client.get_run(run_id)) == ["attributions"]
        assert read.label == explanations.method
        assert read.explanations == explanations
        assert len(read.scores) == len(TEXTS) * len(scores)
        for result in scores:
            rows = read.scores[read.scores["metric"] == result.name]
            assert np.array_equal(rows["value"], result.values, equal_nan=True)
            assert np.array_equal(rows["random"], result.random_values, equal_nan=True)
            assert set(rows["higher_is_better"]) == {result.higher_is_better}


def test_another_model_has_none_and_a_run_without_attributions_reads_as_none(explained, tiny_model):
    store, *_ = explained
    other = log_text_model(store, None, tiny_model("classification", seed=5), name="other")
    assert runs_that_explain(store, resolve(store, other.uri)) == []
    empty = store.client.create_run(store.experiment_id).info.run_id
    assert read_explanations(store, empty) == []


def test_what_cannot_be_read_is_said(explained, tmp_path):
    store, _, _, written = explained
    run_id = next(iter(written))
    (tmp_path / "attributions.json").write_text('{"format": 7}')
    store.client.log_artifact(run_id, str(tmp_path / "attributions.json"), "attributions")
    with pytest.raises(DataError, match="format"):
        read_explanations(store, run_id)


def test_a_run_is_found_however_many_experiments_there_are(explained, monkeypatch):
    store, logged, _, written = explained
    monkeypatch.setattr(reading, "_PAGE", 2)
    for number in range(5):
        store.client.create_experiment(f"newer {number}")
    found = runs_that_explain(store, resolve(store, logged.uri))
    assert {run.info.run_id for run in found} == set(written)
