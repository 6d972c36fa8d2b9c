"""Concepts explained from the command line and logged by hand: what the runs say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

import interpreto_mlops as im
from interpreto_mlops.attributions import AttributionSet, Occlusion
from interpreto_mlops.attributions.metrics import Deletion
from interpreto_mlops.cli import main
from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, concept_targets, top_words
from interpreto_mlops.tracking import run, write_attributions
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.workflows.compare import compare_methods
from tests.audit.explained import register


@pytest.fixture
def dictionary_folder(model_folder, texts, tmp_path):
    """A labelled dictionary of the model in the folder."""
    split = ModelWithSplitPoints(load_model(str(model_folder)), [1])
    rows = split.get_activations(texts, granularity="word", progress=False)[1]
    dictionary = PCAConcepts(n_concepts=4).fit(rows, progress=False)
    dictionary.descriptions = list(top_words(dictionary, rows))
    return dictionary.save(tmp_path / "dictionary")


def attribute(model_folder, data_file, database, *more):
    arguments = ["attribute", "--model", model_folder, "--data", data_file, "--text-column", "review"]
    arguments += ["--max-texts", 6, "--tracking-uri", database, "--experiment", "jobs", "--quiet", *more]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def runs_of(database):
    client = MlflowClient(database, registry_uri=database)
    experiment = client.get_experiment_by_name("jobs")
    return [] if experiment is None else client.search_runs([experiment.experiment_id])


def test_the_command_explains_concepts_of_a_stored_dictionary(model_folder, data_file, database, dictionary_folder):
    done = attribute(
        *(model_folder, data_file, database, "--dictionary", dictionary_folder, "--concepts", "3,1"),
        *("--methods", "occlusion,saliency", "--metrics", "deletion,comprehensiveness"),
    )
    assert done.exit_code == 0, done.output
    cells = {run.data.params["method"]: run for run in runs_of(database) if "method" in run.data.params}
    assert set(cells) == {"occlusion", "saliency"}
    for cell in cells.values():
        assert cell.data.tags["interpreto.layer"] == cell.data.params["layer"] == "bert.encoder.layer.1"
        assert cell.data.params["method.dictionary_uri"] == str(dictionary_folder)
        assert json.loads(cell.data.params["method.concepts"]) == [3, 1]
        assert cell.data.params["method.dictionary"] == "pca"
        assert np.isfinite(cell.data.metrics["concept_faithfulness/deletion"])
        # What policies and comparisons of models read is about outputs.
        assert not any(name.startswith("faithfulness/") for name in cell.data.metrics)
    client = MlflowClient(database)
    folder = client.download_artifacts(cells["occlusion"].info.run_id, "attributions")
    labels = [each.label for each in im.load_dictionary(dictionary_folder).descriptions]
    for item in AttributionSet.load(folder):
        assert [target.name for target in item.targets] == [labels[3], labels[1]]


def test_the_report_says_that_concepts_are_explained(model_folder, data_file, database, dictionary_folder, tmp_path):
    done = attribute(
        *(model_folder, data_file, database, "--dictionary", dictionary_folder, "--concepts", "3,1"),
        *("--methods", "occlusion,saliency", "--metrics", "deletion"),
    )
    assert done.exit_code == 0, done.output
    (report,) = [run for run in runs_of(database) if run.data.tags["interpreto.kind"] == "report"]
    page = MlflowClient(database).download_artifacts(report.info.run_id, "report/report.html", str(tmp_path))
    text = Path(page).read_text(encoding="utf-8")
    assert "concepts 1, 3 of a pca dictionary of bert.encoder.layer.1" in text
    assert "deletion (concepts)" in text
    # Codes have no bounds, and are no probabilities.
    assert "concept&#39;s activation while the elements go" in text
    assert "Area under the probability" not in text


def test_equal_jobs_have_equal_cells_and_other_concepts_another(model_folder, data_file, database, dictionary_folder):
    for concepts in ("1", "1", "2"):
        done = attribute(
            *(model_folder, data_file, database, "--dictionary", dictionary_folder, "--concepts", concepts),
            *("--methods", "occlusion", "--metrics", "deletion"),
        )
        assert done.exit_code == 0, done.output
    cells = [run.data.tags["interpreto.cell"] for run in runs_of(database) if "method" in run.data.params]
    assert len(cells) == 3
    assert len(set(cells)) == 2


def test_what_cannot_be_explained_is_refused_before_a_run_is_there(
    model_folder, data_file, database, dictionary_folder, tiny_model, tmp_path
):
    given = ("--dictionary", dictionary_folder)
    other = tmp_path / "other"
    tiny_model("bert", seed=3).model.save_pretrained(other)
    tiny_model("bert").tokenizer.save_pretrained(other)
    for folder, arguments, words in (
        (model_folder, given, "one of them is missing"),
        (model_folder, ("--concepts", "1"), "one of them is missing"),
        (model_folder, (*given, "--concepts", "9"), "there is no concept 9; the dictionary has 0 to 3"),
        (model_folder, (*given, "--concepts", "soup"), "concepts.0: Input should be a valid integer"),
        (model_folder, (*given, "--concepts", "1", "--target", "LABEL_1"), "said once"),
        (model_folder, (*given, "--concepts", "1", "--contrast", "LABEL_1"), "contrast is for a model's outputs"),
        (model_folder, ("--dictionary", tmp_path / "none", "--concepts", "1"), "there is no dictionary folder"),
        (other, (*given, "--concepts", "1"), "this is another one"),
    ):
        done = attribute(folder, data_file, database, *arguments)
        assert done.exit_code == 1, (arguments, done.output)
        assert words in done.output, done.output
    assert runs_of(database) == []


def test_explanations_of_concepts_can_be_logged_by_hand(model_folder, dictionary_folder, texts, database, monkeypatch):
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment("jobs")
    model, dictionary = load_model(str(model_folder)), im.load_dictionary(dictionary_folder)
    targets = concept_targets(ModelWithSplitPoints(model, [1]), dictionary, [0, 2])
    found = Occlusion(model)(texts, targets=targets)
    run_id = im.log_attributions(found, model=model, metrics=[Deletion(model, targets=targets)(found)])
    client = MlflowClient(database)
    data = client.get_run(run_id).data
    assert data.tags["interpreto.layer"] == "bert.encoder.layer.1"
    assert data.params["method.targets"] == "several"
    assert "concept_faithfulness/deletion_random" in data.metrics
    folder = client.download_artifacts(run_id, "attributions")
    assert AttributionSet.load(folder) == found
    label = found[0].targets[0].name
    assert label in Path(folder, "attributions.html").read_text(encoding="utf-8")
    monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", "1")
    hidden = client.download_artifacts(im.log_attributions(found, model=model, new_run=True), "attributions")
    assert label not in Path(hidden, "attributions.html").read_text(encoding="utf-8")


def test_no_policy_takes_what_drives_a_concept_for_what_drives_the_output(store, texts):
    version = register(store)
    split = ModelWithSplitPoints(version.model, [1])
    dictionary = PCAConcepts(n_concepts=2).fit(split.get_activations(texts, progress=False)[1], progress=False)
    targets = concept_targets(split, dictionary, [0, 1])
    for explained in (targets, None):
        found = Occlusion(version.model)(texts, targets=explained)
        scores = [Deletion(version.model, targets=explained)(found)]
        with run(store, kind="attributions", name="occlusion") as log:
            write_attributions(log, found, metrics=scores, model=version.model, draw=False)
        known = 0 if explained is targets else 1
        assert len(version.evidence().pieces) == known
        entity = MlflowClient(store.tracking_uri).get_logged_model(version.model.model_id)
        assert len([each for each in entity.metrics or [] if each.key == "explain/deletion"]) == known


def test_methods_are_compared_on_concepts(model_folder, dictionary_folder, texts):
    model, dictionary = load_model(str(model_folder)), im.load_dictionary(dictionary_folder)
    split = ModelWithSplitPoints(model, [1])
    many = [f"{texts[k % 5]} {texts[(k + 1) % 5]}" for k in range(40)]
    each = [concept_targets(split, dictionary, [k % 4]) for k in range(40)]
    for targets in (each, each[0]):
        found = compare_methods(model, many, ["occlusion", "saliency"], ["deletion"], targets=targets, log=False)
        assert set(found.table["metric"]) == {"concept_faithfulness/deletion"}
        said = found.explanations["occlusion"].parameters
        assert said["concepts"] == ([0] if targets is not each else "differs by text")
        assert said["layer"] == "bert.encoder.layer.1"
        means = found.table.set_index("method")["mean"]
        assert np.isfinite(means).all()
        alone = Occlusion(model)(many, targets=targets)
        assert Deletion(model, targets=targets)(alone).mean == pytest.approx(means["occlusion"], abs=1e-4)
