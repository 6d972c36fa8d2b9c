"""Which texts are shown with their predictions and which are asked for: two balanced draws without a text in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interpreto_mlops.errors import InputError
from interpreto_mlops.llm.simulation.study import Study

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phases:
    """The texts of one draw, by their places in the study, in the order in which they are shown.

    Arguments:
        learn: those that are shown with the model's predictions.
        evaluate: those that are asked for.
        notes: what could not be balanced.
    """

    learn: tuple[int, ...]
    evaluate: tuple[int, ...]
    notes: tuple[str, ...] = ()


def draw_phases(study: Study, *, n_learn: int, n_evaluate: int, mistakes: float, seed: int) -> Phases:
    """Draw the texts of both phases, each balanced over predicted classes among right and among wrong predictions.

    Arguments:
        study: without labels all its texts count as one group.
        n_learn: texts of the learning phase.
        n_evaluate: texts of the evaluation phase.
        mistakes: the share of each phase that the model gets wrong, as far as there are such texts.
        seed: of the draw.

    Raises:
        InputError: there are fewer texts than both phases need.

    Source: Poché et al. 2025 (ConSim), where the halves of one balanced draw need not be balanced themselves.
    """
    if n_learn + n_evaluate > len(study.samples):
        raise InputError(
            f"{n_learn} texts to learn from and {n_evaluate} to predict are more than the {len(study.samples)} that "
            "there are; give more texts or lower n_learn and n_evaluate"
        )
    draw = _Draw(study, np.random.default_rng(seed))
    sizes = (n_learn, n_evaluate)
    if not study.is_labelled:
        draw.take(range(len(study.samples)), sizes, "")
    else:
        wrong = [i for i, sample in enumerate(study.samples) if sample.prediction != sample.label]
        right = [i for i, sample in enumerate(study.samples) if sample.prediction == sample.label]
        of_wrong = draw.shares(len(right), len(wrong), sizes, mistakes)
        draw.take(wrong, of_wrong, "wrongly predicted ")
        draw.take(right, (n_learn - of_wrong[0], n_evaluate - of_wrong[1]), "rightly predicted ")
    learn, evaluate = (tuple(draw.rng.permutation(phase).tolist()) for phase in draw.phases)
    return Phases(learn, evaluate, tuple(draw.notes))


class _Draw:
    """Takes texts for both phases, group after group, and keeps both balanced as a whole too."""

    def __init__(self, study: Study, rng: np.random.Generator) -> None:
        self.study, self.rng = study, rng
        self.phases: tuple[list[int], list[int]] = ([], [])
        self.notes: list[str] = []
        self._of_class = np.zeros((2, len(study.classes)), dtype=np.int64)

    def shares(self, n_right: int, n_wrong: int, sizes: tuple[int, int], mistakes: float) -> tuple[int, int]:
        """Return how many wrong ones each phase gets, and say where that is not what was asked for."""
        asked = sum(_rounded(size * mistakes) for size in sizes)
        found = min(max(asked, sum(sizes) - n_right), n_wrong)
        if found != asked:
            self.notes.append(
                f"{found} of the {sum(sizes)} texts are wrongly predicted, where {asked} were asked for: there are "
                f"{n_wrong} such texts, and {n_right} others"
            )
        first = min(_rounded(found * sizes[0] / sum(sizes)), sizes[0])
        return first, found - first

    def take(self, places: Sequence[int], sizes: tuple[int, int], what: str) -> None:
        """Take texts of one group, as evenly over classes as they allow."""
        pools: list[list[int]] = [[] for _ in self.study.classes]
        for place in self.rng.permutation(np.asarray(places, dtype=np.int64)).tolist():
            pools[self.study.samples[place].prediction].append(place)
        capacity = np.asarray([len(pool) for pool in pools])
        quota = self._quota(capacity, sum(sizes))
        self._note(capacity, quota, what)
        first = self._first(quota, sizes[0])
        for pool, total, split in zip(pools, quota.tolist(), first.tolist(), strict=True):
            self.phases[0].extend(pool[:split])
            self.phases[1].extend(pool[split:total])
        self._of_class += np.stack([first, quota - first])

    def _quota(self, capacity: Counts, n: int) -> Counts:
        """Give each class one text after the other until `n` are given; who has fewest is next."""
        quota, so_far = np.zeros(len(capacity), dtype=np.int64), self._of_class.sum(axis=0)
        order = self.rng.permutation(len(capacity)).tolist()
        for _ in range(n):
            open_ones = [c for c in order if quota[c] < capacity[c]]
            quota[min(open_ones, key=lambda c: (quota[c], so_far[c]))] += 1
        return quota

    def _first(self, quota: Counts, n: int) -> Counts:
        """Return how many of each class's texts go to the first phase: by largest remainder."""
        exact = quota * (n / max(1, quota.sum()))
        first: Counts = np.floor(exact + 1e-9).astype(np.int64)
        order = self.rng.permutation(len(quota)).tolist()
        order.sort(key=lambda c: (-round(exact[c] - first[c], 9), self._of_class[0, c]))
        first[order[: n - int(first.sum())]] += 1
        return first

    def _note(self, capacity: Counts, quota: Counts, what: str) -> None:
        most = int(quota.max(initial=0))
        short = [c for c, given in enumerate(quota.tolist()) if given < most - 1]
        if short:
            said = ", ".join(f"{capacity[c]} of {self.study.classes[c]!r}" for c in short)
            self.notes.append(f"{what}texts are not balanced: there are {said}, where other classes have {most}")


def _rounded(value: float) -> int:
    return int(value + 0.5)
