"""Catalogues on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.tracking.store import Store, connect
from tests.audit.evidence import Evidence, make_evidence


@pytest.fixture(autouse=True)
def _nobody(nobody: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on a store or catalogue that the machine has configured, nor leaves one behind."""
    monkeypatch.delenv("INTERPRETO_CATALOGUE_URI", raising=False)
    monkeypatch.delenv("INTERPRETO_HIDE_TEXTS", raising=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database that nothing was written to yet."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path}/kat & #1/catalogue.db"


@pytest.fixture
def catalogue(uri: str) -> Iterator[Catalogue]:
    """An empty catalogue."""
    opened = Catalogue.connect(uri)
    yield opened
    opened.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Catalogue]:
    """An empty catalogue on SQLite."""
    with Catalogue.connect(f"sqlite:///{tmp_path}/small.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def evidence(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Evidence that no test changes."""
    folder = tmp_path_factory.mktemp("evidence")
    shutil.copy(migrated, folder / "mlflow.db")
    return make_evidence(connect(f"sqlite:///{folder}/mlflow.db", "tests"))


@pytest.fixture
def own_evidence(store: Store) -> Evidence:
    """Evidence that the test may change."""
    return make_evidence(store)
