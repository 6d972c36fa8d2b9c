"""Metrics within bounds, better than random ones, no worse than a champion's; dictionaries that are stable."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from interpreto_mlops.attributions.comparison import FEWEST, paired_tests
from interpreto_mlops.attributions.metrics import SanityCheck
from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.pieces import Metric, Piece
from interpreto_mlops.audit.policies.schema import MarginRule, SelectingRule, StabilityRule, ThresholdRule
from interpreto_mlops.audit.policies.selecting import chosen, missing, newest, nothing
from interpreto_mlops.audit.policies.verdicts import Outcome, RuleVerdict, Verdict, combine
from interpreto_mlops.tracking import schema

STABILITY = "stability/stability"
BEST_AT_0 = frozenset({schema.metric_key(SanityCheck.name)})
"""Metrics whose value is bad on either side of 0."""
_ROUNDING = 1e-9

Judge = Callable[[Piece, Metric], Outcome]


def judge_threshold(rule: ThresholdRule, evidence: Evidence) -> RuleVerdict:
    """Judge whether a metric lies within its bounds, in the last run of each method."""

    def judge(piece: Piece, metric: Metric) -> Outcome:
        low, high = rule.min, rule.max
        fits = (low is None or reaches(metric.value, low)) and (high is None or reaches(-metric.value, -high))
        asked = " and ".join(
            f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None
        )
        detail = f"{rule.metric} is {metric.value:.4g} of {piece.title}, and must be {asked}"
        return _outcome(fits, detail, piece, rule.metric, value=metric.value, min=low, max=high)

    return _each(rule, evidence, rule.metric, judge)


def judge_margin(rule: MarginRule, evidence: Evidence) -> RuleVerdict:
    """Judge whether a metric is better than that of random rankings by enough, in the last run of each method."""

    def judge(piece: Piece, metric: Metric) -> Outcome:
        gain, detail = _gain(rule.metric, piece, metric)
        if math.isnan(gain):
            return _unknown(detail, piece, rule.metric)
        facts: dict[str, object] = {"value": metric.value, "random": metric.random, "margin": gain}
        if rule.confidence is not None:
            gain = _lower_bound(rule.metric, piece, metric, rule.confidence)
            if math.isnan(gain):
                few = f"on {metric.n_texts or 0} texts, and {FEWEST} are needed to say how sure"
                return _unknown(f"{detail}, {few}", piece, rule.metric)
            facts |= {"lower_bound": gain, "confidence": rule.confidence}
            detail += f", by at least {gain:.4g} with confidence {rule.confidence:g}"
        detail += f"; {rule.at_least:g} is asked for"
        return _outcome(reaches(gain, rule.at_least), detail, piece, rule.metric, **facts, at_least=rule.at_least)

    return _each(rule, evidence, rule.metric, judge)


def judge_stability(rule: StabilityRule, evidence: Evidence) -> RuleVerdict:
    """Judge whether the fits of each dictionary with several seeds find the same concepts."""

    def judge(piece: Piece, metric: Metric) -> Outcome:
        facts: dict[str, object] = {"value": metric.value, "random": metric.random, "min": rule.min}
        detail = f"the stability of {piece.title} is {metric.value:.4g}, and must be at least {rule.min:g}"
        fits = reaches(metric.value, rule.min)
        if rule.over_random is not None:
            gain, words = _gain(STABILITY, piece, metric)
            if math.isnan(gain):
                return _unknown(words, piece, STABILITY)
            detail += f"; it is {gain:.4g} above random directions, and {rule.over_random:g} is asked for"
            fits = fits and reaches(gain, rule.over_random)
            facts |= {"margin": gain, "over_random": rule.over_random}
        return _outcome(fits, detail, piece, STABILITY, **facts)

    pieces = newest(chosen(evidence, rule, "concepts"))
    # Of one that was fitted once nothing is known, and it is one of those that the rule is about.
    outcomes = [_judged(piece, STABILITY, judge) for piece in pieces]
    outcomes += missing(evidence, rule, pieces, "dictionary")
    return combine(rule, outcomes, nothing(evidence, rule, "dictionary"))


def _each(rule: SelectingRule, evidence: Evidence, name: str, judge: Judge) -> RuleVerdict:
    # An explanation that was not scored comes in no scored one's place.
    pieces = newest(piece for piece in chosen(evidence, rule) if name in piece.metrics)
    outcomes = [_judged(piece, name, judge) for piece in pieces]
    outcomes += missing(evidence, rule, pieces, f"sealed value of {name}")
    return combine(rule, outcomes, nothing(evidence, rule, f"sealed value of {name}"))


def _judged(piece: Piece, name: str, judge: Judge) -> Outcome:
    metric = piece.metrics.get(name)
    if metric is None:
        return _unknown(f"{piece.title} was not scored by {name}", piece, name)
    if math.isnan(metric.value) or piece.n_texts == 0:
        return _unknown(f"{name} could not be computed of {piece.title}", piece, name)
    return judge(piece, metric)


def _gain(name: str, piece: Piece, metric: Metric) -> tuple[float, str]:
    """Return how much better than random a metric is, NaN where it cannot be told, and words for it."""
    if name in BEST_AT_0:
        return math.nan, f"{name} is best at 0, as random rankings are in their mean, and has no margin over them"
    if metric.random is None or math.isnan(metric.random):
        return math.nan, f"{name} of {piece.title} has no random baseline beside it"
    if metric.higher_is_better is None:
        return math.nan, f"neither end of {name} is the better one"
    gain = (metric.value - metric.random) * (1 if metric.higher_is_better else -1)
    words = f"{name} of {piece.title} is {metric.value:.4g}, and {metric.random:.4g} of random ones"
    return gain, f"{words}: {abs(gain):.4g} {'better' if gain >= 0 else 'worse'}"


def _lower_bound(name: str, piece: Piece, metric: Metric, confidence: float) -> float:
    scores = piece.scores
    if scores is None or metric.higher_is_better is None or (metric.n_texts or 0) < FEWEST:
        return math.nan
    rows = scores[[schema.metric_key(str(each)) == name for each in scores["metric"]]]
    # A text that is there twice says no more than once.
    by_text = (rows["value"] - rows["random"]).groupby(rows["text"], sort=False).mean()
    gains = by_text.to_numpy(dtype=np.float64) * (1 if metric.higher_is_better else -1)
    if np.isfinite(gains).sum() < FEWEST:
        return math.nan
    return lower_bound(gains, confidence)


def lower_bound(differences: np.ndarray[tuple[int], np.dtype[np.float64]], confidence: float) -> float:
    """Return the one-sided bootstrap bound below the mean of paired differences; NaN for fewer than two."""
    # The two-sided interval leaves out as much on either side.
    return float(paired_tests(differences[:, None], level=2 * confidence - 1).low[0])


def reaches(value: float, bound: float) -> bool:
    """Return whether a value is at a bound or above, but for the rounding of a mean."""
    return value >= bound - _ROUNDING * max(1.0, abs(bound))


def _outcome(fits: bool, detail: str, piece: Piece, name: str, **facts: object) -> Outcome:
    verdict = Verdict.PASSED if fits else Verdict.FAILED
    return Outcome(verdict, detail, (piece.place(),), {"metric": name, **about(piece), **facts})


def _unknown(detail: str, piece: Piece, name: str) -> Outcome:
    return Outcome(Verdict.UNDECIDED, detail, (piece.place(),), {"metric": name, **about(piece)})


def about(piece: Piece) -> dict[str, object]:
    """Return what facts say of a piece."""
    layer = {} if piece.layer is None else {"layer": piece.layer, "n_concepts": piece.size}
    return {"run": piece.run_id, "method": piece.label, **layer, "texts": piece.n_texts}
