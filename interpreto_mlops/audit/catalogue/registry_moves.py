"""Changes of MLflow's registry that the log tells of: MLflow itself keeps neither who moved an alias nor when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException

from interpreto_mlops.audit.catalogue import log, rebuilding
from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.log import Action, LogEntry
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.store import Store

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
) -> LogEntry:
    """Move an alias and log it; see `Catalogue.move_alias`."""
    with store.guarded(f"read the version {str(version)!r} of {name!r}"):
        store.client.get_model_version(name, str(version))
    before = _version_of(store, name, alias)
    with store.guarded(f"move the alias {alias!r} of {name!r}"):
        store.client.set_registered_model_alias(name, alias, str(version))
    try:
        return log.append(
            database,
            action,
            f"models:/{name}@{alias}",
            before=None if before is None else {"uri": f"models:/{name}/{before}"},
            after={**(facts or {}), "uri": f"models:/{name}/{version}"},
            actor=actor,
            store=store.shown,
        )
    except BaseException:
        # An alias that moved without an entry is what the log is there to rule out.
        with store.guarded(f"move the alias {alias!r} of {name!r} back"):
            if before is None:
                store.client.delete_registered_model_alias(name, alias)
            else:
                store.client.set_registered_model_alias(name, alias, before)
        raise


def _version_of(store: Store, name: str, alias: str) -> str | None:
    """Return the version that an alias names now, or None where there is no such alias."""
    with store.guarded(f"read the alias {alias!r} of {name!r}"):
        try:
            return str(store.client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in _NO_ALIAS:
                return None
            raise
