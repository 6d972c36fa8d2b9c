"""Gradient times activation in the space of concepts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from interpreto_mlops.concepts.importance.base import IMPORTANCE, Floats, GradientMethod


@IMPORTANCE.register("gradient_x_activation")
@dataclass(frozen=True, kw_only=True)
class GradientXActivation(GradientMethod):
    """code × d score / d code: to first order what the target would lose without the concept.

    Source: Fel et al. 2023 (a holistic approach to concepts), gradient × input in the concept space.
    """

    @property
    def points(self) -> tuple[Floats, Floats]:
        """The codes themselves."""
        return np.ones(1), np.ones(1)

    def values(self, codes: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return the gradients times the codes."""
        return gradients.double() * codes.double()
