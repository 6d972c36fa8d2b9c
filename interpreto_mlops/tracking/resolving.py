"""From a `models:/` or `runs:/` address to one fixed model: its pinned address, its id, its files."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import mlflow.artifacts
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from requests.exceptions import RequestException

from interpreto_mlops.errors import ModelLoadError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.manifest import parse_manifest, verify
from interpreto_mlops.tracking.store import Store

_ID = re.compile(r"^models:/(?P<id>m-[0-9a-f]{32})$")
_ALIAS = re.compile(r"^models:/(?P<name>[^/@:]+)@(?P<alias>[\w.-]+)$")
_VERSION = re.compile(r"^models:/(?P<name>[^/:]+)/(?P<version>\d+|latest)$")
_RUN = re.compile(r"^runs:/(?P<run>[0-9a-f]{32})/(?P<path>.+)$")
_FORMS = "models:/name@alias, models:/name/3, models:/name/latest, models:/m-<id> or runs:/<run id>/<name>"


@dataclass(frozen=True)
class ResolvedModel:
    """One fixed model in a store.

    Arguments:
        given: the address that was resolved.
        uri: the pinned address, which means the same model for ever.
        location: where its files are.
        name: the registered name, or that of the logged model.
        model_id: of the logged model, where there is one.
        version: of the registered model, where it is one.
        run_id: of the run that made it.
        manifest: the sha256 of its files when it was logged by this package, else empty.
    """

    given: str
    uri: str
    location: str
    name: str
    model_id: str | None = None
    version: str | None = None
    run_id: str | None = None
    manifest: dict[str, str] = field(default_factory=dict)


def is_model_uri(source: str) -> bool:
    """Return whether the text is an address in an MLflow store rather than a folder or a hub id."""
    return source.startswith(("models:", "runs:"))


def resolve(store: Store, uri: str) -> ResolvedModel:
    """Find the model that an address names now.

    Raises:
        ModelLoadError: it has another form, or there is no such model.
        IntegrityError: the manifest that it was logged with was changed into none.
    """
    try:
        if match := _ID.match(uri):
            return _logged(uri, store.client.get_logged_model(match["id"]))
        if match := _ALIAS.match(uri):
            return _registered(store, uri, store.client.get_model_version_by_alias(match["name"], match["alias"]))
        if match := _VERSION.match(uri):
            number = match["version"]
            version = latest_version(store, match["name"]) if number == "latest" else number
            return _registered(store, uri, store.client.get_model_version(match["name"], version or "0"))
        if match := _RUN.match(uri):
            return _of_run(store, uri, match["run"], match["path"])
    except (MlflowException, RequestException) as error:
        raise ModelLoadError(f"there is no model {uri!r} at {store.shown!r}: {first_line(error)}") from None
    raise ModelLoadError(f"cannot read the model address {uri!r}; write {_FORMS}")


def model_id_of(store: Store, version: ModelVersion) -> str | None:
    """Return the logged model of a version: its source names it, or that of the version which it is a copy of."""
    # The open-source registry leaves the version's own model id empty.
    source, seen = str(version.source or ""), set[str]()
    while (copied := _VERSION.match(source)) and source not in seen:
        seen.add(source)
        try:
            source = str(store.client.get_model_version(copied["name"], copied["version"]).source or "")
        except MlflowException:
            return None  # the first version was deleted; the copy has its files
    match = _ID.match(source)
    return match["id"] if match else None


def latest_version(store: Store, name: str) -> str | None:
    """Return the highest version of a registered model that is ready, or None where there is none."""
    with store.guarded(f"look for the registered model {name!r}"):
        versions = store.client.search_model_versions(f"name = {quoted(name)}")
    ready = [int(version.version) for version in versions if version.status == "READY"]
    return str(max(ready)) if ready else None


def quoted(text: str) -> str:
    """Return a text as a filter of MLflow's searches takes it; one with both kinds of quotes cannot be searched for."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def find_registered(store: Store, name: str) -> str | None:
    """Return the pinned address of the newest version of a registered model, or None where there is none."""
    version = latest_version(store, name)
    return None if version is None else f"models:/{name}/{version}"


@contextmanager
def fetched(store: Store, model: ResolvedModel) -> Iterator[Path]:
    """Hold the files of a model in a local folder, checked against its manifest where it has one.

    Raises:
        ModelLoadError: they cannot be fetched.
        IntegrityError: they were changed.
    """
    with downloaded(store, model) as folder:
        verify(folder, model.manifest, repr(model.uri))
        yield folder


@contextmanager
def downloaded(store: Store, model: ResolvedModel) -> Iterator[Path]:
    """Hold the files of a model in a local folder, as they are.

    Raises:
        ModelLoadError: they cannot be fetched.
    """
    here = urlsplit(model.location).scheme in {"", "file"}
    with tempfile.TemporaryDirectory(prefix="interpreto-model-") as scratch:
        try:
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=model.location,
                dst_path=None if here else scratch,
                tracking_uri=store.tracking_uri,
                registry_uri=store.registry_uri,
            )
        except (MlflowException, RequestException, OSError) as error:
            raise ModelLoadError(f"cannot fetch the model {model.given!r}: {first_line(error)}") from None
        yield Path(local)


def part_of(found: ResolvedModel, folder: Path, name: object) -> Path:
    """Return the folder of a model's weights, by the path that its `MLmodel` gives.

    Raises:
        ModelLoadError: none is given, or it is not inside the model's folder.
    """
    if not name:
        raise ModelLoadError(
            f"the model {found.given!r} was logged by reference, without weights; load what it refers to"
        )
    place = PurePosixPath(str(name))
    path = folder / place
    if place.is_absolute() or ".." in place.parts or not path.is_dir():
        raise ModelLoadError(f"the model {found.given!r} has no folder {str(name)!r} with weights")
    return path


def flavors_of(found: ResolvedModel, folder: Path) -> Mapping[str, Any]:
    """Return what the `MLmodel` of a model's folder says of each of its flavors.

    Raises:
        ModelLoadError: it cannot be read.
    """
    try:
        flavors: Mapping[str, Any] = Model.load(str(folder)).flavors
    except (MlflowException, OSError, ValueError, TypeError, KeyError) as error:
        raise ModelLoadError(f"{found.given!r} is not an MLflow model: {first_line(error)}") from error
    return flavors


def flavor_of(found: ResolvedModel, folder: Path, flavor: str) -> Mapping[str, Any]:
    """Return a flavor's entry in the `MLmodel` of a model's folder.

    Raises:
        ModelLoadError: it cannot be read, or the model has no such flavor.
    """
    flavors = flavors_of(found, folder)
    if flavor not in flavors:
        known = ", ".join(repr(name) for name in flavors)
        raise ModelLoadError(f"the model {found.given!r} has no {flavor!r} flavor; it has {known}")
    entry: Mapping[str, Any] = flavors[flavor]
    return entry


def _logged(given: str, model: LoggedModel, uri: str | None = None) -> ResolvedModel:
    return ResolvedModel(
        given,
        uri or f"models:/{model.model_id}",
        str(model.artifact_location),
        str(model.name),
        str(model.model_id),
        run_id=model.source_run_id or None,
        manifest=_manifest(model.tags, given),
    )


def _registered(store: Store, given: str, version: ModelVersion) -> ResolvedModel:
    model_id = model_id_of(store, version)
    manifest = _manifest(version.tags, given)
    if not manifest and model_id is not None:
        # Whoever registered it later did so without the tags of the logged model.
        manifest = _manifest(_tags(store, model_id), given)
    return ResolvedModel(
        given,
        f"models:/{version.name}/{version.version}",
        str(store.client.get_model_version_download_uri(version.name, version.version)),
        str(version.name),
        model_id,
        str(version.version),
        version.run_id or None,
        manifest,
    )


def _tags(store: Store, model_id: str) -> dict[str, str] | None:
    try:
        return dict(store.client.get_logged_model(model_id).tags)
    except MlflowException:
        return None  # it was deleted, or is not ours to read


def _of_run(store: Store, given: str, run_id: str, path: str) -> ResolvedModel:
    run = store.client.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [store.client.get_logged_model(output.model_id) for output in outputs]
    named = [model for model in models if model.name == path]
    if named:
        return _logged(given, max(named, key=lambda model: int(model.creation_timestamp)))
    if not store.client.list_artifacts(run_id, path):
        raise ModelLoadError(f"the run {run_id!r} at {store.shown!r} has no model {path!r}")
    return ResolvedModel(given, given, f"{run.info.artifact_uri}/{path}", path.rsplit("/", 1)[-1], run_id=run_id)


def _manifest(tags: Mapping[str, str] | None, uri: str) -> dict[str, str]:
    text = (tags or {}).get(schema.TAG_MANIFEST)
    return {} if text is None else parse_manifest(text, repr(uri))
