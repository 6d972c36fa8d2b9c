"""Whether a version is no worse than another one, on the texts that both explain."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from interpreto_mlops.attributions.comparison import paired_tests
from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.pieces import Piece
from interpreto_mlops.audit.policies.schema import ChampionRule
from interpreto_mlops.audit.policies.selecting import chosen, missing, newest, nothing
from interpreto_mlops.audit.policies.threshold_rules import BEST_AT_0, about, lower_bound, reaches
from interpreto_mlops.audit.policies.verdicts import Outcome, RuleVerdict, Verdict, combine
from interpreto_mlops.tracking import schema

# What may differ without the scores meaning another thing.
_FREE = {"seed", "n_random", "dtype"}


def judge_champion(rule: ChampionRule, evidence: Evidence, champion: Evidence | None) -> RuleVerdict:
    """Judge whether a metric is no worse than the champion's by more than is allowed.

    Texts are matched by their content. It passes where the lower confidence bound of the mean difference is within what
    is allowed, fails where the mean difference itself is not, and is undecided in between.

    Arguments:
        rule: that is judged.
        evidence: of the version.
        champion: of the version that it is compared with, if one was named.
    """
    what = f"attribution scored by {rule.metric}"
    if champion is None:
        why = "no version to compare with was named; name one by --against"
        return RuleVerdict(rule.rule, rule.title, Verdict.UNDECIDED, why)
    if _same(evidence, champion):
        under = "" if champion.model.uri == evidence.model.uri else f", under {champion.model.uri!r}"
        why = f"{evidence.model.uri!r} was to be compared with itself{under}"
        return RuleVerdict(rule.rule, rule.title, Verdict.UNDECIDED, why)
    pieces, rivals = (
        newest(piece for piece in chosen(found, rule, "attributions") if rule.metric in piece.metrics)
        for found in (evidence, champion)
    )
    outcomes = [_compared(rule, evidence, champion, piece, rivals) for piece in pieces]
    outcomes += missing(evidence, rule, pieces, what)
    return combine(rule, outcomes, nothing(evidence, rule, what))


def _same(evidence: Evidence, champion: Evidence) -> bool:
    """Return whether two addresses are of one logged model: a copied version has that of the first."""
    own, other = evidence.model, champion.model
    return own.uri == other.uri or (own.model_id is not None and own.model_id == other.model_id)


def _compared(rule: ChampionRule, evidence: Evidence, champion: Evidence, piece: Piece, rivals: list[Piece]) -> Outcome:
    own = _by_text(evidence, piece, rule.metric)
    alike = [(rival, _by_text(champion, rival, rule.metric)) for rival in rivals if rival.method == piece.method]
    facts = {"metric": rule.metric, **about(piece), "champion": champion.model.uri}
    if not alike:
        why = nothing(champion, rule, f"attribution by {piece.method!r} scored by {rule.metric}")
        return Outcome(Verdict.UNDECIDED, why, (piece.place(),), facts)
    # Of the champion's explanations the one that shares most texts, the last of several.
    rival, other = max(alike, key=lambda pair: (len(own.keys() & pair[1].keys()), pair[0].began))
    places = (piece.place(schema.ATTRIBUTIONS_SCORES), rival.place(schema.ATTRIBUTIONS_SCORES))
    facts |= {"champion_run": rival.run_id}
    if differing := _differing(piece, rival, rule.metric):
        why = (
            f"{piece.title} and the champion's {rival.title} cannot be compared: they differ in {', '.join(differing)}"
        )
        return Outcome(Verdict.UNDECIDED, why, places, facts)
    shared = sorted(own.keys() & other.keys())
    differences = np.asarray([own[text] - other[text] for text in shared], dtype=np.float64)
    return _tested(rule, piece, rival, differences, places, facts)


def _tested(
    rule: ChampionRule,
    piece: Piece,
    rival: Piece,
    differences: np.ndarray[tuple[int], np.dtype[np.float64]],
    places: tuple[str, ...],
    facts: Mapping[str, Any],
) -> Outcome:
    n = len(differences)
    if n < rule.min_texts:
        few = f"{n} scored texts in common, and {rule.min_texts} are needed"
        why = f"{piece.title} and the champion's {rival.title} have {few}"
        return Outcome(Verdict.UNDECIDED, why, places, {**facts, "shared_texts": n})
    better = differences * (1 if piece.metrics[rule.metric].higher_is_better else -1)
    mean, bound = float(better.mean()), lower_bound(better, rule.confidence)
    p_value = float(paired_tests(better[:, None]).p_value[0])
    found = {**facts, "shared_texts": n, "difference": mean, "lower_bound": bound, "p_value": p_value}
    verdict = Verdict.PASSED if reaches(bound, -rule.by) else Verdict.UNDECIDED
    verdict = verdict if reaches(mean, -rule.by) else Verdict.FAILED
    words = (
        f"{rule.metric} of {piece.title} is {abs(mean):.4g} {'better' if mean >= 0 else 'worse'} than the champion's"
    )
    sure = f"on {n} shared texts (with confidence {rule.confidence:g} its difference is at least {bound:.4g})"
    return Outcome(verdict, f"{words} {sure}, and may be {rule.by:g} worse", places, {**found, "by": rule.by})


def _by_text(evidence: Evidence, piece: Piece, metric: str) -> dict[str, float]:
    """Return the metric of each text that has a value, by the text; of a text that is there twice the mean.

    Of a signed metric that is best at 0 it is the distance from 0.
    """
    scores = piece.scores
    if scores is None:
        return {}
    rows = scores[[schema.metric_key(str(each)) == metric for each in scores["metric"]]]
    found = defaultdict(list)
    # A row for each text, in the order of the texts.
    for item, value in zip(evidence.explanations(piece).explanations, rows["value"], strict=False):
        if not math.isnan(value):
            found[item.text].append(abs(float(value)) if metric in BEST_AT_0 else float(value))
    return {text: float(np.mean(values)) for text, values in found.items()}


def _differing(piece: Piece, rival: Piece, metric: str) -> list[str]:
    """Return the parameters in which two explanations, or their scores, differ."""
    pairs = [
        (piece.parameters, rival.parameters),
        (piece.metrics[metric].parameters, rival.metrics[metric].parameters),
    ]
    found = []
    for own, other in pairs:
        for name in sorted((own.keys() | other.keys()) - _FREE):
            values = [_kind(name, given.get(name)) for given in (own, other)]
            if values[0] != values[1]:
                found.append(f"{name} ({values[0]!r} and {values[1]!r})")
    return found


def _kind(name: str, value: Any) -> Any:
    # A replacement is known by its kind: the number of its token is the tokenizer's.
    return str(value).split(":")[0] if name == "replacement" else value
