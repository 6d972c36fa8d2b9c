"""One pass over the activations trains every dictionary that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from interpreto_mlops.concepts.checkpoints import Checkpoint, Position, describe
from interpreto_mlops.concepts.learner import History, Trainable
from interpreto_mlops.concepts.learner import Learner as Learner
from interpreto_mlops.concepts.learner import State as State
from interpreto_mlops.concepts.rows import DataFacts as DataFacts
from interpreto_mlops.concepts.rows import Floats, Rows, all_finite, as_rows, data_facts, read_ahead, refuse_bad_row
from interpreto_mlops.concepts.rows import check_finite as check_finite
from interpreto_mlops.errors import InputError, IntegrityError
from interpreto_mlops.observers import Observers

# Blocks of the stream have this many rows whatever the batch sizes are: its order depends on the seed alone.
_BLOCK_ROWS = 4096

CHECKPOINT_ROWS = 2**18
"""After how many rows a checkpoint is written by default."""

# What the bar shows of the last line of the training curve.
_FIGURES = ("r2", "l0", "dead")

Listener = Callable[[int, dict[str, float]], None]
"""Is told the place of a dictionary and a line of its training curve, which has a `step`."""

FITTED: Observers[tuple[Trainable, ...]] = Observers()
"""Is told of the dictionaries of each fit, when all of them are fitted."""

D = TypeVar("D", bound=Trainable)


def fit_together(
    dictionaries: Sequence[D],
    activations: Rows | torch.Tensor | Floats,
    *,
    order_seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = CHECKPOINT_ROWS,
    listener: Listener | None = None,
) -> list[D]:
    """Fit several dictionaries while each block of activations is read once a pass and shown to all of them.

    A dictionary learns the same, to the bit, alone or in company: the order of the rows depends on `order_seed` alone,
    and every dictionary cuts its own batches out of the stream.

    Arguments:
        dictionaries: unfitted or to be fitted anew; of any families, sizes and seeds. They are fitted in place.
        activations: the rows, shape (rows, width).
        order_seed: the order in which rows are shown, the same for all.
        progress: True or False shows or hides a bar; None shows it on a terminal. It says how far all are, and the
            range of the latest R², L0 and share of dead concepts over the dictionaries.
        checkpoint: a folder where the state of all learners is kept while they learn; None keeps none. The same call
            after a crash goes on from there, and on a CPU it ends at the same bits. The folder goes away at the end.
        checkpoint_every: a checkpoint is due after so many rows; it is written at the next end of a block.
        listener: is told each line of a training curve as soon as it is there. What it raises ends the fit. After a
            crash, lines that the checkpoint knows are not told again.

    Returns:
        The same dictionaries, fitted; all of them, or none if something is raised.

    Raises:
        InputError: a row is NaN or infinite, or there are fewer rows than some dictionary has concepts, or the
            checkpoint is of another training.
        IntegrityError: the checkpoint is damaged.
    """
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int) or checkpoint_every < 1:
        raise InputError(f"checkpoint_every must be a whole number of at least 1, not {checkpoint_every!r}")
    rows = as_rows(activations)
    facts = data_facts(rows)
    training = _Training([dictionary.begin(facts) for dictionary in dictionaries], rows, order_seed, listener)
    if checkpoint is not None:
        training.keep(
            Checkpoint(checkpoint, describe(dictionaries, rows, facts, order_seed, _BLOCK_ROWS)), checkpoint_every
        )
    with _Bar(training.rows_to_show, training.rows_shown, progress) as bar:
        training.run(bar)
    for dictionary, weights, history in zip(dictionaries, training.finish(), training.histories, strict=True):
        dictionary.complete(weights, history, rows.provenance)
    training.forget()
    FITTED.tell(tuple(dictionaries))
    return list(dictionaries)


class _Training:
    """Several learners on one stream.

    Arguments:
        learners: they have seen nothing.
        rows: the stream.
        order_seed: of its first pass.
        listener: what is told the news.
    """

    def __init__(self, learners: list[Learner], rows: Rows, order_seed: int, listener: Listener | None) -> None:
        self._learners, self._rows = learners, rows
        self._order_seed, self._listener = order_seed, listener
        self._position = Position(histories=[[] for _ in learners])
        self._n_passes = max((learner.n_passes for learner in learners), default=0)
        self._checkpoint: Checkpoint | None = None
        self._every = self._unsaved = 0

    @property
    def histories(self) -> list[History]:
        return self._position.histories

    @property
    def rows_to_show(self) -> int:
        return self._n_passes * len(self._rows)

    @property
    def rows_shown(self) -> int:
        n_rows = len(self._rows)
        return self._position.passes * n_rows + min(n_rows, self._position.blocks * _BLOCK_ROWS)

    def keep(self, checkpoint: Checkpoint, every: int) -> None:
        """Go on from a checkpoint, if there is one, and write others."""
        self._checkpoint, self._every = checkpoint, every
        if (found := checkpoint.load()) is None:
            return
        self._position, states = found
        try:
            for learner, state in zip(self._learners, states, strict=True):
                learner.restore(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise IntegrityError(
                f"the checkpoint in {str(checkpoint.folder)!r} is not what this version of the program writes: {error}"
            ) from error

    def run(self, bar: _Bar) -> None:
        """Show the rows until no learner wants another pass."""
        position = self._position
        bar.show(self.histories)
        while position.passes < self._n_passes:
            if position.blocks == 0:
                position.active = [i for i, learner in enumerate(self._learners) if self._wants_more(learner)]
            if not position.active:
                bar.stop_here()
                break
            self._pass(position.active, bar)
            for i in position.active:
                self._learners[i].end_pass()
            position.passes, position.blocks = position.passes + 1, 0
            self._tell_news(bar)
        self._save()

    def _wants_more(self, learner: Learner) -> bool:
        return self._position.passes < learner.n_passes and not learner.stopped

    def _pass(self, active: list[int], bar: _Bar) -> None:
        seed = self._order_seed + self._position.passes
        blocks = self._rows.batches(_BLOCK_ROWS, shuffle=True, seed=seed, skip=self._position.blocks)
        for block in read_ahead(blocks):
            if not all_finite(block):
                refuse_bad_row(self._rows)
            for i in active:
                self._learners[i].observe(block)
            self._position.blocks += 1
            self._unsaved += len(block)
            bar.update(len(block))
            self._tell_news(bar)
            if self._unsaved >= self._every:
                self._save()

    def _tell_news(self, bar: _Bar | None = None) -> None:
        lines = [(i, line) for i, learner in enumerate(self._learners) for line in learner.news()]
        for i, line in lines:
            self.histories[i].append(line)
            if self._listener is not None:
                self._listener(i, dict(line))
        if bar is not None and lines:
            bar.show(self.histories)

    def _save(self) -> None:
        if self._checkpoint is not None and self._unsaved:
            self._checkpoint.save(self._position, [learner.state() for learner in self._learners])
            self._unsaved = 0

    def finish(self) -> list[State]:
        """Return what each learner has found."""
        weights = [learner.finish() for learner in self._learners]
        self._tell_news()
        return weights

    def forget(self) -> None:
        """Remove the checkpoint, for the fit has come to its end."""
        if self._checkpoint is not None:
            self._checkpoint.remove()


class _Bar:
    """How far the training is, and the figures that matter: their range over the dictionaries."""

    def __init__(self, total: int, done: int, progress: bool | None) -> None:
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="dictionaries",
            unit="rows",
            unit_scale=True,
            disable=None if progress is None else not progress,
        )

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, n_rows: int) -> None:
        """Note that all learners have seen so many more rows."""
        self._bar.update(n_rows)

    def show(self, histories: Sequence[History]) -> None:
        """Show the latest figures of each dictionary that has some."""
        figures = {}
        for name in _FIGURES:
            values = [
                history[-1][f"train/{name}"] for history in histories if history and f"train/{name}" in history[-1]
            ]
            if values:
                low, high = f"{min(values):.3g}", f"{max(values):.3g}"
                figures[name] = low if low == high else f"{low}–{high}"
        self._bar.set_postfix(figures, refresh=False)

    def stop_here(self) -> None:
        """Note that no more rows will be shown."""
        self._bar.total = self._bar.n
        self._bar.refresh()
