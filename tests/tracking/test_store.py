from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from interpreto_mlops.errors import TrackingError
from interpreto_mlops.tracking.addresses import normalise, redact
from interpreto_mlops.tracking.store import Store, connect
from tests.mlflow_stores import free_port


def test_a_new_sqlite_store_keeps_its_artifacts_beside_it_and_nothing_lands_in_the_working_folder(
    tmp_path: Path,
) -> None:
    store = connect(f"sqlite:///{tmp_path}/a b/ç#d/mlflow.db", "first")
    run = store.client.create_run(store.experiment_id)
    store.client.log_text(run.info.run_id, "kept", "note.txt")
    folder = tmp_path / "a b" / "ç#d"
    assert [path.read_text() for path in (folder / "artifacts").rglob("note.txt")] == ["kept"]
    assert list(Path.cwd().iterdir()) == []


def test_a_relative_sqlite_address_stays_where_it_was_meant(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(database.removeprefix("sqlite:///")).parent)
    store = connect("sqlite:///mlflow.db", "relative")
    monkeypatch.chdir(tmp_path)
    assert store.tracking_uri == database
    assert connect(database, "relative").experiment_id == store.experiment_id


@pytest.mark.usefixtures("unchanged")
def test_connecting_leaves_global_state_alone(database: str) -> None:
    store = connect(database, "tests")
    assert store.client.get_experiment(store.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"


def test_address_experiment_and_registry_of_the_environment_are_used(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    store = connect(default="sqlite:////nowhere/mlflow.db")
    assert (store.tracking_uri, store.experiment, store.registry_uri) == (
        database,
        "from the environment",
        "http://registry:5000",
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    assert connect().experiment == "Default"
    assert connect(experiment="given").experiment == "given"


def test_the_default_keeps_its_own_registry(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry:5000")
    assert connect(default=database).registry_uri == database


def test_the_run_of_a_project_is_adopted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = store.client.create_run(store.experiment_id).info.run_id
    assert store.adopt_project_run() is None
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert store.adopt_project_run() == run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert store.adopt_project_run() is None


def test_a_deleted_experiment_is_named_with_its_remedy(store: Store, database: str) -> None:
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match=f"'tests' is deleted; restore it .*-x {store.experiment_id}"):
        connect(database, "tests")


def test_many_threads_may_create_the_same_experiment(database: str) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(connect(database, "race").experiment_id)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    address = f"http://mallory:s3cret@127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        connect(address, "x")
    assert time.monotonic() - start < 3
    message = str(caught.value)
    assert message.startswith(
        f"cannot reach the MLflow server at '{address.replace('mallory:s3cret', '***')}': Connection refused"
    )
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(TrackingError, match=r"cannot reach the MLflow server at 'http://127\.0\.0\.1:"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}", "x", timeout=1)
        assert time.monotonic() - start < 4


@pytest.mark.slow
def test_a_host_without_an_address_and_a_page_that_is_no_mlflow(server: str) -> None:
    with pytest.raises(TrackingError, match=r"cannot reach the MLflow server at 'http://no\.such\.host\.invalid:5000'"):
        connect("http://no.such.host.invalid:5000", "x", timeout=2)
    with pytest.raises(TrackingError, match="it is no MLflow server"):
        connect(f"{server}/not-here", "x")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://bob:pw@host/x", r"cannot track to 'ftp://\*\*\*@host/x'; give a server"),
        ("./mlruns", "cannot track to './mlruns'"),
        ("file:///tmp/mlruns", "cannot track to 'file:///tmp/mlruns'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:/x.db", "cannot read the tracking address"),
        (
            "postgresql+psycopg2://bob:pw@127.0.0.1:1/db",
            r"cannot open the tracking database at 'postgresql.*//\*\*\*@127",
        ),
    ],
)
def test_addresses_that_cannot_be_used(address: str, message: str) -> None:
    with pytest.raises(TrackingError, match=message) as caught:
        connect(address, "x")
    assert "pw" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_address_at_all() -> None:
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_URI"):
        connect()


def test_sqlite_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and long enough to be seen as none " * 20)
    with pytest.raises(TrackingError, match="file is not a database"):
        connect(f"sqlite:///{tmp_path}/text.db", "x")
    with pytest.raises(TrackingError, match="unable to open database file"):
        connect(f"sqlite:///{tmp_path}", "x")
    if os.geteuid():
        pytest.skip("the root user may write everywhere")


def test_credentials_are_hidden_wherever_they_stand() -> None:
    text = "GET https://a:b@h/p?x=1 after 'http://u:p%40@h' but me@home.org and models:/m@champion stay"
    expected = "GET https://***@h/p?x=1 after 'http://***@h' but me@home.org and models:/m@champion stay"
    assert redact(text) == expected
    assert normalise("http://host:5000///") == "http://host:5000"


def test_errors_inside_a_guard_hide_credentials(store: Store) -> None:
    from dataclasses import replace

    from mlflow.exceptions import MlflowException

    secret = replace(store, tracking_uri="http://u:pw@h")
    with pytest.raises(TrackingError) as caught, secret.guarded("do it"):
        raise MlflowException("API request to http://u:pw@h/api failed\nand more")
    assert str(caught.value) == "MLflow at 'http://***@h' could not do it: API request to http://***@h/api failed"
    assert caught.value.__cause__ is None
    assert "pw" not in repr(secret)
