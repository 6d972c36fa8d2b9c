"""Registrations and aliases: what MLflow's registry does not keep, the log does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import requests
from mlflow import MlflowClient
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.errors import CatalogueError, InputError, TrackingError, UnknownNameError
from interpreto_mlops.tracking.store import Store


@pytest.fixture
def versions(any_store: Store, request: pytest.FixtureRequest) -> tuple[Store, str]:
    """A registered model of three versions that have no files."""
    name = f"reviews {request.node.name}"
    any_store.client.create_registered_model(name)
    for _ in range(3):
        model = any_store.client.create_logged_model(any_store.experiment_id, "reviews")
        source = f"models:/{model.model_id}"
        from interpreto_mlops.tracking import _mlflow_private

        with _mlflow_private.tracking_to(any_store.tracking_uri):
            any_store.client.create_model_version(
                name, source, model_id=model.model_id, tags={"interpreto.sha256": "x"}
            )
    return any_store, name


def version_of(store: Store, name: str) -> str | None:
    found = store.client.get_registered_model(name).aliases.get("champion")
    return None if found is None else str(found)


def test_moves_of_an_alias_are_told_with_what_it_was_before(small: Catalogue, versions: tuple[Store, str]) -> None:
    store, name = versions
    first = small.note_registration(store, name, 1, actor="alice")
    assert (first.action, first.object, first.actor) == ("register", f"models:/{name}/1", "alice")
    assert first.after["sha256"] == "x"
    assert first.after["source"].startswith("models:/m-")
    small.move_alias(store, name, "champion", 1)
    assert version_of(store, name) == "1"
    entry = small.move_alias(store, name, "champion", "3", action="promote", facts={"audit": "r1"}, actor="bob")
    assert version_of(store, name) == "3"
    assert entry.before == {"uri": f"models:/{name}/1"}
    assert entry.after == {"uri": f"models:/{name}/3", "audit": "r1"}
    assert entry.store == store.shown
    asked = small.ask("alias_moves", name=name, alias="champion")
    assert asked["action"].tolist() == ["move_alias", "promote"]
    assert asked["actor"].tolist()[1] == "bob"
    assert asked["before"].tolist()[1] == f"models:/{name}/1"
    assert asked["fresh"].tolist() == [False, False]
    assert small.verify_log().ok


def test_an_alias_that_cannot_be_told_of_does_not_move(small: Catalogue, versions: tuple[Store, str]) -> None:
    store, name = versions
    for before in (None, "2"):
        with pytest.raises(InputError, match="as 'after' must be plain JSON"):
            small.move_alias(store, name, "champion", 1, facts={"score": float("nan")})
        with pytest.raises(UnknownNameError, match="unknown action 'steal'"):
            small.move_alias(store, name, "champion", 1, action="steal")
        assert version_of(store, name) == before
        if before is None:
            small.move_alias(store, name, "champion", 2)
    with small.database.writing() as connection:
        connection.execute(text("ALTER TABLE catalogue_log RENAME TO gone"))
    with pytest.raises(CatalogueError, match="could not be written"):
        small.move_alias(store, name, "champion", 1)
    assert version_of(store, name) == "2"


class Counting(MlflowClient):
    """A client that notes what is made of the alias, and whose answers may get lost."""

    def __init__(self, store: Store, *, loses_answers: bool = False) -> None:
        super().__init__(store.tracking_uri, store.registry_uri)
        self.moves: list[str] = []
        self.loses_answers = loses_answers

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        self.moves.append(version)
        super().set_registered_model_alias(name, alias, version)
        if self.loses_answers:
            self.loses_answers = False
            raise requests.exceptions.ReadTimeout("no answer")


def test_what_cannot_be_told_of_moves_nothing_for_a_moment_either(
    small: Catalogue, versions: tuple[Store, str]
) -> None:
    store, name = versions
    client = Counting(store)
    counted = replace(store, client=client)
    with pytest.raises(InputError, match="must be plain JSON"):
        small.move_alias(counted, name, "champion", 1, facts={"score": float("nan")})
    for action in ("steal", "register"):
        with pytest.raises(UnknownNameError, match=f"'{action}'"):
            small.move_alias(counted, name, "champion", 1, action=action)
    with pytest.raises(InputError, match="1 to 500 characters"):
        small.move_alias(counted, name, "champion" * 100, 1)
    assert client.moves == []
    assert small.entries() == []


def test_a_move_that_fails_or_whose_answer_is_lost_leaves_neither_move_nor_entry(
    catalogue: Catalogue, versions: tuple[Store, str]
) -> None:
    store, name = versions
    with pytest.raises(TrackingError, match="could not move the alias 'latest'"):
        catalogue.move_alias(store, name, "latest", 1)
    for before in (None, "2"):
        with pytest.raises(TrackingError, match=r"could not move the alias 'champion' .*no answer"):
            catalogue.move_alias(replace(store, client=Counting(store, loses_answers=True)), name, "champion", 1)
        assert version_of(store, name) == before
        if before is None:
            assert catalogue.entries() == []
            catalogue.move_alias(store, name, "champion", 2)
    assert [entry.after for entry in catalogue.entries()] == [{"uri": f"models:/{name}/2"}]
    assert catalogue.verify_log().ok


def test_who_moves_at_once_waits_so_that_the_log_tells_what_the_alias_names(
    catalogue: Catalogue, versions: tuple[Store, str]
) -> None:
    store, name = versions
    start = threading.Barrier(3)

    def move(own: str) -> None:
        with Catalogue.connect(catalogue.database.engine.url.render_as_string(hide_password=False)) as mine:
            start.wait()
            for _ in range(5):
                mine.move_alias(store, name, "champion", own, actor=f"for {own}")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(move, "123"))
    entries = catalogue.entries()
    assert len(entries) == 15
    assert entries[-1].after == {"uri": f"models:/{name}/{version_of(store, name)}"}
    # Each names as what was there before what the one before it has made.
    assert [entry.before for entry in entries] == [None, *(entry.after for entry in entries[:-1])]
    assert catalogue.verify_log().ok


def test_on_postgresql_a_commit_that_fails_moves_the_alias_back(postgres: str, versions: tuple[Store, str]) -> None:
    store, name = versions
    with Catalogue.connect(postgres) as catalogue:
        catalogue.move_alias(store, name, "champion", 2)
        with catalogue.database.writing() as connection:
            connection.execute(
                text(
                    "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'not at the end'; END $$"
                )
            )
            connection.execute(
                text(
                    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON catalogue_log DEFERRABLE INITIALLY DEFERRED "
                    "FOR EACH ROW EXECUTE FUNCTION fails()"
                )
            )
        client = Counting(store)
        with pytest.raises(CatalogueError, match="could not be written: not at the end"):
            catalogue.move_alias(replace(store, client=client), name, "champion", 3)
        assert client.moves == ["3", "2"]
        assert version_of(store, name) == "2"
        assert len(catalogue.entries()) == 1


def test_what_somebody_else_has_moved_meanwhile_stays(small: Catalogue, versions: tuple[Store, str]) -> None:
    store, name = versions

    @event.listens_for(small.database.engine, "commit")
    def _fails(_: object) -> None:
        store.client.set_registered_model_alias(name, "champion", "3")
        raise OperationalError("COMMIT", {}, Exception("disk full"))

    with pytest.raises(CatalogueError, match="could not be written: disk full"):
        small.move_alias(store, name, "champion", 1)
    event.remove(small.database.engine, "commit", _fails)
    assert version_of(store, name) == "3"
    assert small.entries() == []


def test_an_alias_that_names_something_else_than_expected_is_not_moved(
    small: Catalogue, versions: tuple[Store, str]
) -> None:
    store, name = versions
    with pytest.raises(InputError, match="names no version now, and named version 2 before"):
        small.move_alias(store, name, "champion", 1, expected="2")
    small.move_alias(store, name, "champion", 2, expected=None)
    for expected in (None, "1"):
        with pytest.raises(InputError, match="names version 2 now, and named"):
            small.move_alias(store, name, "champion", 3, expected=expected)
    assert (version_of(store, name), len(small.entries())) == ("2", 1)
    small.move_alias(store, name, "champion", 3, expected="2")
    small.move_alias(store, name, "champion", 1)
    assert (version_of(store, name), len(small.entries())) == ("1", 3)
    assert small.verify_log().ok


def test_in_the_registrys_own_file_an_alias_is_not_moved(store: Store) -> None:
    store.client.create_registered_model("reviews")
    with Catalogue.connect(store.tracking_uri) as catalogue:
        with pytest.raises(CatalogueError, match=r"is in the file of MLflow's registry.* a file of its own"):
            catalogue.move_alias(store, "reviews", "champion", 1)
        assert catalogue.entries() == []


def test_a_version_that_is_not_there_is_neither_named_nor_told_of(
    small: Catalogue, versions: tuple[Store, str]
) -> None:
    store, name = versions
    for version in (4, "none"):
        with pytest.raises(TrackingError, match=f"could not read the version '{version}' of"):
            small.move_alias(store, name, "champion", version)
        with pytest.raises(TrackingError):
            small.note_registration(store, name, version)
    assert version_of(store, name) is None
    assert small.entries() == []
