"""Activations of one layer on disk: shards of rows, and the way back from each row to its text and its place there."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.activation_writer import (
    DTYPES,
    INDEX,
    SCHEMA,
    SHARD_BYTES,
    TEXTS,
    ActivationWriter,
    index_sha256,
)
from interpreto_mlops.concepts.shards import Entry, Shard, check_content, check_size
from interpreto_mlops.errors import InputError, IntegrityError

__all__ = ["DTYPES", "SHARD_BYTES", "ActivationSet", "ActivationWriter", "remove_with"]

_BLOCK_ROWS = 256
_BUFFER_BYTES = 64 * 2**20

Integers = npt.NDArray[np.int64]
Moments = npt.NDArray[np.float64]


class ActivationSet:
    """The activations of one layer over many texts, in a folder; rows are read when they are asked for.

    Rows are in the order of the texts and, within a text, of the tokens. Texts without any token have no row.

    Arguments:
        path: the folder.
        verify: compare every file with its sha256, which reads them all; sizes are compared anyway.

    Raises:
        InputError: the folder holds no activation set (an interrupted harvest leaves none).
        IntegrityError: its index cannot be read, or a file is missing, truncated or, if verified, changed.
    """

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        self.path = Path(path)
        index = _read_index(self.path)
        self.provenance: dict[str, Any] = index["provenance"]
        self.layer: str = index["layer"]
        self.granularity: str = index["granularity"]
        self.width: int = index["width"]
        self.dtype: str = index["dtype"]
        self.mean: Moments = np.asarray(index["statistics"]["mean"], dtype=np.float64)
        self.variance: Moments = np.asarray(index["statistics"]["variance"], dtype=np.float64)
        self.mean_norm: float = index["statistics"]["mean_norm"]
        self.store_error: float = index["statistics"]["store_error"]
        self._n_rows: int = index["n_rows"]
        self._entries: list[Entry] = index["shards"]
        self._texts: Entry = index["texts"]
        self._shards: dict[int, Shard] = {}
        if verify:
            self.verify()

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> ActivationSet:
        """Open the set in a folder; the arguments and errors are those of the class."""
        return cls(path, verify=verify)

    def __len__(self) -> int:
        return self._n_rows

    def __repr__(self) -> str:
        return f"ActivationSet({self.layer!r}, {self.granularity!r}, shape={self.shape}, dtype={self.dtype!r})"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width."""
        return self._n_rows, self.width

    @property
    def rms_norm(self) -> float:
        """The root of the mean squared norm of a row; `mean_norm` is the mean norm."""
        return float(np.sqrt((self.variance + self.mean**2).sum()))

    @property
    def second_moment(self) -> Moments:
        """The mean of the squares, shape (width,)."""
        return self.variance + self.mean**2

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """All texts of the harvest, also those without rows."""
        with (self.path / TEXTS).open(encoding="ascii") as lines:
            return tuple(json.loads(line) for line in lines)

    @cached_property
    def text_ids(self) -> Integers:
        """The place of each row's text in `texts`, shape (rows,)."""
        return self._column("text_ids")

    @cached_property
    def positions(self) -> Integers:
        """The token at which each row is, or starts, counted from 0 with special tokens; shape (rows,)."""
        return self._column("positions")

    @cached_property
    def token_ids(self) -> Integers:
        """The id of the token at that position, shape (rows,)."""
        return self._column("token_ids")

    @cached_property
    def spans(self) -> Integers:
        """The characters that each row stands for, shape (rows, 2); (0, 0) for what is not in the text."""
        return self._column("spans")

    def tensor(self) -> torch.Tensor:
        """Return all rows in float32, shape (rows, width)."""
        out = torch.empty(self.shape, dtype=torch.float32)
        start = 0
        for block in self._blocks():
            rows = self._rows(*block)
            out[start : start + len(rows)] = rows
            start += len(rows)
        return out

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield every row once, in float32, in batches of shape (size, width); the last one may be smaller.

        Arguments:
            size: rows in a batch.
            shuffle: mix the rows: blocks of neighbours are read in random order into a buffer of 64 MiB, and the
                buffer is mixed. The same seed gives the same order.
            seed: of the order.
            skip: how many batches to leave out at the beginning, hardly any of which is read.

        Raises:
            InputError: `size` is not positive.
        """
        if size < 1:
            raise InputError(f"the batch size must be at least 1, not {size!r}")
        rng = np.random.default_rng(seed) if shuffle else None
        left = torch.empty((0, self.width))
        for rows in self._buffers(size, rng, skip * size):
            first = 0
            if len(left):
                first = min(size - len(left), len(rows))
                left = torch.cat([left, rows[:first]])
                if len(left) < size:
                    continue
                yield left
            whole = first + (len(rows) - first) // size * size
            for start in range(first, whole, size):
                yield rows[start : start + size].clone()
            left = rows[whole:].clone()
        if len(left):
            yield left

    def verify(self) -> None:
        """Compare every file with its sha256 in the index, and the index with its own.

        Raises:
            IntegrityError: a file was truncated or changed; the message names it.
        """
        index = _read_index(self.path)
        if index_sha256(index) != index["sha256"]:
            raise IntegrityError(f"the file {INDEX!r} of the activation set {str(self.path)!r} was changed")
        for entry in [*index["shards"], index["texts"]]:
            check_content(self.path, entry)

    def _blocks(self) -> list[tuple[int, int, int]]:
        """Return the blocks of neighbours: shard, first row in it, and end."""
        return [
            (number, start, min(start + _BLOCK_ROWS, shard["rows"]))
            for number, shard in enumerate(self._entries)
            for start in range(0, shard["rows"], _BLOCK_ROWS)
        ]

    def _buffers(self, size: int, rng: np.random.Generator | None, skip: int) -> Iterator[torch.Tensor]:
        """Yield all rows but the first `skip` in pieces of bounded size, mixed where a generator is given."""
        blocks = self._blocks()
        if rng is not None:
            blocks = [blocks[i] for i in rng.permutation(len(blocks))]
        room = max(size, _BUFFER_BYTES // (4 * self.width))
        per_buffer = max(1, room // _BLOCK_ROWS)
        for first in range(0, len(blocks), per_buffer):
            wanted = blocks[first : first + per_buffer]
            n_rows = sum(end - start for _, start, end in wanted)
            # Drawn even for what is skipped, so that the rest comes in the same order.
            places = np.arange(n_rows) if rng is None else np.argsort(rng.permutation(n_rows))
            if skip < n_rows:
                yield self._gathered(wanted, torch.from_numpy(places))[skip:]
            skip = max(0, skip - n_rows)

    def _gathered(self, blocks: list[tuple[int, int, int]], places: torch.Tensor) -> torch.Tensor:
        """Return the rows of blocks, each at its place: mixing them afterwards would take the memory twice."""
        rows = torch.empty((len(places), self.width))
        sizes = [end - start for _, start, end in blocks]
        for block, where in zip(blocks, places.split(sizes), strict=True):
            rows.index_copy_(0, where, self._rows(*block))
        return rows

    def _rows(self, shard: int, start: int, end: int) -> torch.Tensor:
        return self._shard(shard).read("activations", start, end).float()

    def _column(self, name: str) -> Integers:
        parts = [self._shard(number).read(name).numpy() for number in range(len(self._entries))]
        return np.concatenate(parts).astype(np.int64)

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            entry = self._entries[number]
            self._shards[number] = Shard(self.path / entry["file"], entry["rows"])
        return self._shards[number]


def remove_with(activations: ActivationSet, folder: Path) -> None:
    """Remove a folder when the set is garbage-collected, or at the end of the process that calls this."""
    weakref.finalize(activations, _remove, folder, os.getpid())


def _remove(folder: Path, owner: int) -> None:
    # A forked worker that ends must not take the folder away from its parent.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _read_index(path: Path) -> dict[str, Any]:
    file = path / INDEX
    if not file.is_file():
        raise InputError(f"there is no activation set in {str(path)!r}: it has no {INDEX}")
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if index["schema"] != SCHEMA:
            raise IntegrityError(f"the activation set {str(path)!r} has the schema {index['schema']!r}, not {SCHEMA!r}")
        if sum(shard["rows"] for shard in index["shards"]) != index["n_rows"]:
            raise IntegrityError(f"the shards of {str(path)!r} do not add up to {index['n_rows']} rows")
        for entry in [*index["shards"], index["texts"]]:
            check_size(path, entry)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise IntegrityError(f"the index of the activation set {str(path)!r} is damaged: {error!r}") from error
    return index
