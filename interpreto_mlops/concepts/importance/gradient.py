"""The gradient of a target by each concept's code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from interpreto_mlops.concepts.importance.base import IMPORTANCE, Floats, GradientMethod


@IMPORTANCE.register("gradient")
@dataclass(frozen=True, kw_only=True)
class ConceptGradient(GradientMethod):
    """d score / d code: what a little more of the concept would do, whether the text holds it or not.

    Source: Fel et al. 2023 (a holistic approach to concepts), section 3.3.
    """

    @property
    def points(self) -> tuple[Floats, Floats]:
        """The codes themselves."""
        return np.ones(1), np.ones(1)

    def values(self, codes: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return the gradients."""
        return gradients
