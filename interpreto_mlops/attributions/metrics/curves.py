"""Insertion and deletion curves: the probability while elements come or go in the order of their scores."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.base import Presence
from interpreto_mlops.attributions.metrics.base import METRICS, as_share
from interpreto_mlops.attributions.metrics.ranking import FaithfulnessMetric
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.subjects import Ranks

_MOST_POINTS = 101
_GRID = np.linspace(0.0, 1.0, 101)
_ROUNDING = 1e-6


def counts(n: int, max_fraction: float = 1.0) -> npt.NDArray[np.int64]:
    """Return how many elements are changed at each point: 0, 1, …, or 101 evenly spaced counts above 100 elements.

    The last is n, or ceil(max_fraction · n).
    """
    last = ceil(round(max_fraction * n, 9))
    if last < _MOST_POINTS:
        return np.arange(last + 1)
    return np.round(np.linspace(0, last, _MOST_POINTS)).astype(np.int64)


def area(shares: Floats, values: Floats) -> Floats:
    """Return the trapezoid area under curves, shape (..., points) to (...)."""
    mass: Floats = ((values[..., 1:] + values[..., :-1]) / 2 * np.diff(shares)).sum(-1)
    return mass


@dataclass(frozen=True, kw_only=True)
class _Curve(FaithfulnessMetric):
    """The area under the probability's curve over the share of changed elements."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    max_fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "max_fraction", as_share("max_fraction", self.max_fraction))

    @property
    def grid(self) -> Floats:
        """The whole per cents up to `max_fraction`, as shares, shape (points,)."""
        return _GRID[: 1 + int(100 * self.max_fraction + 1e-9)]

    def shares(self, n: int) -> Floats:
        """Return the share of changed elements at each point, shape (points,)."""
        shares: Floats = counts(n, self.max_fraction) / n
        return shares

    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return the area under the curve, shape (..., points) to (...)."""
        return area(self.shares(n), probabilities)

    def curve(self, probabilities: Floats, n: int) -> Floats | None:
        """Return the curve on whole per cents, shape (points,)."""
        return np.interp(self.grid, self.shares(n), probabilities)

    def removed(self, ranks: Ranks) -> Presence:
        """Return the coalitions without the first k elements, shape (rankings, points, n)."""
        return ranks[:, None, :] >= counts(ranks.shape[-1], self.max_fraction)[:, None]


@METRICS.register("deletion")
@dataclass(frozen=True, kw_only=True)
class Deletion(_Curve):
    """Area under the probability while the elements go, the highest score first: low is good.

    Source: Petsiuk et al. 2018, RISE (arXiv 1806.07421), section 4.2.

    Arguments:
        max_fraction: the share of the elements at which the curve stops, rounded up to whole elements. The area is over
            the true shares, so that of a shorter curve is smaller.
    """

    name: ClassVar[str] = "deletion"
    higher_is_better: ClassVar[bool] = False

    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the coalitions without the first k elements, shape (rankings, points, n)."""
        return self.removed(ranks)


@METRICS.register("insertion")
@dataclass(frozen=True, kw_only=True)
class Insertion(_Curve):
    """Area under the probability while the elements come, the highest score first: high is good.

    Source: Petsiuk et al. 2018, RISE (arXiv 1806.07421), section 4.2.

    Arguments:
        max_fraction: the share of the elements at which the curve stops, rounded up to whole elements. The area is over
            the true shares, so that of a shorter curve is smaller.
    """

    name: ClassVar[str] = "insertion"
    higher_is_better: ClassVar[bool] = True

    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the coalitions of the first k elements, shape (rankings, points, n)."""
        return ~self.removed(ranks)


@METRICS.register("insertion_minus_deletion")
@dataclass(frozen=True, kw_only=True)
class InsertionMinusDeletion(_Curve):
    """Area under the insertion curve minus that under the deletion curve of the same ranking: high is good.

    It evaluates nothing that `Insertion` and `Deletion` of the same text do not.

    Arguments:
        max_fraction: the share of the elements at which both curves stop.
    """

    name: ClassVar[str] = "insertion_minus_deletion"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the coalitions of both curves, shape (rankings, 2 · points, n)."""
        removed = self.removed(ranks)
        return np.concatenate([~removed, removed], axis=1)

    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return the difference of the areas, shape (..., 2 · points) to (...)."""
        inserted, deleted = np.split(probabilities, 2, axis=-1)
        return super().score(inserted, n) - super().score(deleted, n)

    def curve(self, probabilities: Floats, n: int) -> Floats | None:
        """Return nothing: the two curves are those of `Insertion` and `Deletion`."""
        return None


@METRICS.register("aopc")
@dataclass(frozen=True, kw_only=True)
class Aopc(_Curve):
    """Area over the perturbation curve: the mean of p(text) − p(text without its k first elements), k = 0, 1, …: high.

    Source: Samek et al. 2015 (arXiv 1509.06321), equation 12.

    Arguments:
        max_fraction: the share of the elements at which k stops (rounded up to whole elements).
    """

    name: ClassVar[str] = "aopc"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the coalitions without the first k elements, shape (rankings, points, n)."""
        return self.removed(ranks)

    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return the mean loss over the steps, shape (..., points) to (...)."""
        lost: Floats = probabilities[..., 0] - probabilities.mean(-1)
        return lost

    def curve(self, probabilities: Floats, n: int) -> Floats | None:
        """Return nothing: the curve is that of `Deletion`."""
        return None


@METRICS.register("monotonicity")
@dataclass(frozen=True, kw_only=True)
class Monotonicity(_Curve):
    """Share of the steps at which the probability does not fall while elements come, the lowest score first: high.

    A fall of less than 1e-6 is a rounding error and counts as none.
    Source: Arya et al. 2019 (arXiv 1909.03012), section 5; Luss et al. 2019 (arXiv 1905.12698).

    Arguments:
        max_fraction: the share of the elements, from the highest score down, among which steps are counted.
    """

    name: ClassVar[str] = "monotonicity"
    higher_is_better: ClassVar[bool] = True

    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the coalitions without the first k elements, shape (rankings, points, n)."""
        return self.removed(ranks)

    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return the share of steps without a fall, shape (..., points) to (...)."""
        # The rows lose elements from the first on; read backwards, elements come from the lowest score on.
        risen: Floats = (probabilities[..., :-1] - probabilities[..., 1:] >= -_ROUNDING).mean(-1)
        return risen

    def curve(self, probabilities: Floats, n: int) -> Floats | None:
        """Return nothing: the curve is that of `Deletion`, read backwards."""
        return None
