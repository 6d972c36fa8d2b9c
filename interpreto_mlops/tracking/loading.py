"""Loading text models from folders, the hub and MLflow, as one fixed version each."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from interpreto_mlops.errors import ModelLoadError
from interpreto_mlops.models import loading as model_loading
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking.resolving import ResolvedModel, fetched, flavor_of, is_model_uri, part_of, resolve
from interpreto_mlops.tracking.store import Store, current_store

_COMMIT = re.compile(r"^(?P<id>[\w.-]+(?:/[\w.-]+)?)@[0-9a-f]{40}$")


def load_model(source: str | Path, *, name: str | None = None, store: Store | None = None, **options: Any) -> TextModel:
    """Load a model and its tokenizer from a folder, the HuggingFace hub, or MLflow.

    Arguments:
        source: a folder, a hub id, `models:/name@alias`, `models:/name/3`, `models:/m-…` or `runs:/<run id>/<name>`.
        name: how runs call the model; by default its registered name, or the last part of `source`.
        store: where MLflow addresses are looked up; by default where MLflow's own functions would.
        options: `dtype` for weights in another dtype (`bfloat16`), and how the model is run: `autocast`, `compile`,
            `token_budget`, `prefix_reuse`; see `TextModel`.

    Returns:
        The model; its `uri` is pinned to the version that was loaded, whatever alias named it.

    Raises:
        ModelLoadError: nothing there, or what is there is no text model.
        TrackingError: the store does not answer.
    """
    text = str(source)
    if is_model_uri(text):
        store = store or current_store()
        found = resolve(store, text)
        with fetched(store, found) as folder:
            return _load_transformers(found, folder, name, options)
    # A hub id that a run pinned to a commit: who needs that very commit compares fingerprints.
    if (match := _COMMIT.match(text)) and not Path(text).exists():
        return model_loading.load_model(match["id"], name=name, uri=text, **options)
    return model_loading.load_model(source, name=name, **options)


def _load_transformers(found: ResolvedModel, folder: Path, name: str | None, options: dict[str, Any]) -> TextModel:
    flavor = flavor_of(found, folder, "transformers")
    network = part_of(found, folder, flavor.get("model_binary"))
    parts = [network]
    if "tokenizer" in (flavor.get("components") or []):
        parts.append(folder / "components" / "tokenizer")
    # MLflow keeps network and tokenizer apart; together they are the folder that transformers writes itself.
    with tempfile.TemporaryDirectory(prefix="interpreto-model-") as joined:
        for file in (file for part in parts for file in part.iterdir()):
            target = Path(joined) / file.name
            if not target.exists():
                target.symlink_to(file.resolve())
        try:
            return model_loading.load_model(
                joined, name=name or found.name, uri=found.uri, model_id=found.model_id, **options
            )
        except ModelLoadError as error:
            message = str(error).replace(joined, found.given)
            raise ModelLoadError(message) from error
