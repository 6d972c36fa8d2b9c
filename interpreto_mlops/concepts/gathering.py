"""For methods that must see all rows at once: an even sample of the stream, held in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from interpreto_mlops.concepts.training import DataFacts, Learner, State

MOST_NUMBERS = 2**27
"""How many numbers are held at most by default: 512 MiB."""


class GatheringLearner(Learner):
    """Gathers rows in one pass and solves for the dictionary at its end.

    Rows come shuffled, so the first ones are a uniform sample; what is beyond `most_rows` is not kept.

    Arguments:
        facts: the data's size, mean and variance.
        solve: from the rows, shape (rows, width), float32, in the shuffled order, to the fitted tensors.
        most_rows: how many rows are held; by default as many as make `MOST_NUMBERS` numbers.
    """

    def __init__(
        self, facts: DataFacts, solve: Callable[[torch.Tensor], State], *, most_rows: int | None = None
    ) -> None:
        self._solve = solve
        self._rows = torch.empty(min(facts.n_rows, most_rows or max(1, MOST_NUMBERS // facts.width)), facts.width)
        self._held = 0

    def observe(self, block: torch.Tensor) -> None:
        """Keep the next rows while there is room."""
        taken = block[: len(self._rows) - self._held]
        self._rows[self._held : self._held + len(taken)] = taken
        self._held += len(taken)

    def state(self) -> State:
        """Return the rows held so far."""
        return {"rows": self._rows[: self._held]}

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        self._held = len(state["rows"])
        self._rows[: self._held] = state["rows"]

    def finish(self) -> State:
        """Solve for the dictionary."""
        return self._solve(self._rows[: self._held])
