"""Names of concepts that people gave, read from a file."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from interpreto_mlops.concepts.interpretation import Label
from interpreto_mlops.errors import DataError
from interpreto_mlops.text.datasets import read_table

HUMAN = "human"

_LONGEST, _LONGEST_EXPLANATION = 120, 1000
# Spreadsheets write whole numbers as 3.0 where a cell of the column is empty.
_NUMBER = re.compile(r"(\d{1,9})(?:\.0+)?")


def read_names(path: str | Path, n_concepts: int, by: str = "") -> dict[int, Label]:
    """Return the names of a file by the concept's number.

    Arguments:
        path: a CSV, TSV, JSONL or Parquet file with the columns `concept`, `label`, and `explanation` if there is one.
        n_concepts: how many concepts there are.
        by: who gave the names.

    Raises:
        DataError: a file that cannot be read, a concept that there is not or that is named twice, or a name that is
            empty, longer than 120 characters or of several lines, or an explanation that is longer than 1000 or holds
            control characters.
    """
    table = read_table(path)
    for column in ("concept", "label"):
        if column not in table.columns:
            raise DataError(f"{str(path)!r} has no column {column!r}; it has {', '.join(map(repr, table.columns))}")
    names: dict[int, Label] = {}
    for row, line in enumerate(table.to_dict("records"), 1):
        where = f"row {row} of {str(path)!r}"
        concept = _concept(line["concept"], n_concepts, where)
        if concept in names:
            raise DataError(f"{where} names concept {concept} a second time")
        names[concept] = Label(_name(line["label"], where), HUMAN, by, _explanation(line.get("explanation"), where))
    return names


def _concept(value: object, n_concepts: int, where: str) -> int:
    found = _NUMBER.fullmatch(str(value).strip())
    number = int(found[1]) if found else -1
    if not 0 <= number < n_concepts:
        raise DataError(f"{where} names the concept {value!r}; they are 0 to {n_concepts - 1}")
    return number


def _name(value: object, where: str) -> str:
    name = "" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value).strip()
    if not name or len(name) > _LONGEST or not name.isprintable():
        raise DataError(f"{where} has the label {name[:_LONGEST]!r}; it must be one line of 1 to {_LONGEST} characters")
    return name


def _explanation(value: object, where: str) -> str:
    said = "" if value is None or (isinstance(value, float) and pd.isna(value)) else " ".join(str(value).split())
    if len(said) > _LONGEST_EXPLANATION or not said.isprintable():
        raise DataError(
            f"{where} has the explanation {said[:_LONGEST]!r}; it must be at most {_LONGEST_EXPLANATION} characters "
            "that can be printed"
        )
    return said
