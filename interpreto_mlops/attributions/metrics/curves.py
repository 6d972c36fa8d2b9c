"""Insertion and deletion curves: the probability while elements come or go in the order of their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import Presence
from interpreto_mlops.attributions.metrics.base import METRICS, FaithfulnessMetric, Order, on_grid
from interpreto_mlops.attributions.metrics.results import Floats

_MOST_POINTS = 101


def counts(n: int) -> Order:
    """Return how many elements are changed at each point: 0, 1, …, n, or 101 evenly spaced counts above 100."""
    if n < _MOST_POINTS:
        return np.arange(n + 1)
    return np.round(np.linspace(0, n, _MOST_POINTS)).astype(np.int64)


def area(shares: Floats, values: Floats) -> Floats:
    """Return the trapezoid area under curves, shape (..., points) to (...)."""
    mass: Floats = ((values[..., 1:] + values[..., :-1]) / 2 * np.diff(shares)).sum(-1)
    return mass


class _Curve(FaithfulnessMetric):
    """The area under the probability's curve over the share of changed elements."""

    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return the area under the curve, shape (..., points) to (...)."""
        return area(counts(n) / n, probabilities)

    def curve(self, probabilities: Floats, n: int) -> Floats | None:
        """Return the curve on 0, 1, …, 100 %, shape (101,)."""
        return on_grid(counts(n) / n, probabilities)


def _rank(order: Order) -> Order:
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


@METRICS.register("deletion")
@dataclass(frozen=True, kw_only=True)
class Deletion(_Curve):
    """Area under the probability while the elements go, the highest score first: low is good.

    Source: Petsiuk et al. 2018, RISE (arXiv 1806.07421), section 4.2.
    """

    name: ClassVar[str] = "deletion"
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def coalitions(self, order: Order) -> Presence:
        """Return the coalitions without the first k elements, shape (points, elements)."""
        return _rank(order)[None, :] >= counts(len(order))[:, None]


@METRICS.register("insertion")
@dataclass(frozen=True, kw_only=True)
class Insertion(_Curve):
    """Area under the probability while the elements come, the highest score first: high is good.

    Source: Petsiuk et al. 2018, RISE (arXiv 1806.07421), section 4.2.
    """

    name: ClassVar[str] = "insertion"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    reverse_random: ClassVar[bool] = True

    def coalitions(self, order: Order) -> Presence:
        """Return the coalitions of the first k elements, shape (points, elements)."""
        return _rank(order)[None, :] < counts(len(order))[:, None]
