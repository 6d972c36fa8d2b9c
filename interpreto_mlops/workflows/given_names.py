"""Names of concepts that people gave, read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from interpreto_mlops.concepts.interpretation import ConceptDescription, Label
from interpreto_mlops.errors import DataError
from interpreto_mlops.text.datasets import read_table

HUMAN = "human"

_LONGEST = 120


def named_by_people(
    descriptions: Sequence[ConceptDescription], path: str | Path, by: str = ""
) -> list[ConceptDescription]:
    """Return descriptions with the names of a file; concepts that it does not name keep what they have.

    Arguments:
        descriptions: of all concepts.
        path: a CSV, TSV, JSONL or Parquet file with the columns `concept`, `label`, and `explanation` if there is one.
        by: who gave the names.

    Raises:
        DataError: a file that cannot be read, a concept that there is not or that is named twice, or a name that is
            empty, longer than 120 characters or of several lines.
    """
    table = read_table(path)
    for column in ("concept", "label"):
        if column not in table.columns:
            raise DataError(f"{str(path)!r} has no column {column!r}; it has {', '.join(map(repr, table.columns))}")
    known = {each.concept for each in descriptions}
    names: dict[int, Label] = {}
    for row, line in enumerate(table.to_dict("records"), 1):
        concept = _concept(line["concept"], known, f"row {row} of {str(path)!r}")
        if concept in names:
            raise DataError(f"row {row} of {str(path)!r} names concept {concept} a second time")
        explanation = line.get("explanation")
        said = "" if explanation is None or pd.isna(explanation) else " ".join(str(explanation).split())
        names[concept] = Label(_name(line["label"], f"row {row} of {str(path)!r}"), HUMAN, by, said)
    return [replace(each, given=names.get(each.concept, each.given)) for each in descriptions]


def _concept(value: object, known: set[int], where: str) -> int:
    text = str(value).strip()
    number = int(float(text)) if text.replace(".0", "").isdecimal() else -1
    if number not in known:
        raise DataError(f"{where} names the concept {value!r}; they are {min(known)} to {max(known)}")
    return number


def _name(value: object, where: str) -> str:
    name = "" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value).strip()
    if not name or len(name) > _LONGEST or not name.isprintable():
        raise DataError(f"{where} has the label {name[:_LONGEST]!r}; it must be one line of 1 to {_LONGEST} characters")
    return name
