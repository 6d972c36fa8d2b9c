"""GradientSHAP: gradients at random points between baselines and the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps, as_integer
from interpreto_mlops.attributions.gradients import PathAttributor, check_noise, used_baselines
from interpreto_mlops.attributions.paths import Noise, Path
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.replacement import Replacement


@METHODS.register("gradient_shap")
@dataclass(frozen=True, kw_only=True)
class GradientShap(PathAttributor):
    """Signed, and complete in expectation: the scores sum to the score minus the baselines' mean score.

    The draws are shared out among the baselines, and on each path stratified. With one baseline and no noise this is
    Integrated Gradients by Monte Carlo. `checks` reports the gap that the draws leave. Source: Erion et al. 2021
    (arXiv 1906.10670), equation 4; Lundberg & Lee 2017 (arXiv 1705.07874).

    Arguments:
        n_draws: how many points, at least one for each baseline.
        noise: on the text, the end of the paths: the standard deviation as a share of the range of its embeddings. The
            factor (text − baseline) is that of the unperturbed text.
        seed: of points and noise, together with the text.
    """

    name: ClassVar[str] = "gradient_shap"

    n_draws: int = 50
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        baselines = self._baselines(Replacement.resolve(self.replacement, self.model))
        object.__setattr__(self, "n_draws", as_integer("n_draws", self.n_draws, 1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))
        check_noise(self.noise)
        if self.n_draws < len(baselines):
            raise InputError(f"n_draws must be at least the number of baselines, {len(baselines)}, not {self.n_draws}")

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        rng = game.generator(self.seed)
        baselines = self._baselines(game.replacement)
        paths = []
        for number, baseline in enumerate(baselines):
            draws = self.n_draws // len(baselines) + (number < self.n_draws % len(baselines))
            nodes = (np.arange(draws) + rng.random(draws)) / draws
            noise = Noise.seeded(self.noise, draws, rng) if self.noise else None
            paths.append(Path(nodes, np.full(draws, 1 / draws), baseline, noise))
        components, base = yield from self._integrate(game, paths)
        gap = components.sum(axis=(1, 2)) - (game.full - base)
        return Estimate(
            self._scores(game, components),
            checks={"completeness_gap": float(np.abs(gap).max())},
            baseline_output=base,
            parameters=used_baselines(baselines),
        )
