"""What learns a dictionary from rows that stream by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch

from interpreto_mlops.concepts.rows import DataFacts

State = dict[str, torch.Tensor]
History = list[dict[str, float]]


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

    def news(self) -> History:
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

    name: ClassVar[str]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The constructor's arguments."""
        ...

    def begin(self, facts: DataFacts) -> Learner:
        """Return what learns it from the rows."""
        ...

    def complete(self, weights: State, history: History, provenance: Mapping[str, Any]) -> None:
        """Take over what was learned, and where the rows came from."""
        ...
