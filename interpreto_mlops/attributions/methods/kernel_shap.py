"""KernelSHAP: Shapley values by a constrained regression on coalitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Attributor, Estimate, Game, Steps, as_integer
from interpreto_mlops.attributions.coalitions import (
    all_coalitions,
    exact_shapley,
    jackknife_error,
    plan_coalitions,
    solve_shapley,
)


@METHODS.register("kernel_shap")
@dataclass(frozen=True, kw_only=True)
class KernelShap(Attributor):
    """Shapley values of the elements: signed, and they sum to full minus empty text at every budget.

    Exact where every coalition fits in the budget (2 ** n of them); antithetic permutations where the budget is below
    three evaluations an element; otherwise a regression on enumerated and paired sampled coalitions, with standard
    errors. `checks` says which (`exact`, `permutations`). Source: Lundberg & Lee 2017 (arXiv 1705.07874), theorem 2;
    Covert & Lee 2021 (arXiv 2012.01536); permutations: Mitchell et al. 2022 (arXiv 2104.12199).

    Arguments:
        n_perturbations: the most evaluations for a text, the full and the empty one included, but never fewer than
            n + 1; 512 are exact up to 9 elements.
        seed: of the sampling.
    """

    name: ClassVar[str] = "kernel_shap"

    n_perturbations: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_perturbations", as_integer("n_perturbations", self.n_perturbations, 2))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        n = game.n_players
        if 2**n <= self.n_perturbations or n == 1:
            estimate = yield from self._exact(game)
        elif self.n_perturbations < 3 * n:
            estimate = yield from self._permutations(game)
        else:
            estimate = yield from self._regression(game)
        gap = np.abs(estimate.scores.sum(axis=1) - (game.full - game.empty)).max()
        return Estimate(estimate.scores, estimate.standard_error, {**estimate.checks, "efficiency_gap": float(gap)})

    def _exact(self, game: Game) -> Steps:
        values = yield all_coalitions(game.n_players)
        scores = exact_shapley(values)
        return Estimate(scores, np.zeros_like(scores), {"exact": 1.0})

    def _regression(self, game: Game) -> Steps:
        plan = plan_coalitions(game.n_players, self.n_perturbations - 2, game.generator(self.seed))
        values = yield plan.present
        gains, total = values - game.empty, game.full - game.empty
        scores = solve_shapley(plan.present, plan.weights, gains, total)
        return Estimate(scores, jackknife_error(plan, gains, total), {"exact": 0.0})

    def _permutations(self, game: Game) -> Steps:
        """Average v(prefix + i) − v(prefix) over random orders and their reverses."""
        n = game.n_players
        pairs = (self.n_perturbations - 2) // (2 * (n - 1))
        rng = game.generator(self.seed)
        forward = np.stack([rng.permutation(n) for _ in range(max(1, pairs))])
        # Where not even one pair fits, one order alone still gives values that sum to the difference.
        orders = np.concatenate([forward, forward[:, ::-1]]) if pairs else forward
        # Row k of an order holds its first k + 1 elements.
        prefixes = orders.argsort(axis=1)[:, None, :] <= np.arange(n - 1)[None, :, None]
        values = yield prefixes.reshape(-1, n)
        inner = values.reshape(len(orders), n - 1, -1)
        ends = np.broadcast_to(game.empty, (len(orders), 1, len(game.empty)))
        steps = np.diff(np.concatenate([ends, inner, np.broadcast_to(game.full, ends.shape)], axis=1), axis=1)
        marginal = np.take_along_axis(steps, orders.argsort(axis=1)[:, :, None], axis=1)
        by_pair = (marginal[:pairs] + marginal[pairs:]) / 2 if pairs else marginal
        error = by_pair.std(axis=0, ddof=1).T / np.sqrt(pairs) if pairs > 1 else np.full((len(game.full), n), np.nan)
        return Estimate(by_pair.mean(axis=0).T, error, {"exact": 0.0, "permutations": float(len(orders))})
