"""The dictionary flavor keeps to MLflow's conventions: what its functions take and write."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from interpreto_mlops.concepts import ConceptDictionary, ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.concepts.importance.results import ConceptImportance
from interpreto_mlops.concepts.interpretation import ConceptDescription, Word
from interpreto_mlops.errors import (
    InputError,
    IntegrityError,
    ModelLoadError,
    NotFittedError,
    TrackingError,
    UnknownNameError,
)
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import connect, dictionary_flavor, load_dictionary, log_text_model, run, write_dictionary
from interpreto_mlops.tracking.manifest import manifest_of
from interpreto_mlops.tracking.store import Store

HOSTILE = "<script>alert(1)</script> | ![x](http://evil) `a` [b](javascript:c) # _d_\n## e"


@pytest.fixture
def dictionary(model: TextModel, texts: list[str]) -> ConceptDictionary:
    data = TextDataset("reviews", tuple(texts))
    activations = ModelWithSplitPoints(model, [1]).get_activations(data, granularity="word", progress=False)[1]
    found = PCAConcepts(n_concepts=4).fit(activations, progress=False)
    found.descriptions = top_words(found, activations)
    return found


@pytest.fixture
def user(any_store: Store) -> Store:
    """The user has set up MLflow for themself."""
    mlflow.set_tracking_uri(any_store.tracking_uri)
    mlflow.set_experiment(experiment_id=any_store.experiment_id)
    return any_store


def rows(dictionary: ConceptDictionary, n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, dictionary.width)).astype(np.float32)


def importance_of(dictionary: ConceptDictionary) -> ConceptImportance:
    values = np.asarray([[0.1, -3.0, 0.2, 0.0], [float("nan")] * 4, [1.0, 2.0, 3.0, -4.0]])
    return ConceptImportance(("bad", "nobody's", "go|od"), values, (3, 0, 2), "gradient")


def test_labels_metrics_and_a_card_are_inside(dictionary: ConceptDictionary, tmp_path: Path) -> None:
    metrics = {"reconstruction/r2": 0.75, "stability/stability": float("nan")}
    dictionary_flavor.save_model(
        dictionary, tmp_path / "m", metrics=metrics, importance=importance_of(dictionary), metadata={"team": "x"}
    )
    assert json.loads((tmp_path / "m/metrics.json").read_text()) == {
        "reconstruction/r2": 0.75,
        "stability/stability": None,
    }
    labels = pd.read_json(tmp_path / "m/labels.json", orient="split")
    assert dictionary.descriptions is not None
    assert labels["label"].tolist() == [each.label for each in dictionary.descriptions]
    card = (tmp_path / "m/README.md").read_text()
    said = dictionary.provenance
    for fact in (
        said["model"]["fingerprint"],
        said["data"]["digest"],
        "| granularity | word |",
        "| 0.75 |",
        "minus a mean",
    ):
        assert fact in card
    assert "bert.encoder.layer.1" in card
    ranked = card[card.index("## Top concepts of each class") :]
    found = [line.split(" | ")[2:] for line in ranked.splitlines() if line.startswith("| bad")]
    assert found == [["1", "-3 |"], ["2", "\\+0.2 |"], ["0", "\\+0.1 |"], ["3", "\\+0 |"]]
    assert "| go\\|od | " in ranked
    assert "nobody's" not in ranked
    assert mlflow.models.get_model_info(str(tmp_path / "m")).metadata == {"team": "x"}


def test_without_labels_and_metrics_there_is_a_card_alone(tmp_path: Path) -> None:
    bare = PCAConcepts(n_concepts=2).fit(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    dictionary_flavor.save_model(bare, tmp_path / "m")
    assert "# 2 concepts by pca" in (tmp_path / "m/README.md").read_text()
    assert not (tmp_path / "m/labels.json").exists()
    assert not (tmp_path / "m/metrics.json").exists()
    assert load_dictionary(tmp_path / "m").provenance == {}
    with pytest.raises(NotFittedError, match="is not fitted"):
        dictionary_flavor.save_model(PCAConcepts(n_concepts=2), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_hostile_text_is_shown_as_it_is(dictionary: ConceptDictionary, tmp_path: Path) -> None:
    dictionary.descriptions = [ConceptDescription(0, (Word(HOSTILE, 1.0, 1),), (), 0.5, 1.0)]
    dictionary.provenance["data"]["name"] = HOSTILE
    dictionary.provenance["model"] |= {"name": HOSTILE, "uri": "http://someone:secret@host/model"}
    dictionary_flavor.save_model(dictionary, tmp_path / "m", metrics={HOSTILE: 1.0})
    card = (tmp_path / "m/README.md").read_text()
    shown = r"\<script\>alert\(1\)\</script\> \| \!\[x\]\(http://evil\) \`a\` \[b\]\(javascript:c\) \# \_d\_ \#\# e"
    assert card.count(shown) == 4
    assert not re.search(r"(?<!\\)[<>]", card)
    assert "secret" not in card + (tmp_path / "m/MLmodel").read_text()
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        "# 4 concepts by pca",
        "## Metrics",
        "## Top concepts",
        "## Use",
    ]


def test_the_flavor_names_base_model_and_normalisation(dictionary: ConceptDictionary, tmp_path: Path) -> None:
    revisions = {
        "models:/reviews/3": "3",
        "someone/some-model@" + "ab" * 20: "ab" * 20,
        "models:/m-" + "0" * 32: None,
        "/some/folder/3": None,
    }
    for place, (uri, revision) in enumerate(revisions.items()):
        dictionary.provenance["model"] |= {"uri": uri, "model_id": "m-1"}
        dictionary_flavor.save_model(dictionary, tmp_path / str(place))
        entry = yaml.safe_load((tmp_path / str(place) / "MLmodel").read_text())["flavors"]["interpreto_mlops"]
        assert (entry["base_model"], entry["base_model_revision"], entry["base_model_id"]) == (uri, revision, "m-1")
    assert (entry["granularity"], entry["aggregation"], entry["data_name"]) == ("word", "mean", "reviews")
    encoded = dictionary.encode(rows(dictionary))
    by_hand = (torch.from_numpy(rows(dictionary)) - dictionary.weights["mean"]) / entry["normalisation"]["scale"]
    torch.testing.assert_close(by_hand @ dictionary.weights["encoder"].T + dictionary.weights["encoder_bias"], encoded)
    assert entry["normalisation"]["mean_norm"] == pytest.approx(float(dictionary.weights["mean"].norm()))


def test_arrays_are_taken_with_their_own_signature(dictionary: ConceptDictionary, tmp_path: Path) -> None:
    given = rows(dictionary)
    expected = dictionary.encode(given).numpy()
    dictionary_flavor.save_model(dictionary, tmp_path / "a", signature=dictionary_flavor.array_signature(dictionary))
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "a"))
    np.testing.assert_array_equal(loaded.predict(given), expected)
    np.testing.assert_array_equal(
        loaded.predict(given, params={"top_k": 1})["activation"].str[0].abs(), abs(expected).max(1)
    )
    dictionary_flavor.save_model(dictionary, tmp_path / "b")
    with pytest.raises(InputError, match=r"saved with the signature of `dictionary_flavor\.array_signature`"):
        mlflow.pyfunc.load_model(str(tmp_path / "b")).predict(given)
    dictionary_flavor.save_model(dictionary, tmp_path / "c", signature=False)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "c"))
    assert loaded.metadata.signature is None
    np.testing.assert_array_equal(loaded.predict(given), expected)
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame({"activations": list(given)})), expected)


@pytest.mark.filterwarnings("ignore:.*ScandirIterator")
@pytest.mark.filterwarnings("ignore:unclosed scandir iterator:ResourceWarning")
def test_requirements_and_environments_of_the_user(dictionary: ConceptDictionary, tmp_path: Path) -> None:
    def saved(name: str, **arguments: object) -> list[str]:
        dictionary_flavor.save_model(dictionary, tmp_path / name, **arguments)  # type: ignore[arg-type]
        return (tmp_path / name / "requirements.txt").read_text().splitlines()

    pinned = f"mlflow=={mlflow.__version__}"
    assert saved("own", pip_requirements=["einops", pinned]) == ["einops", pinned]
    default = saved("default")
    assert saved("extra", extra_pip_requirements=["einops"]) == [*default, "einops"]
    conda = {"name": "mine", "dependencies": ["python=3.11", "pip", {"pip": ["einops", pinned]}]}
    assert saved("conda", conda_env=conda) == ["einops", pinned]
    assert yaml.safe_load((tmp_path / "conda/conda.yaml").read_text())["name"] == "mine"
    with pytest.raises(ValueError, match=r"Only one of `conda_env`, `pip_requirements`"):
        saved("both", conda_env=conda, pip_requirements=["einops"])
    assert not (tmp_path / "both").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(mlflow.MlflowException, match="already exists and is not empty"):
        saved("taken")
    assert [each.name for each in (tmp_path / "taken").iterdir()] == ["file"]


def test_everything_that_log_model_takes(user: Store, dictionary: ConceptDictionary) -> None:
    name = f"cd {user.experiment_id}"
    signature = ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, dictionary.width))]))
    with mlflow.start_run() as mine:
        mlflow.log_param("lr", 0.1)
        mlflow.log_metric("loss", 3.0)
        info = dictionary_flavor.log_model(
            dictionary,
            "encoder.layer.1: 50%",
            registered_model_name=name,
            signature=signature,
            input_example=rows(dictionary, 2),
            params={"k": 1},
            tags={"team": "x"},
            model_type="checkpoint",
            step=7,
            metrics={"reconstruction/r2": 0.5},
        )
    entity = mlflow.get_logged_model(info.model_id)
    assert (entity.name, entity.model_type, entity.status) == ("encoder-layer-1-50", "checkpoint", "READY")
    assert {"k": "1", "lr": "0.1"}.items() <= entity.params.items()
    version = user.client.get_model_version(name, info.registered_model_version)
    assert version.tags["team"] == entity.tags["team"] == "x"
    assert (version.source, version.run_id) == (f"models:/{info.model_id}", mine.info.run_id)
    # The run's own metrics are not copied, one request for each; those of the dictionary are on its page.
    (metric,) = entity.metrics
    assert (metric.key, metric.value, metric.step, metric.dataset_name) == ("reconstruction/r2", 0.5, 7, "reviews")
    found = user.client.get_run(mine.info.run_id)
    assert [(output.model_id, output.step) for output in found.outputs.model_outputs] == [(info.model_id, 7)]
    assert found.data.metrics == {"loss": 3.0, "reconstruction/r2": 0.5}
    loaded = mlflow.pyfunc.load_model(f"models:/{name}/{version.version}")
    assert loaded.metadata.signature == signature
    np.testing.assert_array_equal(loaded.input_example, rows(dictionary, 2))


def test_a_name_that_mlflow_refuses_is_made_safe(user: Store, dictionary: ConceptDictionary) -> None:
    for forbidden in ("encoder.layer.3", "a/b", "a:b", "50%", 'a"b', "it's"):
        with pytest.raises(mlflow.MlflowException):
            user.client.create_logged_model(user.experiment_id, forbidden)
    info = dictionary_flavor.log_model(dictionary, "a/b:c.d%e\"f'g <b> é")
    assert mlflow.get_logged_model(info.model_id).name == "a-b-c-d-e-f-g-b-e"


def test_labels_that_were_replaced_and_files_that_are_gone(
    store: Store, dictionary: ConceptDictionary, tmp_path: Path
) -> None:
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    info = dictionary_flavor.log_model(dictionary, registered_model_name="cd")
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "labels.json").write_text('{"columns": [], "data": []}')
    store.client.log_model_artifacts(info.model_id, str(changed))
    for address in ("models:/cd/1", info.model_uri):
        with pytest.raises(IntegrityError, match=rf"the file 'labels\.json' of '{address}' was changed since it was"):
            load_dictionary(address)
    folder = Path(mlflow.artifacts.download_artifacts(mlflow.get_logged_model(info.model_id).artifact_location))
    shutil.rmtree(folder)
    with pytest.raises(ModelLoadError, match="cannot fetch the model 'models:/cd/1'") as caught:
        load_dictionary("models:/cd/1")
    assert "\n" not in str(caught.value)


def test_a_logged_model_that_is_there_is_filled(user: Store, dictionary: ConceptDictionary) -> None:
    external = mlflow.create_external_model(name="mine", params={"k": "1"})
    info = dictionary_flavor.log_model(dictionary, model_id=external.model_id, params={"k": 1, "new": 2})
    assert info.model_id == external.model_id
    entity = mlflow.get_logged_model(external.model_id)
    assert (entity.name, entity.params) == ("mine", {"k": "1", "new": "2"})
    assert "mlflow.model.isExternal" not in entity.tags
    torch.testing.assert_close(load_dictionary(info.model_uri).dictionary, dictionary.dictionary)
    # MLflow takes a parameter once, and fails with an error of the database for another value.
    with pytest.raises(InputError, match=r"has the parameter 'k' with the value '1', which cannot become '3'"):
        dictionary_flavor.log_model(dictionary, model_id=external.model_id, params={"k": 3})
    assert mlflow.get_logged_model(external.model_id).status == "READY"
    with pytest.raises(TrackingError, match=r"could not log a model: .*Logged model with ID 'm-none' not found"):
        dictionary_flavor.log_model(dictionary, model_id="m-none")


def test_nothing_is_logged_under_a_name_that_cannot_be(store: Store, dictionary: ConceptDictionary) -> None:
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    with pytest.raises(InputError, match="must not be empty or hold '/' or ':'"):
        dictionary_flavor.log_model(dictionary, registered_model_name="a/b")
    with pytest.raises(NotFittedError):
        dictionary_flavor.log_model(PCAConcepts(n_concepts=2))
    assert store.client.search_logged_models([store.experiment_id]) == []


def test_files_are_kept_where_the_user_says(user: Store, dictionary: ConceptDictionary, tmp_path: Path) -> None:
    info = dictionary_flavor.log_model(dictionary)
    (tmp_path / "kept").mkdir()
    loaded = dictionary_flavor.load_model(info.model_uri, dst_path=str(tmp_path / "kept"))
    torch.testing.assert_close(loaded.dictionary, dictionary.dictionary)
    assert list((tmp_path / "kept").rglob("README.md"))


def test_a_runs_dictionary_has_card_and_metrics_inside(any_store: Store, dictionary: ConceptDictionary) -> None:
    with run(any_store, kind="concepts", name="x") as log:
        logged = write_dictionary(
            log, dictionary, metrics={"reconstruction/r2": 0.5}, importance=importance_of(dictionary)
        )
    assert {"README.md", "labels.json", "metrics.json"} <= logged.manifest.keys()
    mlflow.set_tracking_uri(any_store.tracking_uri)
    local = Path(mlflow.artifacts.download_artifacts(f"models:/{logged.model_id}"))
    assert "## Top concepts of each class" in (local / "README.md").read_text()
    assert manifest_of(local) == logged.manifest


FAMILY = """
from dataclasses import dataclass

import interpreto_mlops.concepts as concepts
from interpreto_mlops.concepts.base import DICTIONARIES

@DICTIONARIES.register("mine")
@dataclass(kw_only=True, eq=False)
class Mine(concepts.PCAConcepts):
    pass
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process, whose working folder and path hold nothing of the test's."""
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:interpreto_mlops", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_family_of_the_users_own_comes_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "my_family.py").write_text(FAMILY)
    saved = str(tmp_path / "model")
    save = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); from my_family import Mine\n"
        "from interpreto_mlops.tracking.dictionary_flavor import save_model\n"
        "d = Mine(n_concepts=2).fit(torch.eye(4))\n"
        "save_model(d, sys.argv[2], code_paths=[sys.argv[1] + '/my_family.py'])\n"
        "save_model(d, sys.argv[2] + '2')\n"
    )
    done = python(save, str(tmp_path), saved)
    assert done.returncode == 0, done.stderr
    (tmp_path / "my_family.py").unlink()
    load = (
        "import sys, json, mlflow, pandas as pd\n"
        "m = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "codes = m.predict(pd.DataFrame({'activations': [[1.0] * 4]}))\n"
        "print(json.dumps([type(m.get_raw_model()).__name__, codes.shape]))"
    )
    done = python(load, saved)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["Mine", [1, 2]]
    # Loading as a dictionary runs no code of the model's, with or without it inside.
    for folder in (saved, saved + "2"):
        with pytest.raises(UnknownNameError, match="unknown concept method 'mine'"):
            load_dictionary(folder)


@pytest.mark.slow
def test_it_loads_and_predicts_where_pickles_are_forbidden(
    database: str, model: TextModel, texts: list[str], dictionary: ConceptDictionary
) -> None:
    store = connect(database, "tests")
    base = log_text_model(store, None, model, name="base", registered_model_name="base")
    dictionary.provenance["model"] |= {"uri": base.uri, "model_id": base.model_id}
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    dictionary_flavor.log_model(dictionary, registered_model_name="cd")
    code = (
        "import sys, json, pickle, mlflow, pandas as pd\n"
        "import interpreto_mlops as im\n"
        "def refused(*a, **k): raise AssertionError('something was unpickled')\n"
        "import interpreto_mlops.concepts.split, transformers.pipelines, scipy.stats\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refused\n"
        "import cloudpickle; cloudpickle.load = cloudpickle.loads = refused\n"
        "import torch; torch.load = refused\n"
        "print(im.load_dictionary('models:/cd/1').n_concepts)\n"
        "found = mlflow.pyfunc.load_model('models:/cd/1')\n"
        "print(json.dumps(found.predict(pd.DataFrame({'text': json.loads(sys.argv[1])})).tolist()))\n"
        "print(im.load_model('models:/base/1').fingerprint)\n"
    )
    done = python(code, json.dumps(texts), MLFLOW_TRACKING_URI=database, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    assert done.returncode == 0, done.stderr
    number, codes, fingerprint = done.stdout.splitlines()[-3:]
    assert (number, fingerprint) == ("4", model.fingerprint)
    np.testing.assert_allclose(json.loads(codes), by_word(dictionary, model, texts), atol=2e-5)


def by_word(dictionary: ConceptDictionary, model: TextModel, texts: list[str]) -> np.ndarray:
    """The codes by the definition, for a tokenizer of whole words: one row a word, and the maximum over the words."""
    found = []
    for text in texts:
        (encoding,) = model.encode([text])
        with torch.no_grad():
            states = model.model(**model.inputs([encoding]), output_hidden_states=True).hidden_states[2][0]
        found.append(dictionary.encode(states[torch.from_numpy(~encoding.special)]).numpy().max(axis=0))
    return np.asarray(found)


@pytest.mark.filterwarnings("ignore:.*filesystem tracking backend.*")
def test_a_file_store_writes_into_the_models_folder_and_nothing_changes(
    dictionary: ConceptDictionary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    dictionary_flavor.log_model(dictionary, registered_model_name="cd")
    for _ in range(2):
        assert mlflow.pyfunc.load_model("models:/cd/1").get_raw_model().n_concepts == 4
        torch.testing.assert_close(load_dictionary("models:/cd/1").dictionary, dictionary.dictionary)
    (written,) = (tmp_path / "mlruns").rglob("registered_model_meta")
    version = MlflowClient().get_model_version("cd", "1")
    assert manifest_of(written.parent) == json.loads(version.tags["interpreto.manifest"])


def test_a_file_store_that_mlflow_refuses_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with pytest.raises(TrackingError, match="cannot open the experiment at 'file:") as caught:
        load_dictionary("models:/cd/1")
    assert "\n" not in str(caught.value)
