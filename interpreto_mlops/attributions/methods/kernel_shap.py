"""KernelSHAP: Shapley values by a constrained regression on coalitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps
from interpreto_mlops.attributions.coalitions import Plan, count_coalitions, plan_coalitions, plan_leverage
from interpreto_mlops.attributions.regression import determines, jackknife_error, solve_shapley
from interpreto_mlops.attributions.sampling import (
    SamplingAttributor,
    enumerate_shapley,
    sample_orders,
    with_efficiency,
)
from interpreto_mlops.errors import UnknownNameError

_PLANS = {"leverage": plan_leverage, "paired": plan_coalitions}


@METHODS.register("kernel_shap")
@dataclass(frozen=True, kw_only=True)
class KernelShap(SamplingAttributor):
    """Shapley values of the elements: signed, and they sum to full minus empty text at every budget.

    Exact where every coalition fits in the budget (2 ** n of them); antithetic permutations where the budget is below
    three evaluations an element, or the coalitions drawn would not determine the values; otherwise a regression on
    enumerated and paired sampled coalitions, with standard errors. `checks` says which (`exact`, `permutations`).

    Source: Lundberg & Lee 2017 (arXiv 1705.07874), theorem 2; Covert & Lee 2021 (arXiv 2012.01536); permutations:
    Mitchell et al. 2022 (arXiv 2104.12199).

    Arguments:
        sampling: `paired` (whole sizes first, then pairs by the Shapley kernel) or `leverage` (pairs of all sizes
            alike, without replacement; Musco & Witter 2025, arXiv 2410.01917).
    """

    name: ClassVar[str] = "kernel_shap"

    sampling: str = "paired"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in _PLANS:
            raise UnknownNameError("sampling", self.sampling, sorted(_PLANS))

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        if self.fits(game):
            estimate = yield from enumerate_shapley(game)
        elif (plan := self._plan(game)) is None:
            estimate = yield from sample_orders(game, self.n_perturbations, self.seed)
        else:
            values = yield plan.present
            gains, total = values - game.empty, game.full - game.empty
            scores = solve_shapley(plan.present, plan.weights, gains, total, game.valid)
            checks = {"exact": 0.0, "evaluations": count_coalitions(plan.present)}
            estimate = Estimate(scores, jackknife_error(plan, gains, total, game.valid), checks)
        return with_efficiency(game, estimate)

    def _plan(self, game: Game) -> Plan | None:
        """Choose the coalitions, or None where there are too few for a regression."""
        n = game.n_players
        if self.n_perturbations < 3 * n:
            return None
        plan = _PLANS[self.sampling](n, self.n_perturbations - 2, game.generator(self.seed))
        return plan if determines(plan) else None
