"""Rows that wait for the model, and the programs that they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.gradient_sums import GradientSums
from interpreto_mlops.models.requests import Program, Readout, Request

R = TypeVar("R")


@dataclass(eq=False)
class Task:
    """A request under way: how many of its rows are still to come, and where their results go."""

    request: Request
    slot: Slot[Any]
    missing: int
    output: Any = None


@dataclass(eq=False)
class Slot(Generic[R]):
    """A program under way."""

    program: Program[R]
    tasks: list[Task] = field(default_factory=list)
    waiting: int = 0
    done: bool = False
    value: R | None = None


@dataclass(eq=False)
class Row:
    """A row that waits for a batch: token ids for a score, or one point of an embedding or gradient request."""

    length: int
    encoding: Encoding
    readout: Readout
    ids: Ids
    key: bytes | None = None
    waiters: list[tuple[Task, int]] = field(default_factory=list)
    point: int = -1
    rules: str | None = None
    numbers: int = 0
    exact: bool = False

    @property
    def stage(self) -> int:
        """0 for token ids, 1 for a point, 2 for a point with gradients; one batch has rows of one stage."""
        return 0 if self.key is not None else 1 + isinstance(self.waiters[0][0].output, GradientSums)

    @property
    def kind(self) -> tuple[int, type[Readout], str | None, bool]:
        """What the rows of one batch have in common."""
        return self.stage, type(self.readout), self.rules, self.exact


def order(row: Row) -> tuple[Any, ...]:
    """Sort by what shares a batch, then by length; the last row is the next to run.

    Scores come before gradients, which wait until there are enough for full batches.
    """
    return -row.stage, row.exact, row.length
