"""The catalogue's database: connections and transactions, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from interpreto_mlops.audit.catalogue.addresses import shown
from interpreto_mlops.audit.catalogue.tables import SCHEMA
from interpreto_mlops.errors import CatalogueError, MissingDependencyError
from interpreto_mlops.tracking.addresses import first_line

# A writer waits this long for the others before it gives up.
WAIT_SECONDS = 120
CONNECT_SECONDS = 10

_WRITES = "interpreto_writes"


class Database:
    """Transactions in a catalogue's database.

    Arguments:
        url: of a SQLite file or a PostgreSQL database.
        create: whether a SQLite file and its folder are made where they are missing.

    Raises:
        MissingDependencyError: PostgreSQL's driver is not installed.
        CatalogueError: a SQLite file that is missing, or whose folder cannot be made.
    """

    def __init__(self, url: URL, *, create: bool = True) -> None:
        self.shown = shown(url)
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._find(Path(str(url.database)), create)
        self.engine = _sqlite(url) if self.is_sqlite else _postgresql(url)
        # COPY goes past SQLAlchemy, and its errors too.
        driver: Any = self.engine.dialect.dbapi
        self._driver_error: type[Exception] = driver.Error

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Hold a transaction that reads, and that sees the same state from its beginning to its end.

        Raises:
            CatalogueError: the database fails.
        """
        with self._guarded("be read"), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Hold a transaction that writes all or nothing; on SQLite it waits until it is the only one.

        Raises:
            CatalogueError: the database fails; nothing was written then.
        """
        with self._guarded("be written"), self.engine.connect() as connection:
            connection = connection.execution_options(**{_WRITES: True})
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                # After a commit that failed the driver's transaction may be open, and hold everybody up.
                connection.invalidate()
                raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def missing(self) -> CatalogueError:
        """Return the error that says that no catalogue is here."""
        remedy = "give the address of one, or make it with: interpreto-mlops catalogue rebuild"
        return CatalogueError(f"there is no catalogue at {self.shown!r}; {remedy}")

    def _find(self, file: Path, create: bool) -> None:
        if not create and not file.is_file():
            raise self.missing()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CatalogueError(
                f"cannot make the folder of the catalogue {str(file)!r}: {first_line(error)}"
            ) from error

    @contextmanager
    def _guarded(self, action: str) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, self._driver_error) as error:
            # The original's text may hold texts of the user's data: only the database's own sentence is shown.
            cause: BaseException = getattr(error, "orig", None) or error
            raise CatalogueError(f"the catalogue at {self.shown!r} could not {action}: {first_line(cause)}") from None


def _sqlite(url: URL) -> Engine:
    engine = sqlalchemy.create_engine(url, hide_parameters=True, connect_args={"timeout": WAIT_SECONDS})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        # The driver's own transactions begin late and leave out changes of the schema; ours are begun below.
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later could not wait for another writer.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    try:
        engine = sqlalchemy.create_engine(
            url, hide_parameters=True, connect_args={"connect_timeout": CONNECT_SECONDS}, pool_pre_ping=True
        )
    except ImportError as error:
        raise MissingDependencyError(
            "a catalogue on PostgreSQL needs psycopg; install it with: pip install 'interpreto-mlops[postgres]'"
        ) from error

    # Before the dialect's own first look, which finds out the default schema.
    @event.listens_for(engine, "connect", insert=True)
    def _prepare(connection: Any, _record: Any) -> None:
        before, connection.autocommit = connection.autocommit, True
        connection.execute(f"SET search_path TO {SCHEMA}")
        connection.autocommit = before

    return engine
