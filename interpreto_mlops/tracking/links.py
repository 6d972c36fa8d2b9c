"""Links into the MLflow UI, and the command that opens it on a store."""

from __future__ import annotations

import shlex
import sys
from urllib.parse import quote

from interpreto_mlops.tracking.addresses import is_http
from interpreto_mlops.tracking.store import Store

DEFAULT_UI = "http://127.0.0.1:5000"

# The UI opens in its mode for language model traces, which hides the charts and models of these runs.
_MODE = "?workflowType=machine_learning"


def ui_address(store: Store) -> str:
    """Return where the UI of a store is: the server itself, or where `ui_command` serves it."""
    return store.shown if is_http(store.tracking_uri) else DEFAULT_UI


def experiment_url(store: Store, experiment_id: str | None = None) -> str:
    """Return the link to the table of an experiment's runs."""
    return f"{ui_address(store)}/#/experiments/{quote(experiment_id or store.experiment_id)}/runs{_MODE}"


def run_url(store: Store, run_id: str, experiment_id: str | None = None) -> str:
    """Return the link to a run."""
    experiment = quote(experiment_id or store.experiment_id)
    return f"{ui_address(store)}/#/experiments/{experiment}/runs/{quote(run_id)}{_MODE}"


def logged_models_url(store: Store) -> str:
    """Return the link to the logged models of the experiment, the dictionaries among them."""
    return f"{ui_address(store)}/#/experiments/{quote(store.experiment_id)}/models{_MODE}"


def logged_model_url(store: Store, model_id: str) -> str:
    """Return the link to a logged model."""
    return f"{ui_address(store)}/#/experiments/{quote(store.experiment_id)}/models/{quote(model_id)}{_MODE}"


def version_url(store: Store, name: str, version: str | int) -> str:
    """Return the link to a registered model's version."""
    return f"{ui_address(store)}/#/models/{quote(name, safe='')}/versions/{quote(str(version))}{_MODE}"


def ui_command(store: Store) -> str | None:
    """Return the command that serves the UI of a database store at `DEFAULT_UI`, or None when a server already does."""
    if is_http(store.tracking_uri):
        return None
    port = DEFAULT_UI.rsplit(":", 1)[1]
    arguments = ["-m", "mlflow", "server", "--backend-store-uri", store.shown, "--host", "127.0.0.1", "--port", port]
    return shlex.join([sys.executable, *arguments])
