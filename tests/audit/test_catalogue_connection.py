"""Where the catalogue is, how it is made, and that it keeps to itself in a database that MLflow uses."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from mlflow import MlflowClient
from sqlalchemy import text

from interpreto_mlops.audit.catalogue import Catalogue, migrations
from interpreto_mlops.audit.catalogue.addresses import catalogue_url
from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.migrating import head, migrate, options
from interpreto_mlops.audit.catalogue.tables import Base, RunRow, SampleRow
from interpreto_mlops.audit.catalogue.writing import bulk_insert
from interpreto_mlops.errors import CatalogueError, InputError, MissingDependencyError
from interpreto_mlops.tracking.store import Store
from tests.audit.contents import rows
from tests.mlflow_stores import free_port


def differences(catalogue: Catalogue) -> list[Any]:
    """What alembic would still change, were it asked to make a migration."""
    with catalogue.database.reading() as connection:
        given = options(connection)
        context = MigrationContext.configure(given.pop("connection"), opts=given)
        return list(compare_metadata(context, Base.metadata))


def test_the_migrations_make_what_the_tables_say(catalogue: Catalogue) -> None:
    assert differences(catalogue) == []
    assert migrate(catalogue.database) is False


def test_alembic_sees_a_table_that_is_not_as_it_should_be(catalogue: Catalogue) -> None:
    with catalogue.database.writing() as connection:
        connection.execute(text("ALTER TABLE catalogue_run ADD COLUMN surprise INTEGER"))
    assert [change[0] for change in differences(catalogue)] == ["remove_column"]


def test_a_catalogue_of_before_there_were_several_methods_in_a_run_goes_on(uri: str) -> None:
    database = Database(catalogue_url(uri))
    config = Config()
    config.set_main_option("script_location", str(Path(str(migrations.__file__)).parent))
    run = {"id": 1, "run_id": "r", "store": "s", "experiment_id": "1", "kind": "attributions", "status": "FINISHED"}
    sample = {"run": 1, "place": 0, "text_index": 0, "sha256": "0" * 64, "text": "good food"}
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(text("CREATE SCHEMA interpreto"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        bulk_insert(connection, RunRow, [{**run, "method": "occlusion"}])
        bulk_insert(connection, SampleRow, [sample])
    database.close()
    with Catalogue.connect(uri, create=False) as catalogue:
        assert differences(catalogue) == []
        assert rows(catalogue, SampleRow) == [{**sample, "method": "occlusion"}]


def _connect(uri: str, start: Any) -> None:
    start.wait()
    with Catalogue.connect(uri) as catalogue:
        assert catalogue.entries() == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_ten_processes_make_one_catalogue(uri: str) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(10)
    processes = [context.Process(target=_connect, args=(uri, start)) for _ in range(10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 10
    with Catalogue.connect(uri) as catalogue:
        assert differences(catalogue) == []


def test_nothing_is_made_where_a_catalogue_is_to_be_there(uri: str) -> None:
    with pytest.raises(CatalogueError, match=r"there is no catalogue at '.*catalogue rebuild"):
        Catalogue.connect(uri, create=False)
    if uri.startswith("sqlite"):
        assert not Path(uri.removeprefix("sqlite:///")).parent.exists()
    else:
        engine = sqlalchemy.create_engine(uri.replace("postgresql:", "postgresql+psycopg:"))
        with engine.begin() as connection:
            there = "SELECT count(*) FROM pg_namespace WHERE nspname = 'interpreto'"
            assert connection.scalar(text(there)) == 0
            connection.execute(text("CREATE SCHEMA interpreto"))
        engine.dispose()
        with pytest.raises(CatalogueError, match="there is no catalogue at") as caught:
            Catalogue.connect(uri, create=False)
        assert "owner" not in str(caught.value)
    with Catalogue.connect(uri) as catalogue:
        catalogue.append("audit", "models:/reviews/1")
    with Catalogue.connect(uri, create=False) as catalogue:
        assert catalogue.verify_log().entries == 1


def test_the_default_is_beside_the_stores_database(store: Store) -> None:
    folder = Path(store.tracking_uri.removeprefix("sqlite:///")).parent
    with Catalogue.connect(store=store) as catalogue:
        assert (folder / "catalogue.db").is_file()
        assert catalogue.shown == f"sqlite:///{folder}/catalogue.db"


def test_without_a_database_the_default_is_in_the_folder_of_runs(store: Store) -> None:
    elsewhere = Store(store.client, "1", "x", "http://somewhere:5000", "http://somewhere:5000")
    for given in (None, elsewhere):
        assert catalogue_url(store=given).database == str(Path.cwd() / "interpreto-runs" / "catalogue.db")


def test_the_environment_names_the_catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Store) -> None:
    monkeypatch.setenv("INTERPRETO_CATALOGUE_URI", f"sqlite:///{tmp_path}/ours.db")
    Catalogue.connect(store=store).close()
    assert (tmp_path / "ours.db").is_file()
    Catalogue.connect(f"sqlite:///{tmp_path}/mine.db", store=store).close()
    assert (tmp_path / "mine.db").is_file()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("mysql://me:secret@host/db", r"cannot be kept at 'mysql://\*\*\*@host/db'; give sqlite:///path"),
        ("no address", "cannot read the catalogue's address 'no address'; write sqlite:///path"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file:/tmp/c.db?mode=ro&uri=true", "names no file"),
        ("postgresql://me:secret@host", r"'postgresql://\*\*\*@host' names no database"),
    ],
)
def test_another_kind_of_address_is_refused(uri: str, words: str) -> None:
    with pytest.raises(CatalogueError, match=words) as caught:
        Catalogue.connect(uri)
    assert "secret" not in str(caught.value)


def test_postgres_is_always_the_driver_that_is_installed() -> None:
    for name in ("postgres", "postgresql", "postgresql+psycopg"):
        assert catalogue_url(f"{name}://me@host/db").drivername == "postgresql+psycopg"


def test_a_database_that_does_not_answer_is_named_without_the_password() -> None:
    port = free_port()
    with pytest.raises(
        CatalogueError, match=rf"'postgresql\+psycopg://\*\*\*@127.0.0.1:{port}/db' could not"
    ) as caught:
        Catalogue.connect(f"postgresql://me:secret@127.0.0.1:{port}/db")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("my notes, which are longer than the head of a database " * 40)
    before = (tmp_path / "notes.txt").read_bytes()
    with pytest.raises(CatalogueError, match="file is not a database"):
        Catalogue.connect(f"sqlite:///{tmp_path}/notes.txt")
    assert (tmp_path / "notes.txt").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CatalogueError, match="cannot make the folder of the catalogue"):
        Catalogue.connect(f"sqlite:///{tmp_path}/file/catalogue.db")


def test_the_driver_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'interpreto-mlops\[postgres\]'"):
        Catalogue.connect("postgresql://me@host/db")


def test_a_newer_catalogue_is_refused_and_left_as_it_is(uri: str) -> None:
    with Catalogue.connect(uri) as catalogue:
        with catalogue.database.writing() as connection:
            connection.execute(text("UPDATE alembic_version_interpreto SET version_num = '9999'"))
        with pytest.raises(CatalogueError, match=r"made by a newer version of this package .*'9999'"):
            Catalogue.connect(uri)
        with catalogue.database.reading() as connection:
            assert connection.scalar(text("SELECT version_num FROM alembic_version_interpreto")) == "9999"


def test_a_migration_that_fails_leaves_nothing(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations

    def fails(*_: Any, **__: Any) -> None:
        raise sqlalchemy.exc.OperationalError("statement", {}, Exception("disk full"))

    with monkeypatch.context() as patched:
        patched.setattr(Operations, "bulk_insert", fails)
        with pytest.raises(CatalogueError, match="could not be written: disk full"):
            Catalogue.connect(uri)
    with Catalogue.connect(uri) as catalogue:
        assert differences(catalogue) == []
        assert catalogue.verify_log().ok


def test_in_mlflows_own_file_both_go_on(database: str) -> None:
    path = database.removeprefix("sqlite:///")
    mine = sqlite3.connect(path)
    before = set(mine.execute("SELECT name, sql FROM sqlite_master").fetchall())
    with Catalogue.connect(database) as catalogue:
        catalogue.append("audit", "models:/reviews/1")
        assert differences(catalogue) == []
    after = set(mine.execute("SELECT name, sql FROM sqlite_master").fetchall())
    mine.close()
    assert before < after
    assert {name for name, _ in after - before if name.startswith("alembic")} == {"alembic_version_interpreto"}
    client = MlflowClient(database)
    experiment = client.create_experiment("after")
    client.create_run(experiment)
    with Catalogue.connect(database) as catalogue:
        assert catalogue.verify_log().entries == 1


@pytest.mark.slow
def test_mlflows_own_upgrade_leaves_the_catalogue_alone(database: str) -> None:
    with Catalogue.connect(database) as catalogue:
        catalogue.append("audit", "models:/reviews/1")
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", database], check=True, capture_output=True)
    with Catalogue.connect(database) as catalogue:
        assert catalogue.verify_log().entries == 1
        assert differences(catalogue) == []


def test_on_postgresql_the_tables_are_in_a_schema_of_their_own(postgres: str) -> None:
    engine = sqlalchemy.create_engine(postgres.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        # As MLflow has them, in the schema that everybody uses.
        connection.execute(text("CREATE TABLE runs (run_uuid TEXT PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('dc11669786a5')"))
    with Catalogue.connect(postgres) as catalogue:
        assert differences(catalogue) == []
        catalogue.append("audit", "models:/reviews/1")
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'interpreto')")
        ).all()
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "dc11669786a5"
    engine.dispose()
    assert {name for schema, name in found if schema == "public"} == {"runs", "alembic_version"}
    own = {*Base.metadata.tables, "alembic_version_interpreto"}
    assert {name for schema, name in found if schema == "interpreto"} == own


def test_on_postgresql_a_user_who_may_only_read_asks_questions(postgres: str, postgres_server: str) -> None:
    with Catalogue.connect(postgres) as catalogue:
        catalogue.append("audit", "models:/reviews/1")
        with catalogue.database.writing() as connection:
            connection.execute(text("CREATE ROLE reader LOGIN PASSWORD 'reading'"))
            connection.execute(text("GRANT USAGE ON SCHEMA interpreto TO reader"))
            connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA interpreto TO reader"))
    try:
        address = postgres.split("@", 1)[1]
        with Catalogue.connect(f"postgresql://reader:reading@{address}") as reader:
            assert len(reader.entries()) == 1
            assert reader.verify_log().ok
            assert not reader.hides_texts
            with pytest.raises(CatalogueError, match="permission denied"):
                reader.append("audit", "models:/reviews/1")
    finally:
        with Catalogue.connect(postgres) as catalogue, catalogue.database.writing() as connection:
            connection.execute(text("DROP OWNED BY reader"))
            connection.execute(text("DROP ROLE reader"))


@pytest.mark.parametrize("value", ["maybe", "2"])
def test_the_variable_that_hides_texts_says_yes_or_no(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", value)
    with pytest.raises(InputError, match=f"INTERPRETO_HIDE_TEXTS must be 1 or 0, not '{value}'"):
        Catalogue.connect()


def test_the_revision_is_the_last_of_the_migrations() -> None:
    assert head() == "0002"


@pytest.mark.parametrize("given", ["none", " None "])
def test_a_catalogue_that_is_switched_off_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPRETO_CATALOGUE_URI", given)
    with pytest.raises(CatalogueError, match="is switched off by"):
        Catalogue.connect()
