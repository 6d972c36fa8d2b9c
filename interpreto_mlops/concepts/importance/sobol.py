"""Total Sobol indices of concepts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.importance.base import IMPORTANCE, Floats, Steps, VariantMethod
from interpreto_mlops.errors import InputError


@IMPORTANCE.register("sobol")
@dataclass(frozen=True, kw_only=True)
class Sobol(VariantMethod):
    """The share of the score's variance that goes away when a concept is fixed, others being kept to random shares.

    Never negative: it says how much a concept matters, not whether it speaks for the target. 0 for all where the score
    does not vary.

    Arguments:
        n_designs: points of the design, a power of two; a text with n concepts takes (n + 2) times as many runs.

    Source: Fel et al. 2023 (CRAFT), section 3.2, the estimator of Jansen 1999; Jourdan et al. 2023 for texts.
    """

    n_designs: int = 32

    def __post_init__(self) -> None:
        check_integer("n_designs", self.n_designs, 2)
        if self.n_designs & (self.n_designs - 1):
            raise InputError(f"n_designs must be a power of two, as 16, 32 or 64, not {self.n_designs!r}")

    def steps(self, n_active: int, full: Floats, rng: np.random.Generator) -> Steps:
        """Ask for two designs, and the first with each column of the second."""
        points = qmc.Sobol(2 * n_active, rng=rng).random(self.n_designs).astype(np.float32)
        first, second = points[:, :n_active], points[:, n_active:]
        exchanged = np.repeat(first[None], n_active, axis=0)
        exchanged[np.arange(n_active), :, np.arange(n_active)] = second.T
        scores = yield np.concatenate([first, second, exchanged.reshape(-1, n_active)])
        own, other = scores[: self.n_designs], scores[self.n_designs : 2 * self.n_designs]
        mixed = scores[2 * self.n_designs :].reshape(n_active, self.n_designs, -1)
        variance = np.concatenate([own, other]).var(axis=0)
        effects = ((own[None] - mixed) ** 2).mean(axis=1) / 2.0
        still = variance <= 1e-20 * np.maximum(full**2, 1e-30)
        return np.where(still, 0.0, effects / np.where(still, 1.0, variance)).T
