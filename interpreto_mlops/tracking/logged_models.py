"""Logged and registered models, written through a store's own client: MLflow's `log_model` needs its global state."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import ModelInfo
from requests.exceptions import RequestException

from interpreto_mlops.errors import InputError
from interpreto_mlops.observers import Observers
from interpreto_mlops.tracking import _mlflow_private, schema
from interpreto_mlops.tracking.addresses import first_line, redact
from interpreto_mlops.tracking.manifest import digest_of, manifest_of
from interpreto_mlops.tracking.store import Store

_log = logging.getLogger(__name__)
_FORBIDDEN = set("/:")
# MLflow's mark of a model that has no files in it yet.
_EXTERNAL = "mlflow.model.isExternal"


@dataclass(frozen=True)
class Registration:
    """A version that was just registered.

    Arguments:
        store: where.
        name: of the registered model.
        version: its number.
    """

    store: Store
    name: str
    version: str

    @property
    def uri(self) -> str:
        """The version's address."""
        return f"models:/{self.name}/{self.version}"


# The log lives a layer above.
REGISTERED: Observers[Registration] = Observers("interpreto_mlops.audit.cataloguing:note_registration")


@dataclass(frozen=True)
class LoggedFolder:
    """A model folder that was logged.

    Arguments:
        model_id: of the logged model.
        name: of the logged model.
        run_id: of the run that made it, if any.
        manifest: the sha256 of every file.
        info: MLflow's own description.
    """

    model_id: str
    name: str
    run_id: str | None
    manifest: dict[str, str]
    info: ModelInfo

    @property
    def uri(self) -> str:
        """The pinned address."""
        return f"models:/{self.model_id}"


def log_folder(
    store: Store,
    name: str,
    save: Callable[[Path, Model], object],
    *,
    model_type: str,
    run_id: str | None = None,
    experiment_id: str | None = None,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    step: int = 0,
    model_id: str | None = None,
) -> LoggedFolder:
    """Log what `save` writes into a folder as a logged model, as an output of the run; a failure leaves it FAILED.

    Arguments:
        store: where.
        name: of the logged model; made safe.
        save: writes an MLflow model folder to a path, into the given `Model`.
        model_type: by which models are searched.
        run_id: the run that makes it.
        experiment_id: that run's, where it is known.
        params: of the logged model.
        tags: of the logged model; the manifest is added.
        step: of the run, at which it is made.
        model_id: an existing logged model to fill, whose name and type stay.

    Raises:
        InputError: the existing model has one of the parameters with another value.
        TrackingError: the store fails.
    """
    client = store.client
    with store.guarded("log a model"):
        if model_id is None:
            if experiment_id is None:
                experiment_id = store.experiment_id if run_id is None else client.get_run(run_id).info.experiment_id
            logged = client.create_logged_model(
                str(experiment_id), schema.slugify(name), run_id, _shown(tags), _shown(params), model_type
            )
        else:
            logged = _adopted(store, model_id, _shown(tags), _shown(params))
    try:
        with store.guarded("log a model"), tempfile.TemporaryDirectory(prefix="interpreto-model-") as scratch:
            if run_id is not None:
                client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
            folder = Path(scratch) / "model"
            model = Model(
                artifact_path=logged.artifact_location,
                model_uuid=logged.model_id,
                run_id=run_id,
                model_id=logged.model_id,
            )
            save(folder, model)
            manifest = manifest_of(folder)
            client.log_model_artifacts(logged.model_id, str(folder))
            client.set_logged_model_tags(logged.model_id, manifest_tags(manifest))
            if _EXTERNAL in logged.tags:
                client.delete_logged_model_tag(logged.model_id, _EXTERNAL)
            ready = client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    except BaseException:
        _give_up(store, logged.model_id)
        raise
    return LoggedFolder(logged.model_id, logged.name, run_id, manifest, model.get_model_info(ready))


def _adopted(store: Store, model_id: str, tags: dict[str, str], params: dict[str, str]) -> LoggedModel:
    """Return an existing logged model with these tags and parameters; it takes a parameter only once."""
    found = store.client.get_logged_model(model_id)
    known = dict(found.params or {})
    for name, value in params.items():
        if known.get(name, value) != value:
            raise InputError(
                f"the logged model {model_id!r} has the parameter {name!r} with the value {known[name]!r}, which "
                f"cannot become {value!r}; log a new model"
            )
    if new := {name: value for name, value in params.items() if name not in known}:
        store.client.log_model_params(model_id, new)
    store.client.set_logged_model_tags(model_id, tags)
    return found


def _give_up(store: Store, model_id: str) -> None:
    try:
        store.client.finalize_logged_model(model_id, LoggedModelStatus.FAILED)
    except (MlflowException, RequestException) as error:
        # The first error is what the user must see; this one often has the same cause.
        _log.warning("could not mark the model %s as failed: %s", model_id, first_line(error))


def manifest_tags(manifest: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that hold a manifest and its own sha256."""
    return {schema.TAG_MANIFEST: json.dumps(dict(manifest)), schema.TAG_SHA256: digest_of(manifest)}


def register(
    store: Store,
    logged: LoggedFolder,
    name: str,
    *,
    tags: Mapping[str, str | None] | None = None,
    description: str | None = None,
) -> ModelVersion:
    """Make a logged model the next version of a registered model, which is created where it is missing.

    The log of the store's catalogue gets an entry of it; where that fails there is a warning, and the version stays.

    Arguments:
        store: where.
        logged: the model.
        name: of the registered model.
        tags: of the version; the source run and the manifest are added; None is left out.
        description: of the version.

    Raises:
        InputError: a name that MLflow cannot register.
        TrackingError: the store fails.
    """
    check_name(name)
    values = {**manifest_tags(logged.manifest), schema.TAG_SOURCE_RUN: logged.run_id, **(tags or {})}
    with store.guarded(f"register the model {name!r}"):
        _create_name(store, name)
        # A database's registry looks the logged model up at the global address, whatever its client's is.
        with _mlflow_private.tracking_to(store.tracking_uri):
            version = store.client.create_model_version(
                name, logged.uri, logged.run_id, _shown(values), description=description, model_id=logged.model_id
            )
        # The UI links a logged model to its versions by this tag, which a server sets by itself.
        known = json.loads(store.client.get_logged_model(logged.model_id).tags.get(schema.TAG_VERSIONS, "[]"))
        entry = {"name": name, "version": int(version.version)}
        if entry not in known:
            store.client.set_logged_model_tags(logged.model_id, {schema.TAG_VERSIONS: json.dumps([*known, entry])})
    REGISTERED.tell(Registration(store, name, str(version.version)), always=True)
    return version


def check_name(name: str) -> None:
    """Refuse a name that MLflow cannot register.

    Raises:
        InputError: it is empty, or holds a slash or a colon.
    """
    if not name.strip() or _FORBIDDEN & set(name):
        raise InputError(f"a registered model's name must not be empty or hold '/' or ':', unlike {name!r}")


def _create_name(store: Store, name: str) -> None:
    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"}:
            raise


def _shown(values: Mapping[str, str | None] | None) -> dict[str, str]:
    return {key: redact(str(value)) for key, value in (values or {}).items() if value is not None}
