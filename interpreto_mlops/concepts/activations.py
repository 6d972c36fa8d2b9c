"""Activations of one layer on disk: shards of rows, and the way back from each row to its text and its place there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from interpreto_mlops.errors import InputError, IntegrityError, UnknownNameError

SCHEMA = "activation-set/1"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_INDEX = "index.json"
_TEXTS = "texts.jsonl"
_OURS = re.compile(r"((shard-\d{5,}|pending-\d+)\.safetensors|texts\.jsonl|index\.json)(\.partial)?")
SHARD_BYTES = 64 * 2**20
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
        self._n_rows: int = index["n_rows"]
        self._shards: list[dict[str, Any]] = index["shards"]
        self._texts: dict[str, Any] = index["texts"]
        self._open: dict[int, Any] = {}
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
        with (self.path / _TEXTS).open(encoding="ascii") as lines:
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
        for number, shard in enumerate(self._shards):
            out[start : start + shard["rows"]] = self._shard(number).get_tensor("activations")
            start += shard["rows"]
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
            rows = torch.cat([left, rows])
            whole = len(rows) - len(rows) % size
            for start in range(0, whole, size):
                yield rows[start : start + size].clone()
            left = rows[whole:].clone()
        if len(left):
            yield left

    def verify(self) -> None:
        """Compare every file with the sha256 in the index.

        Raises:
            IntegrityError: a file was changed; the message names it.
        """
        for entry in [*self._shards, self._texts]:
            with (self.path / entry["file"]).open("rb") as file:
                if _sha256(file) != entry["sha256"]:
                    raise IntegrityError(
                        f"the file {entry['file']!r} of the activation set {str(self.path)!r} was changed"
                    )

    def _buffers(self, size: int, rng: np.random.Generator | None, skip: int) -> Iterator[torch.Tensor]:
        """Yield all rows but the first `skip` in pieces of bounded size, mixed where a generator is given."""
        blocks = [
            (number, start, min(start + _BLOCK_ROWS, shard["rows"]))
            for number, shard in enumerate(self._shards)
            for start in range(0, shard["rows"], _BLOCK_ROWS)
        ]
        if rng is not None:
            blocks = [blocks[i] for i in rng.permutation(len(blocks))]
        room = max(size, _BUFFER_BYTES // (4 * self.width))
        per_buffer = max(1, room // _BLOCK_ROWS)
        for first in range(0, len(blocks), per_buffer):
            wanted = blocks[first : first + per_buffer]
            n_rows = sum(end - start for _, start, end in wanted)
            # Drawn even for what is skipped, so that the rest comes in the same order.
            order = None if rng is None else torch.from_numpy(rng.permutation(n_rows))
            if skip < n_rows:
                rows = torch.cat([self._rows(*block) for block in wanted])
                yield (rows if order is None else rows[order])[skip:]
            skip = max(0, skip - n_rows)

    def _rows(self, shard: int, start: int, end: int) -> torch.Tensor:
        rows: torch.Tensor = self._shard(shard).get_slice("activations")[start:end]
        return rows.float()

    def _column(self, name: str) -> Integers:
        parts = [self._shard(number).get_tensor(name).numpy() for number in range(len(self._shards))]
        return np.concatenate(parts).astype(np.int64)

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            file = self._shards[number]["file"]
            try:
                self._open[number] = safe_open(self.path / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise IntegrityError(f"cannot read the file {file!r} of {str(self.path)!r}: {error}") from error
        return self._open[number]


class ActivationWriter:
    """Writes an `ActivationSet`, one piece of rows after the other.

    Shards get their name when they are complete, and the index is written last: without it a folder is no set.

    Arguments:
        path: the folder; what an interrupted harvest left there goes away.
        layer: the module path.
        granularity: what a row is.
        width: numbers in a row.
        dtype: how they are stored: `float32`, `float16` or `bfloat16`.
        shard_bytes: about how large a shard is.
        resume: what `suspend` returned, to go on from there.

    Raises:
        InputError: there is an activation set in the folder already.
        UnknownNameError: there is no such dtype.
    """

    def __init__(
        self,
        path: Path,
        layer: str,
        granularity: str,
        width: int,
        dtype: str,
        *,
        shard_bytes: int | None = None,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UnknownNameError("dtype", dtype, DTYPES)
        if (path / _INDEX).exists():
            raise InputError(f"there is an activation set in {str(path)!r} already; give another directory")
        self.path = path
        self.n_rows = 0
        self._facts = {"layer": layer, "granularity": granularity, "width": width, "dtype": dtype}
        self._dtype = DTYPES[dtype]
        self._rows_per_shard = max(1, (shard_bytes or SHARD_BYTES) // (width * self._dtype.itemsize))
        # Rows that fill no shard yet lie at the head of a buffer that is made once.
        self._buffer = torch.empty((0, width), dtype=self._dtype)
        self._columns: list[dict[str, torch.Tensor]] = []
        self._waiting = 0
        self._shards: list[dict[str, Any]] = []
        self._mean = np.zeros(width)
        self._squares = np.zeros(width)
        self._norms = 0.0
        if resume is None:
            self.discard()
        path.mkdir(parents=True, exist_ok=True)
        if resume is not None:
            self._go_on(resume)

    def add(self, activations: torch.Tensor, columns: Mapping[str, npt.NDArray[np.int32]]) -> None:
        """Append rows.

        Arguments:
            activations: shape (rows, width), finite.
            columns: `text_ids`, `positions`, `token_ids`, shape (rows,), and `spans`, shape (rows, 2).

        Raises:
            InputError: a number is too large for the dtype.
        """
        self.room(len(activations)).copy_(activations)
        self.take(len(activations), columns)

    def room(self, rows: int) -> torch.Tensor:
        """Return where the next rows go, shape (rows, width), in the stored dtype; `take` then appends them."""
        if len(self._buffer) < self._waiting + rows:
            larger = torch.empty((self._rows_per_shard + rows, self._buffer.shape[1]), dtype=self._dtype)
            larger[: self._waiting] = self._buffer[: self._waiting]
            self._buffer = larger
        return self._buffer[self._waiting : self._waiting + rows]

    def take(self, rows: int, columns: Mapping[str, npt.NDArray[np.int32]]) -> None:
        """Append the rows that were put where `room` said; the columns and errors are those of `add`."""
        stored = self.room(rows)
        if self._dtype is torch.float16 and not bool(stored.isfinite().all()):
            raise InputError(f"activations of {self._facts['layer']!r} are too large for 'float16'; use 'bfloat16'")
        self._gather(stored)
        self._columns.append({name: torch.from_numpy(column) for name, column in columns.items()})
        self._waiting += rows
        while self._waiting >= self._rows_per_shard:
            self._write_shard(self._rows_per_shard)

    def _gather(self, rows: torch.Tensor) -> None:
        # The pairwise update of Chan, Golub and LeVeque (1979), which loses nothing when the mean is large; by blocks
        # that stay in the processor's cache.
        self._norms += float(torch.linalg.vector_norm(rows.float(), dim=1).double().sum())
        for part in rows.split(_BLOCK_ROWS):
            block = part.double()
            mean = block.mean(dim=0)
            squares = block.sub_(mean).square_().sum(dim=0).numpy()
            total = self.n_rows + len(block)
            delta = mean.numpy() - self._mean
            self._squares += squares + delta**2 * (self.n_rows * len(block) / total)
            self._mean += delta * (len(block) / total)
            self.n_rows = total

    def _write_shard(self, rows: int) -> None:
        columns = self._joined()
        shard = {name: column[:rows].contiguous() for name, column in columns.items()}
        name = f"shard-{len(self._shards):05d}.safetensors"
        partial = self.path / f"{name}.partial"
        save_file({"activations": self._buffer[:rows], **shard}, partial)
        with partial.open("rb") as file:
            entry = {"file": name, "rows": rows, "bytes": partial.stat().st_size, "sha256": _sha256(file)}
        self._shards.append(entry)
        partial.replace(self.path / name)
        self._columns = [{name: column[rows:].clone() for name, column in columns.items()}]
        self._buffer[: self._waiting - rows] = self._buffer[rows : self._waiting].clone()
        self._waiting -= rows

    def _joined(self) -> dict[str, torch.Tensor]:
        return {name: torch.cat([part[name] for part in self._columns]) for name in self._columns[0]}

    @property
    def n_shards(self) -> int:
        """How many shards are complete."""
        return len(self._shards)

    def suspend(self, number: int) -> dict[str, Any]:
        """Write the rows that fill no shard yet, under that number, and return what a later writer goes on from."""
        pending = None
        if self._waiting:
            pending = f"pending-{number}.safetensors"
            partial = self.path / f"{pending}.partial"
            save_file({"activations": self._buffer[: self._waiting], **self._joined()}, partial)
            partial.replace(self.path / pending)
        return {
            "shards": list(self._shards),
            "pending": pending,
            "n_rows": self.n_rows,
            "mean": self._mean.tolist(),
            "squares": self._squares.tolist(),
            "norms": self._norms,
        }

    def forget_suspended(self, number: int | None) -> None:
        """Remove the rows that were written by `suspend`, but for those under that number."""
        for file in self.path.glob("pending-*.safetensors*"):
            if file.name != f"pending-{number}.safetensors":
                file.unlink()

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self._shards = list(state["shards"])
        self.n_rows, self._norms = state["n_rows"], state["norms"]
        self._mean, self._squares = np.asarray(state["mean"]), np.asarray(state["squares"])
        known = {entry["file"] for entry in self._shards} | {state["pending"]}
        for entry in self._shards:
            _check_size(self.path, entry)
        if state["pending"] is not None:
            try:
                piece = load_file(self.path / state["pending"])
            except (SafetensorError, OSError) as error:
                raise IntegrityError(f"cannot read {state['pending']!r} of {str(self.path)!r}: {error}") from error
            self._buffer = piece.pop("activations")
            self._columns, self._waiting = [piece], len(self._buffer)
        for file in self.path.iterdir():
            if _OURS.fullmatch(file.name) and file.name not in known:
                file.unlink()

    def close(self, texts: Path, provenance: Mapping[str, Any]) -> None:
        """Write what is left, and then the index.

        Arguments:
            texts: a file with one JSON string a line, which is copied.
            provenance: where the rows come from.
        """
        if self._waiting:
            self._write_shard(self._waiting)
        partial = self.path / f"{_TEXTS}.partial"
        shutil.copyfile(texts, partial)
        with partial.open("rb") as file:
            digest, size = _sha256(file), partial.stat().st_size
        partial.replace(self.path / _TEXTS)
        index = {
            "schema": SCHEMA,
            **self._facts,
            "n_rows": self.n_rows,
            "provenance": dict(provenance),
            "shards": self._shards,
            "texts": {"file": _TEXTS, "bytes": size, "sha256": digest},
            "statistics": {
                "mean": self._mean.tolist(),
                "variance": (self._squares / max(self.n_rows, 1)).tolist(),
                "mean_norm": self._norms / max(self.n_rows, 1),
            },
        }
        partial = self.path / f"{_INDEX}.partial"
        partial.write_text(json.dumps(index, indent=1), encoding="ascii")
        partial.replace(self.path / _INDEX)
        self.forget_suspended(None)

    def discard(self) -> None:
        """Remove the files of a harvest that has not come to its end."""
        if not self.path.is_dir():
            return
        others = False
        for file in self.path.iterdir():
            if _OURS.fullmatch(file.name):
                file.unlink()
            else:
                others = True
        if not others:
            self.path.rmdir()


def remove_with(activations: ActivationSet, folder: Path) -> None:
    """Remove a folder when the set is garbage-collected, or at the end of the process that calls this."""
    weakref.finalize(activations, _remove, folder, os.getpid())


def _remove(folder: Path, owner: int) -> None:
    # A forked worker that ends must not take the folder away from its parent.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def _read_index(path: Path) -> dict[str, Any]:
    file = path / _INDEX
    if not file.is_file():
        raise InputError(f"there is no activation set in {str(path)!r}: it has no {_INDEX}")
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if index["schema"] != SCHEMA:
            raise IntegrityError(f"the activation set {str(path)!r} has the schema {index['schema']!r}, not {SCHEMA!r}")
        names = [entry["file"] for entry in [*index["shards"], index["texts"]]]
        if sum(shard["rows"] for shard in index["shards"]) != index["n_rows"]:
            raise IntegrityError(f"the shards of {str(path)!r} do not add up to {index['n_rows']} rows")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise IntegrityError(f"the index of the activation set {str(path)!r} is damaged: {error!r}") from error
    for name in names:
        if name != Path(name).name or not (path / name).is_file():
            raise IntegrityError(f"the activation set {str(path)!r} lacks its file {name!r}")
    for entry in [*index["shards"], index["texts"]]:
        _check_size(path, entry)
    return index


def _check_size(path: Path, entry: Mapping[str, Any]) -> None:
    file = path / entry["file"]
    size = file.stat().st_size if file.is_file() else 0
    if size != entry["bytes"]:
        raise IntegrityError(
            f"the file {entry['file']!r} of the activation set {str(path)!r} has {size} bytes, not {entry['bytes']}"
        )
