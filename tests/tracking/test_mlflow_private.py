"""What the package takes from MLflow's private modules is there and does what it is taken for."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.evaluation import EvaluationResult, ModelEvaluator
from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry

from interpreto_mlops.tracking import _mlflow_private as private
from interpreto_mlops.tracking.store import Store


def test_everything_named_is_there() -> None:
    for name in private.__all__:
        assert hasattr(private, name), name


def test_file_names_are_those_that_mlflow_reads() -> None:
    assert private.CONDA_ENV_FILE == "conda.yaml"
    assert private.PYTHON_ENV_FILE == "python_env.yaml"
    assert private.REQUIREMENTS_FILE == "requirements.txt"
    assert private.CONSTRAINTS_FILE == "constraints.txt"


def test_signatures_are_those_that_are_called() -> None:
    assert list(inspect.signature(private.save_example).parameters) == ["mlflow_model", "input_example", "path"]
    assert list(inspect.signature(private.validate_environment_arguments).parameters) == [
        "conda_env",
        "pip_requirements",
        "extra_pip_requirements",
    ]


def test_requirements_are_processed(tmp_path: Path) -> None:
    conda, pip, constraints = private.process_pip_requirements(["numpy==1"], None, ["einops"])
    assert (pip, constraints) == (["mlflow", "numpy==1", "einops"], []) or "numpy==1" in pip
    assert "einops" in pip
    again, listed, _ = private.process_conda_env(conda)
    assert again["dependencies"] == conda["dependencies"]
    assert "einops" in listed
    private.write_python_env(str(tmp_path / "python_env.yaml"))
    assert "python" in yaml.safe_load((tmp_path / "python_env.yaml").read_text())


def test_examples_are_saved(tmp_path: Path) -> None:
    model = Model()
    private.save_example(model, [{"a": 1.0}], str(tmp_path))
    assert (tmp_path / "serving_input_example.json").is_file()
    assert model.saved_input_example_info["artifact_path"] == "input_example.json"


def test_the_experiment_and_tags_of_start_run(store: Store) -> None:
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    assert private.current_experiment_id() == store.experiment_id
    assert {"mlflow.user", "mlflow.source.name", "mlflow.source.type"} <= set(private.context_tags())


@pytest.mark.slow
def test_a_request_is_one_try(server: str) -> None:
    status, text = private.get(server, "/health", 5)
    assert (status, text) == (200, "OK")


@pytest.mark.slow
def test_a_run_is_closed_without_a_word(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow.MlflowClient(server)
    run_id = client.create_run("0").info.run_id
    private.end_run(client, run_id, "KILLED")
    found = client.get_run(run_id).info
    assert found.status == "KILLED"
    assert found.end_time >= found.start_time
    assert capsys.readouterr().out == ""


def test_an_evaluator_can_tell_by_whom_it_is_asked(store: Store) -> None:
    """MLflow's evaluation passes neither the names that the user gave nor whose configuration it is."""
    asked: list[bool | None] = []

    class Asks(ModelEvaluator):
        @classmethod
        def can_evaluate(cls, *, model_type: str, evaluator_config: dict[str, Any], **kwargs: Any) -> bool:
            asked.append(private.evaluation_asks_for("asks"))
            return bool(asked[-1])

        def evaluate(self, **kwargs: Any) -> EvaluationResult:
            return EvaluationResult({"asked": 1.0}, {}, kwargs["run_id"])

    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    registry = _model_evaluation_registry._registry
    registry["asks"] = Asks
    try:
        call = functools.partial(mlflow.models.evaluate, None, [[0.0], [1.0]], model_type="any")
        for arguments, expected in (
            ({"evaluators": "asks"}, [True]),
            ({"evaluators": ["asks"], "evaluator_config": {"asks": {}}}, [True]),
            ({"evaluator_config": {"asks": {"a": 1}}}, [True, True]),
        ):
            asked.clear()
            assert call(**arguments).metrics == {"asked": 1.0}
            assert asked == expected
        for arguments in ({}, {"evaluator_config": {"a": 1}}, {"evaluator_config": {"default": {"a": 1}}}):
            asked.clear()
            with pytest.raises(MlflowException, match="could not be evaluated"):
                call(**arguments)
            assert asked == [False]
    finally:
        del registry["asks"]
    Asks.can_evaluate(model_type="any", evaluator_config={})
    assert asked[-1] is None
