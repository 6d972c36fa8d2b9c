"""Occlusion: what the score loses when elements are taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Attributor, Estimate, Game, Steps, as_integer
from interpreto_mlops.attributions.coalitions import count_coalitions


@METHODS.register("occlusion")
@dataclass(frozen=True, kw_only=True)
class Occlusion(Attributor):
    """Leave each element out once: score = full text − text without the element.

    With a wider window neighbours are left out together, and an element's score is the mean over the windows that hold
    it. Takes at most n + 2 evaluations for n elements. Source: Zeiler & Fergus 2013 (arXiv 1311.2901); for text Li et
    al. 2016 (arXiv 1612.08220).

    Arguments:
        window: how many neighbours are left out together; all, where the text has fewer. 1 asks for each alone.
    """

    name: ClassVar[str] = "occlusion"

    window: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "window", as_integer("window", self.window, 1))

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        n = game.n_players
        width = min(self.window, n)
        ahead = np.arange(n) - np.arange(n - width + 1)[:, None]
        out = (ahead >= 0) & (ahead < width)
        without = yield ~out
        scores = (game.full - without).T @ (out / out.sum(axis=0))
        return Estimate(scores, checks={"evaluations": count_coalitions(~out)})
