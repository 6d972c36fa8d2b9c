"""The programs of methods by variants: those of many texts run side by side, so that their masks fill batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from interpreto_mlops.concepts.importance.base import Floats, Masks, Steps, VariantMethod
from interpreto_mlops.concepts.importance.subjects import Subject, masked

# Numbers of the masks that wait for their scores: 64 MiB.
_MASK_NUMBERS = 2**24

ReadWith = Callable[[Sequence[Subject], Callable[[int], torch.Tensor]], list[torch.Tensor]]
"""Returns what is read from the model for each text with other codes, as `Frame.read_with`."""


class Programs:
    """A method's programs for the texts of one window.

    Arguments:
        method: the method.
        subjects: the texts, observed.
        read_with: runs texts with other codes.
        seed: of random draws; each text has its own, by its token ids.
    """

    def __init__(self, method: VariantMethod, subjects: Sequence[Subject], read_with: ReadWith, seed: int) -> None:
        self._method, self._subjects, self._read_with, self._seed = method, subjects, read_with, seed
        self._running: dict[int, tuple[Steps, Masks]] = {}
        self._values: dict[int, Floats] = {}

    def totals(self) -> list[Floats]:
        """Return the importances for each text, shape (targets, n_concepts); a concept it does not hold has 0."""
        for place, each in enumerate(self._subjects):
            n_active = len(each.active)
            if n_active == 0:
                self._values[place] = np.zeros((len(each.full), 0))
                continue
            rng = np.random.default_rng(each.question.encoding.seed(self._seed))
            self._advance(place, self._method.steps(n_active, each.full, rng), None)
            if sum(masks.size for _, masks in self._running.values()) >= _MASK_NUMBERS:
                self._finish()
        self._finish()
        found = []
        for place, each in enumerate(self._subjects):
            found.append(np.zeros((len(each.full), each.codes.shape[1])))
            found[-1][:, each.active] = self._values[place]
        return found

    def _finish(self) -> None:
        """Answer programs until all of them have ended."""
        while self._running:
            answers = self._score({place: masks for place, (_, masks) in self._running.items()})
            for place, (steps, _) in list(self._running.items()):
                del self._running[place]
                self._advance(place, steps, answers[place])

    def _advance(self, place: int, steps: Steps, answer: Floats | None) -> None:
        try:
            self._running[place] = (steps, next(steps) if answer is None else steps.send(answer))
        except StopIteration as stop:
            self._values[place] = stop.value

    def _score(self, wanted: dict[int, Masks]) -> dict[int, Floats]:
        """Return the scores of each text's masks, shape (variants, targets); an identical mask is run once."""
        distinct = {place: np.unique(masks, axis=0, return_inverse=True) for place, masks in wanted.items()}
        found = {
            place: np.zeros((len(masks), len(self._subjects[place].full))) for place, (masks, _) in distinct.items()
        }
        items = [(place, number) for place, (masks, _) in distinct.items() for number in range(len(masks))]

        def codes(item: int) -> torch.Tensor:
            place, number = items[item]
            return masked(self._subjects[place], distinct[place][0][number])

        reads = self._read_with([self._subjects[place] for place, _ in items], codes)
        for (place, number), read in zip(items, reads, strict=True):
            found[place][number] = self._subjects[place].scored(read).double().cpu().numpy()
        return {place: found[place][inverse.reshape(-1)] for place, (_, inverse) in distinct.items()}
