"""RISE: the mean score of random masks that keep an element, against those that do not."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Presence, Steps
from interpreto_mlops.attributions.coalitions import Floats, all_coalitions, count_coalitions, draw_pairs
from interpreto_mlops.attributions.mask_means import difference_error, kept_error, mean_difference, mean_kept
from interpreto_mlops.attributions.sampling import SamplingAttributor, as_number, check_flag
from interpreto_mlops.errors import InputError


@METHODS.register("rise")
@dataclass(frozen=True, kw_only=True)
class Rise(SamplingAttributor):
    """Mean score of the random masks that keep an element − mean score of those that do not.

    Exact where every coalition fits in the budget. Otherwise masks are drawn in pairs (one at least) that mirror each
    other: at p = 1/2 a mask and its complement, without replacement. Standard errors come from the pairs.

    Source: Petsiuk et al. 2018 (arXiv 1806.07421), centred.

    Arguments:
        p: the probability that an element is kept; at 1/2, where pairs are complements, the scores are Banzhaf values.
        raw: whether to give the paper's form, which is not centred: the mean score of the masks that keep an element.
            All elements then share the level of the score and, unless p is 1/2, its noise.
    """

    name: ClassVar[str] = "rise"

    p: float = 0.5
    raw: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < as_number(self.p) < 1:
            raise InputError(f"p must be above 0 and below 1, not {self.p!r}")
        object.__setattr__(self, "p", as_number(self.p))
        check_flag("raw", self.raw)

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        n, exact = game.n_players, self.fits(game)
        present = all_coalitions(n) if exact else self._masks(game)
        values = yield present
        size = present.sum(axis=1)
        weights = self.p**size * (1 - self.p) ** (n - size) if exact else np.full(len(size), 1 / len(size))
        if self.raw:
            scores = mean_kept(present, values, weights, self.p)
        else:
            scores = mean_difference(present, values, weights, game.valid)
        checks = {"exact": float(exact), "evaluations": count_coalitions(present)}
        error = np.zeros_like(scores) if exact else self._error(present, values, game.valid)
        return Estimate(scores, error, checks)

    def _masks(self, game: Game) -> Presence:
        """Draw masks, shape (rows, elements); the second half mirrors the first."""
        n, rng = game.n_players, game.generator(self.seed)
        pairs = max(1, (self.n_perturbations - 2) // 2)
        if self.p == 0.5:
            first = draw_pairs(n, pairs, rng)
            return np.concatenate([first, ~first])
        uniform = rng.random((pairs, n))
        return np.concatenate([uniform, 1 - uniform]) < self.p

    def _error(self, present: Presence, values: Floats, valid: Presence) -> Floats:
        # At p = 1/2 the pairs are drawn from a finite number of them.
        finite = sqrt(1 - len(present) / 2 ** present.shape[1]) if self.p == 0.5 else 1.0
        error = kept_error(present, values, self.p) if self.raw else difference_error(present, values, valid)
        return error * finite
