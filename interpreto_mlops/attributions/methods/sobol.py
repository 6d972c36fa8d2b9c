"""Sobol indices: the share of the score's variance under random masks that an element takes part in."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import qmc

from interpreto_mlops.attributions.base import METHODS, Attributor, Estimate, Game, Steps, as_integer
from interpreto_mlops.attributions.coalitions import Floats, Presence, all_coalitions, count_coalitions
from interpreto_mlops.errors import InputError, UnknownNameError

_ORDERS = ("total", "first")

Parts = Generator[Presence, Floats, tuple[Floats, Floats, float]]
"""Numerators of the indices, shape (n, targets); variances, shape (targets,); and the number of evaluations."""


@METHODS.register("sobol")
@dataclass(frozen=True, kw_only=True)
class Sobol(Attributor):
    """Share of the score's variance, each element kept or not by a fair coin, that an element takes part in: unsigned.

    The total order counts interactions with other elements, so the indices sum to at least 1, and to 1 for an additive
    score; the first order leaves them out and needs many more samples. Exact where enumeration takes no more than
    N (n + 2) evaluations. All 0 where the score does not vary. `checks` has their sum (`index_sum`, the least of the
    targets).

    Source: Fel et al. 2021 (arXiv 2111.04138); estimators: Jansen 1999 (Computer Physics Communications 117).

    Arguments:
        order: `total` or `first`.
        n_samples: N, a power of two: how many points of a scrambled Sobol sequence give the masks, each of which takes
            up to n + 2 evaluations.
        seed: of the scrambling, which depends on it and on the text alone.
    """

    name: ClassVar[str] = "sobol"
    signed: ClassVar[bool] = False

    order: str = "total"
    n_samples: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in _ORDERS:
            raise UnknownNameError("order", self.order, _ORDERS)
        object.__setattr__(self, "n_samples", as_integer("n_samples", self.n_samples, 2))
        if self.n_samples & (self.n_samples - 1):
            raise InputError(f"n_samples must be a power of two, as 16, 32 or 64, not {self.n_samples!r}")
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        n = game.n_players
        exact = n == 1 or 2**n <= self.n_samples * (n + 2)
        part, variance, evaluations = yield from self._enumerated(n) if exact else self._sampled(game)
        # Below the rounding of the model's own numbers nothing varies.
        noise = (np.maximum(np.abs(game.full), np.abs(game.empty)) * torch.finfo(self.model.dtype).eps) ** 2
        scores = np.where(variance > noise, part / np.maximum(variance, np.finfo(np.float64).tiny), 0.0).T
        checks = {"exact": float(exact), "evaluations": evaluations, "index_sum": float(scores.sum(axis=1).min())}
        return Estimate(scores, checks=checks)

    def _enumerated(self, n: int) -> Parts:
        """Return the indices' exact numerators and the variance, from every coalition."""
        present = all_coalitions(n)
        values = yield present
        row, bit = np.arange(len(present))[:, None], 2 ** np.arange(n)
        change = values[row | bit] - values[row & ~bit]
        part = (change**2).mean(axis=0) if self.order == "total" else change.mean(axis=0) ** 2
        return part / 4, values.var(axis=0), float(len(present))

    def _sampled(self, game: Game) -> Parts:
        """Return the numerators and the variance by Jansen's estimators on a scrambled Sobol sequence."""
        n, rng = game.n_players, game.generator(self.seed)
        sequence = qmc.Sobol(2 * n, scramble=True, rng=rng).random(self.n_samples)
        # Rounded to bits, the sequence has few different columns (at most N / 2, and their complements): an element
        # whose two columns are the same would never change. So those of the second block are shuffled.
        first, second = sequence[:, :n] >= 0.5, rng.permuted(sequence[:, n:] >= 0.5, axis=0)
        second[:, (first == second).all(axis=0)] ^= True
        # Where the two agree on an element, swapping it changes nothing: those rows have the value of the first.
        sample, element = np.nonzero(first != second)
        swapped = first[sample]
        swapped[np.arange(len(swapped)), element] ^= True
        rows = np.concatenate([first, second, swapped])
        values = yield rows
        a, b, changed = np.split(values, [self.n_samples, 2 * self.n_samples])
        exchanged = np.repeat(a[:, None], n, axis=1)
        exchanged[sample, element] = changed
        part, variance = jansen(a, b, exchanged, self.order)
        if self.order == "total":  # half of the samples are expected to change; so many do
            part *= self.n_samples / 2 / np.bincount(element, minlength=n)[:, None]
        return part, variance, count_coalitions(rows)


def jansen(a: Floats, b: Floats, exchanged: Floats, order: str) -> tuple[Floats, Floats]:
    """Return the numerators of Sobol indices, shape (n, targets), and the variance, shape (targets,).

    Arguments:
        a: values of the first block of samples, shape (samples, targets).
        b: values of the second, of the same shape.
        exchanged: values of the first block with one column of the second, shape (samples, n, targets).
        order: `total` or `first`.
    """
    variance = np.concatenate([a, b]).var(axis=0)
    if order == "total":
        return ((a[:, None] - exchanged) ** 2).mean(axis=0) / 2, variance
    return variance - ((b[:, None] - exchanged) ** 2).mean(axis=0) / 2, variance
