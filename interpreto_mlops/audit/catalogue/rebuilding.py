"""From MLflow's runs, logged models and registered versions to the catalogue's rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from sqlalchemy import Connection, delete, select

from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.audit.catalogue import artifacts, writing
from interpreto_mlops.audit.catalogue.addresses import store_address
from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.tables import DictionaryRow, RunRow, VersionRow
from interpreto_mlops.audit.catalogue.texts import storable
from interpreto_mlops.errors import CatalogueError, InputError, InterpretoError, TrackingError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.reading import kinds_of, pages, read_explanations
from interpreto_mlops.tracking.resolving import model_id_of
from interpreto_mlops.tracking.store import Store

_CURVES = (f"{schema.CURVE}/", f"{schema.TRAIN}/")


@dataclass
class Rebuilt:
    """What a rebuild found.

    Arguments:
        runs, dictionaries, versions: how many the catalogue holds of the store now.
        removed: how many rows of these were of what MLflow no longer has.
        skipped: what could not be read, and why: by run id, model id or `name/version`.
    """

    runs: int = 0
    dictionaries: int = 0
    versions: int = 0
    removed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


def record_run(
    database: Database, store: Store, run_id: str, explanations: Iterable[Attribution] | None = None
) -> None:
    """Take over what a run holds; see `Catalogue.record_run`."""
    with store.guarded(f"read the run {run_id!r}"):
        run = store.client.get_run(run_id)
    kinds = kinds_of(run)
    if not kinds:
        raise InputError(f"the run {run_id!r} is none that explains, audits or reports: it has no {schema.TAG_KIND!r}")
    if explanations is None:
        explanations = _attributions(store, run)
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [model for output in outputs if (model := _dictionary(store, output.model_id)) is not None]
    read = [(model, artifacts.read_dictionary(store, model)) for model in models]
    with database.writing() as connection:
        _write_run(connection, store, run, explanations)
        for model, dictionary in read:
            _write_dictionary(connection, store, model, dictionary)


def record_version(database: Database, store: Store, name: str, version: str | int) -> None:
    """Take over a registered version; see `Catalogue.record_version`."""
    with store.guarded(f"read the version {str(version)!r} of {name!r}"):
        found = store.client.get_model_version(name, str(version))
    row = _version_row(store, found)
    with database.writing() as connection:
        writing.replace_version(connection, row)


def rebuild(database: Database, store: Store) -> Rebuilt:
    """Derive everything but the log from a store; see `Catalogue.rebuild`."""
    with database.reading() as connection:
        writing.check_store(connection, store_address(store))
        # What others record while this goes on is none of what has gone.
        before = _held(connection, store)
    found = Rebuilt()
    seen: dict[str, set[Any]] = {"runs": set(), "dictionaries": set(), "versions": set()}
    experiments = [str(each.experiment_id) for each in pages(store, store.client.search_experiments)]

    def write_run(run: Run) -> None:
        seen["runs"].add(run.info.run_id)
        explanations = _attributions(store, run)
        with database.writing() as connection:
            _write_run(connection, store, run, explanations)

    def write_dictionary(model: LoggedModel) -> None:
        seen["dictionaries"].add(model.model_id)
        dictionary = artifacts.read_dictionary(store, model)
        with database.writing() as connection:
            _write_dictionary(connection, store, model, dictionary)

    def write_version(version: ModelVersion) -> None:
        seen["versions"].add((version.name, int(version.version)))
        row = _version_row(store, version)
        with database.writing() as connection:
            writing.replace_version(connection, row)

    _each(_runs(store, experiments), lambda run: str(run.info.run_id), write_run, found.skipped)
    _each(_dictionaries(store, experiments), lambda model: str(model.model_id), write_dictionary, found.skipped)
    _each(_versions(store), lambda version: f"{version.name}/{version.version}", write_version, found.skipped)
    _remove_others(database, store, before, seen, found)
    return found


def _each(
    items: Iterable[Any], name: Callable[[Any], str], write: Callable[[Any], None], skipped: dict[str, str]
) -> None:
    """Write every item; one that cannot be read is told of, and the others go on."""
    for item in items:
        try:
            write(item)
        except (CatalogueError, TrackingError):
            raise
        except InterpretoError as error:
            skipped[name(item)] = str(error)


def _runs(store: Store, experiments: list[str]) -> Iterator[Run]:
    ours = f"tags.`{schema.TAG_KIND}` LIKE '%'"
    found = pages(store, store.client.search_runs, experiment_ids=experiments, filter_string=ours)
    return (run for run in found if kinds_of(run))


def _dictionaries(store: Store, experiments: list[str]) -> Iterator[LoggedModel]:
    ours = f"model_type = '{schema.DICTIONARY_KIND}'"
    search = store.client.search_logged_models
    for model in pages(store, search, experiment_ids=experiments, filter_string=ours):
        if model.status == LoggedModelStatus.READY:
            yield model


def _versions(store: Store) -> Iterator[ModelVersion]:
    return pages(store, store.client.search_model_versions)


def _dictionary(store: Store, model_id: str) -> LoggedModel | None:
    """Return a logged model if it is a whole dictionary, or None where it is not, or is gone."""
    model = store.if_there(f"read the model {model_id!r}", lambda: store.client.get_logged_model(model_id))
    if model is None or model.model_type != schema.DICTIONARY_KIND or model.status != LoggedModelStatus.READY:
        return None
    return model


def _attributions(store: Store, run: Run) -> list[Attribution]:
    """Return the attributions among a run's artifacts, by all of its methods."""
    # What a failed run has left behind is no evidence, and may be half of it.
    if run.info.status in {"FAILED", "KILLED"} or "attributions" not in kinds_of(run):
        return []
    run_id = str(run.info.run_id)
    found = (item for method in read_explanations(store, run_id) for item in method.explanations)
    return artifacts.checked(found, run_id)


def _write_run(connection: Connection, store: Store, run: Run, explanations: Iterable[Attribution]) -> None:
    scores = {
        name: None if math.isnan(value) else value
        for name, value in run.data.metrics.items()
        if not name.startswith(_CURVES)
    }
    writing.replace_run(connection, _run_row(store, run), scores, explanations)


def _run_row(store: Store, run: Run) -> writing.Row:
    tags = run.data.tags
    given = run.inputs.dataset_inputs if run.inputs else []
    dataset = given[0].dataset if given else None
    row = {
        "run_id": run.info.run_id,
        "store": store_address(store),
        "experiment_id": str(run.info.experiment_id),
        "name": run.info.run_name,
        "kind": ",".join(kinds_of(run)),
        "status": run.info.status,
        "suite": tags.get(schema.TAG_SUITE),
        "model_uri": tags.get(schema.TAG_MODEL_URI),
        "model_id": tags.get(schema.TAG_MODEL_ID),
        "model_fingerprint": tags.get(schema.TAG_MODEL_FINGERPRINT),
        "layer": _param(run, "layer"),
        "method": _param(run, "method"),
        "dataset": dataset and dataset.name,
        "dataset_digest": dataset and dataset.digest,
        "started_at": _at(run.info.start_time),
        "ended_at": _at(run.info.end_time),
    }
    return _clean(row)


def _param(run: Run, name: str) -> str | None:
    """Return a parameter of ours: in a run of the user's, who has one of the same name, it is under its kind."""
    params: dict[str, str] = run.data.params
    ours = [params[own] for kind in kinds_of(run) if (own := schema.param_of_kind(kind, name)) in params]
    return ours[0] if ours else params.get(name)


def _write_dictionary(
    connection: Connection, store: Store, model: LoggedModel, dictionary: artifacts.ReadDictionary
) -> None:
    facts, tags = dictionary.facts, model.tags or {}
    row = {
        "model_id": model.model_id,
        "store": store_address(store),
        "run_id": model.source_run_id or None,
        "name": model.name,
        "method": facts.get("method"),
        "layer": facts.get("layer"),
        "n_concepts": facts.get("n_concepts"),
        "width": facts.get("width"),
        "base_uri": facts.get("base_model"),
        "base_id": facts.get("base_model_id"),
        "base_sha256": facts.get("base_model_sha256"),
        "data_digest": facts.get("data_digest"),
        "sha256": tags.get(schema.TAG_SHA256),
        "created_at": _at(model.creation_timestamp),
    }
    writing.replace_dictionary(connection, _clean(row), dictionary.concepts)


def _version_row(store: Store, version: ModelVersion) -> writing.Row:
    tags = version.tags or {}
    # A dictionary's version has the fingerprint of its base: it is not its own.
    own = tags.get(schema.TAG_KIND) != schema.DICTIONARY_KIND
    row = {
        "name": version.name,
        "version": int(version.version),
        "store": store_address(store),
        "model_id": model_id_of(store, version),
        "run_id": version.run_id or None,
        "source": version.source or None,
        "fingerprint": tags.get(schema.TAG_MODEL_FINGERPRINT) if own else None,
        "created_at": _at(version.creation_timestamp),
    }
    return _clean(row)


def _held(connection: Connection, store: Store) -> dict[str, set[Any]]:
    """Return what the catalogue has of the store."""
    here = store_address(store)
    versions = connection.execute(select(VersionRow.name, VersionRow.version).where(VersionRow.store == here))
    return {
        "runs": set(connection.scalars(select(RunRow.run_id).where(RunRow.store == here))),
        "dictionaries": set(connection.scalars(select(DictionaryRow.model_id).where(DictionaryRow.store == here))),
        "versions": {(name, version) for name, version in versions},
    }


def _remove_others(
    database: Database, store: Store, before: dict[str, set[Any]], seen: dict[str, set[Any]], found: Rebuilt
) -> None:
    """Remove what the catalogue had of the store and the store no longer has, and count both."""
    with database.writing() as connection:
        held = _held(connection, store)
        gone = {name: (held[name] & before[name]) - seen[name] for name in held}
        for run_id in gone["runs"]:
            writing.delete_run(connection, run_id)
        for model_id in gone["dictionaries"]:
            connection.execute(delete(DictionaryRow).where(DictionaryRow.model_id == model_id))
        for name, version in gone["versions"]:
            connection.execute(delete(VersionRow).where(VersionRow.name == name, VersionRow.version == version))
    found.runs, found.dictionaries, found.versions = (len(held[name] - gone[name]) for name in held)
    found.removed = sum(map(len, gone.values()))


def _clean(row: writing.Row) -> writing.Row:
    return {name: storable(value) if isinstance(value, str) else value for name, value in row.items()}


def _at(milliseconds: int | None) -> str | None:
    """Return a time of MLflow's as the log writes times."""
    if not milliseconds:
        return None
    at = datetime.fromtimestamp(int(milliseconds) / 1000, tz=timezone.utc)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
