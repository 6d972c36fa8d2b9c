"""All that is taken from MLflow's private modules, in one place; a contract test holds it to the installed MLflow.

MLflow has no public functions for what a third-party flavor needs to write a model folder, for one request to a server
with the user's credentials and a time-out, for the experiment and tags that its fluent calls would use, or for a trace
in another store than the process's own.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunStatus, Span, TraceData, TraceInfo
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _save_example
from mlflow.tracing.client import TracingClient
from mlflow.tracking._tracking_service import utils as tracking_service
from mlflow.tracking.context.registry import resolve_tags
from mlflow.tracking.fluent import _get_experiment_id
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME,
    _CONSTRAINTS_FILE_NAME,
    _PYTHON_ENV_FILE_NAME,
    _REQUIREMENTS_FILE_NAME,
    _process_conda_env,
    _process_pip_requirements,
    _PythonEnv,
    _validate_env_arguments,
)
from mlflow.utils.file_utils import get_total_file_size, write_to
from mlflow.utils.model_utils import (
    _validate_and_copy_code_paths,
    _validate_and_prepare_target_save_path,
)
from mlflow.utils.rest_utils import http_request

CONDA_ENV_FILE: str = _CONDA_ENV_FILE_NAME
PYTHON_ENV_FILE: str = _PYTHON_ENV_FILE_NAME
CONSTRAINTS_FILE: str = _CONSTRAINTS_FILE_NAME
REQUIREMENTS_FILE: str = _REQUIREMENTS_FILE_NAME

copy_code_paths: Callable[..., Any] = _validate_and_copy_code_paths
prepare_save_path: Callable[..., Any] = _validate_and_prepare_target_save_path
process_conda_env: Callable[..., Any] = _process_conda_env
process_pip_requirements: Callable[..., Any] = _process_pip_requirements
save_example: Callable[..., Any] = _save_example
total_file_size: Callable[..., int | None] = get_total_file_size
validate_environment_arguments: Callable[..., Any] = _validate_env_arguments
write_text: Callable[..., Any] = write_to

__all__ = [
    "CONDA_ENV_FILE",
    "CONSTRAINTS_FILE",
    "PYTHON_ENV_FILE",
    "REQUIREMENTS_FILE",
    "context_tags",
    "copy_code_paths",
    "current_experiment_id",
    "end_run",
    "evaluation_asks_for",
    "get",
    "prepare_save_path",
    "process_conda_env",
    "process_pip_requirements",
    "record_trace",
    "save_example",
    "total_file_size",
    "tracking_to",
    "validate_environment_arguments",
    "write_python_env",
    "write_text",
]


def get(host: str, endpoint: str, timeout: float) -> tuple[int, str]:
    """Return status and text of one GET request to an MLflow server, with the user's credentials and no retries."""
    request: Callable[..., Any] = http_request
    credentials: Callable[..., Any] = get_default_host_creds
    response = request(credentials(host), endpoint, "GET", max_retries=0, timeout=timeout, raise_on_status=False)
    return int(response.status_code), str(response.text)


def current_experiment_id() -> str | None:
    """Return the id of the experiment that `mlflow.start_run` would use."""
    identifier = _get_experiment_id()
    return None if identifier is None else str(identifier)


def context_tags() -> dict[str, Any]:
    """Return the tags that `mlflow.start_run` would set: user, source, git commit and those of installed plug-ins."""
    return dict(resolve_tags())


def end_run(client: MlflowClient, run_id: str, status: str) -> None:
    """Close a run as `set_terminated` does, without its lines on standard output, which show a server's credentials."""
    tracking: Any = client._tracking_client
    tracking.store.update_run_info(run_id, RunStatus.from_string(status), int(time.time() * 1000), None)


def record_trace(uri: str, info: TraceInfo, span: Span) -> None:
    """Write a whole trace of one span to a store, past the process's tracer and its destination."""
    client: Any = TracingClient(uri)
    kept = client.start_trace(info)
    try:
        client.log_spans(info.experiment_id, [span])
    except (NotImplementedError, MlflowException):
        # Older servers, and those without a database, keep spans as an artifact.
        client._upload_trace_data(kept, TraceData([span]))


def evaluation_asks_for(name: str) -> bool | None:
    """Return whether the user of `mlflow.models.evaluate`, which is calling our caller, asked for that evaluator.

    An evaluator is told neither the names that the user gave, nor whether a configuration is for it alone: with
    `evaluators=None` MLflow offers every evaluation to every evaluator, and the same flat configuration.

    Returns:
        None where the caller's caller is not MLflow's evaluation.
    """
    asking = sys._getframe(2)
    place = (asking.f_globals.get("__name__"), asking.f_code.co_name)
    if place == ("mlflow.models.evaluation.base", "_evaluate"):
        return True  # it was named, or said yes to the offer
    if place != ("mlflow.models.evaluation.base", "resolve_evaluators_and_configs"):
        return None
    offered, given = asking.f_locals["evaluators"], asking.f_locals["evaluator_config"]
    for_all = set(given) == set(offered) and all(config is given.get(name) for config in given.values())
    return name in given and not for_all


_tracking_lock = threading.Lock()


@contextmanager
def tracking_to(uri: str) -> Iterator[None]:
    """Let MLflow's global tracking address be `uri` for one call that asks it instead of its client, and put it back.

    Environment and tracing, which `mlflow.set_tracking_uri` changes too, stay as they are.
    """
    service: Any = tracking_service
    with _tracking_lock:
        before = service._tracking_uri
        service._tracking_uri = uri
        try:
            yield
        finally:
            service._tracking_uri = before


def write_python_env(path: str) -> None:
    """Write the running interpreter's version and build tools to a `python_env.yaml`."""
    environment: Any = _PythonEnv
    environment.current().to_yaml(path)
