"""What a logged dictionary's sealed files say of it: its facts and its metrics, without its weights."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow.artifacts
import yaml
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from requests.exceptions import RequestException

from interpreto_mlops.errors import DataError, IntegrityError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.dictionary_flavor import FLAVOR_NAME
from interpreto_mlops.tracking.manifest import digest_of, parse_manifest
from interpreto_mlops.tracking.store import Store


@dataclass(frozen=True)
class DictionaryFiles:
    """A dictionary without its weights.

    Arguments:
        facts: the flavor's entry in `MLmodel`.
        metrics: by their keys, NaN where one could not be computed; empty where none was logged.
    """

    facts: Mapping[str, Any]
    metrics: Mapping[str, float] = field(default_factory=dict)


def dictionary_files(store: Store, model_id: str) -> DictionaryFiles | None:
    """Return what the files of a logged dictionary say, each compared with the manifest in its tags.

    Returns:
        None for a model that is no dictionary, or is not there any more.

    Raises:
        IntegrityError: a file, or the manifest, was changed.
        DataError: a file cannot be read.
        TrackingError: the store fails.
    """
    model = store.if_there(f"read the model {model_id!r}", lambda: store.client.get_logged_model(model_id))
    if model is None or model.model_type != schema.DICTIONARY_KIND or model.status != LoggedModelStatus.READY:
        return None
    manifest = parse_manifest(model.tags.get(schema.TAG_MANIFEST, "{}"), repr(f"models:/{model_id}"))
    if digest_of(manifest) != model.tags.get(schema.TAG_SHA256):
        raise IntegrityError(f"the manifest of the dictionary {model_id!r} is not the one whose sha256 its tags hold")
    entry = yaml.safe_load(_read(store, model, MLMODEL_FILE_NAME, manifest))
    metrics = (
        json.loads(_read(store, model, schema.MODEL_METRICS, manifest)) if schema.MODEL_METRICS in manifest else {}
    )
    values = {str(name): math.nan if value is None else float(value) for name, value in metrics.items()}
    return DictionaryFiles(entry["flavors"][FLAVOR_NAME], values)


def _read(store: Store, model: LoggedModel, path: str, manifest: Mapping[str, str]) -> bytes:
    what = f"the file {path!r} of the dictionary {str(model.model_id)!r}"
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        try:
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{model.artifact_location}/{path}",
                dst_path=scratch,
                tracking_uri=store.tracking_uri,
                registry_uri=store.registry_uri,
            )
            content = Path(local).read_bytes()
        except (MlflowException, RequestException, OSError) as error:
            raise DataError(f"cannot fetch {what}: {first_line(error)}") from None
    if hashlib.sha256(content).hexdigest() != manifest.get(path):
        raise IntegrityError(f"{what} was changed since it was logged")
    return content
