"""The evaluator plug-in, through MLflow's own evaluate() and the installed entry point."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import transformers
from mlflow.exceptions import MlflowException
from mlflow.models import MetricThreshold
from mlflow.models.evaluation import EvaluationResult, ModelEvaluator, list_evaluators
from mlflow.models.evaluation.base import resolve_evaluators_and_configs
from mlflow.models.evaluation.validation import ModelValidationFailedException
from mlflow.utils.file_utils import local_file_uri_to_path

import interpreto_mlops as im
from interpreto_mlops.attributions import Lime, Occlusion
from interpreto_mlops.attributions.metrics import Deletion, Insertion
from interpreto_mlops.errors import InputError, IntegrityError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import LoggedTextModel, load_model, log_text_model
from interpreto_mlops.tracking.evaluator import MODEL_TYPES, InterpretoEvaluator
from interpreto_mlops.tracking.evaluator_config import EvaluatorConfig
from interpreto_mlops.tracking.store import Store, connect

# Of MLflow itself, on pandas 3 and where a model of Python is saved.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword in"),
    pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0"),
    pytest.mark.filterwarnings("ignore:Precision is ill-defined"),
    pytest.mark.filterwarnings("ignore:.*is deprecated since 3.4.0:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*type hint:UserWarning"),
]

HOSTILE = "<script>window.pwned=1</script> the food was never great | `code` {{7*7}}"
TYPE = "text-classifier"
QUICK = {"methods": ["occlusion"], "metrics": ["deletion", "insertion"], "n_random": 3}
KEYS = {f"faithfulness/{name}{ending}" for name in ("deletion", "insertion") for ending in ("", "_random")}


@pytest.fixture
def frame(texts: list[str], model: TextModel) -> pd.DataFrame:
    labels = [model.labels[place % 3] for place in range(len(texts) + 1)]
    return pd.DataFrame({"text": [*texts, HOSTILE], "stars": range(len(texts) + 1), "label": labels})


@pytest.fixture
def data(frame: pd.DataFrame) -> mlflow.data.pandas_dataset.PandasDataset:
    return mlflow.data.from_pandas(frame, targets="label", name="reviews", digest="d" * 32)


def evaluated(uri: Any, data: Any, config: dict[str, Any] | None = None, **options: Any) -> EvaluationResult:
    given = {"model_type": TYPE, "evaluators": "interpreto", **options}
    return mlflow.models.evaluate(uri, data, evaluator_config=QUICK if config is None else config, **given)


def expected(model: TextModel, texts: list[str], explainer: Any = Occlusion) -> dict[str, float]:
    """The metrics, computed without MLflow."""
    explanations = explainer(model)(texts)
    values = {}
    for metric in (Deletion, Insertion):
        result = metric(model, n_random=3)(explanations)
        values[f"faithfulness/{result.name}"] = result.mean
        values[f"faithfulness/{result.name}_random"] = result.random_mean
    return values


class TestEntryPoint:
    def test_mlflow_finds_the_evaluator(self) -> None:
        (found,) = entry_points(group="mlflow.model_evaluator", name="interpreto")
        assert found.load() is InterpretoEvaluator
        assert "interpreto" in list_evaluators()
        assert issubclass(InterpretoEvaluator, ModelEvaluator)

    @pytest.mark.slow
    def test_listing_evaluators_loads_nothing_heavy(self) -> None:
        code = (
            "import sys; from mlflow.models import evaluation; import mlflow.models.evaluation.default_evaluator; "
            "before = set(sys.modules); assert 'interpreto' in evaluation.list_evaluators(); "
            "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
            "assert 'interpreto_mlops' in new, new; "
            "print(sorted(new & {'torch', 'transformers', 'nnsight', 'overcomplete', 'safetensors', 'jinja2'}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]"


class TestInvitation:
    @pytest.mark.parametrize(
        "config",
        [None, {}, {"log_model_explainability": False}, {"seed": 0, "methods": ["occlusion"]}, {"default": {"a": 1}}],
    )
    def test_nothing_is_claimed_uninvited(self, user: Store, config: dict[str, Any] | None) -> None:
        for model_type in (*MODEL_TYPES, "regressor", None):
            names = [bundle.name for bundle in resolve_evaluators_and_configs(None, config, model_type)]
            assert "interpreto" not in names
            assert "default" in names or model_type != "text"

    @pytest.mark.parametrize("config", [{}, {"max_texts": 3}, {"metods": ["occlusion"]}])
    def test_a_configuration_by_name_invites(self, user: Store, config: dict[str, Any]) -> None:
        bundles = resolve_evaluators_and_configs(None, {"interpreto": config}, TYPE)
        assert {bundle.name: bundle.config for bundle in bundles}["interpreto"] == config
        assert "interpreto" not in [
            bundle.name for bundle in resolve_evaluators_and_configs(None, {"interpreto": config}, "regressor")
        ]

    def test_asked_directly(self) -> None:
        ask = InterpretoEvaluator.can_evaluate
        assert ask(model_type=TYPE, evaluator_config={"methods": ["occlusion"]})
        assert not ask(model_type=TYPE, evaluator_config={})
        assert not ask(model_type=TYPE, evaluator_config=None)
        assert not ask(model_type="regressor", evaluator_config={"methods": ["occlusion"]})

    def test_an_evaluation_of_others_is_as_without_the_plugin(self, user: Store) -> None:
        """No model of transformers, no texts: a plug-in that took part would fail."""
        numbers = pd.DataFrame({"x": [0.0, 1.0, 1.0], "label": [0, 1, 0]})
        result = mlflow.models.evaluate(
            lambda rows: rows["x"].astype(int).to_numpy(),
            numbers,
            targets="label",
            model_type="classifier",
            evaluator_config={"log_model_explainability": False},
        )
        assert result.metrics["accuracy_score"] == pytest.approx(2 / 3)
        assert not [name for name in result.metrics if name.startswith("faithfulness")]

    def test_named_without_a_configuration(
        self, logged: LoggedTextModel, data: Any, frame: pd.DataFrame, model: TextModel
    ) -> None:
        result = mlflow.models.evaluate(logged.uri, data, model_type=TYPE, evaluators="interpreto")
        names = EvaluatorConfig.model_fields["metrics"].default
        assert set(result.metrics) == {f"faithfulness/{name}{end}" for name in names for end in ("", "_random")}
        listed = mlflow.models.evaluate(logged.uri, data, model_type=TYPE, evaluators=["interpreto"])
        assert listed.metrics == result.metrics

    def test_other_types_of_models_are_refused_by_mlflow(self, logged: LoggedTextModel, data: Any) -> None:
        with pytest.raises(MlflowException, match="could not be evaluated"):
            evaluated(logged.uri, data, model_type="regressor")


class TestEvidence:
    def test_metrics_are_those_of_the_methods(
        self, user: Store, logged: LoggedTextModel, data: Any, frame: pd.DataFrame, model: TextModel
    ) -> None:
        result = evaluated(f"models:/{logged.model_id}", data)
        assert result.metrics == pytest.approx(expected(model, list(frame["text"])))
        assert set(result.metrics) == KEYS

    @pytest.mark.parametrize("form", ["models:/{id}", "models:/reviews/1", "models:/reviews@champion", "pyfunc"])
    def test_run_and_model_are_linked_with_the_data(
        self, user: Store, logged: LoggedTextModel, data: Any, form: str
    ) -> None:
        user.client.set_registered_model_alias("reviews", "champion", "1")
        given = mlflow.pyfunc.load_model(logged.uri) if form == "pyfunc" else form.format(id=logged.model_id)
        with mlflow.start_run() as active:
            result = evaluated(given, data)
            assert mlflow.active_run().info.run_id == active.info.run_id
        found = user.client.get_run(active.info.run_id)
        assert found.info.status == "FINISHED"
        assert len(user.client.search_runs([user.experiment_id])) == 1
        assert {name: found.data.metrics[name] for name in KEYS} == pytest.approx(result.metrics)
        assert found.data.metrics["cost/evaluations_run"] > 0
        assert len(user.client.get_metric_history(active.info.run_id, "faithfulness/deletion")) == 1
        (entry,) = found.inputs.dataset_inputs
        assert (entry.dataset.name, entry.dataset.digest) == ("reviews", "d" * 32)
        assert {each.model_id for each in found.inputs.model_inputs} == {logged.model_id}
        linked = user.client.get_logged_model(logged.model_id).metrics
        assert {each.key for each in linked} >= KEYS | {"explain/deletion", "explain/insertion"}
        for each in linked:
            if each.key.startswith("curve/"):
                continue  # MLflow hangs what has no model on the model that is evaluated
            assert (each.dataset_name, each.dataset_digest, each.run_id) == ("reviews", "d" * 32, active.info.run_id)
        tags = found.data.tags
        assert tags["interpreto.kind"] == "attributions"
        assert tags["interpreto.model.uri"] == f"models:/{logged.model_id}"
        assert tags["interpreto.model.fingerprint"] == load_model(logged.uri).fingerprint
        assert found.data.params["method"] == "occlusion"
        assert "better" in tags["mlflow.note.content"]

    def test_artifacts_are_mlflows(
        self, user: Store, logged: LoggedTextModel, data: Any, tmp_path: Path, download: Callable[[Store, str], Path]
    ) -> None:
        result = evaluated(logged.uri, data)
        (found,) = user.client.search_runs([user.experiment_id])
        folder = download(user, found.info.run_id)
        page = (folder / "attributions" / "attributions.html").read_text("utf-8")
        assert result.artifacts["attributions"].content == page
        assert "awful" in page
        assert "<script>window.pwned" not in page
        table = result.artifacts["examples"].content
        assert table == json.loads((folder / "attributions" / "examples.json").read_text("utf-8"))
        assert len(table["data"]) == 6
        assert (folder / "attributions" / "attributions.parquet").is_file()
        assert (folder / "attributions" / "scores.parquet").is_file()
        result.save(tmp_path / "kept")
        kept = EvaluationResult.load(tmp_path / "kept")
        assert kept.metrics == result.metrics
        assert {name: each.content for name, each in kept.artifacts.items()} == {
            name: each.content for name, each in result.artifacts.items()
        }

    def test_several_methods_stand_side_by_side(
        self,
        user: Store,
        logged: LoggedTextModel,
        data: Any,
        frame: pd.DataFrame,
        model: TextModel,
        download: Callable[[Store, str], Path],
        tmp_path: Path,
    ) -> None:
        config = {**QUICK, "methods": ["occlusion", "lime"], "options": {"lime": {"n_perturbations": 50}}}
        result = evaluated(logged.uri, data, config)
        lime = expected(model, list(frame["text"]), lambda model: Lime(model, n_perturbations=50))
        own = {"occlusion": expected(model, list(frame["text"])), "lime": lime}
        assert result.metrics == pytest.approx(
            {f"{method}/{key}": value for method, values in own.items() for key, value in values.items()}
        )
        (found,) = user.client.search_runs([user.experiment_id])
        assert found.data.params["method"] == "occlusion, lime"
        assert found.data.params["method.lime.n_perturbations"] == "50"
        folder = download(user, found.info.run_id) / "attributions"
        for method in ("occlusion", "lime"):
            assert im.attributions.AttributionSet.load(folder / method).method == method
            assert found.data.metrics[f"{method}/cost/evaluations_run"] > 0
            assert user.client.get_metric_history(found.info.run_id, f"{method}/curve/deletion")
        table = result.artifacts["examples"].content
        assert {row[table["columns"].index("method")] for row in table["data"]} == {"occlusion", "lime"}
        result.save(tmp_path / "kept")
        assert EvaluationResult.load(tmp_path / "kept").artifacts["examples"].content == table
        explained = {each.key for each in user.client.get_logged_model(logged.model_id).metrics}
        assert {"explain/lime-deletion", "lime/faithfulness/deletion"} <= explained

    def test_beside_the_default_evaluator(self, user: Store, model: TextModel, frame: pd.DataFrame, data: Any) -> None:
        """It needs a model that returns labels alone, which the transformers flavor does not."""
        given = mlflow.pyfunc.load_model(_saved(Wraps(network=model.model, tokens=model.tokenizer)))
        result = evaluated(
            given,
            data,
            {"default": {"log_model_explainability": False}, "interpreto": QUICK},
            evaluators=["default", "interpreto"],
            model_type="classifier",
        )
        assert KEYS | {"accuracy_score", "f1_score"} <= set(result.metrics)
        assert result.metrics["accuracy_score"] == np.mean(frame["label"] == "LABEL_0")
        assert {"attributions", "examples", "confusion_matrix"} <= set(result.artifacts)

    def test_the_first_texts_only(self, user: Store, logged: LoggedTextModel, data: Any, frame: pd.DataFrame) -> None:
        model = load_model(logged.uri)
        result = evaluated(logged.uri, data, {**QUICK, "max_texts": 2})
        assert result.metrics == pytest.approx(expected(model, list(frame["text"])[:2]))
        (found,) = user.client.search_runs([user.experiment_id])
        assert found.data.params["method.max_texts"] == "2"

    def test_a_run_holds_one_explanation(self, user: Store, logged: LoggedTextModel, data: Any) -> None:
        with mlflow.start_run() as active:
            first = evaluated(logged.uri, data)
            with pytest.raises(InputError, match="already holds attributions"):
                evaluated(logged.uri, data, {**QUICK, "granularity": "token"})
        found = user.client.get_run(active.info.run_id).data
        assert {name: found.metrics[name] for name in KEYS} == pytest.approx(first.metrics)
        assert found.params["granularity"] == "word"

    @pytest.mark.slow
    def test_through_a_server(self, server: str, model: TextModel, data: Any, frame: pd.DataFrame) -> None:
        mlflow.set_tracking_uri(server)
        store = connect(server, "evaluations")
        mlflow.set_experiment(experiment_id=store.experiment_id)
        logged = log_text_model(store, None, model, name="reviews", registered_model_name="evaluated")
        config = {**QUICK, "methods": ["occlusion", "saliency"]}
        for form in (f"models:/{logged.model_id}", logged.uri):
            result = evaluated(form, data, config)
            assert {f"occlusion/{key}" for key in KEYS} < set(result.metrics)
            assert "awful" in result.artifacts["attributions"].content
        for run in store.client.search_runs([store.experiment_id]):
            found = store.client.get_run(run.info.run_id)
            assert {each.model_id for each in found.inputs.model_inputs} == {logged.model_id}
            assert {name: found.data.metrics[name] for name in result.metrics} == pytest.approx(result.metrics)
            assert found.data.tags["interpreto.model.id"] == logged.model_id
        linked = store.client.get_logged_model(logged.model_id).metrics
        assert len([each for each in linked if each.key == "saliency/faithfulness/deletion"]) == 2


class TestGate:
    @pytest.mark.parametrize(("distance", "passes"), [(1e-3, True), (-1e-3, False)])
    def test_on_faithfulness(self, logged: LoggedTextModel, data: Any, distance: float, passes: bool) -> None:
        """The threshold lies just above or below what was measured; a lower deletion is better."""
        result = evaluated(logged.uri, data)
        most = result.metrics["faithfulness/deletion"] + distance
        gate = {"faithfulness/deletion": MetricThreshold(threshold=most, greater_is_better=False)}
        if passes:
            mlflow.validate_evaluation_results(gate, result)
        else:
            with pytest.raises(ModelValidationFailedException, match="faithfulness/deletion value threshold"):
                mlflow.validate_evaluation_results(gate, result)

    def test_against_a_champion(
        self, user: Store, logged: LoggedTextModel, data: Any, tiny_model: Callable[..., TextModel]
    ) -> None:
        other = log_text_model(user, None, tiny_model(seed=1), name="other")
        results = [evaluated(each.uri, data) for each in (logged, other)]
        results.sort(key=lambda result: result.metrics["faithfulness/insertion"])
        worse, better = results
        gate = {"faithfulness/insertion": MetricThreshold(min_absolute_change=1e-6, greater_is_better=True)}
        mlflow.validate_evaluation_results(gate, better, worse)
        with pytest.raises(ModelValidationFailedException, match="minimum absolute change"):
            mlflow.validate_evaluation_results(gate, worse, better)


class TestConfiguration:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"metods": ["lime"]}, r"'metods'; known: 'methods', 'metrics', 'text_column', 'max_texts'"),
            ({"methods": ["grad_cam"]}, "unknown attribution method 'grad_cam'"),
            ({"metrics": ["roar"]}, "unknown attribution metric 'roar'"),
            ({"metrics": ["plausibility"]}, "'plausibility' needs rationales"),
            ({"methods": []}, "methods: .*at least 1"),
            ({"methods": "lime"}, "methods: .*list, not 'lime'"),
            ({"methods": ["lime", "lime"]}, "'lime' twice"),
            ({"max_texts": 0}, "max_texts: .*, not 0"),
            ({"max_texts": "5"}, "max_texts: .*integer, not '5'"),
            ({"options": {"lime": {"n": 1}}}, "unknown method or metric in options 'lime'; known: 'occlusion'"),
            ({"options": {"occlusion": {"n": 1}}}, "unknown option of 'occlusion' 'n'"),
            ({"text_column": "body"}, r"unknown text_column 'body'; known: 'text', 'stars'"),
            ({"text_column": "stars"}, "'stars' does not hold texts"),
            ({"granularity": "page"}, "'page'"),
            ({"target": "purple"}, "'purple'"),
        ],
    )
    def test_is_refused_before_anything_is_written(
        self, user: Store, logged: LoggedTextModel, data: Any, config: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            evaluated(logged.uri, data, config)
        (found,) = user.client.search_runs([user.experiment_id])
        assert "interpreto.kind" not in found.data.tags
        assert not user.client.list_artifacts(found.info.run_id)
        assert not found.data.metrics

    def test_every_key_reaches_what_it_is_for(self, user: Store, logged: LoggedTextModel, data: Any) -> None:
        config = {
            "methods": ["lime"],
            "metrics": ["sufficiency", "max_sensitivity"],
            "granularity": "token",
            "inference_mode": "softmax",
            "replacement": "unk",
            "seed": 3,
            "n_random": 2,
            "target": "LABEL_2",
            "truncation": False,
            "text_column": "text",
            "max_texts": 1,
            "options": {"lime": {"n_perturbations": 7}, "sufficiency": {"joint": True}},
        }
        assert {*config} == {*EvaluatorConfig.model_fields}
        with pytest.raises(InputError, match="gradients"):
            evaluated(logged.uri, data, config)  # the explainer reached max_sensitivity, which judges gradients only
        result = evaluated(logged.uri, data, {**config, "metrics": ["sufficiency"]})
        assert set(result.metrics) == {"faithfulness/sufficiency", "faithfulness/sufficiency_random"}
        found = max(user.client.search_runs([user.experiment_id]), key=lambda each: each.info.start_time).data
        assert {
            "granularity": "token",
            "inference_mode": "softmax",
            "seed": "3",
            "method.n_perturbations": "7",
            "method.targets": "LABEL_2",
        }.items() <= found.params.items()
        kept = result.artifacts["attributions"].uri.replace("attributions.html", "metrics.json")
        said = mlflow.artifacts.load_dict(kept)["sufficiency"]
        assert {"replacement": "unk", "n_random": 2, "seed": 3, "joint": True}.items() <= said["parameters"].items()
        assert said["texts"] == 1


class TestData:
    @pytest.mark.parametrize("kind", ["array", "one column", "missing"])
    def test_other_forms(
        self, user: Store, logged: LoggedTextModel, model: TextModel, texts: list[str], kind: str
    ) -> None:
        given: Any = {
            "array": np.asarray(texts, dtype=object)[:, None],
            "one column": pd.DataFrame({"any name": texts}),
            "missing": pd.DataFrame({"text": [*texts[:2], None, *texts[2:]]}),
        }[kind]
        if kind == "missing":
            with pytest.warns(UserWarning, match="nothing to attribute"):
                result = evaluated(logged.uri, given)
        else:
            result = evaluated(logged.uri, given)
        assert result.metrics == pytest.approx(expected(model, texts))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"a": ["x"], "b": ["y"]}, r"several columns of texts, \['a', 'b'\]; name one"),
            ({"a": [1], "b": [2.0]}, r"no column of texts; name one of \['a', 'b'\]"),
        ],
    )
    def test_which_column_is_asked(
        self, user: Store, logged: LoggedTextModel, given: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            evaluated(logged.uri, pd.DataFrame(given))


class Wraps(mlflow.pyfunc.PythonModel):
    """A model of the user's own around whatever it is given."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def predict(self, context: Any, model_input: list[str]) -> list[str]:
        return ["LABEL_0"] * len(model_input)


class TestModels:
    @pytest.mark.parametrize("parts", ["pipeline", "network and tokenizer"])
    def test_a_pyfunc_around_a_pipeline(
        self, user: Store, model: TextModel, frame: pd.DataFrame, data: Any, parts: str, tmp_path: Path
    ) -> None:
        if parts == "pipeline":
            pipeline = transformers.pipeline("text-classification", model=model.model, tokenizer=model.tokenizer)
            wrapped = Wraps(pipe=pipeline, threshold=0.5)
        else:
            wrapped = Wraps(network=model.model, tokens=model.tokenizer)
        mlflow.pyfunc.save_model(str(tmp_path / "model"), python_model=wrapped, pip_requirements=["mlflow"])
        result = evaluated(mlflow.pyfunc.load_model(str(tmp_path / "model")), data)
        assert result.metrics == pytest.approx(expected(model, list(frame["text"])))
        (found,) = user.client.search_runs([user.experiment_id])
        assert found.data.tags["interpreto.model.fingerprint"] == model.fingerprint
        assert {name: found.data.metrics[name] for name in KEYS} == pytest.approx(result.metrics)

    @pytest.mark.parametrize("held", ["nothing", "two pipelines"])
    def test_none_or_several_are_refused(self, user: Store, model: TextModel, data: Any, held: str) -> None:
        pipelines = [
            transformers.pipeline("text-classification", model=model.model, tokenizer=model.tokenizer) for _ in range(2)
        ]
        wrapped = Wraps() if held == "nothing" else Wraps(a=pipelines[0], b=pipelines[1])
        given = mlflow.pyfunc.load_model(_saved(wrapped))
        with pytest.raises(InputError, match=f"it holds {0 if held == 'nothing' else 2} and"):
            evaluated(given, data)

    def test_a_function_or_no_model_is_refused(self, user: Store, frame: pd.DataFrame) -> None:
        with pytest.raises(InputError, match="it holds 0 and 0"):
            evaluated(lambda rows: ["LABEL_0"] * len(rows), frame[["text"]])
        with pytest.raises(InputError, match="was given none"):
            evaluated(None, frame[["text", "label"]], predictions="label")

    def test_a_copy_from_another_store(
        self, user: Store, logged: LoggedTextModel, data: Any, tmp_path: Path, migrated: Path
    ) -> None:
        folder = mlflow.artifacts.download_artifacts(logged.uri, dst_path=str(tmp_path))
        first = evaluated(logged.uri, data)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "mlflow.db").write_bytes(migrated.read_bytes())
        other = connect(f"sqlite:///{elsewhere}/mlflow.db", "tests")
        mlflow.set_tracking_uri(other.tracking_uri)
        mlflow.set_experiment(experiment_id=other.experiment_id)
        result = mlflow.models.evaluate(folder, data, model_type=TYPE, evaluators="interpreto", evaluator_config=QUICK)
        assert result.metrics == pytest.approx(first.metrics)
        (found,) = other.client.search_runs([other.experiment_id])
        assert {name: found.data.metrics[name] for name in KEYS} == pytest.approx(result.metrics)

    def test_a_changed_model_is_refused(self, user: Store, logged: LoggedTextModel, data: Any) -> None:
        given = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
        place = local_file_uri_to_path(user.client.get_logged_model(logged.model_id).artifact_location)
        (weights,) = Path(place).rglob("model.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
        with pytest.raises(IntegrityError):
            evaluated(given, data)


def _saved(wrapped: Wraps) -> str:
    folder = str(Path.cwd() / "model")
    mlflow.pyfunc.save_model(folder, python_model=wrapped, pip_requirements=["mlflow"])
    return folder


def test_the_documentation_runs(user: Store, cebab_model: TextModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Its code, in order, on a trained classifier."""
    log_text_model(user, None, cebab_model, name="reviews", registered_model_name="reviews")
    user.client.set_registered_model_alias("reviews", "champion", "1")
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/evaluation.md", "exec"), names)
    assert "attributions.html" in capsys.readouterr().out
    kinds = [each.data.tags["interpreto.kind"] for each in user.client.search_runs([user.experiment_id])]
    assert sorted(kinds) == ["attributions", "attributions", "concepts"]
    for key in EvaluatorConfig.model_fields:
        assert f"`{key}`" in page
    for model_type in MODEL_TYPES:
        assert f"`{model_type}`" in page
