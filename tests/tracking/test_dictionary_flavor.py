from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.pyfunc import scoring_server

from interpreto_mlops.concepts import (
    ConceptDictionary,
    ModelWithSplitPoints,
    PCAConcepts,
    TopKSAEConcepts,
    top_words,
)
from interpreto_mlops.errors import InputError, IntegrityError, ModelLoadError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import (
    dictionary_flavor,
    load_dictionary,
    load_model,
    log_text_model,
    run,
    write_dictionary,
)
from interpreto_mlops.tracking.concept_evidence import register_dictionary
from interpreto_mlops.tracking.dictionary_pyfunc import DictionaryModel
from interpreto_mlops.tracking.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")


@pytest.fixture
def model(tiny_model: Callable[..., TextModel], tmp_path: Path) -> TextModel:
    return in_folder(tiny_model(), tmp_path / "base")


def in_folder(model: TextModel, folder: Path) -> TextModel:
    """The model, saved where it says that it is."""
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return TextModel(model.model, model.tokenizer, name=model.name, uri=str(folder))


@pytest.fixture(params=["pca", "topk_sae"])
def dictionary(request: pytest.FixtureRequest, model: TextModel, texts: list[str]) -> ConceptDictionary:
    activations = ModelWithSplitPoints(model, [1]).get_activations(texts, progress=False)[1]
    found: ConceptDictionary = PCAConcepts(n_concepts=4)
    if request.param == "topk_sae":
        found = TopKSAEConcepts(n_concepts=6, k=2, n_epochs=2, batch_size=8)
    found.fit(activations, progress=False)
    found.descriptions = top_words(found, activations)
    return found


@pytest.fixture
def saved(dictionary: ConceptDictionary, tmp_path: Path) -> Path:
    dictionary_flavor.save_model(dictionary, tmp_path / "model")
    return tmp_path / "model"


def rows(dictionary: ConceptDictionary, n: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(n, dictionary.width)).astype(np.float32)


def test_a_folder_holds_no_pickle_and_loads_back(
    saved: Path, dictionary: ConceptDictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".yaml", ".txt", ".json", ".md", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        assert path.suffix == ".safetensors" or content.decode("utf-8")
        assert not content.startswith((b"\x80\x04", b"\x80\x05", b"PK"))
    for loaded in (
        load_dictionary(saved),
        dictionary_flavor.load_model(str(saved)),
        load_dictionary(saved / "dictionary"),
    ):
        assert loaded.descriptions == dictionary.descriptions
        assert loaded.provenance == dictionary.provenance
        torch.testing.assert_close(loaded.encode(rows(dictionary)), dictionary.encode(rows(dictionary)), rtol=0, atol=0)
    assert isinstance(mlflow.pyfunc.load_model(str(saved)).get_raw_model(), type(dictionary))


def test_the_mlmodel_says_what_the_dictionary_is_of(
    saved: Path, dictionary: ConceptDictionary, model: TextModel
) -> None:
    info = mlflow.models.get_model_info(str(saved))
    entry = info.flavors["interpreto_mlops"]
    assert entry["base_model"] == model.uri
    assert entry["base_model_sha256"] == model.fingerprint
    assert entry["layer"] == "bert.encoder.layer.1"
    assert (entry["method"], entry["n_concepts"], entry["width"]) == (dictionary.name, dictionary.n_concepts, 32)
    assert (entry["granularity"], entry["format_version"]) == ("token", 1)
    assert entry["data_digest"] == dictionary.provenance["data"]["digest"]
    requirements = (saved / "requirements.txt").read_text().splitlines()
    assert requirements[0].startswith("interpreto-mlops")
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements
    assert not any("torchvision" in line or "+" in line for line in requirements)
    assert info.signature.inputs.input_names() == ["text", "activations"]
    assert info.signature.inputs.required_input_names() == []


def test_pyfunc_on_activations_is_encode(saved: Path, dictionary: ConceptDictionary) -> None:
    loaded = mlflow.pyfunc.load_model(str(saved))
    given = rows(dictionary)
    expected = dictionary.encode(given).numpy()
    frames = [
        pd.DataFrame({"activations": list(given)}),
        pd.DataFrame({"activations": given.astype(np.float64).tolist()}),
        pd.DataFrame({"text": [None] * 5, "activations": list(given)}, index=[9, 8, 7, 6, 5]),
        [{"activations": row.tolist()} for row in given],
    ]
    for frame in frames:
        found = loaded.predict(frame)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    assert loaded.predict(frames[0].head(0)).shape == (0, dictionary.n_concepts)


def test_the_scoring_server_takes_its_own_example(saved: Path, dictionary: ConceptDictionary) -> None:
    loaded = mlflow.pyfunc.load_model(str(saved))
    given = dictionary.dictionary[:2]
    expected = dictionary.encode(given).tolist()
    split = {"dataframe_split": {"columns": ["activations"], "data": [[row] for row in given.tolist()]}}
    for body in ((saved / "serving_input_example.json").read_text(), json.dumps(split)):
        answer = scoring_server.invocations(
            data=body, content_type="application/json", model=loaded, input_schema=loaded.metadata.get_input_schema()
        )
        assert answer.status == 200
        np.testing.assert_allclose(json.loads(answer.response)["predictions"], expected, rtol=1e-6)


def _slow_codes(dictionary: ConceptDictionary, model: TextModel, text: str, pooling: str) -> np.ndarray[Any, Any]:
    """Pooled by the definition: one forward pass, its hidden states, and a maximum or mean over the text's tokens."""
    (encoding,) = model.encode([text])
    if encoding.special.all():
        return np.zeros(dictionary.n_concepts)
    with torch.no_grad():
        # hidden_states[0] are the embeddings, so that layer 1 is at place 2.
        states = model.model(**model.inputs([encoding]), output_hidden_states=True).hidden_states[2][0]
    codes = dictionary.encode(states[torch.from_numpy(~encoding.special)]).numpy()
    return codes.max(axis=0) if pooling == "max" else codes.mean(axis=0)


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_codes_of_texts_are_pooled_over_their_rows(
    dictionary: ConceptDictionary, model: TextModel, texts: list[str], pooling: str
) -> None:
    texts = ["", *texts, "   ", "soup !"]
    served = DictionaryModel(dictionary)
    found = served.predict(pd.DataFrame({"text": texts}), {"pooling": pooling})
    expected = [_slow_codes(dictionary, model, text, pooling) for text in texts]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not served.predict(pd.DataFrame({"text": ["", " "]})).any()
    mixed = pd.DataFrame({"text": [texts[1], None], "activations": [None, list(rows(dictionary, 1)[0])]})
    both = served.predict(mixed)
    np.testing.assert_allclose(both[0], _slow_codes(dictionary, model, texts[1], "max"), atol=2e-5)
    np.testing.assert_allclose(both[1], dictionary.encode(rows(dictionary, 1))[0], atol=1e-6)


def test_texts_need_the_very_model_of_the_dictionary(
    dictionary: ConceptDictionary, saved: Path, tiny_model: Callable[..., TextModel], model: TextModel, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"text": ["good", "awful soup"]})
    expected = mlflow.pyfunc.load_model(str(saved)).predict(frame)
    moved = Path(shutil.move(model.uri, tmp_path / "moved"))
    gone = mlflow.pyfunc.load_model(str(saved))
    with pytest.raises(ModelLoadError, match=f"there is no model folder '{model.uri}'"):
        gone.predict(frame)
    elsewhere = mlflow.pyfunc.load_model(str(saved), model_config={"base_model": str(moved)})
    np.testing.assert_array_equal(elsewhere.predict(frame), expected)
    other = in_folder(tiny_model(seed=1), tmp_path / "other").uri
    for loaded in (
        mlflow.pyfunc.load_model(str(saved), model_config={"base_model": other}),
        DictionaryModel(dictionary, base_model=other),
    ):
        with pytest.raises(
            IntegrityError, match=f"the model at '{other}' is not the one that the dictionary was made from: its finger"
        ):
            loaded.predict(frame)
    in_folder(tiny_model(seed=1), Path(model.uri))
    with pytest.raises(IntegrityError, match="is not the one that the dictionary was made from"):
        gone.predict(frame)


def test_texts_are_harvested_as_they_were_for_the_fit(model: TextModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(model, [1])
    for granularity, aggregation in (("word", "max"), ("sample", "last"), ("sentence", "signed_max"), ("cls", "mean")):
        harvested = split.get_activations(texts, granularity=granularity, aggregation=aggregation, progress=False)[1]
        fitted = PCAConcepts(n_concepts=3).fit(harvested)
        codes = fitted.encode(harvested).numpy()
        expected = [codes[harvested.text_ids == place].max(axis=0) for place in range(len(texts))]
        found = DictionaryModel(fitted).predict(pd.DataFrame({"text": texts}))
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_base_model_in_another_dtype_is_loaded_in_it(model: TextModel, texts: list[str]) -> None:
    half = load_model(model.uri, dtype="bfloat16")
    assert half.fingerprint != model.fingerprint
    harvested = ModelWithSplitPoints(half, [1]).get_activations(texts, granularity="sample", progress=False)[1]
    fitted = PCAConcepts(n_concepts=3).fit(harvested)
    found = DictionaryModel(fitted).predict(pd.DataFrame({"text": texts}))
    np.testing.assert_allclose(found, fitted.encode(harvested), rtol=0.05, atol=0.05 * float(abs(found).max()))


def test_the_strongest_concepts_come_with_their_labels(saved: Path, dictionary: ConceptDictionary) -> None:
    given = rows(dictionary)
    codes = dictionary.encode(given).numpy()
    loaded = mlflow.pyfunc.load_model(str(saved))
    frame = pd.DataFrame({"activations": list(given)})
    np.testing.assert_array_equal(loaded.predict(frame, params={"top_k": 0}), codes)
    found = loaded.predict(frame, params={"top_k": 3})
    assert list(found.columns) == ["concept", "activation", "label"]
    assert dictionary.descriptions is not None
    for code, concepts, activations, labels in zip(codes, *(found[name] for name in found), strict=True):
        strong = sorted((i for i in range(len(code)) if code[i]), key=lambda i: -abs(code[i]))[:3]
        assert concepts == strong
        assert activations == [float(code[i]) for i in strong]
        assert labels == [dictionary.descriptions[i].label for i in strong]
    assert loaded.predict(frame.head(0), params={"top_k": 3}).shape == (0, 3)
    with pytest.raises(InputError, match="top_k must be a whole number of at least 0, not -1"):
        loaded.predict(frame, params={"top_k": -1})


def test_copies_for_other_processes_predict_the_same(dictionary: ConceptDictionary, texts: list[str]) -> None:
    served = DictionaryModel(dictionary)
    copied = pickle.loads(pickle.dumps(served))
    frame = pd.DataFrame({"text": texts})
    np.testing.assert_array_equal(copied.predict(frame), served.predict(frame))


def test_input_that_cannot_be_encoded(dictionary: ConceptDictionary) -> None:
    served = DictionaryModel(dictionary)
    with pytest.raises(InputError, match="neither a column `text` nor a column `activations`"):
        served.predict(pd.DataFrame({"words": ["good"]}))
    with pytest.raises(InputError, match="row 1 has neither"):
        served.predict(pd.DataFrame({"activations": [list(rows(dictionary)[0]), None]}))
    with pytest.raises(InputError, match=r"the activations of row 0 have the shape \(3,\), not \(32,\)"):
        served.predict(pd.DataFrame({"activations": [[1.0, 2.0, 3.0]]}))
    with pytest.raises(UnknownNameError, match="unknown pooling 'sum'; known: 'max', 'mean'"):
        served.predict(pd.DataFrame({"text": ["good"]}), {"pooling": "sum"})
    unknown = PCAConcepts(n_concepts=2).fit(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(InputError, match="does not say which model it belongs to"):
        DictionaryModel(unknown).predict(pd.DataFrame({"text": ["good"]}))


def _registered(store: Store, model: TextModel, dictionary: ConceptDictionary) -> str:
    base = log_text_model(store, None, model, name="base", registered_model_name="base")
    dictionary.provenance["model"] |= {"uri": base.uri, "model_id": base.model_id, "name": "base"}
    with run(store, kind="concepts", name="x") as log:
        logged = write_dictionary(log, dictionary)
    version = register_dictionary(store, logged, dictionary)
    store.client.set_registered_model_alias(version.name, "champion", version.version)
    return str(version.name)


@pytest.mark.parametrize("dictionary", ["pca"], indirect=True)
def test_a_registered_dictionary_by_every_address(
    any_store: Store, model: TextModel, dictionary: ConceptDictionary, texts: list[str]
) -> None:
    name = _registered(any_store, model, dictionary)
    version = any_store.client.search_model_versions(f"name = '{name}'")[0].version
    found = any_store.client.get_model_version(name, version)
    mlflow.set_tracking_uri(any_store.tracking_uri)
    addresses = (f"models:/{name}@champion", f"models:/{name}/{version}", f"models:/{name}/latest", found.source)
    for address in (*addresses, f"runs:/{found.run_id}/dictionary"):
        loaded = load_dictionary(address, store=any_store)
        torch.testing.assert_close(loaded.dictionary, dictionary.dictionary)
        assert load_dictionary(address).descriptions == dictionary.descriptions
    served = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    expected = [_slow_codes(dictionary, model, text, "max") for text in texts]
    np.testing.assert_allclose(served.predict(pd.DataFrame({"text": texts})), expected, atol=2e-5)


@pytest.mark.parametrize("dictionary", ["pca"], indirect=True)
@pytest.mark.usefixtures("unchanged")
def test_files_that_were_changed_after_registration_are_refused(
    store: Store, model: TextModel, dictionary: ConceptDictionary, tmp_path: Path
) -> None:
    name = _registered(store, model, dictionary)
    assert load_dictionary(f"models:/{name}/1", store=store).name == "pca"
    model_id = store.client.get_model_version(name, "1").source.removeprefix("models:/")
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "MLmodel").write_text("flavors: {}\n")
    store.client.log_model_artifacts(model_id, str(tmp_path / "changed"))
    with pytest.raises(
        IntegrityError, match=f"the file 'MLmodel' of 'models:/{name}/1' was changed since it was logged"
    ):
        load_dictionary(f"models:/{name}/1", store=store)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/none@champion", "there is no model 'models:/none@champion' at"),
        ("models:/none/3", "there is no model 'models:/none/3' at"),
        ("models:/none/latest", "there is no model 'models:/none/latest' at"),
        ("models:/m-" + "0" * 32, "there is no model 'models:/m-0+' at"),
        ("runs:/" + "0" * 32 + "/x", "there is no model 'runs:/0+/x' at"),
        ("models:/a/b/c", "cannot read the model address 'models:/a/b/c'; write models:/name@alias"),
        ("models:nonsense", "cannot read the model address"),
        ("models:/x' OR '1'='1/latest", "there is no model|cannot read"),
        ("/no/such/folder", "there is no dictionary folder '/no/such/folder'"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(any_store: Store, address: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        load_dictionary(address, store=any_store)
    assert "\n" not in str(caught.value)


def test_other_models_and_broken_folders(store: Store, model: TextModel, tmp_path: Path, saved: Path) -> None:
    base = log_text_model(store, None, model, name="base")
    with pytest.raises(
        ModelLoadError, match="has no 'interpreto_mlops' flavor; it has 'python_function', 'transformers'"
    ):
        load_dictionary(base.uri, store=store)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match="is not an MLflow model"):
        load_dictionary(tmp_path / "empty")
    escaping = shutil.copytree(saved, tmp_path / "escaping")
    text = (escaping / "MLmodel").read_text()
    (escaping / "MLmodel").write_text(text.replace("data: dictionary\n", "data: ../model/dictionary\n"))
    with pytest.raises(ModelLoadError, match=r"has no folder '\.\./model/dictionary'"):
        load_dictionary(escaping)


@pytest.mark.parametrize("dictionary", ["pca"], indirect=True)
def test_log_model_in_mlflows_way(store: Store, dictionary: ConceptDictionary) -> None:
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    with mlflow.start_run() as mine:
        info = dictionary_flavor.log_model(
            dictionary, "encoder.layer.1: <x>", registered_model_name="cd", params={"k": 1}, metadata={"note": "x"}
        )
    entity = mlflow.get_logged_model(info.model_id)
    assert (entity.name, entity.params["k"], entity.source_run_id) == ("encoder-layer-1-x", "1", mine.info.run_id)
    assert (info.registered_model_version, info.model_uri, info.metadata) == (
        1,
        f"models:/{info.model_id}",
        {"note": "x"},
    )
    outside = dictionary_flavor.log_model(dictionary, extra_pip_requirements=["einops"])
    assert mlflow.get_logged_model(outside.model_id).source_run_id in (None, "")
    assert "einops" in (Path(mlflow.artifacts.download_artifacts(outside.model_uri)) / "requirements.txt").read_text()


@pytest.mark.parametrize("dictionary", ["pca"], indirect=True)
def test_mlflows_own_prediction(
    saved: Path, dictionary: ConceptDictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    given = {"dataframe_split": {"columns": ["activations"], "data": [[row] for row in rows(dictionary, 2).tolist()]}}
    given_file, output = tmp_path / "in.json", tmp_path / "out.json"
    given_file.write_text(json.dumps(given))
    mlflow.models.predict(str(saved), input_path=str(given_file), env_manager="local", output_path=str(output))
    found = json.loads(output.read_text())["predictions"]
    np.testing.assert_allclose(found, dictionary.encode(rows(dictionary, 2)), rtol=1e-5)
