from __future__ import annotations

import shlex
import urllib.request
from dataclasses import replace
from pathlib import Path

import mlflow.cli
import pytest

from interpreto_mlops.tracking import links, run
from interpreto_mlops.tracking.store import Store, connect

END = "?workflowType=machine_learning"


def test_links_hide_credentials_and_quote_names(store: Store) -> None:
    remote = replace(store, tracking_uri="https://me:pw@host/mlflow")
    assert links.run_url(remote, "abc", "7") == f"https://***@host/mlflow/#/experiments/7/runs/abc{END}"
    assert links.version_url(store, "a b/<c>", 3) == f"{links.DEFAULT_UI}/#/models/a%20b%2F%3Cc%3E/versions/3{END}"
    assert links.ui_command(remote) is None


def test_the_command_is_one_that_mlflow_takes(store: Store) -> None:
    command = links.ui_command(store)
    assert command is not None
    python, *module, server = shlex.split(command)[:4]
    assert Path(python).is_file()
    assert module == ["-m", "mlflow"]
    context = mlflow.cli.cli.get_command(None, server).make_context(server, shlex.split(command)[4:])
    assert context.params["backend_store_uri"] == store.tracking_uri
    assert f"http://{context.params['host']}:{context.params['port']}" == links.DEFAULT_UI


@pytest.mark.slow
def test_a_server_on_the_database_shows_the_artifacts_beside_it(server: str, server_database: str) -> None:
    store = connect(server_database, "written past the server")
    with run(store, kind="report", name="x") as log:
        log.text("attributions/page.html", "<p>kept</p>")
    assert "mlflow-artifacts" not in store.client.get_run(log.run_id).info.artifact_uri
    address = f"{server}/get-artifact?run_id={log.run_id}&path=attributions/page.html"
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.read() == b"<p>kept</p>"
