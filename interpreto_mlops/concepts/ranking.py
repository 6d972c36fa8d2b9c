"""The best of a stream of keyed values, in memory that does not grow with the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

N = TypeVar("N", bound=np.generic)

_NO_KEY = -1
_LARGEST_BITS = int(np.float32(np.inf).view(np.int32))


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


class SampledValues:
    """For each column, a uniform sample of its positive values with their rows; all of them where they are few.

    Arguments:
        n_columns: how many columns.
        size: the most values of a column.
        seed: of the draw, which does not depend on how the rows are cut into chunks.
    """

    def __init__(self, n_columns: int, size: int, seed: int) -> None:
        self._size, self._rng = size, np.random.default_rng(seed)
        self._least = np.full(n_columns, -1.0)
        self._kept = _Drawn(
            np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float64)
        )
        self._waiting: list[_Drawn] = []
        self._room = max(2**12, n_columns * size // 2)

    def add(self, values: npt.NDArray[np.float32], first_row: int) -> None:
        """Take the next rows, shape (rows, columns); `first_row` is the number of the first."""
        rows, columns = np.nonzero(values > 0)
        drawn = _Drawn(columns, first_row + rows, values[rows, columns], self._rng.random(len(rows)))
        # What would be thrown out at once is not even kept waiting.
        self._waiting.append(drawn.at(drawn.priorities > self._least[columns]))
        if sum(len(each.rows) for each in self._waiting) > self._room:
            self._settle()

    def entries(self) -> list[list[tuple[float, int]]]:
        """Return (value, row) of each column's sample, in the order in which they were drawn."""
        self._settle()
        found: list[list[tuple[float, int]]] = [[] for _ in self._least]
        columns = (array.tolist() for array in (self._kept.columns, self._kept.values, self._kept.rows))
        for column, value, row in zip(*columns, strict=True):
            found[column].append((value, row))
        return found

    def _settle(self) -> None:
        """Keep the values of the largest priorities of each column."""
        parts = [self._kept, *self._waiting]
        self._waiting = []
        everything = _Drawn(
            np.concatenate([each.columns for each in parts]),
            np.concatenate([each.rows for each in parts]),
            np.concatenate([each.values for each in parts]),
            np.concatenate([each.priorities for each in parts]),
        )
        drawn = everything.at(np.lexsort((-everything.priorities, everything.columns)))
        starts = np.searchsorted(drawn.columns, np.arange(len(self._least)))
        ranks = np.arange(len(drawn.columns)) - starts[drawn.columns]
        self._kept = drawn.at(ranks < self._size)
        full = drawn.at(ranks == self._size - 1)
        self._least[full.columns] = full.priorities


@dataclass(frozen=True)
class _Drawn:
    """Values of a stream, side by side."""

    columns: Integers
    rows: Integers
    values: npt.NDArray[np.float32]
    priorities: npt.NDArray[np.float64]

    def at(self, places: npt.NDArray[Any]) -> _Drawn:
        """Return those at some places, or under a mask."""
        return _Drawn(self.columns[places], self.rows[places], self.values[places], self.priorities[places])


def mirrored(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return positive numbers in place of positive ones, in the opposite order; the same again gives them back.

    Those that are not positive become 0. No rounding: the bits of a positive float32 are in the order of the numbers.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.int32)
    return np.where(values > 0, _LARGEST_BITS - bits, 0).astype(np.int32).view(np.float32)


def _taken(array: npt.NDArray[N], places: Integers) -> npt.NDArray[N]:
    return np.take_along_axis(array, places, axis=0)
