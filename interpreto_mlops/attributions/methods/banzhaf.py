"""Banzhaf values: what an element changes on average over all coalitions of the others."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps
from interpreto_mlops.attributions.coalitions import all_coalitions, count_coalitions, draw_pairs
from interpreto_mlops.attributions.mask_means import difference_error, mean_difference
from interpreto_mlops.attributions.regression import solve_pairs
from interpreto_mlops.attributions.sampling import SamplingAttributor


@METHODS.register("banzhaf")
@dataclass(frozen=True, kw_only=True)
class Banzhaf(SamplingAttributor):
    """Mean score with an element − mean score without it, all coalitions of the others alike.

    Exact where every coalition fits in the budget. Otherwise coalitions are drawn without replacement, each with its
    complement (one pair at least), and the differences within pairs are fitted by least squares, which has the same
    limit as their means and less noise; below two pairs an element it is their means (`regression` in `checks` says
    which). With standard errors.

    Source: Hammer & Holzman 1992 (ZOR 36); the regression on pairs: Liu et al. 2024 (arXiv 2410.08336).
    """

    name: ClassVar[str] = "banzhaf"

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        n = game.n_players
        if self.fits(game):
            present = all_coalitions(n)
            values = yield present
            scores = mean_difference(present, values, np.full(len(present), 1 / len(present)), game.valid)
            return Estimate(scores, np.zeros_like(scores), {"exact": 1.0, "evaluations": float(len(present))})
        first = draw_pairs(n, max(1, (self.n_perturbations - 2) // 2), game.generator(self.seed))
        present = np.concatenate([first, ~first])
        values = yield present
        regression = len(first) >= 2 * n
        if regression:
            differences = values[: len(first)] - values[len(first) :]
            scores, error = solve_pairs(np.where(first, 1.0, -1.0), differences, game.valid)
        else:
            scores = mean_difference(present, values, np.full(len(present), 1 / len(present)), game.valid)
            error = difference_error(present, values, game.valid)
        error = error * sqrt(1 - len(first) / 2 ** (n - 1))  # the pairs are drawn from a finite number of them
        checks = {"exact": 0.0, "regression": float(regression), "evaluations": count_coalitions(present)}
        return Estimate(scores, error, checks)
