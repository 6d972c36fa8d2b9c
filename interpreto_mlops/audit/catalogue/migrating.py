"""Bringing a catalogue's database to this package's schema, once, however many processes start at the same time."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from interpreto_mlops.audit.catalogue import migrations
from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.tables import SCHEMA, VERSION_TABLE, Base
from interpreto_mlops.errors import CatalogueError

# Of a PostgreSQL advisory lock, which takes any fixed number: the first letters of our name.
_LOCK = int.from_bytes(b"interpre", "big")
_FOLDER = Path(str(migrations.__file__)).parent
_alembic = threading.Lock()


def include_name(name: str | None, kind: str, parents: Any) -> bool:
    """Say whether alembic may look at a table: MLflow's, in the same database, are not ours to compare or to drop."""
    return kind != "table" or name in Base.metadata.tables


def options(connection: Connection) -> dict[str, Any]:
    """Return what alembic is configured with: our own version table, and nobody else's tables."""
    return {
        "connection": connection,
        "target_metadata": Base.metadata,
        "version_table": VERSION_TABLE,
        "version_table_schema": SCHEMA if connection.dialect.name == "postgresql" else None,
        "include_name": include_name,
        "render_as_batch": True,
    }


def head() -> str:
    """Return the revision that this package writes."""
    return str(_script().get_current_head())


def migrate(database: Database, *, create: bool = True) -> bool:
    """Bring the database to this package's schema; return whether anything was to do.

    Arguments:
        database: to be brought there.
        create: whether a catalogue is made where there is none.

    Raises:
        CatalogueError: a newer package made the catalogue, there is none to go on from, or the database fails.
    """
    with database.reading() as connection:
        revision = _current(connection, database.shown)
    if revision == head():
        return False
    if revision is None and not create:
        raise database.missing()
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            _create_schema(connection)
        # Another process may have been faster.
        if _current(connection, database.shown) == head():
            return False
        _upgrade(connection)
    return True


def _current(connection: Connection, where: str) -> str | None:
    given = options(connection)
    context = MigrationContext.configure(connection, opts={key: given[key] for key in given if key != "connection"})
    revision = context.get_current_revision()
    try:
        _script().get_revisions(revision or ())
    except CommandError as error:
        message = f"the catalogue at {where!r} was made by a newer version of this package (its schema is {revision!r})"
        raise CatalogueError(f"{message}; install that version") from error
    return revision


def _create_schema(connection: Connection) -> None:
    # CREATE SCHEMA IF NOT EXISTS would ask for the right to create one even where it is there.
    there = connection.scalar(text("SELECT 1 FROM pg_namespace WHERE nspname = :name"), {"name": SCHEMA})
    if there is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    # What alembic's `context` means is global to the process.
    with _alembic:
        command.upgrade(config, "head")


@cache
def _script() -> ScriptDirectory:
    return ScriptDirectory(str(_FOLDER))
