from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import Run

import interpreto_mlops as im
from interpreto_mlops.attributions import AttributionSet, Occlusion
from interpreto_mlops.attributions.metrics import Comprehensiveness, Deletion, Insertion
from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.concepts import (
    ActivationSet,
    ConceptDictionary,
    ModelWithSplitPoints,
    PCAConcepts,
    TopKSAEConcepts,
    concept_importance,
    top_words,
)
from interpreto_mlops.errors import InputError, NotFittedError, TrackingError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import register_dictionary, run, write_attributions, write_dictionary
from interpreto_mlops.tracking.store import Store

HOSTILE = "<script>window.pwned=1</script> the food was never great | `code` {{7*7}}"


@pytest.fixture
def data(texts: list[str]) -> TextDataset:
    return TextDataset("reviews <b>", (*texts, HOSTILE))


@pytest.fixture
def explanations(model: TextModel, data: TextDataset) -> AttributionSet:
    return Occlusion(model)(data.texts)


@pytest.fixture
def scores(model: TextModel, explanations: AttributionSet) -> list[MetricResult]:
    return [metric(model)(explanations) for metric in (Insertion, Deletion, Comprehensiveness)]


@pytest.fixture
def activations(model: TextModel, data: TextDataset) -> ActivationSet:
    return ModelWithSplitPoints(model, [1]).get_activations(data, progress=False)[1]


@pytest.fixture
def dictionary(activations: ActivationSet) -> PCAConcepts:
    return PCAConcepts(n_concepts=4).fit(activations)


@pytest.fixture
def user(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The user has set up MLflow for themself."""
    mlflow.set_tracking_uri(any_store.tracking_uri)
    mlflow.set_experiment(experiment_id=any_store.experiment_id)
    return any_store


def _points(store: Store, found: Run, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in store.client.get_metric_history(found.info.run_id, key)]


def test_a_run_of_attributions_by_the_schema(
    any_store: Store,
    model: TextModel,
    data: TextDataset,
    explanations: AttributionSet,
    scores: list[MetricResult],
    download: Callable[[Store, str], Path],
) -> None:
    base = any_store.client.create_logged_model(any_store.experiment_id, "base")
    explained = TextModel(
        model.model, model.tokenizer, name="tiny", uri=f"models:/{base.model_id}", model_id=base.model_id
    )
    with run(any_store, kind="attributions", name="occlusion", suite="s") as log:
        write_attributions(log, explanations, metrics=scores, model=explained, dataset=data)
    found = any_store.client.get_run(log.run_id)

    assert {
        "model": "tiny",
        "task": "classification",
        "method": "occlusion",
        "granularity": "word",
    }.items() <= found.data.params.items()
    assert {name.split(".")[0] for name in found.data.params} <= {
        "model",
        "task",
        "method",
        "granularity",
        "inference_mode",
        "seed",
    }
    tags = found.data.tags
    assert tags["interpreto.kind"] == "attributions"
    assert tags["interpreto.model.uri"] == explained.uri
    assert tags["interpreto.model.fingerprint"] == model.fingerprint
    assert tags["interpreto.model.id"] == base.model_id
    for result in scores:
        assert found.data.metrics[f"faithfulness/{result.name}"] == pytest.approx(result.mean)
        assert found.data.metrics[f"faithfulness/{result.name}_random"] == pytest.approx(result.random_mean)
    assert found.data.metrics["cost/evaluations_run"] == explanations.counters["evaluations_run"]
    assert found.data.metrics["cost/seconds"] == explanations.seconds

    curve = scores[0].curve
    assert curve is not None
    points = _points(any_store, found, "curve/insertion")
    assert [step for step, _ in points] == sorted({round(100 * share) for share in curve[:, 0]})
    assert points[0][1] == pytest.approx(curve[0, 1])
    assert points[-1] == (100, pytest.approx(curve[-1, 1]))
    assert len(_points(any_store, found, "curve/deletion_random")) > 2

    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == (data.name, data.digest)
    assert [entry.model_id for entry in found.inputs.model_inputs] == [base.model_id]
    linked = {entry.key: entry for entry in any_store.client.get_logged_model(base.model_id).metrics}
    assert set(linked) == {"explain/insertion", "explain/deletion", "explain/comprehensiveness"}
    assert linked["explain/insertion"].value == pytest.approx(scores[0].mean)
    assert linked["explain/insertion"].dataset_name == data.name
    assert linked["explain/insertion"].run_id == log.run_id
    assert "better" in tags["mlflow.note.content"]
    assert "reviews \\<b\\>" in tags["mlflow.note.content"]
    _check_attribution_files(download(any_store, log.run_id), explanations, scores)


def _check_attribution_files(folder: Path, explanations: AttributionSet, scores: list[MetricResult]) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names = (
        "attributions.html",
        "attributions.json",
        "attributions.parquet",
        "curves.png",
        "example.png",
        "examples.json",
    )
    expected = {f"attributions/{name}" for name in (*names, "metrics.json", "scores.parquet")}
    assert files == {*expected, "manifest.json"}
    assert set(json.loads((folder / "manifest.json").read_text())) == expected
    assert AttributionSet.load(folder / "attributions") == explanations
    page = (folder / "attributions/attributions.html").read_text(encoding="utf-8")
    assert "<script" not in page
    table = pd.read_json(folder / "attributions/examples.json", orient="split")
    assert table["text"].tolist() == [item.text for item in explanations]
    first = explanations[0]
    best = int(first.ranking()[0])
    assert table["speaks for"][0].startswith(f"{first.elements[best]} {first.scores[0, best]:+.3f}")
    frame = pd.read_parquet(folder / "attributions/scores.parquet")
    np.testing.assert_allclose(frame[frame["metric"] == "deletion"]["value"], scores[1].values)
    details = json.loads((folder / "attributions/metrics.json").read_text())
    assert details["deletion"]["interval_95"] == pytest.approx(list(scores[1].interval()))


def test_a_run_of_concepts_by_the_schema(
    any_store: Store,
    model: TextModel,
    data: TextDataset,
    activations: ActivationSet,
    download: Callable[[Store, str], Path],
) -> None:
    base = any_store.client.create_logged_model(any_store.experiment_id, "base")
    dictionary = TopKSAEConcepts(n_concepts=6, k=2, n_epochs=3, batch_size=8).fit(activations, progress=False)
    dictionary.provenance["model"]["model_id"] = base.model_id
    dictionary.descriptions = top_words(dictionary, activations)
    importance = concept_importance(ModelWithSplitPoints(model, [1]), dictionary, data, progress=False)
    metrics = {"reconstruction/r2": 0.75, "complexity/l0": 2.0, "stability/stability": 0.9}
    with run(any_store, kind="concepts", name="topk", suite="s") as log:
        logged = write_dictionary(log, dictionary, metrics=metrics, importance=importance, model=model)
    version = register_dictionary(any_store, logged, dictionary, metrics=metrics)

    found = any_store.client.get_run(log.run_id)
    layer = dictionary.provenance["layer"]
    expected = {
        "model": "tiny",
        "method": "topk_sae",
        "layer": layer,
        "granularity": "token",
        "n_concepts": "6",
        "seed": "0",
    }
    assert expected.items() <= found.data.params.items()
    assert found.data.params["method.k"] == "2"
    assert found.data.tags["interpreto.kind"] == "concepts"
    assert found.data.tags["interpreto.layer"] == layer
    assert metrics.items() <= found.data.metrics.items()
    for quantity in dictionary.history_[0].keys() - {"epoch", "step"}:
        values = [value for _, value in _points(any_store, found, quantity)]
        assert values == pytest.approx([point[quantity] for point in dictionary.history_])
    contexts = {entry.tags[0].value: entry.dataset.digest for entry in found.inputs.dataset_inputs}
    assert contexts == {"fitted": data.digest}
    assert [entry.model_id for entry in found.inputs.model_inputs] == [base.model_id]
    assert [entry.model_id for entry in found.outputs.model_outputs] == [logged.model_id]

    entity = any_store.client.get_logged_model(logged.model_id)
    assert (entity.status, entity.model_type, entity.source_run_id) == ("READY", "concept_dictionary", log.run_id)
    assert expected.items() <= entity.params.items()
    assert {entry.key: entry.value for entry in entity.metrics} == metrics
    assert {(entry.dataset_name, entry.dataset_digest) for entry in entity.metrics} == {(data.name, data.digest)}
    assert {entry.key for entry in any_store.client.get_logged_model(base.model_id).metrics} == {
        "explain/r2",
        "explain/l0",
        "explain/stability",
    }
    _check_version(any_store, version, logged.model_id, log.run_id, dictionary)
    _check_concept_files(download(any_store, log.run_id), dictionary)


def _check_version(store: Store, version: Any, model_id: str, run_id: str, dictionary: ConceptDictionary) -> None:
    layer = dictionary.provenance["layer"]
    assert version.name == f"tiny.{layer.replace('.', '-')}.topk_sae"
    found = store.client.get_model_version(version.name, version.version)
    assert (found.run_id, found.source, found.status) == (run_id, f"models:/{model_id}", "READY")
    assert found.tags["interpreto.source_run"] == run_id
    assert found.tags["interpreto.layer"] == layer
    assert found.tags["interpreto.kind"] == "concept_dictionary"
    assert found.tags["interpreto.model.fingerprint"] == dictionary.provenance["model"]["fingerprint"]
    assert found.tags["interpreto.metric.reconstruction/r2"] == "0.75"
    assert "dictionary/dictionary.safetensors" in json.loads(found.tags["interpreto.manifest"])
    assert "**6 concepts** by topk\\_sae (seed 0) at layer" in found.description
    linked = json.loads(store.client.get_logged_model(model_id).tags["mlflow.modelVersions"])
    assert linked == [{"name": version.name, "version": 1}]


def _check_concept_files(folder: Path, dictionary: ConceptDictionary) -> None:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names = ("concepts.html", "importance.parquet", "importance.png", "labels.json", "training.png")
    assert files == {*(f"concepts/{name}" for name in names), "manifest.json"}
    table = pd.read_json(folder / "concepts/labels.json", orient="split")
    assert dictionary.descriptions is not None
    assert table["label"].tolist() == [description.label for description in dictionary.descriptions]
    assert "<script" not in (folder / "concepts/concepts.html").read_text(encoding="utf-8")


class Broken:
    method = "gradient"

    def to_frame(self) -> pd.DataFrame:
        raise OSError("no space left on device")


@pytest.mark.usefixtures("unchanged")
def test_a_run_that_fails_half_way_registers_nothing(any_store: Store, dictionary: PCAConcepts) -> None:
    name = f"half-way {any_store.experiment_id}"
    broken: Any = Broken()

    def work() -> None:
        with run(any_store, kind="concepts", name="x") as log:
            logged = write_dictionary(log, dictionary, metrics={"reconstruction/r2": 1.0}, importance=broken)
            register_dictionary(any_store, logged, dictionary, name=name)

    with pytest.raises(OSError, match="no space left"):
        work()
    (found,) = any_store.client.search_runs([any_store.experiment_id])
    assert found.info.status == "FAILED"
    assert found.data.metrics == {"reconstruction/r2": 1.0}
    assert any_store.client.search_registered_models(f"name = '{name}'") == []


def test_a_model_that_cannot_be_written_is_failed_not_ready(store: Store, dictionary: PCAConcepts) -> None:
    broken: Any = [object()]
    dictionary.descriptions = broken
    with pytest.raises(AttributeError, match="to_dict"), run(store, kind="concepts", name="x") as log:
        write_dictionary(log, dictionary)
    (output,) = store.client.get_run(log.run_id).outputs.model_outputs
    assert store.client.get_logged_model(output.model_id).status == "FAILED"


def test_the_users_open_run_is_used_and_left_open(
    user: Store, explanations: AttributionSet, dictionary: PCAConcepts
) -> None:
    with mlflow.start_run(run_name="mine") as mine:
        mlflow.log_params({"method": "my own", "lr": 0.1})
        mlflow.set_tag("mlflow.note.content", "my note")
        assert im.log_attributions(explanations) == mine.info.run_id
        logged = im.log_dictionary(dictionary, registered_model_name=f"mine {user.experiment_id}")
        assert logged.run_id == mine.info.run_id
        assert mlflow.active_run().info.run_id == mine.info.run_id
        with pytest.raises(InputError, match=f"the run '{mine.info.run_id}' already holds attributions"):
            im.log_attributions(explanations)
        assert user.client.get_run(mine.info.run_id).info.status == "RUNNING"
    found = user.client.get_run(mine.info.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "mine"
    assert found.data.params["method"] == "my own"
    assert found.data.params["attributions.method"] == "occlusion"
    assert found.data.params["concepts.method"] == "pca"
    assert found.data.tags["mlflow.note.content"] == "my note"
    assert found.data.tags["interpreto.kind"] == "attributions,concepts"
    loaded = im.load_dictionary(f"models:/mine {user.experiment_id}/1")
    torch.testing.assert_close(loaded.dictionary, dictionary.dictionary)


def test_training_is_logged_while_it_goes_on_and_once(user: Store) -> None:
    dictionary = TopKSAEConcepts(n_concepts=8, k=2, n_epochs=3, batch_size=32)
    rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0)) + 1.0
    with pytest.raises(InputError, match="no MLflow run is open to log the training to"):
        im.live_training()
    seen: list[set[str]] = []
    with mlflow.start_run() as mine:
        log = im.live_training()

        def tell(place: int, line: dict[str, float]) -> None:
            log(place, line)
            seen.append(set(user.client.get_run(mine.info.run_id).data.metrics))

        dictionary.fit(rows, progress=False, listener=tell)
        assert dictionary.history_
        assert {"train/loss", "train/l0", "train/dead"} <= seen[0]
        im.log_dictionary(dictionary)
    for key in ("train/loss", "train/r2", "train/l0", "train/dead"):
        expected = [(int(line["step"]), line[key]) for line in dictionary.history_ if key in line]
        assert _points(user, user.client.get_run(mine.info.run_id), key) == expected


def test_without_a_run_one_is_opened_and_closed_where_the_user_tracks(
    user: Store, model: TextModel, activations: ActivationSet, dictionary: PCAConcepts, explanations: AttributionSet
) -> None:
    from tests.mlflow_stores import global_state

    before = global_state()
    run_id = im.log_attributions(explanations, model=model)
    logged = im.log_dictionary(dictionary, activations=activations)
    assert global_state() == before
    assert dictionary.descriptions is None
    for identifier, kind in ((run_id, "attributions"), (logged.run_id, "concepts")):
        found = user.client.get_run(identifier)
        assert (found.info.status, found.info.experiment_id) == ("FINISHED", user.experiment_id)
        assert found.data.tags["interpreto.kind"] == kind
    assert found.data.metrics["reconstruction/r2"] <= 1.0
    assert im.load_dictionary(logged.uri).descriptions
    assert im.load_dictionary(f"runs:/{logged.run_id}/dictionary").n_concepts == 4


def test_the_run_of_mlflow_run_is_taken_once(
    user: Store, explanations: AttributionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = user.client.create_run(user.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert im.log_attributions(explanations) == run_id
    assert im.log_attributions(explanations) != run_id
    assert user.client.get_run(run_id).info.status == "RUNNING"


def test_what_cannot_be_logged_leaves_nothing_behind(
    user: Store, explanations: AttributionSet, scores: list[MetricResult], dictionary: PCAConcepts
) -> None:
    with pytest.raises(InputError, match="no explanations"):
        im.log_attributions(explanations[:0])
    with pytest.raises(InputError, match="'insertion' is of 'lime', but the explanations are by 'occlusion'"):
        im.log_attributions(explanations, metrics=[replace(scores[0], method="lime")])
    with pytest.raises(InputError, match="must not be empty or hold '/' or ':', unlike 'a/b'"):
        im.log_dictionary(dictionary, registered_model_name="a/b")
    with pytest.raises(NotFittedError):
        im.log_dictionary(PCAConcepts(n_concepts=2))
    with pytest.raises(TrackingError, match=r"could not read the run '0+'"):
        im.log_attributions(explanations, run_id="0" * 32)
    assert user.client.search_runs([user.experiment_id]) == []


def test_metrics_that_could_not_be_computed_are_nan(
    any_store: Store, explanations: AttributionSet, scores: list[MetricResult]
) -> None:
    nothing = np.full(len(explanations), np.nan)
    result = replace(
        scores[0], values=nothing, random_values=nothing, curve=None, random_curve=None, skipped={"empty": 6}
    )
    with run(any_store, kind="attributions", name="x") as log:
        write_attributions(log, explanations, metrics=[result])
    assert np.isnan(any_store.client.get_run(log.run_id).data.metrics["faithfulness/insertion"])
