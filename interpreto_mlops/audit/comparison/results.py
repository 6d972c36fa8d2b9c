"""What a comparison of evidence returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from interpreto_mlops.audit.comparison.dictionaries import ConceptMatch

FORMAT = "evidence-comparison/1"
GROUP_COLUMNS = ("method", "subject", "run", "link", "data", "digest", "texts", "settings")
PAIRING_COLUMNS = (
    "method",
    "first",
    "second",
    "by",
    "shared",
    "only_first",
    "only_second",
    "other_targets",
    "other_elements",
    "unranked",
)
_MATCH_NUMBERS = ("by", "threshold", "mean", "random_mean", "n_pairs", "n_changed_labels", "silent", "rows", "unit")
SINGLE_COLUMNS = ("method", "metric", "higher_is_better", "subject", "value", "random", "run", "link")

AGREEMENT_COLUMNS = ("method", "first", "second", "measure", "mean", "low", "high", "texts", "random")
CHANGED_COLUMNS = (
    "method",
    "first",
    "second",
    "index_first",
    "index_second",
    "text",
    "target",
    "words_first",
    "words_second",
    "spearman",
    "kendall",
    "overlap",
)
TARGETS_COLUMNS = (
    "method",
    "first",
    "second",
    "index_first",
    "index_second",
    "text",
    "target_first",
    "target_second",
)
SHIFT_FRAME_COLUMNS = (
    "method",
    "first",
    "second",
    "class",
    "concept_first",
    "label_first",
    "concept_second",
    "label_second",
    "share_first",
    "share_second",
    "shift",
)


def frame(columns: tuple[str, ...], rows: list[dict[str, Any]] | None = None) -> pd.DataFrame:
    """Return a frame with these columns."""
    return pd.DataFrame(rows or [], columns=list(columns))


@dataclass(frozen=True)
class ConceptComparison:
    """The concepts of two dictionaries.

    Arguments:
        method: the group that they are of.
        first, second: the subjects that have them.
        uri_first, uri_second: of the dictionaries.
        match: which concepts are the same, new and vanished.
    """

    method: str
    first: str
    second: str
    uri_first: str
    uri_second: str
    match: ConceptMatch = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        match = self.match
        named = {name: getattr(self, name) for name in ("method", "first", "second", "uri_first", "uri_second")}
        numbers = {name: plain(getattr(match, name)) for name in _MATCH_NUMBERS}
        lists = {name: records(getattr(match, name)) for name in ("matched", "new", "vanished")}
        return {**named, **numbers, **lists}


@dataclass(frozen=True)
class EvidenceComparison:
    """Runs, suites, versions of models or dictionaries compared.

    Arguments:
        subjects: what was compared: label, address as given, pinned address, kind, link, runs.
        groups: a row for each compared method and subject: its run, data, texts and settings.
        pairing: a row for each method and pair of subjects: how many texts are the same and how that was told, how many
            only one of them has, and of the same ones how many were explained for other targets, how many were cut
            into other elements, and how many cannot be ranked.
        table: a row for each method, metric and subject; see `metrics.compare_scores`.
        pairs: a row for each method, metric and pair of subjects; see there.
        single: a row for each metric of a dictionary, which is one number a run.
        agreement: a row for each method, pair of subjects and measure of rank agreement; see `models.agreement`.
        changed: the texts whose explanation changed most, with the words that spoke most for the target.
        targets: texts that were explained for another target, as when another class is predicted.
        dictionaries: matched dictionaries.
        shifts: how the importance of matched concepts shifted; see `models.importance_shift`.
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
    agreement: pd.DataFrame = field(repr=False)
    changed: pd.DataFrame = field(repr=False)
    targets: pd.DataFrame = field(repr=False)
    dictionaries: tuple[ConceptComparison, ...] = field(repr=False)
    shifts: pd.DataFrame = field(repr=False)
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
            "agreement": records(self.agreement),
            "changed": records(self.changed),
            "targets": records(self.targets),
            "dictionaries": [each.to_dict() for each in self.dictionaries],
            "shifts": records(self.shifts),
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
