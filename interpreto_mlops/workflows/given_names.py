"""Names of concepts that people gave, read from a file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from interpreto_mlops.concepts.interpretation import Label
from interpreto_mlops.errors import DataError
from interpreto_mlops.text.datasets import read_table

HUMAN = "human"

_LONGEST = 120


def read_names(path: str | Path, n_concepts: int, by: str = "") -> dict[int, Label]:
    """Return the names of a file by the concept's number.

    Arguments:
        path: a CSV, TSV, JSONL or Parquet file with the columns `concept`, `label`, and `explanation` if there is one.
        n_concepts: how many concepts there are.
        by: who gave the names.

    Raises:
        DataError: a file that cannot be read, a concept that there is not or that is named twice, or a name that is
            empty, longer than 120 characters or of several lines.
    """
    table = read_table(path)
    for column in ("concept", "label"):
        if column not in table.columns:
            raise DataError(f"{str(path)!r} has no column {column!r}; it has {', '.join(map(repr, table.columns))}")
    names: dict[int, Label] = {}
    for row, line in enumerate(table.to_dict("records"), 1):
        concept = _concept(line["concept"], n_concepts, f"row {row} of {str(path)!r}")
        if concept in names:
            raise DataError(f"row {row} of {str(path)!r} names concept {concept} a second time")
        explanation = line.get("explanation")
        said = "" if explanation is None or pd.isna(explanation) else " ".join(str(explanation).split())
        names[concept] = Label(_name(line["label"], f"row {row} of {str(path)!r}"), HUMAN, by, said)
    return names


def _concept(value: object, n_concepts: int, where: str) -> int:
    text = str(value).strip()
    number = int(float(text)) if text.replace(".0", "").isdecimal() else -1
    if not 0 <= number < n_concepts:
        raise DataError(f"{where} names the concept {value!r}; they are 0 to {n_concepts - 1}")
    return number


def _name(value: object, where: str) -> str:
    name = "" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value).strip()
    if not name or len(name) > _LONGEST or not name.isprintable():
        raise DataError(f"{where} has the label {name[:_LONGEST]!r}; it must be one line of 1 to {_LONGEST} characters")
    return name
