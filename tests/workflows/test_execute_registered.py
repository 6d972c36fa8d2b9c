"""A job on a registered model, by every address: its metrics are on the logged model that the address names."""

from __future__ import annotations

import mlflow
import pandas as pd
import pytest

from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.tracking.store import connect
from interpreto_mlops.tracking.text_models import log_text_model
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import parse_recipe


class Wraps(mlflow.pyfunc.PythonModel):
    """A user's model around a checkpoint."""

    def predict(self, model_input: list[str]) -> list[str]:
        return model_input


@pytest.fixture(
    params=[
        "models:/{name}@champion",
        "models:/{name}/1",
        "models:/{name}/latest",
        "models:/{model_id}",
        "runs:/{run_id}/classifier",
    ]
)
def form(request):
    """A form of address."""
    return request.param


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def uri(request):
    """A database, and a real server with artifacts through it."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "server")


def registered(store, flavor, model, model_folder):
    """Register a model as a user does; return what the forms of address are filled with."""
    name = f"reviews of {store.experiment_id}"
    with mlflow.start_run() as opened:
        log = RunLog(store, opened.info.run_id)
        if flavor == "transformers":
            model_id = log_text_model(store, log, model, name="classifier", registered_model_name=name).model_id
        else:
            info = mlflow.pyfunc.log_model(
                name="classifier",
                python_model=Wraps(),
                artifacts={"checkpoint": str(model_folder)},
                pip_requirements=["mlflow", "torch", "transformers"],
                registered_model_name=name,
            )
            model_id = info.model_id
    store.client.set_registered_model_alias(name, "champion", 1)
    return {"name": name, "model_id": model_id, "run_id": log.run_id}


@pytest.mark.parametrize("flavor", ["transformers", "pyfunc"])
def test_metrics_land_on_the_logged_model_with_the_data_set(
    uri, flavor, form, tiny_model, model_folder, data_file, monkeypatch
):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    store = connect(uri, f"{flavor} {form}")
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    named = registered(store, flavor, tiny_model(), model_folder)
    address = form.format(**named)
    recipe = {
        "kind": "attribute",
        "model": address,
        "data": str(data_file),
        "text_column": "review",
        "max_texts": 2,
        "methods": ["occlusion"],
        "metrics": ["deletion"],
        "tracking_uri": uri,
        "experiment": store.experiment,
    }
    outcome = execute(parse_recipe(recipe), command="…")
    runs = store.client.search_runs([store.experiment_id], f"tags.`interpreto.suite` = '{outcome.suite}'")
    # A search leaves out which models are the inputs of a run.
    cell = next(
        store.client.get_run(each.info.run_id) for each in runs if each.data.tags["interpreto.kind"] == "attributions"
    )
    version = f"models:/{named['name']}/1"
    pinned = f"models:/{named['model_id']}" if "{name}" not in form else version
    assert cell.data.tags["interpreto.model.uri"] == pinned
    assert cell.data.tags["interpreto.model.id"] == named["model_id"]
    assert [entry.model_id for entry in cell.inputs.model_inputs] == [named["model_id"]]
    (metric,) = store.client.get_logged_model(named["model_id"]).metrics
    assert (metric.key, metric.run_id, metric.dataset_name) == ("explain/deletion", cell.info.run_id, "reviews")
    assert metric.value == pytest.approx(cell.data.metrics["faithfulness/deletion"])
    (given,) = cell.inputs.dataset_inputs
    assert metric.dataset_digest == given.dataset.digest


def test_a_dictionary_of_a_wrapped_model_finds_its_base_again(database, tiny_model, model_folder, data_file, texts):
    store = connect(database, "wrapped")
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    named = registered(store, "pyfunc", tiny_model(), model_folder)
    recipe = {
        "kind": "concepts",
        "model": f"models:/{named['name']}@champion",
        "data": str(data_file),
        "text_column": "review",
        "layers": [1],
        "methods": ["pca"],
        "n_concepts": [4],
        "seeds": 1,
        "tracking_uri": database,
        "experiment": "wrapped",
    }
    (cell,) = execute(parse_recipe(recipe), command="…").concepts
    keys = {metric.key for metric in store.client.get_logged_model(named["model_id"]).metrics}
    assert {"explain/r2", "explain/mse", "explain/l0"} <= keys
    name, number = cell.registered
    loaded = mlflow.pyfunc.load_model(f"models:/{name}/{number}")
    entry = loaded.metadata.flavors["interpreto_mlops"]
    assert (entry["base_model"], entry["base_model_revision"]) == (f"models:/{named['name']}/1", "1")
    assert entry["base_model_id"] == named["model_id"]
    assert loaded.predict(pd.DataFrame({"text": texts})).shape == (len(texts), 4)
