from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib.figure
import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml

from interpreto_mlops.errors import InputError, TrackingError, UnknownNameError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.tracking.store import Store

DATA = TextDataset("reviews & <b>", ("good", "bad"), ("+", "-"), "/nowhere/reviews.csv")


@pytest.mark.usefixtures("unchanged")
def test_everything_that_a_run_may_hold(any_store: Store, download: Callable[[Store, str], Path]) -> None:
    client = any_store.client
    model = client.create_logged_model(any_store.experiment_id, "base")
    frame = pd.DataFrame({"word": ["<b>", None], "score": [0.5, np.nan], "n": [1, 2], "ok": [True, False]})
    secret = {"interpreto.command": "run --tracking-uri http://me:pw@host:5000"}
    with run(
        any_store, kind="attributions", name="a run", suite="s1", cell="c1", tags=secret, params={"seed": "0"}
    ) as log:
        log.params({"method.long": "x" * 7000})
        log.input(DATA, "explained")
        assert log.input_model(model.model_id)
        log.metrics({"faithfulness/deletion": 0.25, "cost/seconds": float("nan")}, dataset=DATA)
        assert log.explained({"faithfulness/deletion": 0.25}, model.model_id, DATA)
        log.curve("curve/deletion", [0, 50, 100], [0.9, 0.5, 0.1])
        log.text("attributions/page.html", "<p>ü</p>")
        log.table("attributions/examples.json", frame)
        log.table("concepts/labels.json", frame)
        log.frame("concepts/importance.parquet", frame)
        log.figure("attributions/figure.png", matplotlib.figure.Figure())
        log.write_environment()
        log.write_recipe({"name": "ü", "uri": "http://me:pw@host", "seeds": [0, 1]})
        log.summary("**done**")

    found = client.get_run(log.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "a run"
    assert found.info.experiment_id == any_store.experiment_id
    assert found.data.params["seed"] == "0"
    assert len(found.data.params["method.long"]) == 6000
    expected = {
        "interpreto.kind": "attributions",
        "interpreto.suite": "s1",
        "interpreto.cell": "c1",
        "interpreto.command": "run --tracking-uri http://***@host:5000",
        "mlflow.note.content": "**done**",
    }
    assert expected.items() <= found.data.tags.items()
    assert "mlflow.user" in found.data.tags
    assert found.data.metrics["faithfulness/deletion"] == 0.25
    assert np.isnan(found.data.metrics["cost/seconds"])
    points = client.get_metric_history(log.run_id, "curve/deletion")
    assert [(point.step, point.value) for point in points] == [(0, 0.9), (50, 0.5), (100, 0.1)]
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == (DATA.name, DATA.digest)
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "explained"}
    assert [entry.model_id for entry in found.inputs.model_inputs] == [model.model_id]
    (metric,) = client.get_logged_model(model.model_id).metrics
    assert (metric.key, metric.value, metric.dataset_name, metric.run_id) == (
        "explain/deletion",
        0.25,
        DATA.name,
        log.run_id,
    )
    _check_files(any_store, log, download(any_store, log.run_id))


def _check_files(store: Store, log: RunLog, folder: Path) -> None:
    assert (folder / "attributions/page.html").read_text(encoding="utf-8") == "<p>ü</p>"
    table = json.loads((folder / "attributions/examples.json").read_text())
    assert table == {"columns": ["word", "score", "n", "ok"], "data": [["<b>", 0.5, 1, True], [None, None, 2, False]]}
    listed = json.loads(store.client.get_run(log.run_id).data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == ["attributions/examples.json", "concepts/labels.json"]
    assert pd.read_json(folder / "concepts/labels.json", orient="split")["n"].tolist() == [1, 2]
    assert pd.read_parquet(folder / "concepts/importance.parquet")["n"].tolist() == [1, 2]
    assert (folder / "attributions/figure.png").read_bytes().startswith(b"\x89PNG")
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe == {"name": "ü", "uri": "http://***@host", "seeds": [0, 1]}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["mlflow"] == mlflow.__version__
    assert set(environment) == {"python", "platform", "cpus", "packages", "git"}


def test_mlflow_itself_finds_the_tables(store: Store) -> None:
    with run(store, kind="report", name="x") as log:
        log.table("concepts/labels.json", pd.DataFrame({"n": [1, 2]}))
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    assert mlflow.load_table("concepts/labels.json", [log.run_id])["n"].tolist() == [1, 2]


@pytest.mark.usefixtures("unchanged")
def test_a_run_that_fails_half_way_is_failed_and_says_why(any_store: Store) -> None:
    error = ValueError("no <script> at http://u:pw@h\nsecond line")

    def work() -> None:
        with run(any_store, kind="concepts", name="x") as log:
            log.metrics({"reconstruction/r2": 0.5})
            raise error

    with pytest.raises(ValueError, match="no <script>") as caught:
        work()
    assert caught.value is error
    (found,) = any_store.client.search_runs([any_store.experiment_id])
    assert found.info.status == "FAILED"
    assert found.info.end_time
    assert found.data.metrics == {"reconstruction/r2": 0.5}
    assert found.data.tags["mlflow.note.content"] == r"Failed: ValueError: no \<script\> at http://\*\*\*@h"


def test_what_was_gathered_before_an_error_is_in_the_run(store: Store) -> None:
    class Stopped(Exception):
        pass

    with pytest.raises(Stopped), run(store, kind="attributions", name="gathered") as log, log.gathered():
        log.params({"method": "occlusion"})
        with suppress(Stopped), log.gathered():
            log.tags({"inner": "kept"})
            raise Stopped
        log.metrics({"faithfulness/deletion": 0.5})
        raise Stopped
    found = store.client.get_run(log.run_id)
    assert found.info.status == "FAILED"
    assert found.data.params == {"method": "occlusion"}
    assert found.data.metrics == {"faithfulness/deletion": 0.5}
    assert found.data.tags["inner"] == "kept"


def test_ctrl_c_kills_the_run(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), run(store, kind="report", name="x") as log:
        raise KeyboardInterrupt
    assert store.client.get_run(log.run_id).info.status == "KILLED"


def test_the_error_of_the_work_is_not_hidden_by_that_of_closing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def work() -> None:
        with run(store, kind="report", name="x") as log:
            store.client.delete_run(log.run_id)
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        work()
    assert "could not mark the run" in caplog.text


def test_runs_of_many_threads_do_not_mix(store: Store) -> None:
    found: dict[int, str] = {}
    barrier = threading.Barrier(6)

    def work(number: int) -> None:
        with run(store, kind="concepts", name=f"run {number}", params={"seed": number}) as log:
            barrier.wait(30)
            log.metrics({"reconstruction/r2": float(number)})
            log.text("note.txt", str(number))
            found[number] = log.run_id

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, run_id in found.items():
        data = store.client.get_run(run_id).data
        assert (data.params["seed"], data.metrics["reconstruction/r2"]) == (str(number), float(number))
        assert "mlflow.parentRunId" not in data.tags
    assert len(set(found.values())) == 6


def test_the_run_of_a_project_is_continued(store: Store) -> None:
    run_id = store.client.create_run(store.experiment_id, run_name="old").info.run_id
    with run(store, kind="report", name="report", run_id=run_id, suite="s") as log:
        log.metrics({"cost/seconds": 1.0})
    found = store.client.get_run(run_id)
    assert (log.run_id, found.info.run_name, found.info.status) == (run_id, "report", "FINISHED")
    assert found.data.tags["interpreto.suite"] == "s"


def test_an_open_run_of_the_user_is_not_seen(store: Store) -> None:
    mlflow.set_tracking_uri(store.tracking_uri)
    with mlflow.start_run() as own:
        with run(store, kind="report", name="other") as log:
            assert mlflow.active_run().info.run_id == own.info.run_id
        assert mlflow.active_run().info.run_id == own.info.run_id
    assert log.run_id != own.info.run_id


@pytest.mark.parametrize("path", ["../x.txt", "/etc/x.txt", "a/../../x.txt", ""])
def test_artifacts_stay_inside_the_run(store: Store, path: str) -> None:
    with run(store, kind="report", name="x") as log, pytest.raises(InputError, match="must lie inside the run"):
        log.text(path, "no")


def test_what_cannot_be_logged_is_said(store: Store) -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of run 'x'"), run(store, kind="x", name="x"):
        pass
    with run(store, kind="report", name="x") as log:
        with pytest.raises(InputError, match="whole number as step"):
            log.curve("curve/x", [0.5], [1.0])  # type: ignore[list-item]
        log.params({"seed": 1})
        with pytest.raises(TrackingError, match="could not log parameters: Changing param values is not allowed"):
            log.params({"seed": 2})
    with pytest.raises(TrackingError, match=r"could not read the run '0+'"):
        RunLog(store, "0" * 32)


def test_a_model_of_another_store_is_named_by_tags_only(any_store: Store) -> None:
    with run(any_store, kind="report", name="x") as log:
        assert not log.input_model("m-" + "0" * 32)
    assert any_store.client.get_run(log.run_id).inputs.model_inputs == []


def test_tables_of_threads_are_all_listed(store: Store) -> None:
    frame = pd.DataFrame({"a": [1]})
    with run(store, kind="report", name="x") as log:
        threads = [threading.Thread(target=log.table, args=(f"t{i}.json", frame)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    listed: list[dict[str, Any]] = json.loads(store.client.get_run(log.run_id).data.tags[schema.TAG_TABLES])
    assert {entry["path"] for entry in listed} == {f"t{i}.json" for i in range(5)}
