"""What a run says of the names of concepts: what changed, by whom, how good the names are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from interpreto_mlops.concepts.interpretation import ConceptDescription
from interpreto_mlops.concepts.interpretation_metrics import InterpretationScore
from interpreto_mlops.text.hiding import hidden_name, texts_are_hidden
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.runs import RunLog

_NAMES = ("label", "shuffled_label")


def write_names(
    run: RunLog,
    before: Sequence[ConceptDescription],
    after: Sequence[ConceptDescription],
    scores: Iterable[InterpretationScore] = (),
    unlabelled: Mapping[int, str] | None = None,
) -> None:
    """Write which names changed, and how good each is, into a run; no words where texts are hidden.

    Arguments:
        run: an open run.
        before, after: the descriptions of the concepts.
        scores: of the names.
        unlabelled: why concepts that were asked about have no new name, by their number.
    """
    hide = texts_are_hidden()
    if hide:
        before, after = ([each.hidden() for each in every] for every in (before, after))
    run.table(schema.INTERPRETATION_CHANGES, changed_names(before, after, {} if hide else unlabelled or {}))
    tables = [score.to_frame().assign(metric=score.name) for score in scores]
    if tables:
        table = pd.concat(tables, ignore_index=True)
        if hide:
            for column in set(_NAMES) & set(table.columns):
                table[column] = [None if pd.isna(name) else hidden_name(str(name)) for name in table[column]]
        run.frame(schema.INTERPRETATION_SCORES, table[["metric", *table.columns.drop("metric")]])


def changed_names(
    before: Sequence[ConceptDescription], after: Sequence[ConceptDescription], unlabelled: Mapping[int, str]
) -> pd.DataFrame:
    """Return a row for each concept: the name that it had, the one that it has, where each is from, and why not."""
    had = {each.concept: each for each in before}
    rows = []
    for each in after:
        old = had.get(each.concept)
        rows.append(
            {
                "concept": each.concept,
                "before": None if old is None else old.label,
                "origin_before": None if old is None else old.origin,
                "after": each.label,
                "origin_after": each.origin,
                "by": "" if each.given is None else each.given.by,
                "explanation": "" if each.given is None else each.given.explanation,
                "changed": old is None or (old.label, old.origin) != (each.label, each.origin),
                "why_not": unlabelled.get(each.concept, ""),
            }
        )
    return pd.DataFrame(rows)
