"""Models that users have registered by themselves: of the transformers flavor, and pyfuncs around a pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import transformers
from mlflow import MlflowClient

from interpreto_mlops.errors import IntegrityError, ModelLoadError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import dictionary_flavor, load_dictionary, load_model, log_text_model
from interpreto_mlops.tracking.resolving import resolve
from interpreto_mlops.tracking.store import Store

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cloudpickle.*"),
]
REQUIREMENTS = ["mlflow", "torch", "transformers"]

CODE = """
import mlflow

class Wrapped(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        raise AssertionError("its code was run")

    def predict(self, model_input: list[str]):
        return model_input

mlflow.models.set_model(Wrapped())
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    """A model from code, which must not run."""
    (tmp_path / "wrapped.py").write_text(CODE)
    return str(tmp_path / "wrapped.py")


def pipeline_of(model: TextModel) -> transformers.Pipeline:
    return transformers.pipeline("text-classification", model=model.model, tokenizer=model.tokenizer, device="cpu")


def outputs(model: TextModel, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return model.model(**model.inputs(list(model.encode(texts)))).logits


class Holds(mlflow.pyfunc.PythonModel):
    """A user's model: what it holds is in its pickle."""

    def __init__(self, **held: Any) -> None:
        self.__dict__ |= held

    def predict(self, model_input: list[str]) -> list[str]:
        return model_input


def saved_parts(model: TextModel, tmp_path: Path) -> tuple[str, str, str]:
    """The folder of both, and those of network and tokenizer alone."""
    folders = [tmp_path / name for name in ("both", "network", "tokens")]
    for part, places in ((model.model, folders[:2]), (model.tokenizer, (folders[0], folders[2]))):
        for place in places:
            part.save_pretrained(place)
    return str(folders[0]), str(folders[1]), str(folders[2])


def fresh(tmp_path: Path) -> str:
    (tmp_path / "copy").mkdir()
    return str(tmp_path / "copy")


def log_pyfunc(**arguments: Any) -> Any:
    return mlflow.pyfunc.log_model(name="wrapped", pip_requirements=REQUIREMENTS, **arguments)


def test_the_transformers_flavor_as_users_log_it(user: Store, model: TextModel, texts: list[str]) -> None:
    parts = {"model": model.model, "tokenizer": model.tokenizer}
    logged = [
        mlflow.transformers.log_model(pipeline_of(model), name="a", pip_requirements=REQUIREMENTS),
        mlflow.transformers.log_model(parts, name="b", task="text-classification", pip_requirements=REQUIREMENTS),
    ]
    for info in logged:
        mlflow.register_model(info.model_uri, "mine")
        loaded = load_model("models:/mine/latest")
        assert loaded.model_id == info.model_id
        torch.testing.assert_close(outputs(loaded, texts), outputs(model, texts))
        assert loaded.labels == model.labels
        of_object = load_model(mlflow.pyfunc.load_model(info.model_uri), name="mine")
        assert (of_object.uri, of_object.model_id, of_object.name) == (info.model_uri, info.model_id, "mine")
        torch.testing.assert_close(outputs(of_object, texts), outputs(model, texts))


def test_a_checkpoint_among_the_artifacts_of_a_pyfunc(
    user: Store, model: TextModel, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    both, network, tokens = saved_parts(model, tmp_path)
    flavor = str(tmp_path / "flavor")
    mlflow.transformers.save_model(pipeline_of(model), flavor, pip_requirements=REQUIREMENTS)
    (tmp_path / "threshold.json").write_text("0.5")
    forms: list[dict[str, Any]] = [
        {"model": both, "threshold": str(tmp_path / "threshold.json")},
        {"the network": network, "words": tokens},
        {"flavor": flavor},
    ]
    for python_model in (Holds(x=1), code):
        for artifacts in forms:
            # Logging runs the code of a model from code once; loading runs nothing.
            info = _logged_without_running(python_model, artifacts)
            mlflow.register_model(info.model_uri, "wrapped")
            loaded = load_model("models:/wrapped/latest")
            assert loaded.fingerprint == model.fingerprint
            assert (loaded.model_id, loaded.name) == (info.model_id, "wrapped")
            assert loaded.uri.startswith("models:/wrapped/")


def _logged_without_running(python_model: Any, artifacts: dict[str, Any]) -> Any:
    if isinstance(python_model, str):
        text = Path(python_model).read_text()
        Path(python_model).write_text(text.replace('raise AssertionError("its code was run")', "pass"))
        info = log_pyfunc(python_model=python_model, artifacts=artifacts)
        Path(python_model).write_text(text)
        local = MlflowClient().get_logged_model(info.model_id).artifact_location
        kept = Path(mlflow.artifacts.download_artifacts(local)) / "wrapped.py"
        assert "pass" in kept.read_text()
        kept.write_text(text)
        return info
    return log_pyfunc(python_model=python_model, artifacts=artifacts)


def test_artifacts_that_leave_the_choice_open_are_said(user: Store, model: TextModel, tmp_path: Path) -> None:
    both, network, tokens = saved_parts(model, tmp_path)
    two = log_pyfunc(python_model=Holds(), artifacts={"a": both, "b": network})
    with pytest.raises(ModelLoadError, match="holds more than one network among its artifacts: 'a', 'b'; log the one"):
        load_model(two.model_uri)
    copied = str(tmp_path / "again")
    model.tokenizer.save_pretrained(copied)
    two = log_pyfunc(python_model=Holds(), artifacts={"n": network, "s": tokens, "t": copied})
    with pytest.raises(ModelLoadError, match="holds more than one tokenizer among its artifacts: 's', 't'"):
        load_model(two.model_uri)
    without = log_pyfunc(python_model=Holds(), artifacts={"n": network})
    with pytest.raises(ModelLoadError, match=f"the model '{without.model_uri}' has no tokenizer; log it with"):
        load_model(without.model_uri)


def test_a_path_out_of_the_models_folder_is_not_followed(user: Store, model: TextModel, tmp_path: Path) -> None:
    both, _, _ = saved_parts(model, tmp_path)
    info = log_pyfunc(python_model=Holds(), artifacts={"a": both})
    folder = Path(mlflow.artifacts.download_artifacts(user.client.get_logged_model(info.model_id).artifact_location))
    text = (folder / "MLmodel").read_text()
    assert "path: artifacts/both" in text
    for path in (both, os.path.relpath(both, folder)):
        (folder / "MLmodel").write_text(text.replace("path: artifacts/both", f"path: {path}"))
        with pytest.raises(ModelLoadError, match="has no folder"):
            load_model(info.model_uri)


class Marks:
    """Unpickling leaves a mark in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_loaded_unless_the_environment_says_so(
    user: Store, model: TextModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    mark = tmp_path / "mark"
    info = log_pyfunc(python_model=Holds(pipe=pipeline_of(model), marks=Marks(mark)))
    mark.unlink(missing_ok=True)
    for value in (None, "false"):
        if value is not None:
            monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", value)
        with pytest.raises(ModelLoadError, match="is a pyfunc without a checkpoint among its artifacts") as caught:
            load_model(info.model_uri)
        assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=true" in str(caught.value)
        assert not mark.exists()
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    loaded = load_model(info.model_uri)
    assert mark.exists()
    assert (loaded.fingerprint, loaded.uri, loaded.model_id) == (model.fingerprint, info.model_uri, info.model_id)
    assert load_model(info.model_uri, dtype="float32").fingerprint == model.fingerprint
    with pytest.raises(ModelLoadError, match="has its network in float32, not in 'bfloat16'"):
        load_model(info.model_uri, dtype="bfloat16")


def test_what_a_user_has_loaded_is_taken_by_its_parts(user: Store, model: TextModel) -> None:
    def loaded(**held: Any) -> Any:
        return mlflow.pyfunc.load_model(log_pyfunc(python_model=Holds(**held)).model_uri)

    for held in (
        {"pipe": pipeline_of(model)},
        {"net": model.model, "tok": model.tokenizer},
        {"parts": {"model": model.model, "tokenizer": model.tokenizer}},
    ):
        given = loaded(**held)
        found = load_model(given)
        assert found.fingerprint == model.fingerprint
        assert found.uri == f"models:/{given.model_id}"
    with pytest.raises(ModelLoadError, match="must hold one pipeline, or one model and one tokenizer"):
        load_model(loaded(x=1))
    with pytest.raises(ModelLoadError, match="it holds 2 and 2"):
        load_model(loaded(a=pipeline_of(model), b=pipeline_of(model)))
    with pytest.raises(ModelLoadError, match="it holds 1 and 0"):
        load_model(loaded(net=model.model))


def test_a_failing_pyfunc_is_said_in_a_sentence(user: Store, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = _logged_without_running(code, {})
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    with pytest.raises(ModelLoadError, match=f"the pyfunc '{info.model_uri}' cannot be loaded: its code was run"):
        load_model(info.model_uri)


def test_a_copied_version_is_still_its_logged_model(user: Store, model: TextModel) -> None:
    logged = log_text_model(user, None, model, name="x", registered_model_name="first")
    user.client.copy_model_version("models:/first/1", "second")
    user.client.copy_model_version("models:/second/1", "third")
    loaded = load_model("models:/third/1")
    assert (loaded.uri, loaded.model_id) == ("models:/third/1", logged.model_id)
    user.client.delete_model_version("first", "1")
    assert load_model("models:/third/1").fingerprint == model.fingerprint
    assert resolve(user, "models:/third/1").model_id is None


def test_who_registers_later_is_held_to_the_logged_files(user: Store, model: TextModel, tmp_path: Path) -> None:
    logged = log_text_model(user, None, model, name="x")
    mlflow.register_model(logged.uri, "later")
    assert load_model("models:/later/1").fingerprint == model.fingerprint
    changed = tmp_path / "changed"
    changed.mkdir()
    # A file that was added to the model's folder later is not read: this one would make transformers look for a base.
    (changed / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/other", "peft_type": "LORA"}')
    user.client.log_model_artifacts(logged.model_id, str(changed), "model")
    assert load_model("models:/later/1").fingerprint == model.fingerprint
    (changed / "config.json").write_text("{}")
    user.client.log_model_artifacts(logged.model_id, str(changed), "model")
    with pytest.raises(IntegrityError, match=r"the file 'model/config\.json' of 'models:/later/1' was changed"):
        load_model("models:/later/1")


def test_dictionaries_and_adapters_are_no_text_models(user: Store, model: TextModel, tmp_path: Path) -> None:
    from interpreto_mlops.concepts import PCAConcepts

    fitted = PCAConcepts(n_concepts=2).fit(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    info = dictionary_flavor.log_model(fitted)
    with pytest.raises(
        ModelLoadError, match="has no 'transformers' flavor; it has 'interpreto_mlops', 'python_function'"
    ):
        load_model(info.model_uri)
    logged = log_text_model(user, None, model, name="x")
    with pytest.raises(ModelLoadError, match="has no 'interpreto_mlops' flavor"):
        load_dictionary(logged.uri)
    folder = Path(mlflow.artifacts.download_artifacts(logged.uri, dst_path=fresh(tmp_path)))
    text = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(text.replace("  transformers:\n", "  transformers:\n    peft_adaptor: peft\n"))
    with mlflow.start_run() as opened:
        mlflow.log_artifacts(str(folder), "adapter")
    with pytest.raises(ModelLoadError, match=r"runs:/.*' is an adapter; merge it into its model and log that"):
        load_model(f"runs:/{opened.info.run_id}/adapter")


def _hub(model: TextModel, cache: Path, commits: dict[str, int], tiny_model: Callable[..., TextModel]) -> None:
    """A local cache of the hub in which one model has two commits, the second of which is `main`."""
    root = cache / "hub" / "models--someone--reviews"
    for commit, seed in commits.items():
        folder = root / "snapshots" / commit
        made = model if seed == 0 else tiny_model(seed=seed)
        made.model.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(list(commits)[-1])


@pytest.mark.slow
def test_a_pinned_commit_of_the_hub_is_that_commit(
    user: Store, model: TextModel, tiny_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    first, second = "a" * 40, "b" * 40
    _hub(model, tmp_path / "hf", {first: 0, second: 1}, tiny_model)
    # What `save_pretrained=False` of MLflow's flavor writes: a name and a commit, no weights.
    logged = log_text_model(user, None, model, name="x")
    folder = Path(mlflow.artifacts.download_artifacts(logged.uri, dst_path=fresh(tmp_path)))
    lines = (folder / "MLmodel").read_text().splitlines()
    kept = [line for line in lines if not line.strip().startswith(("model_binary:", "source_model_name:"))]
    place = kept.index("  transformers:") + 1
    kept[place:place] = ["    source_model_name: someone/reviews", f"    source_model_revision: {first}"]
    (folder / "MLmodel").write_text("\n".join(kept))
    with mlflow.start_run() as opened:
        mlflow.log_artifacts(str(folder), "reference")
    code = (
        "import sys, json, interpreto_mlops as im\n"
        "found = [im.load_model(source) for source in sys.argv[1:]]\n"
        "print(json.dumps([[each.fingerprint, each.uri] for each in found]))"
    )
    reference = f"runs:/{opened.info.run_id}/reference"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            f"someone/reviews@{first}",
            f"someone/reviews@{second}",
            "someone/reviews",
            reference,
        ],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "MLFLOW_TRACKING_URI": user.tracking_uri}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    other = tiny_model(seed=1).fingerprint
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [model.fingerprint, f"someone/reviews@{first}"],
        [other, f"someone/reviews@{second}"],
        [other, f"someone/reviews@{second}"],
        [model.fingerprint, reference],
    ]
