"""What a metric of labels finds: a value for each concept, its baselines, its interval, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interpreto_mlops.concepts.interpretation_metrics.judging import Cost
from interpreto_mlops.concepts.interpretation_metrics.statistics import (
    AnswerMetric,
    Floats,
    Judged,
    purity,
    responsiveness,
)
from interpreto_mlops.errors import InputError

_N_RANDOM = 20
_N_BOOTSTRAP = 1000
_CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False, repr=False)
class InterpretationScore:
    """What a metric finds of the labels of concepts.

    Arguments:
        metric: the metric.
        labels: of the concepts that are alive.
        judged: what was answered for each of them.
        shuffled: for each the label of another concept, and what was answered; None where that was not asked.
        skipped: why other concepts were not asked about.
        cost: what was asked.
        parameters: of the metric.
        min_parsed: the least share of the examples whose answer could be read, of a concept and of all.
        seed: of permutations and resamples.
    """

    metric: AnswerMetric
    labels: Mapping[int, str]
    judged: Mapping[int, Judged]
    shuffled: Mapping[int, tuple[str, Judged]] | None
    skipped: Mapping[int, str]
    cost: Cost
    parameters: Mapping[str, Any] = field(default_factory=dict)
    min_parsed: float = 0.8
    seed: int = 0

    def __repr__(self) -> str:
        n = len({*self.judged, *self.skipped})
        return f"InterpretationScore({self.name!r}, mean={self.mean:.3f}, {len(self.values)} of {n} concepts)"

    @property
    def name(self) -> str:
        """The metric's name in runs."""
        return self.metric.name

    @property
    def concepts(self) -> tuple[int, ...]:
        """The concepts that were asked about."""
        return tuple(sorted(self.judged))

    @cached_property
    def values(self) -> dict[int, float]:
        """The value of each concept that has one."""
        return self._values(self.judged)

    @cached_property
    def shuffled_values(self) -> dict[int, float]:
        """The value of each concept with the label of another one."""
        return self._values({concept: judged for concept, (_, judged) in (self.shuffled or {}).items()})

    @cached_property
    def random_values(self) -> dict[int, float]:
        """The mean value of each concept when its own answers are given to random examples, over 20 draws."""
        found = {}
        for concept in self.values:
            rng = np.random.default_rng([self.seed, concept, 1])
            drawn = [self.metric.compute(self.judged[concept].permuted(rng)) for _ in range(_N_RANDOM)]
            defined = [value for value in drawn if not np.isnan(value)]
            found[concept] = float(np.mean(defined)) if defined else float("nan")
        return found

    @property
    def parsed(self) -> float:
        """The share of the examples whose answer could be read."""
        return _parsed(self.judged)

    @property
    def reason(self) -> str | None:
        """Why there is no mean, or None."""
        return self._refusal(self.judged, self.values)

    @property
    def reasons(self) -> dict[int, str]:
        """Why concepts have no value."""
        found = dict(self.skipped)
        for concept in self.judged.keys() - self.values.keys():
            share = self.judged[concept].parsed
            few = f"only {share:.0%} of its examples have an answer that can be read; {self.min_parsed:.0%} are needed"
            found[concept] = few if share < self.min_parsed else self.metric.undefined
        return dict(sorted(found.items()))

    @property
    def mean(self) -> float:
        """The mean over the concepts that have a value; NaN where `reason` says why there is none."""
        return float("nan") if self.reason else float(np.mean(list(self.values.values())))

    @property
    def random(self) -> float:
        """What the same answers reach when they are given to random examples: chance."""
        defined = [value for value in self.random_values.values() if not np.isnan(value)]
        return float("nan") if self.reason or not defined else float(np.mean(defined))

    @property
    def shuffled_mean(self) -> float:
        """What the labels of other concepts reach; NaN where that was not asked, or too few answers can be read."""
        judged = {concept: judged for concept, (_, judged) in (self.shuffled or {}).items()}
        if self._refusal(judged, self.shuffled_values):
            return float("nan")
        return float(np.mean(list(self.shuffled_values.values())))

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean: Student's t over concepts, or over the resampled examples of a single one.

        Resamples of few concepts would hold the truth far less often than in 95 % of cases: in half of them for two.
        """
        if self.reason:
            return float("nan"), float("nan")
        if len(self.values) == 1:
            return self.interval_of(next(iter(self.values)))
        values = np.asarray(list(self.values.values()))
        error = values.std(ddof=1) / np.sqrt(len(values))
        half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * error)
        least, most = self.metric.bounds
        return max(least, self.mean - half), min(most, self.mean + half)

    def interval_of(self, concept: int) -> tuple[float, float]:
        """Return the 95 % percentile interval of one concept's value, over resampled examples.

        Raises:
            InputError: the concept has no value.
        """
        if concept not in self.values:
            raise InputError(f"the concept {concept!r} has no value: {self.reasons.get(concept, 'it was not asked')}")
        rng = np.random.default_rng([self.seed, concept, 3])
        judged, fixed = self.judged[concept], self.metric.fixed
        return _percentiles(lambda: self.metric.compute(judged.resampled(rng, fixed)))

    @property
    def metrics(self) -> dict[str, float]:
        """The mean, its baselines and the ends of its interval by their names in runs; nothing that has no value.

        Where the value has no sign, the mean `_auroc` is there, too, and that with shuffled labels, `_shuffled_auroc`;
        beside purity the mean `_prevalence`.
        """
        low, high = self.interval
        found = {"": self.mean, "_random": self.random, "_shuffled": self.shuffled_mean, "_low": low, "_high": high}
        others = {concept: judged for concept, (_, judged) in (self.shuffled or {}).items()}
        for name in self.metric.told:
            found[f"_{name}"] = float("nan") if self.reason else self._told(name, self.judged, self.values)
            if not np.isnan(self.shuffled_mean):
                found[f"_shuffled_{name}"] = self._told(name, others, self.shuffled_values)
        return {self.name + ending: value for ending, value in found.items() if not np.isnan(value)}

    def scored_by(self, metric: AnswerMetric) -> InterpretationScore:
        """Return the same answers scored by another metric: purity and responsiveness are of the same ratings.

        Raises:
            InputError: the metric is of other answers.
        """
        if metric.name != self.name and {metric, self.metric} != {responsiveness, purity}:
            raise InputError(f"the answers of {self.name!r} say nothing of {metric.name!r}")
        return replace(self, metric=metric)

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each concept: label, value, baselines, share parsed, why it has no value, and details."""
        rows = []
        for concept in sorted({*self.judged, *self.skipped}):
            judged = self.judged.get(concept)
            other = (self.shuffled or {}).get(concept)
            row = {
                "concept": concept,
                "label": self.labels.get(concept),
                "value": self.values.get(concept, float("nan")),
                "random": self.random_values.get(concept, float("nan")),
                "shuffled": self.shuffled_values.get(concept, float("nan")),
                "shuffled_label": other and other[0],
                "parsed": judged.parsed if judged else float("nan"),
                "reason": self.reasons.get(concept),
            }
            details = {} if judged is None else self.metric.details(judged)
            of_other = {} if other is None else self.metric.details(other[1])
            beside = {f"shuffled_{name}": of_other.get(name, float("nan")) for name in self.metric.told}
            rows.append({**row, **details, **(beside if self.shuffled else {})})
        return pd.DataFrame(rows)

    def _values(self, judged: Mapping[int, Judged]) -> dict[int, float]:
        readable = {concept: each for concept, each in sorted(judged.items()) if each.parsed >= self.min_parsed}
        found = {concept: self.metric.compute(each) for concept, each in readable.items()}
        return {concept: value for concept, value in found.items() if not np.isnan(value)}

    def _told(self, name: str, judged: Mapping[int, Judged], values: Mapping[int, float]) -> float:
        return float(np.mean([self.metric.details(judged[concept])[name] for concept in values]))

    def _refusal(self, judged: Mapping[int, Judged], values: Mapping[int, float]) -> str | None:
        if not judged:
            why = next(iter(self.skipped.values()), "none was given")
            return f"no concept could be scored; the first: {why}"
        if (share := _parsed(judged)) < self.min_parsed:
            return f"only {share:.0%} of the answers can be read, and {self.min_parsed:.0%} are needed"
        return None if values else f"no concept has a value: {self.metric.undefined}"


def _parsed(judged: Mapping[int, Judged]) -> float:
    asked = sum(each.asked for each in judged.values())
    return sum(each.n_answered for each in judged.values()) / asked if asked else 0.0


def _percentiles(draw: Callable[[], float]) -> tuple[float, float]:
    drawn: Floats = np.asarray([draw() for _ in range(_N_BOOTSTRAP)])
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)
