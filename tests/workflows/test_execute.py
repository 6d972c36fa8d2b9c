"""Whole small jobs on real stores: what runs hold, what is registered, and what a failure leaves behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient

from interpreto_mlops.attributions import AttributionSet
from interpreto_mlops.errors import DataError, InputError, ModelOutputError, TrackingError, UnknownNameError
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.workflows import concept_runs
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.holdout import hold_out
from interpreto_mlops.workflows.recipes import load_recipe, parse_recipe


def recipe(kind, model_folder, data_file, uri, **more):
    common = {"model": str(model_folder), "data": str(data_file), "text_column": "review", "label_column": "stars"}
    if kind == "concepts":
        more = {"layers": [0, 1], "n_concepts": [8], "options": {"topk_sae": {"k": 3, "n_epochs": 2}}, **more}
    return parse_recipe({"kind": kind, **common, "tracking_uri": uri, "experiment": "jobs", **more})


def runs_of(uri, suite):
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("jobs")
    return client, client.search_runs([experiment.experiment_id], f"tags.`interpreto.suite` = '{suite}'")


@pytest.fixture
def artifact(tmp_path_factory):
    """A function that fetches an artifact of a run, as a user would, and returns its path."""

    def fetch(client, run, path):
        return Path(client.download_artifacts(run.info.run_id, path, str(tmp_path_factory.mktemp("artifacts"))))

    return fetch


@pytest.fixture(params=["sqlite", "server"])
def uri(request):
    """A database, and a real server with artifacts through it."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "server")


def test_attributions_are_one_run_a_method_and_a_report(uri, model_folder, data_file, artifact):
    job = recipe(
        "attribute", model_folder, data_file, uri, max_texts=8, options={"kernel_shap": {"n_perturbations": 64}}
    )
    outcome = execute(job, command="interpreto-mlops attribute …")
    client, runs = runs_of(uri, outcome.suite)
    by_kind = {run.data.tags["interpreto.kind"]: run for run in runs}
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all("mlflow.parentRunId" not in run.data.tags for run in runs)

    report = by_kind["report"]
    assert report.info.run_id == outcome.report_run_id
    assert "occlusion" in report.data.tags["mlflow.note.content"]
    page = artifact(client, report, "report/report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("occlusion", "integrated_gradients", "kernel_shap"))

    for run in runs:
        assert run.data.tags["interpreto.command"] == "interpreto-mlops attribute …"
        assert len(run.data.tags["interpreto.model.fingerprint"]) == 64
    cells = {run.data.params["method"]: run for run in runs if run.data.tags["interpreto.kind"] == "attributions"}
    assert set(cells) == {"occlusion", "integrated_gradients", "kernel_shap"}
    for cell, result in ((cells[each.method], each) for each in outcome.attributions):
        for score in result.scores:
            assert cell.data.metrics[f"faithfulness/{score.name}"] == pytest.approx(score.mean)
            assert cell.data.metrics[f"faithfulness/{score.name}_random"] == pytest.approx(score.random_mean)
        assert cell.data.metrics["cost/evaluations_run"] > 0
        assert len(cell.data.tags["interpreto.cell"]) == 32
        assert {given.dataset.name for given in cell.inputs.dataset_inputs} == {"reviews"}
    history = client.get_metric_history(cells["occlusion"].info.run_id, "curve/deletion")
    assert sorted(point.step for point in history) == list(range(101))
    assert cells["kernel_shap"].data.params["method.n_perturbations"] == "64"

    folder = artifact(client, cells["occlusion"], "attributions")
    assert [item.text for item in AttributionSet.load(folder)] == pd.read_csv(data_file)["review"].tolist()[:8]
    again = yaml.safe_load(artifact(client, cells["occlusion"], "recipe.yaml").read_text(encoding="utf-8"))
    repeated = execute(parse_recipe(again), command="…")
    _, second = runs_of(uri, repeated.suite)
    cell = next(run for run in second if run.data.tags["interpreto.kind"] == "attributions")
    first = cells["occlusion"]
    assert cell.data.tags["interpreto.cell"] == first.data.tags["interpreto.cell"]
    faithful = {name: value for name, value in first.data.metrics.items() if name.startswith("faithfulness/")}
    assert faithful == {name: cell.data.metrics[name] for name in faithful}
    environment = json.loads(artifact(client, report, "environment.json").read_text(encoding="utf-8"))
    assert "torch" in json.dumps(environment)


def test_concepts_are_one_run_a_dictionary_and_the_best_of_each_layer_is_registered(uri, model_folder, data_file):
    outcome = execute(recipe("concepts", model_folder, data_file, uri), command="interpreto-mlops concepts …")
    client, runs = runs_of(uri, outcome.suite)
    cells = [run for run in runs if run.data.tags["interpreto.kind"] == "concepts"]
    assert len(cells) == 2 * 2 * 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in cells:
        names = set(run.data.metrics)
        assert {"reconstruction/r2", "reconstruction/mse", "complexity/l0", "complexity/dead"} <= names
        assert {"stability/stability", "stability/stability_random", "cost/seconds"} <= names
        assert run.data.tags["interpreto.layer"] == run.data.params["layer"]
        assert len(run.outputs.model_outputs) == 1
    assert len({run.data.tags["interpreto.cell"] for run in cells}) == 8
    pca = [run for run in cells if run.data.params["method"] == "pca"]
    assert all(run.data.metrics["stability/stability"] == pytest.approx(1) for run in pca)

    best = {cell.path: cell for cell in outcome.concepts if cell.registered}
    assert set(best) == {"bert.encoder.layer.0", "bert.encoder.layer.1"}
    for path, cell in best.items():
        others = [each for each in outcome.concepts if each.path == path]
        assert cell.metrics["reconstruction/r2"] == max(each.metrics["reconstruction/r2"] for each in others)
        name, number = cell.registered
        version = client.get_model_version(name, number)
        assert name == f"tiny-classifier.{path.replace('.', '-')}.{cell.dictionary.name}"
        assert version.run_id == cell.run_id
        assert version.tags["interpreto.layer"] == path
        assert len(version.tags["interpreto.model.fingerprint"]) == 64
        assert float(version.tags["interpreto.metric.reconstruction/r2"]) == pytest.approx(
            cell.metrics["reconstruction/r2"], rel=1e-4
        )
        assert "concepts" in version.description


def test_a_registered_dictionary_comes_back_the_same(database, model_folder, data_file):
    from interpreto_mlops.tracking.dictionary_flavor import load_dictionary

    outcome = execute(recipe("concepts", model_folder, data_file, database), command="…")
    cell = next(cell for cell in outcome.concepts if cell.registered)
    again = load_dictionary("models:/{}/{}".format(*cell.registered), store=outcome.store)
    rows = torch.randn(5, cell.dictionary.width)
    assert torch.equal(again.encode(rows), cell.dictionary.encode(rows))
    assert [each.label for each in again.descriptions] == [each.label for each in cell.dictionary.descriptions]


def test_a_dictionary_that_fails_half_way_is_marked_and_registers_nothing(
    database, model_folder, data_file, monkeypatch
):
    """The third of four cannot be written: two runs are finished; its own, the last and the report have failed."""
    write = concept_runs.write_dictionary
    calls = []

    def fails_at_the_third(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("disk full")
        return write(*args, **kwargs)

    monkeypatch.setattr(concept_runs, "write_dictionary", fails_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        execute(recipe("concepts", model_folder, data_file, database), command="…")
    client = MlflowClient(database, registry_uri=database)
    runs = client.search_runs([client.get_experiment_by_name("jobs").experiment_id])
    status = sorted((run.data.tags["interpreto.kind"], run.info.status) for run in runs)
    assert status == [("concepts", "FAILED")] * 2 + [("concepts", "FINISHED")] * 2 + [("report", "FAILED")]
    failed = [run for run in runs if run.info.status == "FAILED"]
    assert all("disk full" in run.data.tags["mlflow.note.content"] for run in failed)
    assert client.search_registered_models() == []


def test_a_model_of_nan_fails_its_run_and_names_the_text(database, tiny_model, model_folder, data_file):
    model = tiny_model()
    with torch.no_grad():
        model.model.classifier.bias[0] = float("nan")
    model.model.save_pretrained(model_folder)
    with pytest.raises(ModelOutputError, match=r"NaN or infinity for text \d+"):
        execute(recipe("attribute", model_folder, data_file, database), command="…")
    client = MlflowClient(database)
    runs = client.search_runs([client.get_experiment_by_name("jobs").experiment_id])
    assert {run.info.status for run in runs} == {"FAILED"}
    assert all("NaN" in run.data.tags["mlflow.note.content"] for run in runs)


@pytest.mark.parametrize(
    ("kind", "change", "error", "words"),
    [
        ("attribute", {"methods": ["shapley"]}, UnknownNameError, "unknown attribution method 'shapley'; known: "),
        ("attribute", {"metrics": ["auc"]}, UnknownNameError, "unknown attribution metric 'auc'; known: "),
        ("attribute", {"granularity": "letter"}, UnknownNameError, "unknown granularity 'letter'"),
        ("attribute", {"target": "nice"}, UnknownNameError, "unknown class 'nice'; known: 'LABEL_0'"),
        ("attribute", {"options": {"kernel_shap": {"n": 3}}}, UnknownNameError, "option of 'kernel_shap' 'n'; known: "),
        ("attribute", {"options": {"lime": {}}}, UnknownNameError, "method in options 'lime'"),
        ("concepts", {"methods": ["k_means"]}, UnknownNameError, "unknown concept method 'k_means'; known: "),
        ("concepts", {"layers": [7]}, InputError, "7"),
        ("concepts", {"layers": ["bert.encoder.layr.0"]}, InputError, "bert.encoder.layr.0"),
        ("concepts", {"n_concepts": [10**6]}, InputError, "1000000"),
        ("concepts", {"select_by": "beauty"}, UnknownNameError, "unknown concept metric 'beauty'"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(database, model_folder, data_file, kind, change, error, words):
    with pytest.raises(error, match=words):
        execute(recipe(kind, model_folder, data_file, database, **change), command="…")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"select_by": "interpretation/detection"}, "computed from answers, which a job of kind 'concepts' does not"),
        ({"select_by": "probing/auroc"}, "computed from probe scores, which a job of kind 'concepts' does not make"),
        ({"select_by": "stability/stability", "seeds": 1}, "it compares fits of two or more 'seeds'"),
        ({"select_by": "effect/agreement", "effect_texts": 0}, "needs 'effect_texts' above 0"),
        ({"select_by": "effect/agreement", "granularity": "word", "aggregation": "max"}, "rows that are means"),
        ({"select_by": "probing/dense", "label_column": None}, "give 'label_column'"),
        ({"select_by": "probing/dense"}, r"two labels need at least 10 of the \d+ texts"),
    ],
)
def test_no_dictionary_is_selected_by_what_the_job_does_not_compute(database, model_folder, data_file, change, words):
    with pytest.raises(InputError, match=words):
        execute(recipe("concepts", model_folder, data_file, database, **change), command="…")
    client = MlflowClient(database, registry_uri=database)
    experiment = client.get_experiment_by_name("jobs")
    runs = [] if experiment is None else client.search_runs([experiment.experiment_id])
    assert [run for run in runs if run.data.tags["interpreto.kind"] == "concepts"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"granularity": "letter"},
        {"inference_mode": "probability"},
        {"replacement": "blank"},
        {"seed": -1},
        {"options": {"kernel_shap": {"n_perturbations": 0}}},
        {"options": {"deletion": {"max_fraction": 2}}},
    ],
)
def test_a_parameter_that_cannot_be_used_leaves_no_run(database, model_folder, data_file, change):
    with pytest.raises(InputError):
        execute(recipe("attribute", model_folder, data_file, database, **change), command="…")
    client = MlflowClient(database, registry_uri=database)
    experiment = client.get_experiment_by_name("jobs")
    assert experiment is None or client.search_runs([experiment.experiment_id]) == []


def test_texts_that_are_all_empty_are_refused_before_anything_is_written(model_folder, tmp_path):
    path = tmp_path / "empty.csv"
    pd.DataFrame({"review": ["", "  "], "stars": ["1", "2"]}).to_csv(path, index=False)
    with pytest.raises(DataError, match="all 2 texts"):
        execute(recipe("attribute", model_folder, path, f"sqlite:///{tmp_path}/none/m.db"), command="…")
    assert not (tmp_path / "none").exists()


def test_a_server_that_is_not_there_is_named_and_soon(model_folder, data_file):
    import time

    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"http://127\.0\.0\.1:9"):
        execute(recipe("attribute", model_folder, data_file, "http://127.0.0.1:9"), command="…")
    assert time.monotonic() - start < 20


def test_texts_that_are_cut_or_empty_are_counted(database, model_folder, tmp_path):
    from interpreto_mlops.workflows.job import Console

    path = tmp_path / "long.csv"
    pd.DataFrame({"review": ["good food . " * 40, "", "bad soup"], "stars": ["1", "2", "1"]}).to_csv(path, index=False)
    lines = []
    job = recipe("attribute", model_folder, path, database, methods=["occlusion"], metrics=["deletion"])
    execute(job, command="…", console=Console(write=lines.append))
    assert "  occlusion: 1 of 3 texts cut at 32 tokens; 1 of 3 texts have nothing to attribute and are skipped" in lines


def test_a_registered_model_is_explained_by_its_pinned_version(database, tiny_model, data_file):
    from interpreto_mlops.tracking.store import connect
    from interpreto_mlops.tracking.text_models import log_text_model

    store = connect(database, "jobs")
    log_text_model(store, None, tiny_model(), name="reviews", registered_model_name="reviews")
    store.client.set_registered_model_alias("reviews", "champion", 1)
    job = recipe("attribute", "models:/reviews@champion", data_file, database, max_texts=3, methods=["occlusion"])
    outcome = execute(job, command="…")
    client, runs = runs_of(database, outcome.suite)
    cell = next(run for run in runs if run.data.tags["interpreto.kind"] == "attributions")
    assert cell.data.tags["interpreto.model.uri"] == "models:/reviews/1"
    model_id = cell.data.tags["interpreto.model.id"]
    logged = client.get_logged_model(model_id)
    explained = {metric.key: metric.value for metric in logged.metrics}
    assert explained["explain/deletion"] == pytest.approx(cell.data.metrics["faithfulness/deletion"])
    assert (
        load_model("models:/reviews@champion", store=store).fingerprint
        == cell.data.tags["interpreto.model.fingerprint"]
    )


def test_the_holdout_depends_on_the_text_alone(texts):
    from interpreto_mlops.text.datasets import TextDataset

    many = tuple(f"{text} {i}" for i in range(40) for text in texts)
    fit, held = hold_out(TextDataset("d", many), 0.3)
    again, _ = hold_out(TextDataset("d", many[::-1]), 0.3)
    assert set(fit.texts) == set(again.texts)
    assert set(fit.texts) | set(held.texts) == set(many)
    assert not set(fit.texts) & set(held.texts)
    assert 0.15 < len(held) / len(many) < 0.45
    # Also of texts that were chosen by their hash, as the parts of `library_docs` are.
    chosen = tuple(text for text in many if hashlib.sha256(text.encode()).digest()[0] > 100)
    fit, held = hold_out(TextDataset("d", chosen), 0.3)
    assert 0.15 < len(held) / len(chosen) < 0.45
    few = TextDataset("d", tuple(texts))
    assert hold_out(few, 0.3) == (few, few)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "attribute", "model": "m"}, "data"),
        ({"kind": "attribute", "model": "m", "data": "d", "methds": []}, "methds: Extra inputs are not permitted"),
        ({"kind": "attribut", "model": "m", "data": "d"}, "'attribute', 'concepts'"),
        (
            {"kind": "concepts", "model": "m", "data": "d", "layers": [0], "n_concepts": [0]},
            "greater than or equal to 1",
        ),
        ([], "recipe"),
        ({"kind": "attribute", "model": "m", "data": "d", "methods": []}, "methods: List should have at least 1 item"),
        ({"kind": "concepts", "model": "m", "data": "d", "layers": []}, "layers: List should have at least 1 item"),
    ],
)
def test_recipes_are_typed(values, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_recipe(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "a: [", "\x00"])
def test_a_recipe_that_is_no_yaml_is_named(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        load_recipe(path)
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("attribute", {"n_random": 5}),
        ("attribute", {"seed": 3}),
        ("attribute", {"metrics": ["deletion"]}),
        ("concepts", {"holdout": 0.0}),
        ("concepts", {"granularity": "word"}),
    ],
)
def test_a_cell_is_its_full_configuration(database, model_folder, data_file, kind, change):
    """The tag by which a job goes on must differ when anything that decides the numbers does."""
    one = {"max_texts": 30, "layers": [0], "seeds": 1, "methods": ["pca"]} if kind == "concepts" else {"max_texts": 4}
    one |= {"methods": ["occlusion"]} if kind == "attribute" else {"options": {}}

    def cell(**more):
        outcome = execute(recipe(kind, model_folder, data_file, database, **{**one, **more}), command="…")
        _, runs = runs_of(database, outcome.suite)
        return next(run.data.tags["interpreto.cell"] for run in runs if run.data.tags["interpreto.kind"] != "report")

    assert cell() == cell()
    assert cell() != cell(**change)


def test_a_cell_of_concepts_repeats_by_its_recipe(database, model_folder, data_file, artifact):
    outcome = execute(recipe("concepts", model_folder, data_file, database), command="…")
    client, runs = runs_of(database, outcome.suite)
    chosen = next(run for run in runs if run.data.params.get("seed") == "1" and run.data.params["method"] == "topk_sae")
    again = execute(load_recipe(artifact(client, chosen, "recipe.yaml")), command="…")
    (cell,) = again.concepts
    assert cell.registered is None
    assert cell.dictionary.seed == 1
    assert cell.metrics["reconstruction/r2"] == pytest.approx(chosen.data.metrics["reconstruction/r2"], abs=1e-6)
