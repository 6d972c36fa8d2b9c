"""Which rows hold which concept: labels of rows or texts as a matrix, and columns of a table as concepts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from interpreto_mlops.concepts.rows import Rows
from interpreto_mlops.errors import DataError, InputError, UnknownNameError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

PER = ("row", "text")
"""What a label may be of."""

MOST_VALUES = 50
"""The most values of a column of labels: beyond them it is text."""

_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def label_concepts(values: Sequence[str | None], name: str) -> tuple[tuple[str, ...], Floats]:
    """Turn a column of labels into concepts.

    Arguments:
        values: one for each text; None and empty ones are not known.
        name: of the column.

    Returns:
        The names of the concepts: the column's own where all values are 1 or 0, true or false, yes or no; else one for
        each value, `name=value`. And the labels, shape (texts, concepts): 1, 0, or NaN where it is not known.

    Raises:
        DataError: fewer than two values, or more than 50.
    """
    texts = ["" if value is None else str(value).strip() for value in values]
    found = sorted({text for text in texts if text})
    if len(found) < 2:
        raise DataError(f"the labels {name!r} have the values {found!r}; a probe needs at least two")
    if len(found) > MOST_VALUES:
        raise DataError(f"the labels {name!r} have {len(found)} values; a probe takes at most {MOST_VALUES}")
    known = np.asarray([bool(text) for text in texts])[:, None]
    if all(text.lower() in (*_YES, *_NO) for text in found):
        holds = np.asarray([text.lower() in _YES for text in texts])[:, None]
        return (name,), np.where(known, holds.astype(np.float64), np.nan)
    holds = np.asarray([[text == value for value in found] for text in texts])
    return tuple(f"{name}={value}" for value in found), np.where(known, holds.astype(np.float64), np.nan)


def label_matrix(labels: Any, rows: Rows, per: str | None = None) -> Floats:
    """Return labels of rows, or of the texts that rows are of, as a matrix.

    Arguments:
        labels: shape (rows,) or (texts,), or with a column for each concept: True or 1, False or 0, None or NaN where
            it is not known.
        rows: the activations.
        per: `row` or `text`; None tells it by how many there are.

    Returns:
        Shape (rows, concepts): 1, 0 or NaN.

    Raises:
        InputError: labels that are neither, or not as many as rows or texts.
        UnknownNameError: another `per`.
    """
    if per is not None and per not in PER:
        raise UnknownNameError("unit of labels", per, PER)
    matrix = _as_numbers(labels)
    text_ids: Any = getattr(rows, "text_ids", None)
    texts = getattr(rows, "texts", None)
    n_texts = -1 if texts is None else len(texts)
    if per is None:
        alike = n_texts == len(rows) and not np.array_equal(text_ids, np.arange(n_texts))
        if alike and len(matrix) == n_texts:
            raise InputError(f"there are {n_texts} rows of {n_texts} texts; say by per='row' or 'text' what labels are")
        per = "text" if len(matrix) == n_texts else "row"
    wanted = len(rows) if per == "row" else n_texts
    if text_ids is None and per == "text":
        raise InputError("a tensor does not know the texts of its rows; give labels of rows, or an ActivationSet")
    if len(matrix) != wanted:
        has = f"{len(rows)} rows" if n_texts < 0 else f"{len(rows)} rows of {n_texts} texts"
        raise InputError(f"{has} need as many labels as there are rows or texts, not {len(matrix)}")
    return matrix if per == "row" or text_ids is None else matrix[text_ids]


def _as_numbers(labels: Any) -> Floats:
    try:
        array = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
        matrix = np.array(array.astype(np.float64))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"labels are True or 1, False or 0, None where it is not known; label_concepts makes them of a column: "
            f"{error}"
        ) from error
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or matrix.shape[1] < 1:
        raise InputError(f"labels have the shape (rows,) or (rows, concepts), not {array.shape}")
    odd = ~(np.isnan(matrix) | (matrix == 0) | (matrix == 1))
    if odd.any():
        raise InputError(f"labels are 0 or 1, or NaN where it is not known, not {matrix[odd][0]:g}")
    return matrix


def check_names(names: Sequence[str] | None, n_concepts: int) -> None:
    """Refuse names that are not one string that says something for each concept.

    Raises:
        InputError: they are not.
    """
    if names is None:
        return
    if isinstance(names, str) or len(names) != n_concepts:
        raise InputError(f"{n_concepts} concepts need as many names, not {names!r}")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"a concept's name is a string that is not empty, not {name!r}")


def groups_of(rows: Rows, groups: Sequence[Any] | Integers | None = None) -> Integers:
    """Return the number of each row's group: rows of one are never divided; by default the row's text, else itself.

    Raises:
        InputError: not as many groups as rows.
    """
    if groups is not None:
        if len(groups) != len(rows):
            raise InputError(f"{len(rows)} rows need as many groups, not {len(groups)}")
        named = np.asarray(groups)
        if named.ndim != 1 or named.dtype == object:
            named = np.asarray([str(group) for group in groups])
        return np.unique(named, return_inverse=True)[1].astype(np.int64)
    text_ids = getattr(rows, "text_ids", None)
    return np.arange(len(rows)) if text_ids is None else np.asarray(text_ids)


def digest_of(matrix: Floats) -> str:
    """Return the sha256 of labels, so that a probe says which ones it has learned from."""
    return hashlib.sha256(np.ascontiguousarray(matrix, dtype="<f8").tobytes()).hexdigest()
