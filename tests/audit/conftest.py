"""Catalogues on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from interpreto_mlops.audit.catalogue import Catalogue


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
