"""What the catalogue holds, for tests to compare."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select

from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.tables import Base, LogHeadRow, LogRow, RunRow, Setting

# Everything that is not kept can be derived again.
KEPT = (Setting, LogRow, LogHeadRow)
DERIVED = tuple(
    sorted((each.class_ for each in Base.registry.mappers if each.class_ not in KEPT), key=lambda each: each.__name__)
)


def rows(catalogue: Catalogue, model: type[Base]) -> list[dict[str, Any]]:
    """All rows of a table, in the order of its key."""
    table: Any = model.__table__
    with catalogue.database.reading() as connection:
        found = connection.execute(select(table).order_by(*table.primary_key)).mappings().all()
    return [dict(row) for row in found]


def content(catalogue: Catalogue) -> dict[str, list[dict[str, Any]]]:
    """All that is derived, by MLflow's own run ids instead of the catalogue's keys."""
    names = {row["id"]: row["run_id"] for row in rows(catalogue, RunRow)}
    found = {}
    for model in DERIVED:
        plain = [{**row, "id": None, "run": names.get(row.get("run"))} for row in rows(catalogue, model)]
        found[model.__tablename__] = sorted(plain, key=lambda row: json.dumps(row, default=str))
    return found
