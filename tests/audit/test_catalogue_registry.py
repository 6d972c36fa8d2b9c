"""Registrations and aliases: what MLflow's registry does not keep, the log does."""

from __future__ import annotations

import pytest
from sqlalchemy import text

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
