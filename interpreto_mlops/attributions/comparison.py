"""Methods compared on the same texts: intervals, paired tests with Holm's correction, and what each method costs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from interpreto_mlops.attributions.metrics.results import Floats, MetricResult, SanityResult
from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.errors import InputError

ALPHA = 0.05
"""Differences whose corrected p-value is below it are called significant."""

FEWEST = 6
"""With fewer texts than these no paired test can give a p-value below `ALPHA`: 2 / 2 ** 5 is above it."""

TABLE_COLUMNS = (
    "method",
    "metric",
    "higher_is_better",
    "mean",
    "low",
    "high",
    "random_mean",
    "p_random",
    "best",
    "tied_with_best",
    "texts",
    "skipped",
    "evaluations",
    "seconds",
)
PAIR_COLUMNS = (
    "metric",
    "first",
    "second",
    "texts",
    "difference",
    "low",
    "high",
    "p_value",
    "p_holm",
    "better",
)

_BOOTSTRAP_DRAWS = 2000
_SIGN_DRAWS = 9999
_EXACT = 13
_BLOCK = 2**22


@dataclass(frozen=True)
class Paired:
    """Columns of paired differences compared with zero.

    Arguments:
        n: rows that a column has, shape (columns,).
        mean: of each column, shape (columns,).
        low, high: the 95 % bootstrap interval of the mean; NaN for fewer than two rows.
        p_value: of the two-sided sign-flip test that the differences are symmetric around zero; NaN without rows.
    """

    n: npt.NDArray[np.int64]
    mean: Floats
    low: Floats
    high: Floats
    p_value: Floats


def paired_tests(differences: Floats, *, level: float = 0.95, seed: int = 0) -> Paired:
    """Test columns of paired differences against zero.

    The interval resamples rows, the same ones for all columns. The test flips signs: under the null hypothesis that the
    two methods could be exchanged in every text, each difference may as well have the other sign. It tests the mean
    that the table shows, needs no distribution, and is exact up to 13 differences that are not zero; above that
    9,999 sets of signs are drawn, and the observed one counts as one of them. Differences of zero say nothing either
    way and change nothing. With fewer than six that are not zero no p-value can fall below 0.05.

    Arguments:
        differences: shape (rows, columns); NaN where one of the two has no value.
        level: of the interval.
        seed: of both.

    Source: Fisher 1935, The Design of Experiments, section 21; p-values of draws: Phipson & Smyth 2010.
    """
    known = np.isfinite(differences)
    filled = np.where(known, differences, 0.0)
    n = known.sum(axis=0)
    mean = np.where(n > 0, filled.sum(axis=0) / np.maximum(n, 1), np.nan)
    rng = np.random.default_rng(seed)
    low, high = _bootstrap(filled, known, level, rng)
    # A share of the size of the terms, below which sums differ by rounding alone.
    slack = 1e-9 * np.abs(filled).sum(axis=0)
    above, draws = _flipped(filled, np.abs(filled.sum(axis=0)) - slack, rng)
    p_value = (above + 1) / (draws + 1)
    for column in range(filled.shape[1]):
        values = filled[filled[:, column] != 0, column]
        if len(values) <= _EXACT:
            p_value[column] = _exact(values, abs(values.sum()) - slack[column])
    return Paired(n, mean, low, high, np.where(n > 0, p_value, np.nan))


def holm(p_values: Floats) -> Floats:
    """Return p-values corrected so that the chance of any false finding among them stays at its level; NaN stays.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    corrected = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _bootstrap(
    filled: Floats, known: npt.NDArray[np.bool_], level: float, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    rows, columns = filled.shape
    means = np.full((_BOOTSTRAP_DRAWS, columns), np.nan)
    if rows:
        step = max(1, _BLOCK // rows)
        share = np.full(rows, 1 / rows)
        for start in range(0, _BOOTSTRAP_DRAWS, step):
            # How often each row is drawn says all that its mean needs.
            counts = rng.multinomial(rows, share, size=min(step, _BOOTSTRAP_DRAWS - start)).astype(np.float64)
            sizes = counts @ known
            np.divide(counts @ filled, sizes, out=means[start : start + step], where=sizes > 0)
    enough = known.sum(axis=0) >= 2
    low, high = np.full(columns, np.nan), np.full(columns, np.nan)
    if enough.any():
        ends = [(1 - level) / 2, (1 + level) / 2]
        low[enough], high[enough] = np.nanquantile(means[:, enough], ends, axis=0)
    return low, high


def _flipped(filled: Floats, observed: Floats, rng: np.random.Generator) -> tuple[Floats, int]:
    """Return how many sets of drawn signs give a sum of at least the observed size, and how many were drawn."""
    rows, columns = filled.shape
    above = np.zeros(columns)
    step = max(1, _BLOCK // max(rows, 1))
    for start in range(0, _SIGN_DRAWS, step):
        size = (min(step, _SIGN_DRAWS - start), rows)
        signs = 2.0 * rng.integers(0, 2, size=size, dtype=np.int8) - 1.0
        above += (np.abs(signs @ filled) >= observed).sum(axis=0)
    return above, _SIGN_DRAWS


def _exact(values: Floats, observed: float) -> float:
    signs = 1.0 - 2.0 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
    return float((np.abs(signs @ values) >= observed).mean())


@dataclass(frozen=True)
class Comparison:
    """Methods compared by metrics on the same texts.

    Arguments:
        table: a row for each method and metric: mean, bootstrap interval (low, high), mean of random rankings, p-value
            of the paired test against them (Holm over the methods), whether it is the best mean, whether it does not
            differ significantly from the best, texts, texts skipped, evaluations and seconds of the method.
        pairs: a row for each metric and pair of methods: the mean of first − second over the texts that both have, its
            bootstrap interval, the p-value of the paired test before and after Holm's correction over the pairs of the
            metric, and which of the two is better where the difference is significant.
        results: of each method, by the metric's name.
        explanations: of each method.
        run_ids: of the methods' runs, where they were logged.
        report_run_id: of the run with the report, where it was logged.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    results: Mapping[str, Mapping[str, MetricResult]] = field(repr=False)
    explanations: Mapping[str, AttributionSet] = field(default_factory=dict, repr=False)
    run_ids: Mapping[str, str] = field(default_factory=dict)
    report_run_id: str | None = None

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        methods, metrics = self.table["method"].unique(), self.table["metric"].unique()
        return f"Comparison({len(methods)} methods by {len(metrics)} metrics)"

    def _repr_html_(self) -> str:
        return str(_visuals("comparison_html").render_fragment(self))

    def plot(self, cost: str = "evaluations") -> Any:
        """Draw faithfulness against cost as a matplotlib figure.

        Arguments:
            cost: `evaluations` or `seconds`, each for one text.
        """
        return _visuals("figures").cost_figure(self.table, cost=cost)


def compare(
    results: Mapping[str, Iterable[MetricResult]],
    costs: Mapping[str, tuple[float, float]] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare methods that were scored on the same texts, in the same order.

    Arguments:
        results: the metrics of each method; one that cannot judge a method is left out there.
        costs: the evaluations and seconds of each method.
        level: of the intervals.
        seed: of bootstrap and tests.

    Raises:
        InputError: the methods were not scored on the same number of texts.
    """
    by_name = {label: {result.name: result for result in given} for label, given in results.items()}
    metrics = dict.fromkeys(name for found in by_name.values() for name in found)
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for metric in metrics:
        column = {label: found[metric] for label, found in by_name.items() if metric in found}
        tested = _pairs(metric, column, level, seed)
        pairs += tested
        rows += _rows(metric, column, tested, dict(costs or {}), level, seed)
    return Comparison(
        pd.DataFrame(rows, columns=list(TABLE_COLUMNS)), pd.DataFrame(pairs, columns=list(PAIR_COLUMNS)), by_name
    )


def _pairs(metric: str, column: Mapping[str, MetricResult], level: float, seed: int) -> list[dict[str, Any]]:
    sizes = {len(result.values) for result in column.values()}
    if len(sizes) > 1:
        raise InputError(f"methods are compared on the same texts; {metric!r} has {sorted(sizes)} texts of them")
    names = list(combinations(column, 2))
    if not names:
        return []
    differences = np.stack([_merit(column[a]) - _merit(column[b]) for a, b in names], axis=1)
    tests = paired_tests(differences, level=level, seed=seed)
    corrected = holm(tests.p_value)
    rows = []
    for i, (a, b) in enumerate(names):
        higher = column[a].higher_is_better
        winner = a if (tests.mean[i] > 0) == higher else b
        values = (
            metric,
            a,
            b,
            int(tests.n[i]),
            tests.mean[i],
            tests.low[i],
            tests.high[i],
            tests.p_value[i],
            corrected[i],
            winner if corrected[i] < ALPHA else "",
        )
        rows.append(dict(zip(PAIR_COLUMNS, values, strict=True)))
    return rows


def _rows(
    metric: str,
    column: Mapping[str, MetricResult],
    tested: Sequence[Mapping[str, Any]],
    costs: Mapping[str, tuple[float, float]],
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    against = np.stack([result.values - result.random_values for result in column.values()], axis=1)
    p_random = holm(paired_tests(against, level=level, seed=seed).p_value)
    best = best_method(column)
    apart = {row["first"] if row["second"] == best else row["second"] for row in tested if row["better"] == best}
    rows = []
    for (label, result), p_value in zip(column.items(), p_random, strict=True):
        low, high = result.interval(level, seed)
        evaluations, seconds = costs.get(label, (np.nan, np.nan))
        values = (
            label,
            metric,
            result.higher_is_better,
            result.mean,
            low,
            high,
            result.random_mean,
            p_value,
            label == best,
            best is not None and label != best and label not in apart and not np.isnan(result.mean),
            len(result.values) - result.n_skipped,
            result.n_skipped,
            evaluations,
            seconds,
        )
        rows.append(dict(zip(TABLE_COLUMNS, values, strict=True)))
    return rows


def _merit(result: MetricResult) -> Floats:
    """Return what methods are compared by; of a sanity check the distance from 0, on either side of which is bad."""
    return np.abs(result.values) if isinstance(result, SanityResult) else result.values


def best_method(column: Mapping[str, MetricResult]) -> str | None:
    """Return the method of the best mean, the first of several; None when no method has one."""
    means = {label: abs(r.mean) if isinstance(r, SanityResult) else r.mean for label, r in column.items()}
    signed = {
        label: mean if column[label].higher_is_better else -mean for label, mean in means.items() if not np.isnan(mean)
    }
    return max(signed, key=lambda label: signed[label]) if signed else None


def pareto(costs: Floats, values: Floats, *, higher_is_better: bool) -> npt.NDArray[np.bool_]:
    """Return which points no other one beats, by costing no more and being no worse, and better in one of the two.

    Arguments:
        costs, values: shape (points,); a point with a NaN is beaten.
        higher_is_better: the direction of `values`.
    """
    worth = values if higher_is_better else -values
    known = np.isfinite(costs) & np.isfinite(worth)
    cheaper, better = costs[:, None] <= costs, worth[:, None] >= worth
    strictly = (costs[:, None] < costs) | (worth[:, None] > worth)
    beaten = np.any(cheaper & better & strictly & known[:, None], axis=0)
    best: npt.NDArray[np.bool_] = np.logical_and(known, np.logical_not(beaten))
    return best


def _visuals(module: str) -> Any:
    # Drawing lives a layer above: a result finds it by name, and only when somebody wants to look at it.
    return importlib.import_module(f"interpreto_mlops.visuals.{module}")
