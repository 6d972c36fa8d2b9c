"""Methods compared from Python and by recipe: one path, the same numbers, on real stores."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

import interpreto_mlops as im
from interpreto_mlops.attributions import AttributionSet, IntegratedGradients, KernelShap, Occlusion, Saliency
from interpreto_mlops.attributions.comparison import PAIR_COLUMNS, TABLE_COLUMNS
from interpreto_mlops.attributions.metrics import METRICS, Comprehensiveness, Deletion, Insertion, MaxSensitivity
from interpreto_mlops.cli import main
from interpreto_mlops.errors import DataError, InputError, ModelOutputError, TextWarning, UnknownNameError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.workflows import together
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import load_recipe, parse_options, parse_recipe, parse_settings
from interpreto_mlops.workflows.together import explain_together
from tests.conftest import WORDS
from tests.visuals.hostile import PAYLOADS, assert_harmless
from tests.workflows.writer import build_writer, save_writer

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
    found = explain_together(methods, dict.fromkeys(methods, metrics), texts, {"targets": None})
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


def test_methods_and_metrics_pay_once_for_what_they_share(tiny_model, chunks_of_four):
    """Two methods that enumerate every coalition, and metrics, cost no more than all coalitions once."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=8, replace=False)) for _ in range(10)]
    model = tiny_model()
    methods = {str(seed): KernelShap(model, n_perturbations=2**8, seed=seed) for seed in (0, 1)}
    metrics = [Deletion(model, **FEW), Insertion(model, **FEW)]
    explain_together(methods, dict.fromkeys(methods, metrics), texts, {})
    assert model.engine.counters.evaluations_asked > 2 * 10 * 2**8
    assert model.engine.counters.evaluations_run <= 10 * 2**8


def test_a_metric_that_fails_names_the_text_of_the_whole_data_set(tiny_model, many, chunks_of_four):
    import torch

    judged = tiny_model()
    other = tiny_model()
    with torch.no_grad():
        other.embedding.weight[other.tokenizer.convert_tokens_to_ids("hated")] = float("nan")
    texts = [*[text.replace("hated", "loved") for text in many[:9]], "we hated it"]
    with pytest.raises(ModelOutputError, match="for text 9"):
        metrics = {"occlusion": [Deletion(other, **FEW)]}
        explain_together({"occlusion": Occlusion(judged)}, metrics, texts, {})


def test_a_stream_that_fails_is_closed_and_the_error_names_the_text(tiny_model, many, chunks_of_four):
    import torch

    model = tiny_model()
    with torch.no_grad():
        model.embedding.weight[model.tokenizer.convert_tokens_to_ids("hated")] = float("nan")
    texts = [*[text.replace("hated", "loved") for text in many[:9]], "we hated it"]
    with pytest.raises(ModelOutputError, match="for text 9"):
        explain_together({"occlusion": Occlusion(model)}, {"occlusion": []}, texts, {})
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


def test_too_few_texts_are_said_to_be_too_few(tiny_model, many, database):
    client = client_of(database)
    for n, words in ((5, "5 texts are too few"), (8, "of 1 paired differences are significant")):
        found = im.compare_methods(
            tiny_model(), many[:n], ["occlusion", "saliency"], ["deletion"], tracking_uri=database, targets=1, **FEW
        )
        report = client.get_run(found.report_run_id)
        assert words in report.data.tags["mlflow.note.content"]
        assert "targets=1" in report.data.tags["interpreto.command"]


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


def test_metrics_that_need_the_method_or_rationales_come_at_the_end(tiny_model, many):
    """Max-sensitivity judges only what takes gradients: the other method is compared by the other metrics."""
    model = tiny_model()
    rationales = [[(0, 4)] for _ in many]
    found = im.compare_methods(
        model,
        many,
        ["occlusion", "saliency"],
        ["deletion", "max_sensitivity", "plausibility"],
        rationales=rationales,
        options={"max_sensitivity": {"n_draws": 2}},
        log=False,
        **FEW,
    )
    names = ["deletion", "max_sensitivity", "plausibility/auprc", "plausibility/token_f1"]
    by_metric = found.table.groupby("metric")["method"].apply(list).to_dict()
    assert set(names) <= set(by_metric)
    assert by_metric["max_sensitivity"] == ["saliency"]
    assert by_metric["deletion"] == ["occlusion", "saliency"]
    assert "n/a" in found._repr_html_()
    alone = MaxSensitivity(model, explainer=Saliency(model), n_draws=2, **FEW)(found.explanations["saliency"])
    ours = found.results["saliency"]["max_sensitivity"]
    assert ours.values == pytest.approx(alone.values, abs=1e-5, nan_ok=True)
    with pytest.raises(InputError, match="needs a method that takes gradients"):
        im.compare_methods(model, many[:2], ["occlusion"], ["max_sensitivity"], log=False, **FEW)
    with pytest.raises(InputError, match="needs rationales"):
        im.compare_methods(model, many[:2], ["occlusion"], ["plausibility"], log=False, **FEW)
    with pytest.raises(InputError, match="only Python's `compare_methods` takes"):
        parse_recipe({"kind": "attribute", "model": "x", "data": "y", "metrics": ["plausibility"]}).check()


def test_results_of_chunks_keep_what_is_of_all_texts(tiny_model, many, chunks_of_four):
    """The random draws and z of a result are of the whole data set, not of its parts."""
    model = tiny_model()
    metric = Deletion(model, **FEW)
    (found,) = explain_together({"o": Occlusion(model)}, {"o": [metric]}, many, {}).values()
    (ours,), whole = found.scores, metric(found.explanations)
    np.testing.assert_allclose(ours.random_draws, whole.random_draws, atol=1e-6)
    assert ours.z == pytest.approx(whole.z, rel=1e-3)
    assert ours.interval() == pytest.approx(whole.interval(), abs=1e-6)


@pytest.fixture
def writer():
    return build_writer()


def test_a_language_models_continuations_go_through_the_command_to_the_page(many, database, tmp_path):
    save_writer(tmp_path, many[:3])
    result = CliRunner().invoke(
        main,
        [
            *("attribute", "--model", str(tmp_path / "writer"), "--data", str(tmp_path / "prompts.csv")),
            *("--text-column", "prompt"),
            *("--tracking-uri", database, "--methods", "occlusion,saliency", "--metrics", "deletion,sufficiency"),
            *("--n-random", "3", "--inference-mode", "log_softmax"),
            *("--generate", "max_new_tokens=4", "--generate", "min_new_tokens=4", "--target-granularity", "token"),
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    client = client_of(database)
    runs = client.search_runs([client.get_experiment_by_name("interpreto").experiment_id])
    run = next(run for run in runs if run.data.params.get("method") == "occlusion")
    assert 0 <= run.data.metrics["faithfulness/deletion"] <= 1
    folder = Path(client.download_artifacts(run.info.run_id, "attributions", str(tmp_path)))
    assert (folder / "matrix.png").is_file()
    items = AttributionSet.load(folder)
    for item in items:
        assert len(item.targets) == 4
        # What a target can see grows from the prompt on; a token without text is no element.
        seen = item.valid.sum(axis=1)
        assert item.valid.tolist() == [[j < n for j in range(len(item))] for n in seen]
        assert seen[0] == (item.spans[:, 0] < item.boundary).sum()
        assert (np.diff(seen) >= 0).all()
    page = assert_harmless((folder / "attributions.html").read_text(encoding="utf-8"))
    assert len(page.find("td", "cell")) == sum(item.scores.size for item in items)
    examples = json.loads((folder / "examples.json").read_text())
    assert len(examples["data"]) == 12
    recipe = load_recipe(client.download_artifacts(run.info.run_id, "recipe.yaml", str(tmp_path)))
    assert recipe.generate == {"max_new_tokens": 4, "min_new_tokens": 4}


def test_all_metrics_are_those_that_need_no_more_than_the_explanations(tiny_model, many):
    found = im.compare_methods(tiny_model(), many[:2], ["occlusion"], "all", log=False, **FEW)
    wanted = {name for name, kind in METRICS.items() if not kind.costly and not kind.needs}
    assert wanted <= set(found.table["metric"])
    assert not {"sanity_check", "normalized_aopc", "plausibility/auprc"} & set(found.table["metric"])
    with pytest.raises(InputError, match="give a list of metrics, not one string"):
        im.compare_methods(tiny_model(), many[:2], ["occlusion"], "deletion", log=False)


def test_precision_is_a_flag_and_makes_another_cell(many, database, tmp_path):
    save_writer(tmp_path, many[:2])
    common = ["attribute", "--model", str(tmp_path / "writer"), "--data", str(tmp_path / "prompts.csv"), "-q"]
    common += ["--text-column", "prompt", "--tracking-uri", database, "--methods", "occlusion", "--metrics", "deletion"]
    common += ["--n-random", "2", "--generate", "max_new_tokens=2"]
    for flags in ([], ["--autocast", "bfloat16"], ["--dtype", "bfloat16"]):
        result = CliRunner().invoke(main, [*common, *flags], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    client = client_of(database)
    found = client.search_runs([client.get_experiment_by_name("interpreto").experiment_id])
    runs = [run for run in found if run.data.params.get("method") == "occlusion"][::-1]
    assert [run.data.params["method.dtype"] for run in runs] == ["float32", "float32", "bfloat16"]
    assert [run.data.params.get("method.autocast") for run in runs] == [None, "bfloat16", None]
    assert len({run.data.tags["interpreto.cell"] for run in runs}) == 3
    refused = CliRunner().invoke(main, [*common, "--dtype", "int8"])
    assert refused.exit_code == 1
    assert "dtype: Input should be 'float32', 'bfloat16', 'float16' or 'float64'" in refused.output


def test_the_recipe_of_generation_is_one_that_runs(many, database, tmp_path, monkeypatch):
    save_writer(tmp_path, many[:2])
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "generation.yaml")
    short = {"tracking_uri": database, "generate": {"max_new_tokens": 3}, "n_random": 2}
    outcome = execute(recipe.model_copy(update=short), command="…")
    assert outcome.comparison.table["method"].nunique() == len(recipe.methods)
    assert all(len(item.targets) <= 3 for item in outcome.comparison.explanations["occlusion"])


def test_given_continuations_and_contrasts_are_passed_on(writer, tiny_model, many):
    given = TextDataset("d", tuple(many[:2]), targets=("good food", ""))
    call = {"generation": {"max_new_tokens": 2, "min_new_tokens": 2}, "log": False, **FEW}
    found = im.compare_methods(writer, given, ["occlusion"], [], **call)
    first, second = found.explanations["occlusion"]
    assert [target.name for target in first.targets] == ["good", "food"]
    assert len(second.targets) == 2
    model = tiny_model()
    (against,) = im.compare_methods(
        model, many[:1], ["occlusion"], [], targets=0, contrast="LABEL_2", log=False
    ).explanations["occlusion"]
    assert against.targets[0].contrast_name == "LABEL_2"
    (a,), (b,) = (Occlusion(model)(many[:1], each) for each in (0, 2))
    assert against.scores == pytest.approx(a.scores - b.scores, abs=1e-5)
