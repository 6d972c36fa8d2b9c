"""Whether a tracking store answers, found out in seconds: MLflow itself would retry for minutes."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from interpreto_mlops.errors import TrackingError
from interpreto_mlops.tracking import _mlflow_private
from interpreto_mlops.tracking.addresses import first_line, is_database, is_http, redact, sqlite_file

_PROBE = "/api/2.0/mlflow/experiments/search?max_results=1"
_NO_MLFLOW = "something answers there, but it is no MLflow server"
_REASONS = {
    200: _NO_MLFLOW,
    401: "it wants credentials (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN)",
    403: "it refuses this client (its --allowed-hosts, or the user's rights)",
    404: _NO_MLFLOW,
}


def check(uri: str, timeout: float) -> None:
    """Return if the store at `uri` answers within `timeout` seconds; the folder of a SQLite file is created.

    Raises:
        TrackingError: it does not, in one sentence.
    """
    if is_http(uri):
        _check_server(uri, timeout)
    elif (path := sqlite_file(uri)) is not None:
        _check_file(path)
    elif is_database(uri):
        _check_database(uri, timeout)


def _check_server(uri: str, timeout: float) -> None:
    try:
        status, text = _mlflow_private.get(uri, _PROBE, timeout)
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(f"cannot reach the MLflow server at {redact(uri)!r}: {_root(error)}") from None
    if status == 200 and text.lstrip().startswith("{"):
        return
    raise TrackingError(f"cannot use the MLflow server at {redact(uri)!r}: {_REASONS.get(status, f'HTTP {status}')}")


def _root(error: BaseException) -> str:
    # requests and urllib3 wrap the operating system's reason several times, each time with the whole address.
    seen: BaseException = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        seen = inner
    reason = getattr(seen, "strerror", None)
    return str(reason) if reason else first_line(seen)


def _check_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=5)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        message = f"cannot use the SQLite file {str(path)!r} as tracking store: {first_line(error)}"
        raise TrackingError(message) from error


def _check_database(uri: str, timeout: float) -> None:
    # The three drivers' own name for the time that a connection may take.
    option = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mssql": "timeout"}
    arguments: dict[str, Any] = {option[uri.split(":", 1)[0].split("+", 1)[0]]: max(1, round(timeout))}
    try:
        engine = sqlalchemy.create_engine(uri, connect_args=arguments, poolclass=sqlalchemy.NullPool)
        engine.connect().close()
    except (SQLAlchemyError, ImportError, OSError, TypeError) as error:
        raise TrackingError(f"cannot open the tracking database at {redact(uri)!r}: {first_line(error)}") from None
