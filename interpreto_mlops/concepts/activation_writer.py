"""Activations on their way to disk: rows are gathered into shards, and their statistics on the way."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.shards import Entry, Shard, check_content, describe, write_json, write_shard
from interpreto_mlops.errors import InputError, UnknownNameError

SCHEMA = "activation-set/2"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

INDEX = "index.json"
TEXTS = "texts.jsonl"
COLUMNS = ("text_ids", "positions", "token_ids", "spans")
_OURS = re.compile(r"((shard-\d{5,}|pending-\d+)\.safetensors|texts\.jsonl|index\.json)(\.partial)?")
SHARD_BYTES = 64 * 2**20
_CHUNK_ROWS = 512

Columns = Mapping[str, npt.NDArray[np.int32]]
Moments = npt.NDArray[np.float64]


class Statistics:
    """Mean, variance and norms of rows that stream by, in double precision.

    Arguments:
        width: numbers in a row.
        state: what `state` returned, to go on from there to the bit.
    """

    def __init__(self, width: int, state: Mapping[str, Any] | None = None) -> None:
        given = state or {"n": 0, "mean": [0.0] * width, "squares": [0.0] * width, "norms": 0.0, "error": 0.0}
        self.n: int = given["n"]
        self.norms: float = given["norms"]
        self.error: float = given["error"]
        self.mean: Moments = np.asarray(given["mean"], dtype=np.float64)
        self.squares: Moments = np.asarray(given["squares"], dtype=np.float64)

    def state(self) -> dict[str, Any]:
        """Return all that is known, as JSON can keep it."""
        moments = {"mean": self.mean.tolist(), "squares": self.squares.tolist()}
        return {"n": self.n, **moments, "norms": self.norms, "error": self.error}

    def add(self, rows: torch.Tensor, errors: torch.Tensor) -> None:
        """Take rows, shape (rows, width), and the squares of what each lost when it was stored, shape (rows,)."""
        self.error += float(errors.sum(dtype=torch.float64))
        # What is not finite shows in the mean; numpy need not say so, too.
        with np.errstate(invalid="ignore"):
            for chunk in rows.split(_CHUNK_ROWS):
                self._add_chunk(chunk.double().numpy())

    def _add_chunk(self, rows: Moments) -> None:
        # The pairwise update of Chan, Golub and LeVeque (1979), which loses nothing when the mean is large.
        self.norms += float(np.sqrt(np.einsum("ij,ij->i", rows, rows)).sum())
        mean = rows.mean(axis=0)
        rows -= mean
        total = self.n + len(rows)
        delta = mean - self.mean
        self.squares += np.einsum("ij,ij->j", rows, rows) + delta**2 * (self.n * len(rows) / total)
        self.mean += delta * (len(rows) / total)
        self.n = total

    def summary(self) -> dict[str, Any]:
        """Return what an index says."""
        n = max(self.n, 1)
        centred = float(self.squares.sum()) or float(n * (self.mean**2).sum()) or 1.0
        return {
            "mean": self.mean.tolist(),
            "variance": (self.squares / n).tolist(),
            "mean_norm": self.norms / n,
            "store_error": float(np.sqrt(self.error / centred)),
        }


class ActivationWriter:
    """Writes an `ActivationSet`, one piece of rows after the other.

    Shards get their name when they are complete, and the index is written last: without it a folder is no set.

    Arguments:
        path: the folder; what an interrupted harvest left there goes away.
        layer: the split point.
        granularity: what a row is.
        width: numbers in a row.
        dtype: how they are stored: `float32`, `float16` or `bfloat16`.
        shard_bytes: about how large a shard is.
        resume: what `suspend` returned, to go on from there.

    Raises:
        InputError: there is an activation set in the folder already.
        IntegrityError: a file to go on from was truncated or changed.
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
        shard_bytes: int = SHARD_BYTES,
        resume: Mapping[str, Any] | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UnknownNameError("dtype", dtype, DTYPES)
        if (path / INDEX).exists():
            raise InputError(f"there is an activation set in {str(path)!r} already; give another directory")
        self.path, self.width = path, width
        self.dtype = DTYPES[dtype]
        self._facts = {"layer": layer, "granularity": granularity, "width": width, "dtype": dtype}
        self._rows_per_shard = max(1, shard_bytes // (width * self.dtype.itemsize))
        self._shards: list[Entry] = []
        self._statistics = Statistics(width)
        # Rows that fill no shard yet, then those that are reserved.
        self._rows = torch.empty((0, width), dtype=self.dtype)
        self._errors = torch.empty(0)
        self._columns: list[Columns] = []
        self._waiting = self._reserved = 0
        if resume is None:
            self.discard()
        path.mkdir(parents=True, exist_ok=True)
        if resume is not None:
            self._go_on(resume)

    @property
    def n_rows(self) -> int:
        """How many rows have been taken."""
        return self._statistics.n + self._waiting

    @property
    def n_shards(self) -> int:
        """How many shards are complete."""
        return len(self._shards)

    def add(self, activations: torch.Tensor, columns: Columns) -> None:
        """Append rows.

        Arguments:
            activations: shape (rows, width), finite.
            columns: `text_ids`, `positions`, `token_ids`, shape (rows,), and `spans`, shape (rows, 2).

        Raises:
            InputError: a number is too large for the dtype.
        """
        self.reserve(len(activations))
        self.put(torch.arange(len(activations)), activations)
        self.commit(columns)

    def reserve(self, rows: int) -> None:
        """Make room for the next rows, which `put` fills in any order and `commit` appends."""
        self._reserved = rows
        needed = self._waiting + rows
        if needed > len(self._rows):
            kept, errors = self._rows[: self._waiting], self._errors[: self._waiting]
            # Room for a shard and what follows it, so that pieces of like size never make it grow again.
            room = max(needed, min(2 * needed, self._rows_per_shard + rows + rows // 8))
            self._rows, self._errors = torch.empty((room, self.width), dtype=self.dtype), torch.zeros(room)
            self._rows[: self._waiting], self._errors[: self._waiting] = kept, errors

    def put(self, places: torch.Tensor, activations: torch.Tensor) -> None:
        """Fill some of the reserved rows.

        Arguments:
            places: which, counted from the first reserved one, shape (rows,).
            activations: shape (rows, width), float32, finite.

        Raises:
            InputError: a number is too large for the dtype.
        """
        places = places + self._waiting
        if self.dtype is torch.float32:
            self._rows.index_copy_(0, places, activations.to(torch.float32))
            return
        stored = activations.to(self.dtype)
        lost = stored.float() - activations
        if not bool(lost.sum().isfinite()) and not bool(stored.isfinite().all()):
            raise InputError(
                f"activations of {self._facts['layer']!r} are too large for {self._facts['dtype']!r}; use "
                f"{'bfloat16' if self.dtype is torch.float16 else 'float32'!r}"
            )
        self._rows.index_copy_(0, places, stored)
        self._errors.index_copy_(0, places, lost.square_().sum(dim=1))

    def put_runs(self, output: torch.Tensor, runs: Sequence[tuple[int, int, int, int]]) -> None:
        """Fill reserved rows with neighbours, without a copy in between; only for a set of `float32`.

        Arguments:
            output: shape (texts, tokens, width), on the CPU.
            runs: text, first token, how many, and the reserved row of the first.
        """
        rows = self._rows[self._waiting :]
        for text, first, count, place in runs:
            rows[place : place + count] = output[text, first : first + count]

    @property
    def reserved(self) -> torch.Tensor:
        """The reserved rows."""
        return self._rows[self._waiting : self._waiting + self._reserved]

    def commit(self, columns: Columns) -> None:
        """Append the reserved rows.

        Arguments:
            columns: as for `add`.
        """
        self._waiting += self._reserved
        self._reserved = 0
        self._columns.append(columns)
        if self._waiting >= self._rows_per_shard:
            self._write_shards(self._rows_per_shard)

    def _joined(self) -> dict[str, npt.NDArray[np.int32]]:
        return {name: np.concatenate([each[name] for each in self._columns]) for name in self._columns[0]}

    def _write_shards(self, least: int) -> None:
        """Write shards until fewer than `least` rows wait."""
        columns, start = self._joined(), 0
        while self._waiting - start >= least:
            end = min(start + self._rows_per_shard, self._waiting)
            self._statistics.add(self._rows[start:end], self._errors[start:end])
            name = f"shard-{len(self._shards):05d}.safetensors"
            self._shards.append(write_shard(self.path, name, self._piece(columns, start, end)))
            start = end
        left = self._waiting - start
        for tensor in (self._rows, self._errors):
            tensor[:left] = tensor[start : self._waiting].clone()
        self._columns = [{name: column[start:].copy() for name, column in columns.items()}]
        self._waiting = left

    def _piece(self, columns: Columns, start: int, end: int) -> dict[str, torch.Tensor]:
        piece = {name: torch.from_numpy(column[start:end]) for name, column in columns.items()}
        return {"activations": self._rows[start:end], **piece}

    def suspend(self, number: int) -> dict[str, Any]:
        """Write the rows that fill no shard yet, under that number, and return what a later writer goes on from."""
        pending = None
        if self._waiting:
            piece = self._piece(self._joined(), 0, self._waiting)
            piece["errors"] = self._errors[: self._waiting]
            pending = write_shard(self.path, f"pending-{number}.safetensors", piece)
        return {"shards": list(self._shards), "pending": pending, "statistics": self._statistics.state()}

    def forget_suspended(self, number: int | None) -> None:
        """Remove the rows that were written by `suspend`, but for those under that number."""
        for file in self.path.glob("pending-*.safetensors*"):
            if file.name != f"pending-{number}.safetensors":
                file.unlink()

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self._shards = list(state["shards"])
        self._statistics = Statistics(self.width, state["statistics"])
        pending: Entry | None = state["pending"]
        needed = [*self._shards, *([] if pending is None else [pending])]
        for entry in needed:
            check_content(self.path, entry)
        if pending is not None:
            shard = Shard(self.path / pending["file"], pending["rows"])
            self.reserve(pending["rows"])
            self._rows[: pending["rows"]] = shard.read("activations")
            self._errors[: pending["rows"]] = shard.read("errors")
            self.commit({name: shard.read(name).numpy() for name in COLUMNS})
        for file in self.path.iterdir():
            if _OURS.fullmatch(file.name) and file.name not in {entry["file"] for entry in needed}:
                file.unlink()

    def flush(self) -> None:
        """Write what is left as a last shard."""
        if self._waiting:
            self._write_shards(1)

    @property
    def rows_sha256(self) -> str:
        """The sha256 over those of the shards."""
        return hashlib.sha256("\n".join(entry["sha256"] for entry in self._shards).encode()).hexdigest()

    @property
    def store_error(self) -> float:
        """What the dtype lost: root mean square error over the deviation of the rows that are in shards."""
        return float(self._statistics.summary()["store_error"])

    def close(self, texts: Path, provenance: Mapping[str, Any]) -> None:
        """Write what is left, and then the index.

        Arguments:
            texts: a file with one JSON string a line, which is copied.
            provenance: where the rows come from.
        """
        self.flush()
        partial = self.path / f"{TEXTS}.partial"
        shutil.copyfile(texts, partial)
        entry = describe(partial, TEXTS)
        partial.replace(self.path / TEXTS)
        index = {
            "schema": SCHEMA,
            **self._facts,
            "n_rows": self.n_rows,
            "provenance": dict(provenance),
            "shards": self._shards,
            "texts": entry,
            "statistics": self._statistics.summary(),
        }
        write_json(self.path / INDEX, {**index, "sha256": index_sha256(index)})
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


def index_sha256(index: Mapping[str, Any]) -> str:
    """Return the sha256 of an index without its own entry `sha256`."""
    content = {name: value for name, value in index.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
