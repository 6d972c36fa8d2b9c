"""Metrics of scores against the game: do sums of scores say what taking those elements out does?"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.base import Presence, as_integer
from interpreto_mlops.attributions.coalitions import all_coalitions
from interpreto_mlops.attributions.metrics.base import METRICS, Outcome, TextMetric, as_share, nan_mean, text_score
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.subjects import Subject
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.requests import Program

_SIZES = ("shapley", "uniform")


@dataclass(frozen=True, kw_only=True)
class _GameMetric(TextMetric):
    """Compares Σ scores over a coalition C with v(N) − v(N without C), v what was explained, in its own mode."""

    n_coalitions: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_coalitions", as_integer("n_coalitions", self.n_coalitions, 2))

    @abstractmethod
    def removed(self, n: int, rng: np.random.Generator) -> list[tuple[Presence, Floats]]:
        """Return sets of coalitions that are taken out, shape (rows, n), each with their weights, which sum to 1."""

    @abstractmethod
    def score(self, sums: Floats, differences: Floats, weights: Floats) -> Floats:
        """Return the metric of one set.

        Arguments:
            sums: of the scores in each coalition, shape (..., rows).
            differences: v(N) − v(N without the coalition), shape (..., rows).
            weights: shape (rows,).
        """

    def program(self, subject: Subject) -> Program[Outcome]:
        """Score one text: its own scores, then permuted ones, on the same coalitions."""
        rng = np.random.default_rng([subject.game.encoding.seed(self.seed), 1])
        sets = self.removed(subject.n_players, rng)
        if not sets:
            return "too few elements"
        full = np.ones((1, subject.n_players), dtype=bool)
        (read,) = yield [subject.request(np.concatenate([full, *(~removed for removed, _ in sets)]))]
        values = subject.values(read)
        permuted = subject.permuted(subject.random_orders(self.n_random, self.seed))
        scores = np.concatenate([subject.scores[None], permuted])
        found, start = [], 1
        for removed, weights in sets:
            differences = (values[0] - values[start : start + len(removed)]).T
            found.append(self.score(scores @ removed.T.astype(np.float64), differences, weights))
            start += len(removed)
        averaged = nan_mean(np.stack(found), axis=0)
        return text_score(averaged[0], averaged[1:]) or "constant sums or differences"


def draw_coalitions(n: int, count: int, sizes: str, rng: np.random.Generator) -> tuple[Presence, Floats]:
    """Return coalitions and their weights, which sum to 1: all that there are when they are no more than `count`.

    Arguments:
        n: players.
        count: how many to draw at most, repeated ones included.
        sizes: `shapley` (size s with mass 1 / (s (n − s)), 0 < s < n, as for KernelSHAP) or `uniform` (1 to n alike).
        rng: random numbers.
    """
    possible = np.arange(1, n + 1) if sizes == "uniform" or n == 1 else np.arange(1, n)
    mass = np.ones(len(possible)) if sizes == "uniform" or n == 1 else 1.0 / (possible * (n - possible))
    mass = mass / mass.sum()
    if 2**n <= count:
        rows = all_coalitions(n)
        chance = np.zeros(n + 1)
        chance[possible] = mass / np.asarray([comb(n, s) for s in possible.tolist()])
        weights = chance[rows.sum(axis=1)]
        return rows[weights > 0], weights[weights > 0]
    size = rng.choice(possible, size=count, p=mass)
    return _subsets(n, size, rng), np.full(count, 1 / count)


def _subsets(n: int, size: npt.NDArray[np.int64], rng: np.random.Generator) -> Presence:
    rank = rng.random((len(size), n)).argsort(axis=1).argsort(axis=1)
    return rank < size[:, None]


def of_one_size(n: int, size: int, count: int, rng: np.random.Generator) -> tuple[Presence, Floats]:
    """Return coalitions of one size with equal weights: all when they are no more than `count`, else random ones."""
    if comb(n, size) <= count:
        rows = np.zeros((comb(n, size), n), dtype=bool)
        for row, members in zip(rows, combinations(range(n), size), strict=True):
            row[list(members)] = True
    else:
        rows = _subsets(n, np.full(count, size), rng)
    return rows, np.full(len(rows), 1 / len(rows))


def pearson(first: Floats, second: Floats) -> Floats:
    """Return the correlation over the last axis, NaN where either is constant; shape (..., rows) to (...)."""
    a, b = (values - values.mean(axis=-1, keepdims=True) for values in (first, second))
    scale = np.sqrt((a**2).mean(-1) * (b**2).mean(-1))
    # What is left of a constant after subtracting its mean is a rounding error.
    size = np.abs(first).max(-1) * np.abs(second).max(-1)
    known = scale > 1e-12 * size
    return np.where(known, np.clip((a * b).mean(-1) / np.where(known, scale, 1.0), -1.0, 1.0), np.nan)


@METRICS.register("infidelity")
@dataclass(frozen=True, kw_only=True)
class Infidelity(_GameMetric):
    """Mean square of (β Σ scores of the elements taken out − what the explained score loses): low is good.

    Random coalitions of elements are taken out. The exact expectation where every coalition fits in `n_coalitions`.
    Source: Yeh et al. 2019 (arXiv 1901.09392), definition 2.1.

    Arguments:
        n_coalitions: coalitions for a text.
        sizes: of the coalitions: `shapley`, as KernelSHAP weighs them, or `uniform`, from one element to all.
        normalize: whether β is the factor that fits best, E[s d] / E[s²] with s the sum and d the loss, so that scores
            of any unit compare; else it is 1.
    """

    name: ClassVar[str] = "infidelity"
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)

    sizes: str = "shapley"
    normalize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sizes not in _SIZES:
            raise UnknownNameError("distribution of sizes", self.sizes, _SIZES)

    def removed(self, n: int, rng: np.random.Generator) -> list[tuple[Presence, Floats]]:
        """Return random coalitions, or all of them."""
        return [draw_coalitions(n, self.n_coalitions, self.sizes, rng)]

    def score(self, sums: Floats, differences: Floats, weights: Floats) -> Floats:
        """Return the mean square, shape (...)."""
        beta: Floats | float = best_factor(sums, differences, weights)[..., None] if self.normalize else 1.0
        error: Floats = ((beta * sums - differences) ** 2) @ weights
        return error


def best_factor(sums: Floats, differences: Floats, weights: Floats) -> Floats:
    """Return β = E[s d] / E[s²], 0 where the sums are all 0; shape (..., rows) to (...)."""
    square = (sums**2) @ weights
    return np.where(square > 0, ((sums * differences) @ weights) / np.where(square > 0, square, 1.0), 0.0)


@METRICS.register("faithfulness_correlation")
@dataclass(frozen=True, kw_only=True)
class FaithfulnessCorrelation(_GameMetric):
    """Correlation of Σ scores with the loss of the explained score, over random sets of one size: high is good.

    Texts of fewer than two elements, and those whose sums or losses do not vary, are skipped.
    Source: Bhatt et al. 2020 (arXiv 2005.00631), definition 3.

    Arguments:
        n_coalitions: sets for a text; all of them where there are no more.
        share: the size of a set as a share of the elements, at least one and never all.
    """

    name: ClassVar[str] = "faithfulness_correlation"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "share", as_share("share", self.share))

    def removed(self, n: int, rng: np.random.Generator) -> list[tuple[Presence, Floats]]:
        """Return sets of one size."""
        return [of_one_size(n, _size(n, self.share), self.n_coalitions, rng)] if n > 1 else []

    def score(self, sums: Floats, differences: Floats, weights: Floats) -> Floats:
        """Return the correlation, shape (...)."""
        return pearson(sums, differences)


@METRICS.register("sensitivity_n")
@dataclass(frozen=True, kw_only=True)
class SensitivityN(_GameMetric):
    """Correlation of Σ scores with the loss of the explained score, the mean over sets of several sizes: high is good.

    Source: Ancona et al. 2018 (arXiv 1711.06104), section 4.

    Arguments:
        n_coalitions: sets of each size; all of them where there are no more.
        shares: the sizes as shares of the elements, each at least one element and never all; equal ones count once.
    """

    name: ClassVar[str] = "sensitivity_n"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    n_coalitions: int = 64
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.shares, str) or not len(self.shares):
            raise InputError(f"the shares must be numbers above 0 and up to 1, not {self.shares!r}")
        object.__setattr__(self, "shares", tuple(as_share("each of the shares", share) for share in self.shares))

    def removed(self, n: int, rng: np.random.Generator) -> list[tuple[Presence, Floats]]:
        """Return sets of each size."""
        sizes = sorted({_size(n, share) for share in self.shares}) if n > 1 else []
        return [of_one_size(n, size, self.n_coalitions, rng) for size in sizes]

    def score(self, sums: Floats, differences: Floats, weights: Floats) -> Floats:
        """Return the correlation of one size, shape (...)."""
        return pearson(sums, differences)


def _size(n: int, share: float) -> int:
    return min(n - 1, max(1, round(share * n)))
