"""Shapley values by sampling orders: what each element adds to those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.base import METHODS, Game, Steps
from interpreto_mlops.attributions.sampling import (
    SamplingAttributor,
    check_flag,
    enumerate_shapley,
    sample_orders,
    with_efficiency,
)


@METHODS.register("shapley_sampling")
@dataclass(frozen=True, kw_only=True)
class ShapleySampling(SamplingAttributor):
    """Shapley values by random orders: unbiased, signed, and they sum to full minus empty text at every budget.

    Exact where every coalition fits in the budget. Otherwise each order takes n − 1 evaluations, and one is taken
    whatever the budget; standard errors come from the orders, or from their pairs. `checks` says how many there were
    (`permutations`).

    Source: Castro et al. 2009 (Computers & Operations Research 36); Štrumbelj & Kononenko 2010 (JMLR 11); antithetic:
    Mitchell et al. 2022 (arXiv 2104.12199).

    Arguments:
        antithetic: whether each order comes with its reverse, which cancels much of the noise.
    """

    name: ClassVar[str] = "shapley_sampling"

    antithetic: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("antithetic", self.antithetic)

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        if self.fits(game):
            estimate = yield from enumerate_shapley(game)
        else:
            estimate = yield from sample_orders(game, self.n_perturbations, self.seed, antithetic=self.antithetic)
        return with_efficiency(game, estimate)
