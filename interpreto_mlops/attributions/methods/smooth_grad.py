"""SmoothGrad: the gradient averaged over noise around the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps
from interpreto_mlops.attributions.gradients import NoisyAttributor, Reduction


@METHODS.register("smooth_grad")
@dataclass(frozen=True, kw_only=True)
class SmoothGrad(NoisyAttributor):
    """The mean of the gradients at noisy copies of the text, which levels out what holds at one point only.

    Source: Smilkov et al. 2017 (arXiv 1706.03825), section 2.

    Arguments:
        reduction: from the components of a token to its score: `l2`, `l1`, `absmean`, `sum`; `auto` is `l2`, and `sum`
            with `input_x_gradient`.
    """

    name: ClassVar[str] = "smooth_grad"
    signed: ClassVar[bool] = False

    reduction: str = "auto"

    def _reduction(self) -> Reduction:
        if self.reduction == "auto":
            return Reduction.SUM if self.input_x_gradient else Reduction.L2
        return super()._reduction()

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        result = yield self._around(game)
        components = result.moments[0] * result.anchors[0] if self.input_x_gradient else result.moments[0]
        return Estimate(self._scores(game, components), parameters={"reduction": self._reduction().value})
