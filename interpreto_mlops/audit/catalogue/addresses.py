"""Where the catalogue is: what the user says, else a file beside MLflow's; and which store it belongs to."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from interpreto_mlops.errors import CatalogueError, TrackingError
from interpreto_mlops.tracking.addresses import is_database, is_http, redact, sqlite_file
from interpreto_mlops.tracking.store import Store

VARIABLE = "INTERPRETO_CATALOGUE_URI"
OFF = "none"
FILE = "catalogue.db"
FOLDER = "interpreto-runs"

_FORMS = "sqlite:///path/to/catalogue.db or postgresql://user@host/database"
_LOOPBACK = ("127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}


def catalogue_url(uri: str | None = None, store: Store | None = None) -> URL:
    """Return the catalogue's address.

    Arguments:
        uri: of a SQLite file or a PostgreSQL database; None for `INTERPRETO_CATALOGUE_URI`.
        store: where neither is there, the catalogue is the file `catalogue.db` beside this store's SQLite database; for
            another store, or none, it is `interpreto-runs/catalogue.db`.

    Raises:
        CatalogueError: an address of another kind, or `none`.
    """
    given = uri or os.environ.get(VARIABLE)
    if given and is_off(given):
        raise CatalogueError(f"the catalogue is switched off by {given!r}; give its address, {_FORMS}")
    return _parse(given) if given else URL.create("sqlite", database=str(_default(store)))


def is_off(uri: str) -> bool:
    """Return whether what stands for a catalogue's address says that there is to be none."""
    return uri.strip().lower() == OFF


def shown(url: URL) -> str:
    """Return an address without credentials."""
    return f"sqlite:///{url.database}" if url.drivername == "sqlite" else redact(url.render_as_string())


def store_address(store: Store) -> str:
    """Return the address of an MLflow store as a catalogue knows it, the same however it is written.

    Users, passwords and options, drivers, default ports, links to a file and the names of this machine make no
    difference. Two names of another machine do.
    """
    uri = store.tracking_uri
    if is_http(uri):
        parts = urlsplit(uri)
        return f"{parts.scheme}://{_place(parts.scheme, parts.hostname, parts.port)}{parts.path.rstrip('/')}"
    if (file := sqlite_file(uri)) is not None:
        return f"sqlite:///{file.resolve()}"
    if is_database(uri):
        url = make_url(uri)
        backend = url.get_backend_name()
        return f"{backend}://{_place(backend, url.host, url.port)}/{url.database or ''}"
    return redact(uri).rstrip("/")


def _place(scheme: str, host: str | None, port: int | None) -> str:
    name = (host or "").lower()
    name = "localhost" if name in _LOOPBACK else name
    place = f"[{name}]" if ":" in name else name
    return place if port in (None, _PORTS.get(scheme)) else f"{place}:{port}"


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
