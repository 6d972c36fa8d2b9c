"""MLflow serves a registered dictionary: over HTTP, for a batch of rows, and in Spark; texts load the pinned base."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from interpreto_mlops.concepts import ConceptDictionary, ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import connect, dictionary_flavor, load_model, log_text_model
from tests.mlflow_stores import free_port


@dataclass(frozen=True)
class Registered:
    """A dictionary in a registry, with the codes of some texts as they were at the fit."""

    uri: str
    store: str
    dictionary: ConceptDictionary
    texts: list[str]
    codes: np.ndarray


@pytest.fixture
def registered(database: str, tiny_model: Callable[..., TextModel], texts: list[str]) -> Registered:
    """A dictionary of sentences by their last token, whose base model is in the same registry."""
    store = connect(database, "tests")
    base = load_model(
        log_text_model(store, None, tiny_model(), name="base", registered_model_name="base").uri, store=store
    )
    activations = ModelWithSplitPoints(base, [1]).get_activations(
        texts, granularity="sample", aggregation="last", progress=False
    )[1]
    fitted = PCAConcepts(n_concepts=3).fit(activations)
    fitted.descriptions = top_words(fitted, activations)
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    dictionary_flavor.log_model(fitted, registered_model_name="cd")
    store.client.set_registered_model_alias("cd", "champion", "1")
    return Registered("models:/cd@champion", database, fitted, texts, fitted.encode(activations).numpy())


def environment(registered: Registered, **more: str) -> dict[str, str]:
    """What a process needs to find this package, the store, and the programs of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": path, "MLFLOW_TRACKING_URI": registered.store}
    return {**os.environ, **own, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", **more}


@pytest.fixture
def served(registered: Registered, tmp_path: Path) -> Iterator[str]:
    """The address of `mlflow models serve` on this machine, with pickles forbidden."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--model-uri",
        registered.uri,
        "--env-manager",
        "local",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env=environment(registered), start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/ping", process, tmp_path / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the model is not served:\n{log.read_text()[-3000:]}")


def ask(address: str, body: dict[str, Any]) -> Any:
    """Return the predictions, or the status and message of the error."""
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_a_real_server_answers(registered: Registered, served: str) -> None:
    rows = np.random.default_rng(0).normal(size=(3, registered.dictionary.width)).astype(np.float32)
    codes = registered.dictionary.encode(rows).numpy()
    of_rows = [{"activations": row} for row in rows.tolist()]
    np.testing.assert_allclose(ask(served, {"dataframe_records": of_rows}), codes, rtol=1e-5, atol=1e-6)
    split = {"columns": ["text"], "data": [[text] for text in registered.texts]}
    np.testing.assert_allclose(ask(served, {"dataframe_split": split}), registered.codes, atol=2e-5)
    strongest = ask(served, {"dataframe_split": split, "params": {"top_k": 1}})
    assert [row["concept"] for row in strongest] == [[int(each)] for each in abs(registered.codes).argmax(axis=1)]
    labels = [each.label for each in registered.dictionary.descriptions or []]
    assert [row["label"] for row in strongest] == [[labels[row["concept"][0]]] for row in strongest]
    status, message = ask(served, {"dataframe_records": [{"activations": [1.0, 2.0]}]})
    assert status == 400
    assert "the activations of row 0 have the shape (2,), not (32,)" in message


# MLflow 3.17 on pandas 3, where it looks for columns without names.
@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")
@pytest.mark.slow
def test_a_batch_by_mlflows_own_prediction(registered: Registered, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": registered.texts})
    output = tmp_path / "out.json"
    mlflow.models.predict(registered.uri, input_data=frame, env_manager="local", output_path=str(output))
    np.testing.assert_allclose(json.loads(output.read_text())["predictions"], registered.codes, atol=2e-5)


SPARK = """
import json, sys
import mlflow, pyspark.sql
from pyspark.sql.functions import struct
spark = pyspark.sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
texts, rows = json.loads(sys.stdin.read())
uri, found = sys.argv[1], {}
codes = mlflow.pyfunc.spark_udf(spark, uri, result_type="array<float>", env_manager="local")
shape = "concept array<bigint>, activation array<double>, label array<string>"
top = mlflow.pyfunc.spark_udf(spark, uri, result_type=shape, env_manager="local", params={"top_k": 1})
frame = spark.createDataFrame([(text,) for text in texts], "text string")
found["texts"] = [row[0] for row in frame.select(codes(struct("text"))).collect()]
found["top"] = [row[0].asDict() for row in frame.select(top(struct("text"))).collect()]
frame = spark.createDataFrame([(row,) for row in rows], "activations array<double>")
found["rows"] = [row[0] for row in frame.select(codes(struct("activations"))).collect()]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_in_spark(registered: Registered, tmp_path: Path) -> None:
    pytest.importorskip("pyspark", exc_type=ImportError)
    rows = np.random.default_rng(0).normal(size=(3, registered.dictionary.width)).astype(np.float32)
    done = subprocess.run(
        [sys.executable, "-c", SPARK, registered.uri],
        input=json.dumps([registered.texts, rows.tolist()]),
        env=environment(registered, PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found["texts"], registered.codes, atol=2e-5)
    np.testing.assert_allclose(found["rows"], registered.dictionary.encode(rows), rtol=1e-5, atol=1e-6)
    assert [row["concept"] for row in found["top"]] == [[int(each)] for each in abs(registered.codes).argmax(axis=1)]
