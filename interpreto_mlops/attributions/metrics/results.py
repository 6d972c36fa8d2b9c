"""What a metric of attributions returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_BOOTSTRAP_DRAWS = 1000


@dataclass(frozen=True)
class MetricResult:
    """A metric over many texts, beside the same metric of random rankings of the same texts.

    Arguments:
        name: the registry name of the metric.
        method: the registry name of the attribution method that was scored.
        values: one value a text, NaN where the text was skipped, shape (texts,).
        random_values: the mean over random rankings of each text, shape (texts,).
        better_than_random: for each text, the share of random rankings that it beats (ties count half), shape (texts,).
        higher_is_better: the direction of the metric.
        curve: the mean curve over texts: share of elements (0 to 1) and probability, shape (points, 2), or None.
        random_curve: the same for random rankings.
        skipped: how many texts were skipped, by reason.
        parameters: what the metric was given.
        counters: what the engine did for it (`EngineCounters.as_dict()`).
    """

    name: str
    method: str
    values: Floats
    random_values: Floats
    better_than_random: Floats
    higher_is_better: bool
    curve: Floats | None = None
    random_curve: Floats | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean over the texts that were not skipped; NaN when all were."""
        return _mean(self.values)

    @property
    def random_mean(self) -> float:
        """The mean of the random rankings on the same texts."""
        return _mean(self.random_values)

    @property
    def gain(self) -> float:
        """How much better than random the metric is, in its own unit: positive is better in either direction."""
        gain = self.mean - self.random_mean
        return gain if self.higher_is_better else -gain

    @property
    def diagnosticity(self) -> float:
        """The chance that the method's ranking beats a random one on a random text (Chan et al. 2022)."""
        return _mean(self.better_than_random)

    @property
    def n_skipped(self) -> int:
        """How many texts were skipped."""
        return sum(self.skipped.values())

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return the percentile bootstrap interval of the mean over texts (1,000 draws)."""
        values = self.values[~np.isnan(self.values)]
        if values.size == 0:
            return float("nan"), float("nan")
        draws = np.random.default_rng(seed).integers(0, values.size, (_BOOTSTRAP_DRAWS, values.size))
        low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def __repr__(self) -> str:
        arrow = "higher" if self.higher_is_better else "lower"
        return f"{self.name}({self.method}): {self.mean:.4f} ({arrow} is better; random {self.random_mean:.4f})"


def _mean(values: Floats) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
