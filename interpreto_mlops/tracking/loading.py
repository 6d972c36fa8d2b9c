"""Loading text models from folders, the hub and MLflow, as one fixed version each."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.pyfunc import PyFuncModel

from interpreto_mlops.errors import ModelLoadError
from interpreto_mlops.models import loading as model_loading
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking.resolving import (
    ResolvedModel,
    fetched,
    flavor_of,
    flavors_of,
    is_model_uri,
    part_of,
    resolve,
)
from interpreto_mlops.tracking.store import Store, current_store
from interpreto_mlops.tracking.wrapped_models import checkpoints, has_tokenizer, is_wrapper, of_pyfunc, run_code_of

_HUB_ID = re.compile(r"^[\w.-]+(?:/[\w.-]+)?$")
_COMMIT = re.compile(r"^(?P<id>[\w.-]+(?:/[\w.-]+)?)@(?P<commit>[0-9a-f]{40})$")


def load_model(
    source: str | Path | PyFuncModel,
    *,
    name: str | None = None,
    store: Store | None = None,
    run_code: bool | None = None,
    **options: Any,
) -> TextModel:
    """Load a model and its tokenizer from a folder, the HuggingFace hub, or MLflow.

    In MLflow it may be of the transformers flavor, or a pyfunc with a checkpoint (a folder of `save_pretrained`, or a
    model of the transformers flavor) among its artifacts. No code and no pickle of a pyfunc is run for that, unless the
    environment says `MLFLOW_ALLOW_PICKLE_DESERIALIZATION=true` and there is no checkpoint.

    Arguments:
        source: a folder, a hub id, `models:/name@alias`, `models:/name/3`, `models:/m-…` or `runs:/<run id>/<name>`; or
            what `mlflow.pyfunc.load_model` has returned, for a pyfunc that holds a pipeline or a model and tokenizer.
        name: how runs call the model; by default its registered name, or the last part of `source`.
        store: where MLflow addresses are looked up; by default where MLflow's own functions would.
        run_code: False never runs code or a pickle of a pyfunc, whatever the environment says; None asks it.
        options: `dtype` for weights in another dtype (`bfloat16`), and how the model is run: `autocast`, `compile`,
            `token_budget`, `prefix_reuse`; see `TextModel`.

    Returns:
        The model; its `uri` is pinned to the version that was loaded, whatever alias named it.

    Raises:
        ModelLoadError: nothing there, or what is there is no text model.
        TrackingError: the store does not answer.
    """
    if isinstance(source, PyFuncModel):
        return of_pyfunc(source, name, options)
    text = str(source)
    if is_model_uri(text):
        store = store or current_store()
        found = resolve(store, text)
        with fetched(store, found) as folder:
            return _load_logged(found, folder, name, options, run_code)
    if (match := _COMMIT.match(text)) and not Path(text).exists():
        return model_loading.load_model(match["id"], name=name, uri=text, revision=match["commit"], **options)
    return model_loading.load_model(source, name=name, **options)


def _load_logged(
    found: ResolvedModel, folder: Path, name: str | None, options: dict[str, Any], run_code: bool | None
) -> TextModel:
    flavors = flavors_of(found, folder)
    if "transformers" in flavors or not is_wrapper(flavors):
        return _load_transformers(found, folder, name, options)
    kept = checkpoints(found, folder, flavors)
    if kept and (kept[0] / MLMODEL_FILE_NAME).is_file():
        return _load_transformers(found, kept[0], name, options, root=folder)
    if kept:
        return _load_joined(found, kept, folder, name, options)
    return of_pyfunc(run_code_of(found, folder, allowed=run_code), name or found.name, options, found)


def _load_transformers(
    found: ResolvedModel, folder: Path, name: str | None, options: dict[str, Any], root: Path | None = None
) -> TextModel:
    flavor = flavor_of(found, folder, "transformers")
    if flavor.get("peft_adaptor"):
        raise ModelLoadError(f"the model {found.given!r} is an adapter; merge it into its model and log that")
    if not flavor.get("model_binary") and flavor.get("source_model_name"):
        return _load_reference(found, flavor, name, options)
    parts = [part_of(found, folder, flavor.get("model_binary"))]
    if "tokenizer" in (flavor.get("components") or []):
        parts.append(folder / "components" / "tokenizer")
    return _load_joined(found, parts, root or folder, name, options)


def _load_reference(
    found: ResolvedModel, flavor: Mapping[str, Any], name: str | None, options: dict[str, Any]
) -> TextModel:
    """Load what was logged without weights, as a hub id and its commit."""
    source, revision = str(flavor["source_model_name"]), flavor.get("source_model_revision")
    if not _HUB_ID.match(source) or Path(source).exists():
        raise ModelLoadError(
            f"the model {found.given!r} was logged by reference to {source!r}, which is no id on the hub; load that"
        )
    pinned = {"uri": found.uri, "model_id": found.model_id, "revision": revision}
    return model_loading.load_model(source, name=name or found.name, **pinned, **options)


def _load_joined(
    found: ResolvedModel, parts: Sequence[Path], root: Path, name: str | None, options: dict[str, Any]
) -> TextModel:
    """Load a network and a tokenizer that are kept apart: together they are the folder that transformers writes."""
    with tempfile.TemporaryDirectory(prefix="interpreto-model-") as joined:
        files = [(file, file.relative_to(part)) for part in parts for file in sorted(part.rglob("*")) if file.is_file()]
        for file, place in files:
            target = Path(joined) / place
            # What was put beside the files after they were logged is not the model that was logged.
            known = not found.manifest or file.relative_to(root).as_posix() in found.manifest
            if known and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file.resolve())
        if not has_tokenizer(Path(joined)):
            raise ModelLoadError(f"the model {found.given!r} has no tokenizer; log it with its tokenizer")
        try:
            return model_loading.load_model(
                joined, name=name or found.name, uri=found.uri, model_id=found.model_id, **options
            )
        except ModelLoadError as error:
            message = str(error).replace(joined, found.given)
            raise ModelLoadError(message) from error
