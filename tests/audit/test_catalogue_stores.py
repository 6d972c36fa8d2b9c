"""One catalogue belongs to one store, by whatever spelling of its address."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.addresses import store_address
from interpreto_mlops.audit.catalogue.tables import VersionRow
from interpreto_mlops.audit.catalogue.writing import replace_version
from interpreto_mlops.errors import CatalogueError
from interpreto_mlops.tracking.store import Store, connect
from tests.audit.contents import content, rows
from tests.audit.evidence import Evidence


@pytest.mark.parametrize(
    ("address", "known"),
    [
        ("http://Ada:secret@Tracking.example:80/mlflow/", "http://tracking.example/mlflow"),
        ("https://tracking.example:443", "https://tracking.example"),
        ("https://tracking.example:80", "https://tracking.example:80"),
        ("http://127.0.0.1:5000", "http://localhost:5000"),
        ("http://[::1]:5000", "http://localhost:5000"),
        ("http://[2001:DB8::1]:5000", "http://[2001:db8::1]:5000"),
        ("postgresql+psycopg2://ada:secret@db:5432/mlflow?sslmode=require", "postgresql://db/mlflow"),
        ("mysql+pymysql://db:3307/mlflow", "mysql://db:3307/mlflow"),
        ("file:///runs/", "file:///runs"),
    ],
)
def test_a_store_is_known_by_its_place(store: Store, address: str, known: str) -> None:
    assert store_address(replace(store, tracking_uri=address)) == known


def test_a_file_is_known_by_where_it_is(store: Store, tmp_path: Path) -> None:
    file = Path(store.tracking_uri.removeprefix("sqlite:///"))
    (tmp_path / "link").symlink_to(file.parent)
    for path in (file, os.path.relpath(file), tmp_path / "link" / file.name):
        found = replace(store, tracking_uri=f"sqlite:///{path}?timeout=3")
        assert store_address(found) == f"sqlite:///{file.resolve()}"


def test_another_store_is_refused_and_nothing_is_written(
    full: Catalogue, evidence: Evidence, migrated: Path, tmp_path: Path
) -> None:
    shutil.copy(migrated, tmp_path / "other.db")
    other = connect(f"sqlite:///{tmp_path}/other.db", "tests")
    run = other.client.create_run(other.experiment_id, tags={"interpreto.kind": "attributions"})
    other.client.create_registered_model("reviews")
    other.client.create_model_version("reviews", str(tmp_path))
    before = content(full)
    for write in (
        lambda: full.rebuild(other),
        lambda: full.record_run(other, run.info.run_id),
        lambda: full.record_version(other, "reviews", 1),
        lambda: full.note_registration(other, "reviews", 1),
        lambda: full.move_alias(other, "reviews", "champion", 1),
    ):
        with pytest.raises(
            CatalogueError, match=r"holds the evidence .* '.*evidence\d+/mlflow.db', .*'.*/other.db'; give"
        ):
            write()
    assert content(full) == before
    assert full.entries() == []
    assert other.client.get_registered_model("reviews").aliases == {}
    assert full.rebuild(evidence.store).removed == 0
    same = replace(
        evidence.store, tracking_uri=f"sqlite:///{os.path.relpath(before['catalogue_run'][0]['store'][10:])}"
    )
    assert full.rebuild(same).removed == 0
    assert content(full) == before


def test_a_store_without_evidence_does_not_take_the_catalogue(
    small: Catalogue, store: Store, evidence: Evidence
) -> None:
    assert small.rebuild(store).runs == 0
    assert small.rebuild(evidence.store).runs == 4


def test_of_two_stores_that_write_at_once_one_gets_the_catalogue(catalogue: Catalogue) -> None:
    start = threading.Barrier(6)

    def write(number: int) -> str | None:
        store = f"http://store-{number % 2}"
        start.wait()
        with catalogue.database.writing() as connection:
            try:
                replace_version(connection, {"name": "reviews", "version": number, "store": store})
            except CatalogueError:
                return None
        return store

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(write, range(6)))
    (winner,) = {store for store in found if store is not None}
    assert found.count(winner) == 3
    assert {row["store"] for row in rows(catalogue, VersionRow)} == {winner}
