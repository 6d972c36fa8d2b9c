"""Comprehensiveness and sufficiency of ERASER: what the top elements carry, over bins of their share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import Presence
from interpreto_mlops.attributions.metrics.base import METRICS
from interpreto_mlops.attributions.metrics.ranking import FaithfulnessMetric
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.subjects import Ranks
from interpreto_mlops.attributions.sampling import as_number
from interpreto_mlops.errors import InputError

_BINS = (0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, kw_only=True)
class _Bins(FaithfulnessMetric):
    """The mean over bins of the probability lost against the full text."""

    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    bins: tuple[float, ...] = _BINS

    def __post_init__(self) -> None:
        super().__post_init__()
        bins = tuple(self.bins) if isinstance(self.bins, Sequence | np.ndarray) else ()
        if not bins or not all(0 < as_number(share) <= 1 for share in bins):
            raise InputError(f"the bins must be shares above 0 and up to 1, not {self.bins!r}")
        object.__setattr__(self, "bins", tuple(map(as_number, bins)))

    def _top(self, ranks: Ranks) -> Presence:
        """Return which elements are in each bin: the max(1, round(share · n)) first, shape (rankings, bins, n)."""
        sizes = np.asarray([max(1, round(share * ranks.shape[-1])) for share in self.bins])
        return ranks[:, None, :] < sizes[:, None]

    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return p(full) minus the mean over the bins, shape (..., 1 + bins) to (...)."""
        lost: Floats = probabilities[..., 0] - probabilities[..., 1:].mean(-1)
        return lost


@METRICS.register("comprehensiveness")
@dataclass(frozen=True, kw_only=True)
class Comprehensiveness(_Bins):
    """AOPC comprehensiveness, p(text) − p(text without its top elements): high is good.

    The mean over the bins 1, 5, 10, 20, 50 %, as the released scorer takes it (the paper divides by one more bin).
    Source: DeYoung et al. 2020, ERASER (arXiv 1911.03429), section 4.2.
    """

    name: ClassVar[str] = "comprehensiveness"
    higher_is_better: ClassVar[bool] = True

    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the full coalition, then each without its bin's elements, shape (rankings, 1 + bins, n)."""
        return np.concatenate([_full(ranks), ~self._top(ranks)], axis=1)


@METRICS.register("sufficiency")
@dataclass(frozen=True, kw_only=True)
class Sufficiency(_Bins):
    """AOPC sufficiency, p(text) − p(its top elements alone): low is good.

    Source: DeYoung et al. 2020, ERASER (arXiv 1911.03429), section 4.2.
    """

    name: ClassVar[str] = "sufficiency"
    higher_is_better: ClassVar[bool] = False

    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the full coalition, then each bin's elements alone, shape (rankings, 1 + bins, n)."""
        return np.concatenate([_full(ranks), self._top(ranks)], axis=1)


def _full(ranks: Ranks) -> Presence:
    return np.ones((len(ranks), 1, ranks.shape[-1]), dtype=bool)
