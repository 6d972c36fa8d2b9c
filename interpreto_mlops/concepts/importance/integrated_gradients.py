"""Integrated gradients from no concept to the text's concepts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.importance.base import IMPORTANCE, Floats, GradientMethod


@IMPORTANCE.register("integrated_gradients")
@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(GradientMethod):
    """code × the mean gradient on the straight way from no concept to the text's codes.

    The sum over rows and concepts is the score less that of the text without its concepts, up to the quadrature.

    Arguments:
        n_points: nodes of the Gauss–Legendre rule; each is a run of the model from the layer on, with gradients.

    Source: Sundararajan, Taly and Yan 2017, eq. 1, on codes.
    """

    n_points: int = 16

    def __post_init__(self) -> None:
        check_integer("n_points", self.n_points, 1)

    @property
    def points(self) -> tuple[Floats, Floats]:
        """Nodes and weights on [0, 1]."""
        nodes, weights = np.polynomial.legendre.leggauss(self.n_points)
        return (nodes + 1.0) / 2.0, weights / 2.0

    def values(self, codes: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return the mean gradients times the codes."""
        return gradients.double() * codes.double()
