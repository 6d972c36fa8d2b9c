from __future__ import annotations

import os
import shlex
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from interpreto_mlops.tracking import links, run
from interpreto_mlops.tracking.store import Store
from tests.tracking.conftest import free_port, wait_for


def test_links_hide_credentials_and_quote_names(store: Store) -> None:
    remote = replace(store, tracking_uri="https://me:pw@host/mlflow")
    assert (
        links.run_url(remote, "abc", "7")
        == "https://***@host/mlflow/#/experiments/7/runs/abc?workflowType=machine_learning"
    )
    assert (
        links.version_url(store, "a b/<c>", 3)
        == f"{links.DEFAULT_UI}/#/models/a%20b%2F%3Cc%3E/versions/3?workflowType=machine_learning"
    )
    assert links.ui_command(remote) is None


@pytest.mark.slow
def test_the_command_opens_the_store_with_its_artifacts(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run(store, kind="report", name="x") as log:
        log.text("attributions/page.html", "<p>kept</p>")
    port = free_port()
    monkeypatch.setattr(links, "DEFAULT_UI", f"http://127.0.0.1:{port}")
    command = links.ui_command(store)
    assert command is not None
    path = tmp_path / "log"
    with path.open("wb") as output:
        process = subprocess.Popen(shlex.split(command), stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(links.DEFAULT_UI, process, path)
        arguments: dict[str, Any] = {"run_id": log.run_id, "path": "attributions/page.html"}
        answer = requests.get(f"{links.DEFAULT_UI}/get-artifact", params=arguments, timeout=30)
        assert answer.text == "<p>kept</p>"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
