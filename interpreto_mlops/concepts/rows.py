"""Rows of activations, wherever they are: what is known of them beforehand, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.errors import InputError

Floats = npt.NDArray[np.float64]

_BLOCK_ROWS = 4096


class Rows(Protocol):
    """Rows of activations that can be read many times: an `ActivationSet`, or a tensor behind `as_rows`."""

    @property
    def width(self) -> int:
        """Numbers in a row."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the rows come from; empty for a bare tensor."""
        ...

    @property
    def mean(self) -> Floats:
        """The mean of each dimension, shape (width,)."""
        ...

    @property
    def variance(self) -> Floats:
        """The population variance of each dimension, shape (width,)."""
        ...

    def __len__(self) -> int: ...

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, skip: int = 0) -> Iterator[torch.Tensor]:
        """Yield every row once, in float32, shape (size, width), but for the rows of the first `skip` batches.

        The same seed gives the same order, whatever is skipped.
        """
        ...


@dataclass(frozen=True)
class DataFacts:
    """What is known of the activations before the first row is read.

    Arguments:
        n_rows: how many rows one pass has.
        mean: mean of each dimension, shape (width,).
        variance: population variance of each dimension, shape (width,).
    """

    n_rows: int
    mean: Floats
    variance: Floats

    @property
    def width(self) -> int:
        """The number of dimensions of a row."""
        return len(self.mean)

    @property
    def scale(self) -> float:
        """The root mean square of the centred activations: one number, so that directions keep their angles.

        Raises:
            InputError: all rows are equal.
        """
        scale = float(np.sqrt(self.variance.mean()))
        if scale <= 0.0:
            raise InputError(
                f"all {self.n_rows} rows of the activations are equal, so there is nothing to learn from them"
            )
        return scale


def as_rows(activations: Rows | torch.Tensor | npt.NDArray[Any]) -> Rows:
    """Return activations as `Rows`; a tensor or an array of shape (rows, width) is read as float32 on the CPU.

    Raises:
        InputError: something that is not two-dimensional, or not activations at all.
    """
    if isinstance(activations, np.ndarray):
        activations = torch.from_numpy(np.ascontiguousarray(activations))
    if isinstance(activations, torch.Tensor):
        if activations.dim() != 2:
            raise InputError(f"activations must have the shape (rows, width), not {tuple(activations.shape)}")
        return _TensorRows(activations.detach().to("cpu", torch.float32))
    if not hasattr(activations, "batches"):
        raise InputError(f"activations are an ActivationSet, a tensor or an array, not {type(activations).__name__}")
    return activations


class _TensorRows:
    """A tensor in memory, read like an `ActivationSet`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    @property
    def width(self) -> int:
        return self._tensor.shape[1]

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {}

    @property
    def mean(self) -> Floats:
        return np.asarray(self._tensor.to(torch.float64).mean(dim=0).numpy())

    @property
    def variance(self) -> Floats:
        return np.asarray(self._tensor.to(torch.float64).var(dim=0, correction=0).numpy())

    def __len__(self) -> int:
        return len(self._tensor)

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, skip: int = 0) -> Iterator[torch.Tensor]:
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)) if shuffle else None
        for start in range(skip * size, len(self), size):
            places = slice(start, start + size)
            yield self._tensor[places if order is None else order[places]]


def data_facts(rows: Rows) -> DataFacts:
    """Return what is known of rows before they are read.

    Raises:
        InputError: there are no rows, one is NaN or infinite, or the numbers are too large.
    """
    if len(rows) == 0:
        raise InputError("there are no rows of activations to learn from")
    facts = DataFacts(len(rows), np.asarray(rows.mean, np.float64), np.asarray(rows.variance, np.float64))
    if not (np.isfinite(facts.mean).all() and np.isfinite(facts.variance).all()):
        refuse_bad_row(rows)
        raise InputError("the mean or the variance of the activations is too large for a number")
    return facts


def refuse_bad_row(rows: Rows) -> None:
    """Read the rows in order and name the first that is NaN or infinite.

    Raises:
        InputError: there is one.
    """
    place = 0
    for block in rows.batches(_BLOCK_ROWS):
        check_finite(block, place, rows)
        place += len(block)


def all_finite(block: torch.Tensor) -> bool:
    """Say whether no number is NaN or infinite."""
    # A sum is finite unless a term is not (or it overflows, which the exact check then clears): one cheap look first.
    return bool(torch.isfinite(block.sum())) or bool(torch.isfinite(block).all())


def check_finite(block: torch.Tensor, first: int = 0, rows: Rows | None = None) -> None:
    """Refuse rows that are NaN or infinite.

    Arguments:
        block: shape (rows, width).
        first: the number of its first row, for the message.
        rows: where the block is from; an `ActivationSet` knows the text of each row.

    Raises:
        InputError: there is one; the message says which.
    """
    if all_finite(block):
        return
    place = first + int((~torch.isfinite(block).all(dim=1)).int().argmax())
    raise InputError(f"row {place} of the activations{_text_of(rows, place)} is NaN or infinite")


def _text_of(rows: Rows | None, place: int) -> str:
    text_ids, texts = getattr(rows, "text_ids", None), getattr(rows, "texts", None)
    if text_ids is None or texts is None:
        return ""
    number = int(text_ids[place])
    return f" (text {number}: {texts[number][:60]!r})"


def read_ahead(blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the same blocks, the next one read by a thread while the caller works on the last one.

    What reading raises is raised where the block would have come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="activations") as thread:
        coming = thread.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = thread.submit(next, blocks, None)
            yield block
