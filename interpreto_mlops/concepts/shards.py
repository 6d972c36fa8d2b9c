"""One file of rows: a safetensors file, written under another name and renamed, and read block by block."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.errors import IntegrityError

Entry = dict[str, Any]
"""What an index says of a file: `file`, `bytes`, `sha256`, and `rows` of a shard."""

PARTIAL = ".partial"

_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_PIECE_BYTES = 2**20
_LENGTH_BYTES = 8
_HEADER_LIMIT = 2**20


def write_shard(folder: Path, name: str, tensors: Mapping[str, torch.Tensor]) -> Entry:
    """Write tensors of as many rows each, and return their entry for the index.

    The file is byte for byte what `safetensors.torch.save_file` writes, whose one large write took up to eight times as
    long (ext4, Linux 6.18); what is hashed is what was meant to be written, while it is in the processor's cache.
    """
    partial, digest, size = folder / f"{name}{PARTIAL}", hashlib.sha256(), 0
    with partial.open("wb", buffering=0) as file:
        for piece in _pieces(tensors):
            written = 0
            while written < len(piece):
                written += file.write(piece[written:])
            digest.update(piece)
            size += len(piece)
    partial.replace(folder / name)
    rows = len(next(iter(tensors.values())))
    return {"file": name, "bytes": size, "sha256": digest.hexdigest(), "rows": rows}


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """Yield a safetensors file: the length of its header, the header, the tensors."""
    # The widest types come first, so that each tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        shape, dtype = list(tensors[name].shape), _NAMES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    yield memoryview(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    for name in order:
        content = _bytes(tensors[name].contiguous()).data
        yield from (content[start : start + _PIECE_BYTES] for start in range(0, len(content), _PIECE_BYTES))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader never sees half of it."""
    partial = path.with_name(f"{path.name}{PARTIAL}")
    partial.write_text(json.dumps(content, indent=1), encoding="ascii")
    partial.replace(path)


def describe(path: Path, name: str) -> Entry:
    """Return the entry of a file for the index."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**18))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return {"file": name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def check_size(folder: Path, entry: Entry) -> None:
    """Refuse a file that is not there or has another size than its entry says.

    Raises:
        IntegrityError: it is one of them; the message names it.
    """
    name, path = entry["file"], folder / entry["file"]
    if name != Path(name).name or not path.is_file():
        raise IntegrityError(f"the activation set {str(folder)!r} lacks its file {name!r}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        what = "is truncated" if size < entry["bytes"] else "was changed"
        raise IntegrityError(
            f"the file {name!r} of the activation set {str(folder)!r} {what}: it has {size} bytes, not {entry['bytes']}"
        )


def check_content(folder: Path, entry: Entry) -> None:
    """Refuse a file whose bytes are not those of its entry.

    Raises:
        IntegrityError: they are not; the message names the file.
    """
    check_size(folder, entry)
    if describe(folder / entry["file"], entry["file"])["sha256"] != entry["sha256"]:
        raise IntegrityError(f"the file {entry['file']!r} of the activation set {str(folder)!r} was changed")


class Shard:
    """The columns of one file of rows. Nothing of it stays in memory or open, however many rows are read.

    Arguments:
        path: the file.
        rows: how many rows it must have.

    Raises:
        IntegrityError: it is no such file.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                header = json.loads(file.read(min(length, _HEADER_LIMIT)))
            self._start = _LENGTH_BYTES + length
            self._columns = {name: _column(entry) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error
        if any(shape[0] != rows for _, shape, _ in self._columns.values()):
            raise self._damaged(f"it does not hold {rows} rows")

    def _damaged(self, why: object) -> IntegrityError:
        name, folder = self.path.name, self.path.parent
        return IntegrityError(f"cannot read the file {name!r} of the activation set {str(folder)!r}: {why}")

    def read(self, name: str, start: int = 0, end: int | None = None) -> torch.Tensor:
        """Return some rows of a column, shape (rows, …), in the dtype in which they are stored.

        Raises:
            IntegrityError: they are not there.
        """
        if name not in self._columns:
            raise self._damaged(f"it has no {name!r}")
        dtype, shape, offset = self._columns[name]
        end = self.rows if end is None else end
        out = torch.empty((end - start, *shape[1:]), dtype=dtype)
        wanted = _bytes(out).data
        place = self._start + offset + start * out[:0].element_size() * _per_row(shape)
        try:
            with self.path.open("rb", buffering=0) as file:
                os.lseek(file.fileno(), place, os.SEEK_SET)
                filled = 0
                while filled < len(wanted) and (got := file.readinto(wanted[filled:])):
                    filled += got
        except OSError as error:
            raise self._damaged(error) from error
        if filled < len(wanted):
            raise self._damaged("it is truncated")
        return out


def _bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Return the memory of a tensor; bfloat16 has no type of numpy's."""
    return np.asarray(tensor.flatten().view(torch.uint8).numpy())


def _per_row(shape: tuple[int, ...]) -> int:
    numbers = 1
    for size in shape[1:]:
        numbers *= size
    return numbers


def _column(entry: Mapping[str, Any]) -> tuple[torch.dtype, tuple[int, ...], int]:
    shape = tuple(int(size) for size in entry["shape"])
    dtype = _TYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    if end - begin != shape[0] * _per_row(shape) * dtype.itemsize:
        raise ValueError("its header does not fit itself")
    return dtype, shape, int(begin)
