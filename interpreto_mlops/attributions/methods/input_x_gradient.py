"""Input times gradient: what each element's embedding adds to the score's linear part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps
from interpreto_mlops.attributions.gradients import GradientAttributor
from interpreto_mlops.attributions.paths import Neighbourhood


@METHODS.register("input_x_gradient")
@dataclass(frozen=True, kw_only=True)
class InputXGradient(GradientAttributor):
    """The embedding times its gradient: signed; sums to the score of a model without bias, homogeneous of degree 1.

    Takes one forward and backward pass. Special tokens have a part in that sum, though they are no elements: `checks`
    has it as `special_tokens` (of the second target `special_tokens_1`, and so on). Source: Shrikumar et al. 2016
    (arXiv 1605.01713), section 2.
    """

    name: ClassVar[str] = "input_x_gradient"

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        result = yield Neighbourhood()
        components = result.moments[0] * result.anchors[0]
        outside = components[:, ~game.movable].sum(axis=(1, 2))
        checks = {f"special_tokens_{k}" if k else "special_tokens": float(each) for k, each in enumerate(outside)}
        return Estimate(self._scores(game, components), checks=checks)
