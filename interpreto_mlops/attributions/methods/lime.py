"""LIME: a linear model of the score, fitted around the text."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Presence, Steps
from interpreto_mlops.attributions.coalitions import (
    Floats,
    Integers,
    all_coalitions,
    count_coalitions,
    draw_different,
    draw_of_sizes,
)
from interpreto_mlops.attributions.regression import solve_linear
from interpreto_mlops.attributions.sampling import SamplingAttributor, as_number
from interpreto_mlops.errors import InputError, UnknownNameError

_SAMPLING = ("size", "uniform")


@METHODS.register("lime")
@dataclass(frozen=True, kw_only=True)
class Lime(SamplingAttributor):
    """Slopes of a linear model of the score, fitted to the text with elements taken out, near texts weighing more.

    Every coalition where they fit in the budget, each with its probability under `sampling`; otherwise the full text,
    the empty one and a sample, whose repeated rows weigh more: both fit the same. Of the smallest norm where the rows
    do not determine them. `checks` has the weighted `r2` of the worst target.

    Source: Ribeiro et al. 2016 (arXiv 1602.04938), equation 1 and algorithm 1.

    Arguments:
        sampling: `size` (as lime: how many elements are out is uniform on 0 to n, which ones too) or `uniform` (each is
            out with probability 1/2).
        kernel_width: w in the weight exp(−d² / 2w²) of a row whose cosine distance to the full text is
            d = 1 − √(share of elements present); in units of that distance, which ends at 1. None for equal weights.
        alpha: the ridge penalty on the squared slopes, beside the weighted mean of squared residuals.
    """

    name: ClassVar[str] = "lime"

    sampling: str = "size"
    kernel_width: float | None = 0.25
    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in _SAMPLING:
            raise UnknownNameError("sampling", self.sampling, _SAMPLING)
        if self.kernel_width is not None:
            if not 0 < as_number(self.kernel_width) < float("inf"):
                raise InputError(f"kernel_width must be above 0, or None for equal weights, not {self.kernel_width!r}")
            object.__setattr__(self, "kernel_width", as_number(self.kernel_width))
        if not 0 <= as_number(self.alpha) < float("inf"):
            raise InputError(f"alpha must be a number of at least 0, not {self.alpha!r}")
        object.__setattr__(self, "alpha", as_number(self.alpha))

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        n, exact = game.n_players, self.fits(game)
        present, probability = self._enumerated(n) if exact else self._sampled(n, game.generator(self.seed))
        values = yield present
        weights = probability * self._kernel(present)
        scores, r2 = solve_linear(present, weights, values, game.valid, alpha=self.alpha)
        checks = {"exact": float(exact), "evaluations": count_coalitions(present), "r2": float(r2.min())}
        return Estimate(scores, checks=checks)

    def _enumerated(self, n: int) -> tuple[Presence, Floats]:
        """Return every coalition with its probability."""
        present = all_coalitions(n)
        if self.sampling == "uniform":
            return present, np.full(len(present), 0.5**n)
        of_size = np.asarray([1 / ((n + 1) * comb(n, s)) for s in range(n + 1)])
        return present, of_size[present.sum(axis=1)]

    def _sampled(self, n: int, rng: np.random.Generator) -> tuple[Presence, Floats]:
        """Return the full and the empty text with their probabilities, and draws of the others that share the rest."""

        def draw(rows: int) -> Presence:
            sizes = rng.integers(1, n, rows) if self.sampling == "size" else inner_sizes(rows)
            return draw_of_sizes(sizes, n, rng)

        def inner_sizes(rows: int) -> Integers:
            sizes = rng.binomial(n, 0.5, rows)
            while (ends := (sizes == 0) | (sizes == n)).any():
                sizes[ends] = rng.binomial(n, 0.5, ends.sum())
            return sizes

        drawn, counts = draw_different(draw, self.n_perturbations - 2)
        end = 1 / (n + 1) if self.sampling == "size" else 0.5**n
        rest = (1 - 2 * end) * counts / max(1.0, counts.sum())
        ends = np.arange(2, dtype=bool)[::-1, None].repeat(n, axis=1)
        return np.concatenate([ends, drawn]), np.concatenate([[end, end], rest])

    def _kernel(self, present: Presence) -> Floats | float:
        if self.kernel_width is None:
            return 1.0
        distance = 1 - np.sqrt(present.mean(axis=1))
        kernel: Floats = np.exp(-((distance / self.kernel_width) ** 2) / 2)
        return kernel
