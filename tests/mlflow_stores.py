"""Real MLflow stores: a migrated SQLite file that is copied for each test, and one server for the session."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from interpreto_mlops.tracking.store import Store, connect

VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
    "INTERPRETO_CATALOGUE_URI",
    "INTERPRETO_HIDE_TEXTS",
)


def global_state() -> dict[str, Any]:
    """Everything of MLflow's that belongs to the user."""
    active = mlflow.active_run()
    return {
        "environment": {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")},
        "tracking": mlflow.get_tracking_uri(),
        "registry": mlflow.get_registry_uri(),
        "run": active and active.info.run_id,
        "experiment": mlflow.tracking.fluent._active_experiment_id,
        "model": mlflow.get_active_model_id(),
        "folder": sorted(path.name for path in Path.cwd().iterdir()),
    }


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No store is configured, and the working folder is empty; what a test sets globally is undone."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None
    # mlflow sets some of these for the processes it starts.
    for name in VARIABLES:
        os.environ.pop(name, None)


@pytest.fixture
def unchanged() -> Iterator[None]:
    """The test leaves MLflow's global state and the working folder as they were."""
    before = global_state()
    yield
    assert global_state() == before


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, made once."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> str:
    """The address of a fresh database, in a folder whose name is a nuisance."""
    folder = tmp_path / "störe & #1"
    folder.mkdir()
    shutil.copy(migrated, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def store(database: str) -> Store:
    """A SQLite store."""
    return connect(database, "tests")


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server_database(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the database behind the server."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(migrated, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="session")
def server(server_database: str) -> Iterator[str]:
    """The address of a real MLflow server on this machine: SQLite behind it, artifacts through it.

    Its gateway may call providers on this machine.
    """
    folder = Path(server_database.removeprefix("sqlite:///")).parent
    allowed = {
        "MLFLOW_GATEWAY_API_BASE_ALLOWED_SCHEMES": "http",
        "MLFLOW_GATEWAY_API_BASE_ALLOW_PRIVATE_IPS": "true",
    }
    with serving(server_database, folder, environment=allowed) as address:
        yield address


@contextmanager
def serving(database: str, folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Hold the address of a real MLflow server on a database, which keeps artifacts in a folder."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"), *options]
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    inherited["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), inherited["PATH"]])
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**inherited, **(environment or {})},
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process, folder / "log")
        yield address
    finally:
        # Its data goes with the session: nothing to finish, and on a busy machine asking nicely takes a minute.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when an MLflow server answers."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(
    params=["sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("postgresql", "server"))],
)
def any_store(request: pytest.FixtureRequest) -> Store:
    """A SQLite store, and an experiment of the test's own on PostgreSQL and on the server."""
    if request.param == "sqlite":
        return request.getfixturevalue("store")  # type: ignore[no-any-return]
    if request.param == "server":
        return connect(request.getfixturevalue("server"), f"tests {request.node.name}")
    return connect_beside(request.getfixturevalue("mlflow_postgres"), request)


def connect_beside(database: str, request: pytest.FixtureRequest) -> Store:
    """A store on a database that other tests use, too: an experiment of its own, artifacts in a folder that goes."""
    name = f"tests {request.node.name}"
    folder = request.getfixturevalue("tmp_path") / "artifacts"
    MlflowClient(database).create_experiment(name, artifact_location=folder.as_uri())
    return connect(database, name)


@pytest.fixture
def download(tmp_path: Path) -> Callable[[Store, str], Path]:
    """A function that fetches the artifacts of a run, as a user would."""

    def fetch(store: Store, run_id: str) -> Path:
        folder = tmp_path / f"artifacts of {run_id}"
        folder.mkdir(exist_ok=True)
        return Path(store.client.download_artifacts(run_id, "", str(folder)))

    return fetch
