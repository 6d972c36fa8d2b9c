"""VarGrad: how much the gradient varies around the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps
from interpreto_mlops.attributions.gradients import NoisyAttributor


@METHODS.register("var_grad")
@dataclass(frozen=True, kw_only=True)
class VarGrad(NoisyAttributor):
    """The population variance of the gradients at noisy copies of the text: unsigned, 0 for one draw.

    Source: Seo et al. 2018 (arXiv 1806.03000); Hooker et al. 2019 (arXiv 1806.10758), section 3.2.
    """

    name: ClassVar[str] = "var_grad"
    signed: ClassVar[bool] = False

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        result = yield self._around(game, powers=(), variance=True)
        variance = result.variance
        return Estimate(self._scores(game, variance * result.anchors[0] ** 2 if self.input_x_gradient else variance))
