"""What a comparison of evidence returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

FORMAT = "evidence-comparison/1"
GROUP_COLUMNS = ("method", "subject", "run", "link", "data", "digest", "texts", "settings")
PAIRING_COLUMNS = ("method", "first", "second", "by", "shared", "only_first", "only_second")
SINGLE_COLUMNS = ("method", "metric", "higher_is_better", "subject", "value", "random", "run", "link")


def frame(columns: tuple[str, ...], rows: list[dict[str, Any]] | None = None) -> pd.DataFrame:
    """Return a frame with these columns."""
    return pd.DataFrame(rows or [], columns=list(columns))


@dataclass(frozen=True)
class EvidenceComparison:
    """Runs, suites, versions of models or dictionaries compared.

    Arguments:
        subjects: what was compared: label, address as given, pinned address, kind, link, runs.
        groups: a row for each compared method and subject: its run, data, texts and settings.
        pairing: a row for each method and pair of subjects: how many texts are the same and how that was told, and how
            many only one of them has.
        table: a row for each method, metric and subject; see `metrics.compare_scores`.
        pairs: a row for each method, metric and pair of subjects; see there.
        single: a row for each metric of a dictionary, which is one number a run.
        notes: what could not be compared and why, and what to know when reading.
        settings: level of intervals, seed, thresholds.
        report_run_id: of the run with the report, where it was logged.
    """

    subjects: tuple[Mapping[str, Any], ...]
    groups: pd.DataFrame = field(repr=False)
    pairing: pd.DataFrame = field(repr=False)
    table: pd.DataFrame = field(repr=False)
    pairs: pd.DataFrame = field(repr=False)
    single: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    report_run_id: str | None = None

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as JSON knows it: frames become lists of rows, NaN None."""
        return {
            "format": FORMAT,
            "subjects": [dict(each) for each in self.subjects],
            "settings": dict(self.settings),
            "groups": records(self.groups),
            "pairing": records(self.pairing),
            "table": records(self.table),
            "pairs": records(self.pairs),
            "single": records(self.single),
            "notes": list(self.notes),
            "report_run_id": self.report_run_id,
        }


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame's rows as plain data."""
    return [{str(name): plain(value) for name, value in row.items()} for row in rows.to_dict("records")]


def plain(value: Any) -> Any:
    """Return a value as JSON knows it; NaN becomes None."""
    value = value.item() if hasattr(value, "item") else value
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value
