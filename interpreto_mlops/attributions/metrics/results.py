"""What metrics of attributions return, and how it is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from interpreto_mlops.errors import DataError, UnknownNameError

Floats = npt.NDArray[np.float64]

_BOOTSTRAP_DRAWS = 1000
_FORMAT = "metric-set/1"


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
        counters: what the engine did for the call that gave it (`EngineCounters.as_dict()`).
        bounds: the values that the metric can take.
        random_draws: the metric over all texts of the first random ranking of each, of the second, and so on, shape
            (draws,), or None.
        reduction: how texts become one number: their `mean`, or the F1 of precision and recall counted over all texts
            (`micro_f1`) or averaged over texts (`macro_f1`).
        parts: what the reduction takes of each text when that is not its value, shape (texts, parts): hits, predicted
            and human spans for `micro_f1`, precision and recall for `macro_f1`; else None.
    """

    kind: ClassVar[str] = "metric"

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
    bounds: tuple[float, float] = (-np.inf, np.inf)
    random_draws: Floats | None = None
    reduction: str = "mean"
    parts: Floats | None = None

    @property
    def mean(self) -> float:
        """The metric over the texts that were not skipped; NaN when all were."""
        return reduce_texts(self.reduction, self._kept)

    @property
    def _kept(self) -> Floats:
        """What the reduction takes, of the texts that were not skipped, shape (texts, parts)."""
        parts = self.values[:, None] if self.parts is None else self.parts
        return parts[~np.isnan(self.values)]

    @property
    def random_mean(self) -> float:
        """The mean of the random rankings on the same texts."""
        return _mean(self.random_values if self.random_draws is None else self.random_draws)

    @property
    def gain(self) -> float:
        """How much better than random the metric is, in its own unit: positive is better in either direction."""
        gain = self.mean - self.random_mean
        return gain if self.higher_is_better else -gain

    @property
    def z(self) -> float:
        """The gain in standard deviations of the random rankings' metric; NaN when those are all equal."""
        draws = np.zeros(0) if self.random_draws is None else self.random_draws[~np.isnan(self.random_draws)]
        spread = draws.std(ddof=1) if draws.size > 1 else 0.0
        rounding = 1e-9 * max(1.0, float(np.abs(draws).max(initial=0.0)))
        return float(self.gain / spread) if spread > rounding else float("nan")

    @property
    def log_ratio(self) -> float:
        """The logarithm of metric over random metric, as soft metrics of continuations are told; NaN unless both > 0.

        Source: Zhao & Shan 2024 (arXiv 2402.00794).
        """
        both = self.mean > 0 and self.random_mean > 0
        return float(np.log(self.mean / self.random_mean)) if both else float("nan")

    @property
    def diagnosticity(self) -> float:
        """The chance that the method's ranking beats a random one on a random text (Chan et al. 2022)."""
        return _mean(self.better_than_random)

    @property
    def n_skipped(self) -> int:
        """How many texts were skipped."""
        return sum(self.skipped.values())

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Return the percentile bootstrap interval of the metric over texts (1,000 draws)."""
        kept = self._kept
        if not len(kept):
            return float("nan"), float("nan")
        draws = np.random.default_rng(seed).integers(0, len(kept), (_BOOTSTRAP_DRAWS, len(kept)))
        means = [reduce_texts(self.reduction, kept[draw]) for draw in draws]
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def summary(self) -> dict[str, Any]:
        """Return the numbers of a table's row: the metric, its interval, random rankings, direction, texts skipped."""
        low, high = self.interval()
        return {
            "metric": self.name,
            "method": self.method,
            "mean": self.mean,
            "low": low,
            "high": high,
            "random": self.random_mean,
            "gain": self.gain,
            "z": self.z,
            "diagnosticity": self.diagnosticity,
            "better": "higher" if self.higher_is_better else "lower",
            "texts": len(self.values),
            "skipped": self.n_skipped,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row a text: its place, value, the mean of its random rankings, the share of them it beats."""
        return pd.DataFrame(
            {
                "text": np.arange(len(self.values)),
                "value": self.values,
                "random": self.random_values,
                "better_than_random": self.better_than_random,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON knows it (no NaN), with the summary beside it."""
        entry = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return {"kind": self.kind, **entry, "summary": _plain(self.summary())}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> MetricResult:
        """Return the result that `to_dict` was called on."""
        return cls(**{f.name: _restored(f.name, entry[f.name]) for f in fields(cls) if f.name in entry})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MetricResult) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        arrow = "higher" if self.higher_is_better else "lower"
        return f"{self.name}({self.method}): {self.mean:.4f} ({arrow} is better; random {self.random_mean:.4f})"


@dataclass(frozen=True, eq=False, repr=False)
class SanityResult(MetricResult):
    """How like the first explanation those of an ever more randomised model are.

    `values` are the signed rank correlations with the explanation of the model whose weights are all new.

    Arguments:
        depths: what was re-initialised last, from nothing to the embeddings; length (depths).
        signed: the rank correlation with the first explanation of each text at each depth, shape (depths, texts).
        absolute: the same of the absolute scores, shape (depths, texts).
        band: where 95 % of the mean correlations of randomly permuted scores lie, (low, high).
        absolute_band: the same of the absolute scores.
    """

    kind: ClassVar[str] = "sanity"

    depths: tuple[str, ...] = ()
    signed: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    absolute: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    band: tuple[float, float] = (np.nan, np.nan)
    absolute_band: tuple[float, float] = (np.nan, np.nan)

    @property
    def passes(self) -> bool:
        """Whether the explanation of the model whose weights are all new lies in the band of permuted scores."""
        return bool(self.band[0] <= self.mean <= self.band[1])

    def by_depth(self) -> pd.DataFrame:
        """Return one row a depth: mean signed and absolute correlation over texts, with their bands."""
        signed, absolute = ([_mean(row) for row in rows] for rows in (self.signed, self.absolute))
        columns = {"depth": np.arange(len(self.depths)), "randomised": list(self.depths), "signed": signed}
        bands = dict(
            zip(("low", "high", "absolute_low", "absolute_high"), (*self.band, *self.absolute_band), strict=True)
        )
        return pd.DataFrame({**columns, "absolute": absolute, **bands})


class MetricSet(Mapping[str, MetricResult]):
    """Metrics of one method's explanations, by name.

    Arguments:
        results: one for each metric.
        counters: what the engine did for all of them together.
    """

    def __init__(self, results: Iterable[MetricResult], *, counters: dict[str, float] | None = None) -> None:
        self._results = {result.name: result for result in results}
        self.counters = dict(counters or {})

    def __getitem__(self, name: str) -> MetricResult:
        if name not in self._results:
            raise UnknownNameError("metric of this set", name, self._results)
        return self._results[name]

    def __contains__(self, name: object) -> bool:
        return name in self._results

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        return "\n".join(repr(result) for result in self.values()) or "MetricSet of nothing"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a metric: its mean, interval, random rankings, direction, texts skipped."""
        return pd.DataFrame([result.summary() for result in self.values()])

    def save(self, path: str | Path) -> Path:
        """Write the set to a JSON file, its folder created; return the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "format": _FORMAT,
            "counters": self.counters,
            "results": [result.to_dict() for result in self.values()],
        }
        path.write_text(json.dumps(content, ensure_ascii=True, indent=1, allow_nan=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> MetricSet:
        """Read what `save` wrote.

        Raises:
            DataError: there is no such file, or it has another format.
        """
        if not Path(path).is_file():
            raise DataError(f"there is no set of metrics in {str(path)!r}")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content.get("format") != _FORMAT:
            raise DataError(f"{str(path)!r} has the format {content.get('format')!r}, not {_FORMAT!r}")
        kinds = {each.kind: each for each in (MetricResult, SanityResult)}
        results = [kinds[entry["kind"]].from_dict(entry) for entry in content["results"]]
        return cls(results, counters=content["counters"])


def reduce_texts(reduction: str, parts: Floats) -> float:
    """Return one number from the parts of many texts, shape (texts, parts); see `MetricResult.reduction`."""
    if not len(parts):
        return float("nan")
    if reduction == "micro_f1":
        hits, predicted, human = parts.sum(axis=0)
        return f1(hits / predicted if predicted else 0.0, hits / human if human else 0.0)
    if reduction == "macro_f1":
        precision, recall = parts.mean(axis=0)
        return f1(precision, recall)
    return float(parts.mean())


def f1(precision: float, recall: float) -> float:
    """Return the harmonic mean of precision and recall, 0 when one of them is."""
    return float(2 * precision * recall / (precision + recall)) if precision > 0 and recall > 0 else 0.0


def _mean(values: Floats) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def _plain(value: Any) -> Any:
    """Turn arrays, tuples and numbers into what JSON knows; NaN becomes None, infinity its name."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value) if np.isfinite(value) else str(float(value))
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    return value if isinstance(value, (str, int, bool, type(None))) else repr(value)


def _restored(name: str, value: Any) -> Any:
    if name in {"bounds", "band", "absolute_band"}:
        return tuple(float("nan") if each is None else float(each) for each in value)
    if name == "depths":
        return tuple(value)
    return np.asarray(value, dtype=np.float64) if isinstance(value, list) else value
