from __future__ import annotations

import copy
from pathlib import Path

import mlflow
import pytest
import torch

import interpreto_mlops as im
from interpreto_mlops.errors import IntegrityError, ModelLoadError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import find_registered, load_model, log_text_model, run
from interpreto_mlops.tracking.resolving import resolve
from interpreto_mlops.tracking.store import Store


def outputs(model: TextModel, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model.model(**model.inputs(list(model.encode(texts)))).logits


@pytest.mark.usefixtures("unchanged")
def test_a_model_comes_back_the_same_by_every_address(any_store: Store, model: TextModel, texts: list[str]) -> None:
    name = f"tiny {any_store.experiment_id}"
    assert find_registered(any_store, name) is None
    with run(any_store, kind="report", name="train", params={"seed": 3}) as log:
        logged = log_text_model(
            any_store, log, model, name="classifier", registered_model_name=name, params={"epochs": 6}
        )
    any_store.client.set_registered_model_alias(name, "champion", logged.version)
    assert logged.uri == f"models:/{name}/1" == find_registered(any_store, name)
    pinned = {
        f"models:/{name}@champion": logged.uri,
        logged.uri: logged.uri,
        f"models:/{name}/latest": logged.uri,
        f"models:/{logged.model_id}": f"models:/{logged.model_id}",
        f"runs:/{log.run_id}/classifier": f"models:/{logged.model_id}",
    }
    for address, uri in pinned.items():
        loaded = load_model(address, store=any_store)
        assert (loaded.uri, loaded.model_id) == (uri, logged.model_id)
        assert loaded.fingerprint == model.fingerprint
        torch.testing.assert_close(outputs(loaded, texts), outputs(model, texts))
    assert loaded.labels == model.labels
    assert loaded.max_length == model.max_length
    assert load_model(logged.uri, store=any_store).name == name
    assert load_model(logged.uri, name="mine", store=any_store).name == "mine"
    entity = any_store.client.get_logged_model(logged.model_id)
    assert (entity.status, entity.source_run_id) == ("READY", log.run_id)
    assert {"seed": "3", "epochs": "6"}.items() <= entity.params.items()
    assert any_store.client.get_model_version(name, 1).tags["interpreto.model.fingerprint"] == model.fingerprint


def test_mlflow_itself_loads_it(store: Store, model: TextModel, texts: list[str]) -> None:
    logged = log_text_model(store, None, model, name="classifier", registered_model_name="tiny")
    mlflow.set_tracking_uri(store.tracking_uri)
    answer = mlflow.pyfunc.load_model(logged.uri).predict(texts)
    best = outputs(model, texts).argmax(-1).tolist()
    assert answer["label"].tolist() == [model.labels[i] for i in best]
    requirements = Path(mlflow.artifacts.download_artifacts(f"{logged.uri}/requirements.txt")).read_text()
    assert "torch==" in requirements
    assert "torchvision" not in requirements
    assert im.load_model("models:/tiny/1").fingerprint == model.fingerprint


def test_logging_leaves_the_model_as_it_is_and_asks_no_hub(
    store: Store, model: TextModel, caplog: pytest.LogCaptureFixture
) -> None:
    model.model.train()
    model.model.config._name_or_path = model.model.name_or_path = "someone/some-model"
    config, modes = copy.deepcopy(model.model.config.to_dict()), [m.training for m in model.model.modules()]
    before = model.model.config
    log_text_model(store, None, model, name="classifier")
    assert model.model.config is before
    assert model.model.config.to_dict() == config
    assert model.model.name_or_path == "someone/some-model"
    assert [m.training for m in model.model.modules()] == modes
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_newest_version_is_found_and_names_may_be_odd(store: Store, model: TextModel) -> None:
    for expected in (1, 2):
        assert log_text_model(store, None, model, name="x", registered_model_name="it's <b>").version == str(expected)
    assert find_registered(store, "it's <b>") == "models:/it's <b>/2"
    assert resolve(store, "models:/it's <b>/latest").version == "2"
    assert find_registered(store, "' OR name LIKE '%") is None


def test_weights_that_were_changed_are_refused(store: Store, model: TextModel, tmp_path: Path) -> None:
    logged = log_text_model(store, None, model, name="x")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    store.client.log_model_artifacts(logged.model_id, str(tmp_path / "model"), "model")
    with pytest.raises(IntegrityError, match=f"'model/config.json' of 'models:/{logged.model_id}' was changed"):
        load_model(logged.uri, store=store)


def test_what_is_no_text_model_is_said(store: Store, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    (tmp_path / "code.py").write_text(
        "import mlflow\n"
        "class Model(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, model_input: list[str]): return model_input\n"
        "mlflow.models.set_model(Model())\n"
    )
    other = mlflow.pyfunc.log_model(name="other", python_model=str(tmp_path / "code.py"), pip_requirements=[])
    with pytest.raises(
        ModelLoadError,
        match=f"the model '{other.model_uri}' is a pyfunc without a checkpoint among its artifacts; what",
    ):
        load_model(other.model_uri)
    with pytest.raises(ModelLoadError, match="there is no model 'models:/nobody@champion'"):
        load_model("models:/nobody@champion")
    with pytest.raises(ModelLoadError, match="there is no model folder"):
        load_model(tmp_path / "nothing")


def test_a_folder_and_a_pinned_hub_id(model: TextModel, tmp_path: Path) -> None:
    model.model.save_pretrained(tmp_path / "m")
    model.tokenizer.save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert (loaded.name, loaded.uri) == ("m", str(tmp_path / "m"))
    assert loaded.fingerprint == model.fingerprint
    with pytest.raises(ModelLoadError, match="cannot load the model 'someone/some-model'"):
        load_model("someone/some-model@" + "a" * 40)
