"""Methods compared from Python and by recipe: one path, the same numbers, on real stores."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

import interpreto_mlops as im
from interpreto_mlops.attributions import AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.comparison import PAIR_COLUMNS, TABLE_COLUMNS
from interpreto_mlops.attributions.metrics import Comprehensiveness, Deletion, Insertion
from interpreto_mlops.errors import DataError, InputError, ModelOutputError, TextWarning, UnknownNameError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.workflows import together
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import load_recipe, parse_options, parse_recipe, parse_settings
from interpreto_mlops.workflows.together import explain_together, joined
from tests.visuals.hostile import PAYLOADS, assert_harmless

FEW = {"n_random": 3}


@pytest.fixture
def many(texts):
    rng = np.random.default_rng(1)
    words = " ".join(texts).split()
    return [" ".join(rng.choice(words, size=3 + i % 9)) for i in range(14)]


@pytest.fixture
def chunks_of_four(monkeypatch):
    monkeypatch.setattr(together, "_CHUNK", 4)


def client_of(uri):
    return MlflowClient(uri, registry_uri=uri)


def test_chunks_and_sharing_change_no_number(tiny_model, many, chunks_of_four):
    """What goes a few texts at a time, side by side, is what each method and metric gives alone."""
    model = tiny_model()
    methods = {"occlusion": Occlusion(model), "shap": KernelShap(model, n_perturbations=40)}
    methods["path"] = IntegratedGradients(model)
    metrics = [Deletion(model, **FEW), Insertion(model, **FEW), Comprehensiveness(model, **FEW)]
    texts = [*many[:5], "", *many[5:]]
    found = explain_together(methods, metrics, texts, {"targets": None})
    for label, method in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextWarning)
            alone = method(texts)
        assert [item.index for item in found[label].explanations] == list(range(len(texts)))
        for ours, theirs in zip(found[label].explanations, alone, strict=True):
            assert ours.text == theirs.text
            assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
        assert found[label].explanations.counters["evaluations_asked"] == alone.counters["evaluations_asked"]
        for metric, ours in zip(metrics, found[label].scores, strict=True):
            assert_same(ours, metric(found[label].explanations))


def assert_same(ours, expected):
    assert ours.name == expected.name
    assert ours.values == pytest.approx(expected.values, abs=1e-5, nan_ok=True)
    assert ours.random_values == pytest.approx(expected.random_values, abs=1e-5, nan_ok=True)
    assert ours.skipped == expected.skipped == {"no elements": 1}
    assert (ours.curve is None) == (expected.curve is None)
    if ours.curve is not None:
        assert ours.curve == pytest.approx(expected.curve, abs=1e-5)
        assert ours.random_curve == pytest.approx(expected.random_curve, abs=1e-5)


def test_methods_and_metrics_pay_once_for_what_they_share_however_many_texts_there_are(
    tiny_model, many, chunks_of_four, monkeypatch
):
    """With a table for a few texts only, all the evaluations of one text are still shared."""
    from interpreto_mlops.models import engine

    def rows(table_rows):
        monkeypatch.setattr(engine, "_TABLE_ROWS", table_rows)
        model = tiny_model()
        methods = {"occlusion": Occlusion(model), "shap": KernelShap(model, n_perturbations=2**11)}
        explain_together(methods, [Deletion(model, **FEW), Insertion(model, **FEW)], many, {})
        return model.engine.counters.evaluations_run

    model = tiny_model()
    distinct = sum(2 ** len(item) for item in Occlusion(model)(many))
    # KernelShap enumerates every coalition, so nothing that the others ask for is new.
    assert rows(2**18) <= distinct
    assert rows(2**14) <= distinct


def test_a_stream_that_fails_is_closed_and_the_error_names_the_text(tiny_model, many, chunks_of_four):
    import torch

    model = tiny_model()
    with torch.no_grad():
        model.embedding.weight[model.tokenizer.convert_tokens_to_ids("hated")] = float("nan")
    texts = [*[text.replace("hated", "loved") for text in many[:9]], "we hated it"]
    with pytest.raises(ModelOutputError, match="for text 9"):
        explain_together({"occlusion": Occlusion(model)}, [], texts, {})
    assert model.engine._shared is None


def test_compare_logs_one_run_a_method_and_a_report(tiny_model, many, database, unchanged, download, store):
    model = tiny_model()
    methods = ["occlusion", KernelShap(model, n_perturbations=16), KernelShap(model, n_perturbations=64, seed=1)]
    found = im.compare_methods(
        model, many, methods, ["deletion", Comprehensiveness(model, **FEW)], tracking_uri=database, n_random=3
    )
    labels = ["occlusion", "kernel_shap (n_perturbations=16, seed=0)", "kernel_shap (n_perturbations=64, seed=1)"]
    assert list(found.table.columns) == list(TABLE_COLUMNS)
    assert list(found.pairs.columns) == list(PAIR_COLUMNS)
    assert found.table["method"].tolist() == labels * 2
    assert len(found.pairs) == 6
    assert list(found.explanations) == labels

    client = client_of(database)
    report = client.get_run(found.report_run_id)
    assert report.info.status == "FINISHED"
    assert report.data.tags["interpreto.kind"] == "report"
    assert "compare_methods(" in report.data.tags["interpreto.command"]
    suite = report.data.tags["interpreto.suite"]
    runs = client.search_runs([report.info.experiment_id], f"tags.`interpreto.suite` = '{suite}'")
    assert {run.info.run_id for run in runs} == {found.report_run_id, *found.run_ids.values()}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for label, run_id in found.run_ids.items():
        run = client.get_run(run_id)
        assert run.info.run_name == f"{label} on texts"
        for name, result in found.results[label].items():
            assert run.data.metrics[f"faithfulness/{name}"] == pytest.approx(result.mean)
    cells = [run.data.tags["interpreto.cell"] for run in runs if "interpreto.cell" in run.data.tags]
    assert len(set(cells)) == 3

    folder = download(store, found.report_run_id) / "report"
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "comparison.png",
        "cost.png",
        "curves.png",
        "methods.json",
        "pairs.json",
    }
    shown = json.loads((folder / "methods.json").read_text())
    assert pd.DataFrame(shown["data"], columns=shown["columns"])["mean"].tolist() == found.table["mean"].tolist()
    page = assert_harmless((folder / "report.html").read_text(encoding="utf-8"))
    texts = [text for _, text in page.find("td")]
    for row in found.table.to_dict("records"):
        assert any(f"{row['low']:.3f} … {row['high']:.3f}" in text.replace("−", "-") for text in texts)
    assert any("paired differences between methods are significant" in text for _, text in page.find("summary"))
    assert len(page.find("img")) == 3


def test_the_command_compares_as_python_does(tiny_model, many, database, tmp_path):
    model = tiny_model()
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    pd.DataFrame({"text": many}).to_csv(tmp_path / "many.csv", index=False)
    values = {"model": str(tmp_path / "model"), "data": str(tmp_path / "many.csv"), "tracking_uri": database, **FEW}
    options = {"kernel_shap": {"n_perturbations": 24}, "comprehensiveness": {"bins": [0.2, 0.5]}}
    given = {"methods": ["occlusion", "kernel_shap"], "metrics": ["deletion", "comprehensiveness"], "options": options}
    outcome = execute(parse_recipe({"kind": "attribute", **values, **given}), command="…")
    options["comprehensiveness"]["bins"] = (0.2, 0.5)
    ours = im.compare_methods(model, many, given["methods"], given["metrics"], options=options, log=False, **FEW)
    drop = ["seconds", "evaluations"]
    pd.testing.assert_frame_equal(ours.table.drop(columns=drop), outcome.comparison.table.drop(columns=drop))
    pd.testing.assert_frame_equal(ours.pairs, outcome.comparison.pairs)
    # Each run repeats by its own recipe, the options of the metrics included.
    client = client_of(database)
    run_id = outcome.comparison.run_ids["kernel_shap"]
    recipe = load_recipe(client.download_artifacts(run_id, "recipe.yaml", str(tmp_path)))
    assert recipe.options == {"kernel_shap": {"n_perturbations": 24}, "comprehensiveness": {"bins": [0.2, 0.5]}}
    again = execute(recipe, command="…")
    old, new = (client.get_run(each) for each in (run_id, again.comparison.run_ids["kernel_shap"]))
    assert old.data.tags["interpreto.cell"] == new.data.tags["interpreto.cell"]


def test_without_runs_nothing_is_written_or_changed(tiny_model, many, unchanged):
    found = im.compare_methods(tiny_model(), iter(many[:3]), ["occlusion"], ["deletion"], log=False, **FEW)
    assert found.report_run_id is None
    assert found.run_ids == {}
    assert len(found.pairs) == 0
    assert found.table["texts"].tolist() == [3]


def test_with_nothing_configured_runs_go_beside_the_user(tiny_model, many):
    found = im.compare_methods(tiny_model(), many[:3], ["occlusion"], ["deletion"], **FEW)
    assert Path("interpreto-runs/mlflow.db").is_file()
    run = client_of("sqlite:///interpreto-runs/mlflow.db").get_run(found.report_run_id)
    assert run.info.status == "FINISHED"


def test_a_process_with_a_store_keeps_its_store_and_its_open_run(tiny_model, many, database):
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment("mine")
    with mlflow.start_run() as own:
        found = im.compare_methods(tiny_model(), many[:3], ["occlusion"], ["deletion"], **FEW)
        assert mlflow.active_run().info.run_id == own.info.run_id
    client = client_of(database)
    report = client.get_run(found.report_run_id)
    assert client.get_experiment(report.info.experiment_id).name == "mine"
    assert report.info.run_id != own.info.run_id
    assert client.get_run(own.info.run_id).data.metrics == {}
    assert not Path("interpreto-runs").exists()


def test_a_failure_marks_every_run_that_is_not_written(tiny_model, many, database):
    import torch

    model = tiny_model()
    with torch.no_grad():
        model.model.classifier.bias[0] = float("nan")
    with pytest.raises(ModelOutputError):
        im.compare_methods(model, many, ["occlusion", "kernel_shap"], ["deletion"], tracking_uri=database)
    client = client_of(database)
    runs = client.search_runs([client.get_experiment_by_name("interpreto").experiment_id])
    assert len(runs) == 3
    assert {run.info.status for run in runs} == {"FAILED"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"methods": ["magic"]}, UnknownNameError, "unknown attribution method 'magic'"),
        ({"methods": []}, InputError, "at least one method"),
        ({"methods": "occlusion"}, InputError, "a list of methods"),
        ({"methods": ["occlusion", "occlusion"]}, InputError, "'occlusion' is given twice"),
        ({"methods": [3]}, InputError, "not 3"),
        ({"metrics": ["deletion", "deletion"]}, InputError, "metric 'deletion' is given twice"),
        ({"metrics": "deletion"}, InputError, "a list of metrics"),
        ({"options": {"occlusion": {"windw": 2}}}, UnknownNameError, "option of 'occlusion' 'windw'; known: "),
        ({"options": {"lime": {"alpha": 2}}}, UnknownNameError, "'lime'"),
        ({"texts": []}, DataError, "all 0 texts"),
        ({"texts": "one"}, InputError, "a list of texts"),
        ({"texts": ["fine", None]}, InputError, "not None"),
        ({"targets": "nice"}, UnknownNameError, "unknown class 'nice'"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_sentence(tiny_model, change, error, words):
    given = {"texts": ["good food"], "methods": ["occlusion"], "metrics": ["deletion"], "log": False, **change}
    with pytest.raises(error, match=words) as caught:
        im.compare_methods(tiny_model(), **given)
    assert "\n" not in str(caught.value)


def test_a_method_of_another_model_is_refused(tiny_model):
    with pytest.raises(InputError, match="explains the model"):
        im.compare_methods(tiny_model(), ["good food"], [Occlusion(tiny_model())], ["deletion"], log=False)


def test_a_comparison_shows_itself_in_a_notebook(tiny_model, many):
    model = tiny_model()
    found = im.compare_methods(model, many[:4], ["occlusion", "kernel_shap"], ["deletion"], log=False, **FEW)
    page = assert_harmless(f"<html>{found._repr_html_()}</html>")
    assert any("Comparison(2 methods by 1 metrics)" in text for _, text in page.find("p"))
    assert len(found.plot().axes) == 1
    assert found.plot("seconds").axes[0].get_xlabel() == "seconds for one text"
    with pytest.raises(InputError, match="'evaluations', 'seconds', not 'money'"):
        found.plot("money")


def test_targets_may_come_from_a_column(tiny_model, many, database, tmp_path):
    model = tiny_model()
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    gold = [f"LABEL_{i % 3}" for i in range(len(many))]
    gold[2] = ""
    pd.DataFrame({"text": many, "gold": gold}).to_csv(tmp_path / "many.csv", index=False)
    values = {"model": str(tmp_path / "model"), "data": str(tmp_path / "many.csv"), "tracking_uri": database}
    recipe = {"kind": "attribute", **values, "target_column": "gold", "methods": ["occlusion"], "metrics": []}
    outcome = execute(parse_recipe(recipe), command="…")
    explained = outcome.comparison.explanations["occlusion"]
    predicted = Occlusion(model)(many)
    expected = [name or predicted[i].targets[0].name for i, name in enumerate(gold)]
    assert [item.targets[0].name for item in explained] == expected
    with pytest.raises(InputError, match="'target' and 'target_column'"):
        execute(parse_recipe({**recipe, "target": "LABEL_0"}), command="…")
    with pytest.raises(DataError, match="no column 'gould'"):
        execute(parse_recipe({**recipe, "target_column": "gould"}), command="…")
    other = TextDataset("d", tuple(many), targets=tuple(gold))
    assert other.digest != TextDataset("d", tuple(many)).digest
    assert other.head(3).targets == tuple(gold[:3])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["kernel_shap.n_perturbations=1000"], {"kernel_shap": {"n_perturbations": 1000}}),
        (["a.x=1e-3", "a.y=0.5", "b.z=true"], {"a": {"x": 0.001, "y": 0.5}, "b": {"z": True}}),
        (["a.x=none of it", "a.y=null", "a.z="], {"a": {"x": "none of it", "y": None, "z": None}}),
        (["a.bins=[0.1, 0.2]", "a.x='3'", "a.y=b=c"], {"a": {"bins": [0.1, 0.2], "x": "3", "y": "b=c"}}),
        (["a.x=1", "a.x=2"], {"a": {"x": 2}}),
        ([], {}),
    ],
)
def test_options_are_typed_as_yaml_is(settings, expected):
    assert parse_options(settings) == expected


@pytest.mark.parametrize("wrong", ["x", "=1", "a=1", "a.=1", ".b=1", "a.b"])
def test_an_option_of_another_form_is_refused(wrong):
    with pytest.raises(InputError, match=r"an option is METHOD\.NAME=VALUE, not"):
        parse_options([wrong])


def test_an_option_whose_value_is_no_yaml_is_refused():
    with pytest.raises(InputError, match=r"the value of 'a\.b' is not YAML"):
        parse_options(["a.b=["])
    assert parse_settings(["max_new_tokens=20", "do_sample=false"]) == {"max_new_tokens": 20, "do_sample": False}


def test_hostile_texts_and_labels_stay_text(tiny_model, database, download, store):
    model = tiny_model()
    model.model.config.id2label = dict(enumerate(PAYLOADS[:3]))
    found = im.compare_methods(
        model, PAYLOADS, ["occlusion"], ["deletion"], tracking_uri=database, name=PAYLOADS[0], **FEW
    )
    assert_harmless((download(store, found.report_run_id) / "report" / "report.html").read_text(encoding="utf-8"))
    folder = download(store, found.run_ids["occlusion"]) / "attributions"
    assert_harmless((folder / "attributions.html").read_text(encoding="utf-8"))
    assert [item.text for item in AttributionSet.load(folder)] == list(PAYLOADS)


def test_results_join_as_if_they_were_one(tiny_model, many):
    model = tiny_model()
    metric, explained = Insertion(model, **FEW), Occlusion(model)(many)
    whole = metric(explained)
    parts = joined([metric(explained[:5]), metric(explained[5:6]), metric(explained[6:])])
    assert parts.values == pytest.approx(whole.values, abs=1e-5)
    assert parts.better_than_random == pytest.approx(whole.better_than_random)
    assert parts.curve == pytest.approx(whole.curve, abs=1e-5)
    assert parts.interval() == pytest.approx(whole.interval(), abs=1e-5)
