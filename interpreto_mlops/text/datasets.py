"""Texts with labels: read from files, or built by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from interpreto_mlops.errors import DataError, InputError
from interpreto_mlops.registry import Registry

DATASETS: Registry[Callable[[str], TextDataset]] = Registry("data set")
"""Data sets that are known by name: functions from a split's name to a `TextDataset`."""

_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": lambda path: pd.read_csv(path, keep_default_na=False, dtype=str),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", keep_default_na=False, dtype=str),
    ".jsonl": lambda path: _records(map(json.loads, filter(str.strip, path.read_text(encoding="utf-8").split("\n")))),
    ".json": lambda path: _records(json.loads(path.read_text(encoding="utf-8"))),
    ".parquet": pd.read_parquet,
}


@dataclass(frozen=True)
class TextDataset:
    """Texts, with or without labels, and where they came from.

    Arguments:
        name: how runs call it; it groups their metrics in the MLflow UI.
        texts: the raw texts, in order.
        labels: one label a text, or None.
        source: a path or a readable description of the origin.
        targets: what is to be explained in each text, or None.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    source: str = field(default="", compare=False)
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for what, values in (("labels", self.labels), ("targets", self.targets)):
            if values is not None and len(values) != len(self.texts):
                raise DataError(f"data set {self.name!r} has {len(self.texts)} texts but {len(values)} {what}")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def digest(self) -> str:
        """The first 32 hex digits of a sha256 over every row, in order."""
        digest = hashlib.sha256()
        labels: Sequence[str | None] = self.labels or [None] * len(self.texts)
        columns = [self.texts, labels, *([] if self.targets is None else [self.targets])]
        for row in zip(*columns, strict=True):
            digest.update(json.dumps(row, ensure_ascii=True).encode())
            digest.update(b"\n")
        return digest.hexdigest()[:32]

    def head(self, rows: int | None) -> TextDataset:
        """Return the first `rows` rows (all of them for None).

        Raises:
            InputError: `rows` is not positive.
        """
        if rows is None or rows >= len(self):
            return self
        if rows < 1:
            raise InputError(f"the number of texts must be at least 1, not {rows!r}")
        labels = None if self.labels is None else self.labels[:rows]
        targets = None if self.targets is None else self.targets[:rows]
        return TextDataset(self.name, self.texts[:rows], labels, self.source, targets)

    def to_frame(self) -> pd.DataFrame:
        """Return a frame with the columns `text` and, if there are labels, `label`."""
        frame = pd.DataFrame({"text": list(self.texts)})
        return frame if self.labels is None else frame.assign(label=list(self.labels))


def load_dataset(
    source: str | Path,
    *,
    text_column: str = "text",
    label_column: str | None = None,
    target_column: str | None = None,
    split: str = "test",
) -> TextDataset:
    """Load a data set by its registered name or from a CSV, TSV, JSONL, JSON or Parquet file.

    Arguments:
        source: a name in `DATASETS` (`library_docs`) or a path.
        text_column: the column of the texts; not used for a named data set.
        label_column: the column of the labels, or None to do without.
        target_column: the column of what is to be explained in each text, or None; only a file has one.
        split: which part of a named data set; a file has none.

    Raises:
        DataError: no such file, a format or content that cannot be read, no rows, or a column that is not there.
    """
    if str(source) in DATASETS and target_column is not None:
        raise DataError(f"the data set {str(source)!r} has no column {target_column!r}; only a file has columns")
    if str(source) in DATASETS:
        return DATASETS.get(str(source))(split)
    path = Path(source)
    frame = read_table(path)
    if frame.empty:
        raise DataError(f"the data file {str(source)!r} has no rows")
    texts = _column(frame, text_column, path)
    labels = None if label_column is None else _column(frame, label_column, path)
    targets = None if target_column is None else _column(frame, target_column, path)
    return TextDataset(path.stem, texts, labels, str(path), targets)


def read_table(path: str | Path) -> pd.DataFrame:
    """Return the rows of a CSV, TSV, JSONL, JSON or Parquet file.

    Raises:
        DataError: no such file, or a format or content that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        names = ", ".join(repr(name) for name in DATASETS.names())
        raise DataError(f"there is no data file {str(path)!r}, and no data set of that name (known: {names})")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"cannot read {path.name!r}: its ending must be one of {', '.join(sorted(_READERS))}")
    if path.stat().st_size == 0:
        raise DataError(f"the data file {str(path)!r} is empty")
    try:
        return reader(path)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"the data file {str(path)!r} is empty") from error
    except (ValueError, OSError, ImportError) as error:
        raise DataError(f"cannot read the data file {str(path)!r}: {_first_line(error)}") from error


def _records(records: Iterable[object]) -> pd.DataFrame:
    rows = list(records)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is not made of JSON objects, one for each row")
    return pd.DataFrame(rows)


def _column(frame: pd.DataFrame, name: str, path: Path) -> tuple[str, ...]:
    if name not in frame.columns:
        known = ", ".join(repr(str(column)) for column in frame.columns)
        raise DataError(f"the data file {path.name!r} has no column {name!r}; its columns are {known}")
    return tuple("" if _is_missing(value) else str(value) for value in frame[name])


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
