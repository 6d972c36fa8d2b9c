"""One pass over the activations trains every dictionary that is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from interpreto_mlops.errors import InputError

Floats = npt.NDArray[np.float64]
State = dict[str, torch.Tensor]

# Blocks of the stream have this many rows whatever the batch sizes are: its order depends on the seed alone.
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

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0) -> Iterator[torch.Tensor]:
        """Yield every row once, in float32, shape (size, width); the same seed gives the same order."""
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


class Learner(ABC):
    """What a dictionary does while rows stream by; it is thrown away when the dictionary is fitted."""

    n_passes: int = 1
    """The most passes over the rows that it wants."""

    @property
    def stopped(self) -> bool:
        """Whether it wants no further pass, though `n_passes` would allow it one."""
        return False

    @abstractmethod
    def observe(self, block: torch.Tensor) -> None:
        """Take the next rows, shape (rows, width), float32; the block is shared and must not be changed."""

    def end_pass(self) -> None:
        """Close a pass."""
        return

    def news(self) -> list[dict[str, float]]:
        """Return the lines of the training curve since the last call, each with a `step` (a whole number)."""
        return []

    @abstractmethod
    def state(self) -> State:
        """Return all that `restore` needs to go on from here, to the bit, in a new process."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Go on from what `state` returned; only on a learner that has seen nothing."""

    @abstractmethod
    def finish(self) -> State:
        """Return the fitted tensors."""


class Trainable(Protocol):
    """What `fit_together` asks of a dictionary."""

    def begin(self, facts: DataFacts) -> Learner:
        """Return what learns it from the rows."""
        ...

    def complete(self, weights: State, history: list[dict[str, float]], provenance: Mapping[str, Any]) -> None:
        """Take over what was learned, and where the rows came from."""
        ...


D = TypeVar("D", bound=Trainable)


def fit_together(
    dictionaries: Sequence[D],
    activations: Rows | torch.Tensor | Floats,
    *,
    order_seed: int = 0,
    progress: bool | None = None,
) -> list[D]:
    """Fit several dictionaries while each block of activations is read once a pass and shown to all of them.

    A dictionary learns the same, to the bit, alone or in company: the order of the rows depends on `order_seed` alone,
    and every dictionary cuts its own batches out of the stream.

    Arguments:
        dictionaries: unfitted or to be fitted anew; of any families, sizes and seeds. They are fitted in place.
        activations: the rows, shape (rows, width).
        order_seed: the order in which rows are shown, the same for all.
        progress: True or False shows or hides a bar; None shows it on a terminal.

    Returns:
        The same dictionaries, fitted.

    Raises:
        InputError: a row is NaN or infinite, or there are fewer rows than some dictionary has concepts.
    """
    rows = as_rows(activations)
    facts = _facts(rows)
    learners = [dictionary.begin(facts) for dictionary in dictionaries]
    histories: list[list[dict[str, float]]] = [[] for _ in learners]
    n_passes = max((learner.n_passes for learner in learners), default=0)
    with tqdm(
        total=n_passes * facts.n_rows,
        desc="dictionaries",
        unit="rows",
        unit_scale=True,
        disable=None if progress is None else not progress,
    ) as bar:
        for number in range(n_passes):
            active = [i for i, each in enumerate(learners) if number < each.n_passes and not each.stopped]
            for block in rows.batches(_BLOCK_ROWS, shuffle=True, seed=order_seed + number):
                for i in active:
                    learners[i].observe(block)
                bar.update(len(block))
            for i in active:
                learners[i].end_pass()
                histories[i] += learners[i].news()
    for dictionary, learner, history in zip(dictionaries, learners, histories, strict=True):
        dictionary.complete(learner.finish(), history, rows.provenance)
    return list(dictionaries)


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

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0) -> Iterator[torch.Tensor]:
        if not shuffle:
            yield from self._tensor.split(size)
            return
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        for places in order.split(size):
            yield self._tensor[places]


def _facts(rows: Rows) -> DataFacts:
    if len(rows) == 0:
        raise InputError("there are no rows of activations to learn from")
    facts = DataFacts(len(rows), np.asarray(rows.mean, np.float64), np.asarray(rows.variance, np.float64))
    if not (np.isfinite(facts.mean).all() and np.isfinite(facts.variance).all()):
        place = 0
        for block in rows.batches(_BLOCK_ROWS):
            check_finite(block, place)
            place += len(block)
        raise InputError("the mean or the variance of the activations is too large for a number")
    return facts


def check_finite(block: torch.Tensor, first: int = 0) -> None:
    """Refuse rows that are NaN or infinite.

    Arguments:
        block: shape (rows, width).
        first: the number of its first row, for the message.

    Raises:
        InputError: there is one; the message says which.
    """
    # A sum is finite unless a term is not (or it overflows, which the exact check then clears): one cheap look first.
    if bool(torch.isfinite(block.sum())):
        return
    bad = (~torch.isfinite(block).all(dim=1)).nonzero()
    if len(bad):
        raise InputError(f"row {first + int(bad[0])} of the activations is NaN or infinite")
