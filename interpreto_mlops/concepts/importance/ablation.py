"""What a target loses without a concept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from interpreto_mlops.concepts.importance.base import IMPORTANCE, Floats, Steps, VariantMethod


@IMPORTANCE.register("ablation")
@dataclass(frozen=True, kw_only=True)
class Ablation(VariantMethod):
    """The score less that with a concept's code set to zero in the whole text, for each concept that the text holds."""

    def steps(self, n_active: int, full: Floats, rng: np.random.Generator) -> Steps:
        """Ask for the text without each concept."""
        without = yield (1.0 - np.eye(n_active)).astype(np.float32)
        return (full - without).T
