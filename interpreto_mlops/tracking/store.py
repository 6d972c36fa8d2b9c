"""Where evidence goes: an MLflow store and one experiment in it, used without touching MLflow's global state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from interpreto_mlops.errors import TrackingError
from interpreto_mlops.tracking import _mlflow_private, schema
from interpreto_mlops.tracking.addresses import first_line, normalise, redact, sqlite_file
from interpreto_mlops.tracking.reachability import check

T = TypeVar("T")

DEFAULT_EXPERIMENT = "interpreto"
CONNECT_SECONDS = 5.0
_MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}


@dataclass(frozen=True)
class Store:
    """An MLflow store and an experiment in it.

    Arguments:
        client: the client of that store; everything goes through it, with explicit run ids, from any thread.
        experiment_id: the experiment of new runs.
        experiment: its name.
        tracking_uri: the store's address, with the credentials that it was given.
        registry_uri: the address of the model registry.
    """

    client: MlflowClient
    experiment_id: str
    experiment: str
    tracking_uri: str
    registry_uri: str

    def __repr__(self) -> str:
        return f"Store({self.shown!r}, experiment={self.experiment!r})"

    @property
    def shown(self) -> str:
        """The address without credentials, for messages and links."""
        return redact(self.tracking_uri)

    @contextmanager
    def guarded(self, action: str) -> Iterator[None]:
        """Turn MLflow's errors inside into one sentence: "MLflow at … could not <action>: …".

        Raises:
            TrackingError: MLflow or the connection to it failed; the user's own errors pass through.
        """
        try:
            yield
        except (MlflowException, RequestException) as error:
            message = f"MLflow at {self.shown!r} could not {action}: {first_line(error)}"
            # The original's text holds the address with its credentials: it is not chained then.
            raise TrackingError(message) from (error if self.shown == self.tracking_uri else None)

    def if_there(self, action: str, read: Callable[[], T]) -> T | None:
        """Return what `read` reads, or None where the store says that there is no such thing.

        Raises:
            TrackingError: the store does not answer, or does not let us read, which is not the same as nothing.
        """
        try:
            with self.guarded(action):
                return read()
        except TrackingError as error:
            cause = error.__context__
            if isinstance(cause, MlflowException) and cause.error_code in _MISSING:
                return None
            raise

    def adopt_project_run(self) -> str | None:
        """Return the id of the run that `mlflow run` opened for this process in this store, or None outside of one."""
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if not run_id:
            return None
        try:
            return str(self.client.get_run(run_id).info.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise TrackingError(f"cannot read the run {run_id!r} of MLFLOW_RUN_ID: {first_line(error)}") from None


def connect(
    tracking_uri: str | None = None,
    experiment: str | None = None,
    *,
    default: str | None = None,
    timeout: float = CONNECT_SECONDS,
) -> Store:
    """Open a store and its experiment, which is created where it is missing.

    A new experiment of a SQLite store keeps its artifacts in the folder `artifacts` beside the database.

    Arguments:
        tracking_uri: a server's address, `sqlite:///path` or another database; None for `MLFLOW_TRACKING_URI`.
        experiment: its name; None for that of `mlflow run` or `MLFLOW_EXPERIMENT_NAME`, else `interpreto`.
        default: the address when neither `tracking_uri` nor `MLFLOW_TRACKING_URI` is there.
        timeout: seconds that the store may take to answer at first.

    Raises:
        TrackingError: no address, an address of another kind, a store that does not answer, a deleted experiment.
    """
    configured = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not configured and not default:
        raise TrackingError("no tracking store: give a tracking address, or set MLFLOW_TRACKING_URI")
    uri = normalise(configured or default or "")
    check(uri, timeout)
    # What the embedded default registers stays with it, whatever registry the environment names.
    registry = (os.environ.get("MLFLOW_REGISTRY_URI") if configured else None) or uri
    client = MlflowClient(tracking_uri=uri, registry_uri=registry)
    try:
        found = _experiment(client, uri, experiment)
    except (MlflowException, RequestException) as error:
        raise TrackingError(f"cannot open the experiment at {redact(uri)!r}: {first_line(error)}") from None
    return Store(client, found.experiment_id, found.name, uri, registry)


def existing_store(tracking_uri: str | None, *, default: str, timeout: float = CONNECT_SECONDS) -> Store:
    """Open a store to read what is in it: nothing is made, neither a database nor an experiment.

    Arguments:
        tracking_uri, default, timeout: as for `connect`.

    Raises:
        TrackingError: an address of another kind, a store that is not there or does not answer.
    """
    uri = normalise(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default)
    if (database := sqlite_file(uri)) is not None and not database.is_file():
        raise TrackingError(
            f"there is no MLflow database {str(database)!r}; give the store's address by --tracking-uri"
        )
    check(uri, timeout)
    registry = os.environ.get("MLFLOW_REGISTRY_URI") or uri
    client = MlflowClient(tracking_uri=uri, registry_uri=registry)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    try:
        found = client.get_experiment_by_name(name) or client.search_experiments(max_results=1)[0]
    except (MlflowException, RequestException, IndexError) as error:
        raise TrackingError(f"cannot read the store {redact(uri)!r}: {first_line(error)}") from None
    return Store(client, found.experiment_id, found.name, uri, registry)


def current_store() -> Store:
    """Return the store and experiment that `mlflow.start_run` would use now.

    Raises:
        TrackingError: the store does not answer.
    """
    uri = mlflow.get_tracking_uri()
    if "://" in uri and not uri.startswith("file:"):
        check(normalise(uri), CONNECT_SECONDS)
    try:
        # A store in files is refused here already, unless MLFLOW_ALLOW_FILE_STORE allows it.
        client = MlflowClient(tracking_uri=uri, registry_uri=mlflow.get_registry_uri())
        active = mlflow.active_run()
        identifier = active.info.experiment_id if active else _mlflow_private.current_experiment_id()
        found = client.get_experiment(identifier or "0")
    except (MlflowException, RequestException) as error:
        raise TrackingError(f"cannot open the experiment at {redact(uri)!r}: {first_line(error)}") from None
    return Store(client, found.experiment_id, found.name, uri, mlflow.get_registry_uri())


def configured_store(tracking_uri: str | None = None, experiment: str | None = None, *, default: str) -> Store:
    """Return the store that is named, else the one that `mlflow.start_run` would use if the process has chosen one.

    Arguments:
        tracking_uri, experiment: as for `connect`.
        default: the address when the process has neither a tracking address nor an open run.

    Raises:
        TrackingError: the store does not answer.
    """
    is_set: Callable[[], bool] = mlflow.is_tracking_uri_set
    if (is_set() or mlflow.active_run() is not None) and tracking_uri is None:
        if experiment is None:
            return current_store()
        tracking_uri = mlflow.get_tracking_uri()
    return connect(tracking_uri, experiment, default=default)


def current_store_for(run_id: str | None) -> tuple[Store, str | None]:
    """Return the store that `mlflow.start_run` would use, and the run to write to: that given, else the open one."""
    store = current_store()
    active = mlflow.active_run()
    return store, run_id or (active.info.run_id if active else store.adopt_project_run())


def _experiment(client: MlflowClient, uri: str, name: str | None) -> Experiment:
    identifier = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if name is None and identifier:
        return client.get_experiment(identifier)
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name) or _create(client, uri, name)
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name!r} is deleted; restore it (mlflow experiments restore -x {found.experiment_id}) "
            "or give another name"
        )
    return found


def _create(client: MlflowClient, uri: str, name: str) -> Experiment:
    database = sqlite_file(uri)
    location = None if database is None else _artifact_root(database)
    tags = {schema.TAG_EXPERIMENT_KIND: "custom_model_development"}
    try:
        return client.get_experiment(client.create_experiment(name, artifact_location=location, tags=tags))
    except MlflowException as error:
        # Another process was faster.
        if error.error_code == "RESOURCE_ALREADY_EXISTS" and (found := client.get_experiment_by_name(name)):
            return found
        raise


def _artifact_root(database: Path) -> str:
    return (database.parent / "artifacts").as_uri()
