"""Occlusion: what the score loses when one element is taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Attributor, Estimate, Game, Steps


@METHODS.register("occlusion")
@dataclass(frozen=True, kw_only=True)
class Occlusion(Attributor):
    """Leave each element out once: score = full text − text without the element.

    Takes n + 2 evaluations for n elements. Source: Zeiler & Fergus 2013 (arXiv 1311.2901); for text Li et al. 2016
    (arXiv 1612.08220).
    """

    name: ClassVar[str] = "occlusion"

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        without = yield ~np.eye(game.n_players, dtype=bool)
        return Estimate((game.full - without).T)
