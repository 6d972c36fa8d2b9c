"""Tracking addresses: what kind they are, and how they are shown without credentials."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from interpreto_mlops.errors import TrackingError
from interpreto_mlops.text.redaction import first_line as first_line
from interpreto_mlops.text.redaction import redact as redact

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def is_http(uri: str) -> bool:
    """Return whether the address is a server's."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Return whether the address is a database that MLflow opens directly."""
    return uri.split(":", 1)[0].split("+", 1)[0] in _DATABASES


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute path of a SQLite address's file, or None for another kind of address.

    Raises:
        TrackingError: an address that cannot be read, or a database in memory, which would not outlive the process.
    """
    if not uri.startswith("sqlite"):
        return None
    try:
        database = make_url(uri).database
    except ArgumentError as error:
        raise TrackingError(f"cannot read the tracking address {uri!r}; write sqlite:///path/to/mlflow.db") from error
    if not database or database == ":memory:":
        raise TrackingError(f"the tracking address {uri!r} names no file; write sqlite:///path/to/mlflow.db")
    return Path(database).expanduser().absolute()


def normalise(uri: str) -> str:
    """Return the address without trailing slashes, and with the absolute path of a SQLite file.

    Raises:
        TrackingError: an address that MLflow cannot track to.
    """
    if is_http(uri):
        return uri.rstrip("/")
    if (path := sqlite_file(uri)) is not None:
        query = f"?{uri.split('?', 1)[1]}" if "?" in uri else ""
        return f"sqlite:///{path}{query}"
    if is_database(uri) or uri.startswith("databricks"):
        return uri
    raise TrackingError(
        f"cannot track to {redact(uri)!r}; give a server (http://host:5000), a SQLite file "
        "(sqlite:///path/to/mlflow.db) or another database (postgresql://…)"
    )
