"""SquareGrad: the squared gradient averaged over noise around the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps
from interpreto_mlops.attributions.gradients import NoisyAttributor


@METHODS.register("square_grad")
@dataclass(frozen=True, kw_only=True)
class SquareGrad(NoisyAttributor):
    """The mean of the squared gradients at noisy copies of the text: unsigned.

    In each component it is SmoothGrad squared plus VarGrad, when the seeds agree. Source: Hooker et al. 2019 (arXiv
    1806.10758), section 3.2.
    """

    name: ClassVar[str] = "square_grad"
    signed: ClassVar[bool] = False

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        result = yield self._around(game, powers=(2,))
        squares = result.moments[0]
        return Estimate(self._scores(game, squares * result.anchors[0] ** 2 if self.input_x_gradient else squares))
