"""The best of a stream of keyed values, in memory that does not grow with the stream."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

N = TypeVar("N", bound=np.generic)

_NO_KEY = -1


class TopKeys:
    """For each column, the keys with the largest values, each key once with its largest value; only positive ones.

    A key that has been pushed out comes back with a larger value, so that what is kept is exact.

    Arguments:
        n_columns: how many columns.
        size: the most keys of a column.
    """

    def __init__(self, n_columns: int, size: int) -> None:
        self._size = size
        self._keys = np.full((size, n_columns), _NO_KEY, dtype=np.int64)
        self._rows = np.zeros((size, n_columns), dtype=np.int64)
        self._values = np.zeros((size, n_columns), dtype=np.float32)

    def add(self, keys: Integers, values: npt.NDArray[np.float32], first_row: int) -> None:
        """Take the next rows.

        Arguments:
            keys: the key of each row, shape (rows,); rows with a negative one are passed over.
            values: shape (rows, columns).
            first_row: the number of the first row.
        """
        rows = np.flatnonzero(keys >= 0)
        if not self._size or not len(rows):
            return
        rows = rows[np.argsort(keys[rows], kind="stable")]
        distinct, starts = np.unique(keys[rows], return_index=True)
        grouped = values[rows]
        best = np.maximum.reduceat(grouped, starts, axis=0)
        # Where a column's largest value of a key stands: the first row of the group that has it.
        lengths = np.diff(starts, append=len(rows))
        at_best = np.where(
            grouped == np.repeat(best, lengths, axis=0), first_row + rows[:, None], np.iinfo(np.int64).max
        )
        best_rows = np.minimum.reduceat(at_best, starts, axis=0)
        few = min(self._size, len(distinct))
        top = np.argpartition(-best, few - 1, axis=0)[:few]
        self._merge(distinct[top], _taken(best, top), _taken(best_rows, top))

    def _merge(self, keys: Integers, values: npt.NDArray[np.float32], rows: Integers) -> None:
        keys = np.concatenate([self._keys, np.where(values > 0, keys, _NO_KEY)])
        values = np.concatenate([self._values, np.maximum(values, 0)])
        rows = np.concatenate([self._rows, rows])
        order = np.lexsort((rows, -values), axis=0)
        keys, values, rows = _taken(keys, order), _taken(values, order), _taken(rows, order)
        # The kept and the new keys are distinct among themselves: of a key that stands here twice the later one goes.
        repeated = np.zeros(keys.shape, dtype=bool)
        for place in range(1, len(keys)):
            repeated[place] = (keys[:place] == keys[place]).any(axis=0)
        keys[repeated] = _NO_KEY
        order = np.argsort(keys == _NO_KEY, axis=0, kind="stable")[: self._size]
        self._keys, self._values, self._rows = _taken(keys, order), _taken(values, order), _taken(rows, order)
        self._values[self._keys == _NO_KEY] = 0.0

    def entries(self, column: int) -> list[tuple[int, float, int]]:
        """Return (key, value, row) of a column, the largest value first."""
        kept = np.flatnonzero(self._keys[:, column] != _NO_KEY)
        columns = (array[kept, column].tolist() for array in (self._keys, self._values, self._rows))
        return list(zip(*columns, strict=True))


def _taken(array: npt.NDArray[N], places: Integers) -> npt.NDArray[N]:
    return np.take_along_axis(array, places, axis=0)
