"""Where the catalogue is: what the user says, else a file beside MLflow's."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from interpreto_mlops.errors import CatalogueError, TrackingError
from interpreto_mlops.tracking.addresses import redact, sqlite_file
from interpreto_mlops.tracking.store import Store

VARIABLE = "INTERPRETO_CATALOGUE_URI"
FILE = "catalogue.db"
FOLDER = "interpreto-runs"

_FORMS = "sqlite:///path/to/catalogue.db or postgresql://user@host/database"
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def catalogue_url(uri: str | None = None, store: Store | None = None) -> URL:
    """Return the catalogue's address.

    Arguments:
        uri: of a SQLite file or a PostgreSQL database; None for `INTERPRETO_CATALOGUE_URI`.
        store: where neither is there, the catalogue is the file `catalogue.db` beside this store's SQLite database; for
            another store, or none, it is `interpreto-runs/catalogue.db`.

    Raises:
        CatalogueError: an address of another kind.
    """
    given = uri or os.environ.get(VARIABLE)
    return _parse(given) if given else URL.create("sqlite", database=str(_default(store)))


def shown(url: URL) -> str:
    """Return an address without credentials."""
    return f"sqlite:///{url.database}" if url.drivername == "sqlite" else redact(url.render_as_string())


def _default(store: Store | None) -> Path:
    database = None if store is None else sqlite_file(store.tracking_uri)
    folder = Path(FOLDER).absolute() if database is None else database.parent
    return folder / FILE


def _parse(given: str) -> URL:
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise CatalogueError(f"cannot read the catalogue's address {redact(given)!r}; write {_FORMS}") from error
    driver = _DRIVERS.get(url.drivername, url.drivername)
    if driver not in _DRIVERS.values():
        raise CatalogueError(f"the catalogue cannot be kept at {redact(given)!r}; give {_FORMS}")
    if driver == "sqlite":
        return url.set(database=str(_file(given)))
    if not url.database:
        raise CatalogueError(f"the catalogue's address {redact(given)!r} names no database; write {_FORMS}")
    return url.set(drivername=driver)


def _file(given: str) -> Path:
    try:
        path = sqlite_file(given)
    except TrackingError:
        path = None
    # `sqlite:///file:…` is a way to open a file that not every version of the driver takes.
    if path is None or "file:" in path.parts:
        raise CatalogueError(f"the catalogue's address {given!r} names no file; write {_FORMS}")
    return path
