"""The one place where a model is run for its scores or gradients.

It packs rows of different texts into batches by a token budget, longest first, evaluates an identical row once,
keeps gradients' sums instead of gradients, and counts what it did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.budgets import BudgetTuner, default_budget, known_budget, remember_budget
from interpreto_mlops.models.coalition_table import CoalitionTable
from interpreto_mlops.models.counters import EngineCounters as EngineCounters
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.prefixes import PrefixReuse
from interpreto_mlops.models.readouts import LabelLogits, SourceTokenScores, TokenScores
from interpreto_mlops.models.requests import (
    ClassLogits,
    Program,
    Readout,
    ScoreRequest,
)
from interpreto_mlops.models.rows import Slot
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.models.work import Work

R = TypeVar("R")

_WINDOW = 32  # batches' worth of rows that wait together, so that rows of like length meet
_OPEN = 1024  # programs under way at once; those whose rows all stand in the table add no waiting tokens
_OPEN_SHARED = 64  # so that what one method leaves in the shared table is still there when the next one comes


class Engine:
    """Runs a model for programs of many texts.

    Arguments:
        model: the model.
        token_budget: the most tokens, padding included, in one batch (a single longer row still runs); None for 1024
            on a CPU and 16384 elsewhere; `auto` for what is fastest: measured on the first job that is large enough,
            and kept for this model's shape on this device in the user's cache folder, unless the environment variable
            INTERPRETO_MLOPS_CACHE is 0. Scores do not depend on it but for rounding.
        prefix_reuse: whether a decoder computes the beginning that rows have in common with their text once: `auto` for
            where it pays, True for wherever it can be done, False for never.

    Raises:
        InputError: the budget is not positive, or an argument is something else.
    """

    def __init__(
        self, model: TextModel, token_budget: int | str | None = None, prefix_reuse: bool | str = "auto"
    ) -> None:
        self.model = model
        self.token_budget, self.tuner = _budget(model, token_budget)
        self.prefixes = PrefixReuse(model, prefix_reuse)
        self.counters = EngineCounters()
        self._shared: CoalitionTable | None = None

    def tune(self, tokens: int = 64) -> int:
        """Find the fastest token budget on made-up rows, and keep it for this model's shape on this device.

        Arguments:
            tokens: the length of the rows: about that of the texts to come.

        Returns:
            The budget, which the engine uses from now on.

        Raises:
            InputError: the length is not positive.
        """
        if tokens < 1:
            raise InputError(f"tokens must be at least 1, not {tokens!r}")
        tuner = self.tuner = BudgetTuner(self.model.device)
        counters, self.counters = self.counters, EngineCounters()
        length = min(tokens, self.model.max_length or tokens)
        count = 2 * tuner.needed // length
        try:
            while self.tuner is not None:
                next(self.run([_made_up(self.model, count, length)]))
        finally:
            self.counters, self.tuner = counters, None
        return self.token_budget

    def tried(self, budget: int, tokens: int, seconds: float) -> None:
        """Take the time of a batch that tried a budget out; settle on the best when all have been tried."""
        assert self.tuner is not None
        self.tuner.record(budget, tokens, seconds)
        if self.tuner.trial is None:
            self.token_budget, self.tuner = self.tuner.best, None
            remember_budget(self.model, self.token_budget)

    def refused(self, smaller: int) -> None:
        """Go on with a smaller budget, for there is no memory for this one."""
        if self.tuner is not None:
            self.tuner.refuse(self.token_budget)
        self.token_budget = smaller

    @contextmanager
    def shared_table(self) -> Iterator[None]:
        """Remember the scores of rows from one call to the next while the context is open.

        Methods and metrics of the same texts then pay once for what they have in common. The model must not change
        meanwhile. The table is bounded (256 MB); the rows used longest ago go first, so that a job of very many texts
        shares little between its methods.
        """
        outer = self._shared
        self._shared = CoalitionTable(keeps=True) if outer is None else outer
        try:
            yield
        finally:
            self._shared = outer

    def run(self, programs: Iterable[Program[R]]) -> Iterator[R]:
        """Run programs side by side and yield what they return, in their order, as soon as it is known.

        Raises:
            ModelOutputError: the model returns NaN or infinity for a text.
            OutOfMemoryError: a single row does not fit in memory.
        """
        work = Work(self, CoalitionTable() if self._shared is None else self._shared)
        queue: deque[Slot[R]] = deque()
        source = iter(programs)
        exhausted = False
        most = _OPEN if self._shared is None else _OPEN_SHARED
        try:
            while True:
                while not exhausted and work.tokens < _WINDOW * self.token_budget and len(queue) < most:
                    program = next(source, None)
                    if program is None:
                        exhausted = True
                        break
                    queue.append(Slot(program))
                    work.advance(queue[-1], None)
                while queue and queue[0].done:
                    yield queue.popleft().value  # type: ignore[misc]
                if work.groups:
                    work.step_group()
                elif work.rows:
                    work.step()
                elif exhausted and not queue:
                    return
        finally:
            for slot in queue:
                slot.program.close()


def _budget(model: TextModel, wanted: int | str | None) -> tuple[int, BudgetTuner | None]:
    """Return the token budget to start with, and what finds a better one, if that is asked for."""
    usual = default_budget(model.device)
    if wanted is None:
        return usual, None
    if wanted == "auto":
        known = known_budget(model)
        return (usual, BudgetTuner(model.device)) if known is None else (known, None)
    if isinstance(wanted, str):
        raise InputError(f"token_budget must be 'auto', None or a whole number, not {wanted!r}")
    if wanted < 1:
        raise InputError(f"the token budget must be at least 1, not {wanted!r}")
    return wanted, None


def _made_up(model: TextModel, count: int, length: int) -> Program[None]:
    """Ask for made-up rows, all different, as a text of one target would."""
    ids = np.random.default_rng(0).integers(0, model.embedding.weight.shape[0], size=(count, length))
    text = Encoding("", 0, ids[0], np.zeros(length, dtype=bool), (), None)
    readout: Readout = ClassLogits()
    if model.task == "token_classification":
        readout = LabelLogits((0,), len(model.labels))
    elif model.task == "generation":
        kind = SourceTokenScores if model.model.config.is_encoder_decoder else TokenScores
        readout = kind((length - 1,), (0,), length - 1)
    yield [ScoreRequest(text, ids, readout)]
