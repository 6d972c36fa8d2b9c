"""A real PostgreSQL: a private cluster in a temporary folder, on a free port, and a fresh database for each test."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_stores import free_port

_USER = "owner"
_OPTIONS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB", "max_connections": "60"}


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs, the newest version's where there are several."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in folders), default=None, key=lambda path: int(path.parent.name))


def _as_user() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: how a process is started as somebody else."""
    if os.geteuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise LookupError("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextmanager
def cluster() -> Iterator[str]:
    """Hold the address of a PostgreSQL on this machine, without the name of a database.

    Raises:
        LookupError: there is none, or nobody it could run as.
    """
    programs = binaries()
    if programs is None:
        raise LookupError("there is no PostgreSQL on this machine: no initdb (apt-get install postgresql)")
    user = _as_user()
    # Not pytest's own folder, which only its owner can enter.
    folder = Path(tempfile.mkdtemp(prefix="interpreto-postgres-"))
    password = secrets.token_hex(8)
    (folder / "password").write_text(password)
    if user:
        for path in (folder, folder / "password"):
            os.chown(path, user["user"], user["group"])
    process = None
    try:
        port = free_port()
        process = _start(programs, folder, port, user)
        _wait(programs, process, port, folder)
        yield f"postgresql://{_USER}:{password}@127.0.0.1:{port}"
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL on this machine, without the name of a database."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed: pip install 'psycopg[binary]'")
    with ExitStack() as stack:
        try:
            address = stack.enter_context(cluster())
        except LookupError as error:
            pytest.skip(str(error))
        yield address


def _start(programs: Path, folder: Path, port: int, user: dict[str, Any]) -> subprocess.Popen[bytes]:
    data = folder / "data"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    subprocess.run(
        [
            programs / "initdb",
            *"-E UTF8 --no-sync -A scram-sha-256 -U".split(),
            _USER,
            "-D",
            data,
            "--pwfile",
            folder / "password",
        ],
        check=True,
        capture_output=True,
        cwd=folder,
        env=environment,
        **user,
    )
    options = {**_OPTIONS, "listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [programs / "postgres", "-D", data, *settings],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **user,
        )


def _wait(programs: Path, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        command = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        if subprocess.run(command, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"PostgreSQL did not start:\n{(folder / 'log').read_text()[-3000:]}")


@pytest.fixture
def postgres(postgres_server: str) -> Iterator[str]:
    """The address of a fresh database."""
    with fresh_database(postgres_server) as address:
        yield address


@contextmanager
def fresh_database(server: str, *, like: str | None = None) -> Iterator[str]:
    """Hold the address of a new database, which goes at the end, whoever still uses it.

    Arguments:
        server: the address without the name of a database.
        like: the address of a database that nobody uses, whose tables and rows it has.
    """
    import psycopg
    from psycopg import sql

    name = f"test_{secrets.token_hex(6)}"
    template = "template1" if like is None else like.rsplit("/", 1)[1]
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    try:
        yield f"{server}/{name}"
    finally:
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Iterator[str]:
    """The address of a PostgreSQL database with MLflow's tables, made once; nobody uses it, for others are like it."""
    code = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    with fresh_database(postgres_server) as address:
        # A process of its own keeps no connection to it.
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, address], check=True, capture_output=True)
        yield address


@pytest.fixture(scope="session")
def mlflow_postgres(postgres_server: str, migrated_postgres: str) -> Iterator[str]:
    """The address of an MLflow store on PostgreSQL, one for all tests."""
    with fresh_database(postgres_server, like=migrated_postgres) as address:
        yield address
