"""Changes of MLflow's registry that the log tells of: MLflow itself keeps neither who moved an alias nor when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

from mlflow.exceptions import MlflowException

from interpreto_mlops.audit.catalogue import log, rebuilding, writing
from interpreto_mlops.audit.catalogue.addresses import store_address
from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.log import Action, LogEntry
from interpreto_mlops.errors import CatalogueError, InputError, TrackingError, UnknownNameError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line, sqlite_file
from interpreto_mlops.tracking.store import Store

MOVES = (Action.MOVE_ALIAS, Action.PROMOTE)


class Expected(Enum):
    """What an alias must name before it is moved, where no version is given."""

    ANYTHING = "anything"


_NO_ALIAS = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}


def note_registration(
    database: Database, store: Store, name: str, version: str | int, actor: str | None = None
) -> LogEntry:
    """Take over a new version, and log that it was registered; see `Catalogue.note_registration`."""
    with store.guarded(f"read the version {str(version)!r} of {name!r}"):
        found = store.client.get_model_version(name, str(version))
    rebuilding.record_version(database, store, name, version)
    facts = {"source": found.source, "run": found.run_id or None, "sha256": found.tags.get(schema.TAG_SHA256)}
    after = {key: value for key, value in facts.items() if value is not None}
    subject = f"models:/{name}/{found.version}"
    return log.append(database, Action.REGISTER, subject, after=after, actor=actor, store=store.shown)


def move_alias(
    database: Database,
    store: Store,
    name: str,
    alias: str,
    version: str | int,
    *,
    action: str = Action.MOVE_ALIAS,
    facts: Mapping[str, Any] | None = None,
    actor: str | None = None,
    expected: str | Expected | None = Expected.ANYTHING,
) -> LogEntry:
    """Move an alias and log it; see `Catalogue.move_alias`."""
    if (given := Action.parse(action)) not in MOVES:
        raise UnknownNameError("action on an alias", given.value, [each.value for each in MOVES])
    _check_apart(database, store)
    with store.guarded(f"read the version {str(version)!r} of {name!r}"):
        number = str(store.client.get_model_version(name, str(version)).version)
    subject, after = f"models:/{name}@{alias}", {**(facts or {}), "uri": f"models:/{name}/{number}"}
    # All that can be wrong with an entry is found before anything moves.
    log.prepared(action, subject, after=after, actor=actor, store=store.shown)
    with database.writing() as connection:
        writing.claim(connection, store_address(store))
        # Who moves an alias waits here for the others, so that what it was before is what they made of it.
        log.hold(connection)
        found = _version_of(store, name, alias)
        if expected is not Expected.ANYTHING and found != expected:
            raise InputError(f"{subject} {_named(found, 'names')} now, and {_named(expected, 'named')} before")
        before = None if found is None else {"uri": f"models:/{name}/{found}"}
        entry = log.prepared(action, subject, before=before, after=after, actor=actor, store=store.shown)
        written = log.append_to(connection, entry)
        with _moved_back_on_failure(store, name, alias, number, found):
            with store.guarded(f"move the alias {alias!r} of {name!r}"):
                store.client.set_registered_model_alias(name, alias, number)
            connection.commit()
    return written


def _named(version: str | None, names: str) -> str:
    return f"{names} no version" if version is None else f"{names} version {version}"


@contextmanager
def _moved_back_on_failure(store: Store, name: str, alias: str, ours: str, before: str | None) -> Iterator[None]:
    """Let an alias name what it named where it could not be logged, unless somebody else has moved it since."""
    try:
        yield
    except BaseException as error:
        # A move whose answer was lost was made, too.
        try:
            if before != ours and _version_of(store, name, alias) == ours:
                _move_back(store, name, alias, before)
        except TrackingError as failed:
            said = f"the alias {alias!r} of {name!r} may name version {ours!r} without an entry in the log"
            raise TrackingError(f"{said}; look at it: {first_line(error)}; {failed}") from None
        raise


def _move_back(store: Store, name: str, alias: str, before: str | None) -> None:
    with store.guarded(f"move the alias {alias!r} of {name!r} back"):
        if before is None:
            store.client.delete_registered_model_alias(name, alias)
        else:
            store.client.set_registered_model_alias(name, alias, before)


def _check_apart(database: Database, store: Store) -> None:
    """Refuse a catalogue in the registry's own SQLite file: MLflow cannot write there while the entry is written."""
    theirs = sqlite_file(store.registry_uri)
    if (
        database.is_sqlite
        and theirs is not None
        and theirs.exists()
        and theirs.samefile(str(database.engine.url.database))
    ):
        raise CatalogueError(
            f"the catalogue at {database.shown!r} is in the file of MLflow's registry, where an alias cannot be moved "
            "and logged in one go; keep the catalogue in a file of its own"
        )


def _version_of(store: Store, name: str, alias: str) -> str | None:
    """Return the version that an alias names now, or None where there is no such alias."""
    with store.guarded(f"read the alias {alias!r} of {name!r}"):
        try:
            return str(store.client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in _NO_ALIAS:
                return None
            raise
