"""Saliency: how steep the score is at each element's embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps
from interpreto_mlops.attributions.gradients import GradientAttributor
from interpreto_mlops.attributions.paths import Neighbourhood


@METHODS.register("saliency")
@dataclass(frozen=True, kw_only=True)
class Saliency(GradientAttributor):
    """The norm of the gradient: unsigned, and without any baseline.

    Takes one forward and backward pass. Source: Simonyan et al. 2013 (arXiv 1312.6034), section 3; for text Li et al.
    2016 (arXiv 1506.01066).

    Arguments:
        reduction: from the components of a token to its score: `l2` (default), `l1`, `absmean` or `sum` (signed).
    """

    name: ClassVar[str] = "saliency"
    signed: ClassVar[bool] = False

    reduction: str = "l2"

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        result = yield Neighbourhood()
        return Estimate(self._scores(game, result.moments[0]))
