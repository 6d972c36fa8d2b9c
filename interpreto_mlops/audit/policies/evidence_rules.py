"""Whether a version was explained: lately, on the data and by the methods that a policy asks for, and scored."""

from __future__ import annotations

import math
from itertools import product

from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.pieces import Piece
from interpreto_mlops.audit.policies.schema import EvidenceRule
from interpreto_mlops.audit.policies.selecting import any_age, is_fresh, newest, nothing
from interpreto_mlops.audit.policies.verdicts import Outcome, RuleVerdict, Verdict, combine
from interpreto_mlops.concepts.metrics import METRICS as CONCEPT_METRICS

_WHAT = "finished and sealed explanation"
_DAY = 86400.0


def judge_evidence(rule: EvidenceRule, evidence: Evidence) -> RuleVerdict:
    """Judge whether the evidence is there: what is missing leaves it undecided, what falls short of it fails."""
    of_rule = any_age(evidence, rule)
    methods: list[str | None] = [*rule.methods] if rule.methods else [None]
    layers: list[str | None] = [*rule.layers] if rule.layers else [None]
    outcomes = []
    for method, layer in product(methods, layers):
        pieces = [piece for piece in of_rule if _is(piece, method, layer)]
        outcomes.append(_explained(rule, evidence, pieces, method, layer))
    if all(outcome.verdict is Verdict.PASSED for outcome in outcomes):
        outcomes += [_scored(rule, evidence, metric) for metric in rule.metrics or ()]
    return combine(rule, outcomes, nothing(evidence, rule, _WHAT))


def _is(piece: Piece, method: str | None, layer: str | None) -> bool:
    return (method is None or method in piece.names) and (layer is None or piece.layer == layer)


def _explained(
    rule: EvidenceRule, evidence: Evidence, pieces: list[Piece], method: str | None, layer: str | None
) -> Outcome:
    by = ("" if method is None else f" by {method!r}") + ("" if layer is None else f" at {layer!r}")
    if not pieces:
        return Outcome(Verdict.UNDECIDED, nothing(evidence, rule, _WHAT + by), facts={"method": method, "layer": layer})
    enough = [piece for piece in pieces if piece.n_texts >= rule.min_texts]
    last = (enough or pieces)[-1]
    age = (evidence.now - last.began).total_seconds() / _DAY
    facts = {"method": last.method, "run": last.run_id, "days": round(age, 3), "texts": last.n_texts}
    if last.n_texts == 0:
        return Outcome(Verdict.UNDECIDED, f"{last.title} explains no text", (last.place(),), facts)
    if not enough:
        few = f"{last.title} explains {last.n_texts} texts, and {rule.min_texts} are asked for"
        return Outcome(Verdict.FAILED, few, (last.place(),), facts)
    if not is_fresh(evidence, rule, last):
        old = f"the last explanation{by}, {last.title}, began {age:.1f} days ago, and {rule.within_days:g} are allowed"
        return Outcome(Verdict.FAILED, old, (last.place(),), facts)
    return Outcome(
        Verdict.PASSED, f"{last.title} explains {last.n_texts} texts, {age:.1f} days ago", (last.place(),), facts
    )


def _scored(rule: EvidenceRule, evidence: Evidence, metric: str) -> Outcome:
    """Judge whether a metric has a value for every method that it could be of."""
    kind = "concepts" if metric in CONCEPT_METRICS else "attributions"
    pieces = [piece for piece in any_age(evidence, rule, kind) if is_fresh(evidence, rule, piece)]
    pieces = newest(piece for piece in pieces if piece.n_texts >= rule.min_texts)
    lacking = [(piece, why) for piece in pieces if (why := _lacks(rule, piece, metric))]
    if not pieces or lacking:
        why = f"{lacking[0][0].title} {lacking[0][1]}" if lacking else "there is no explanation that it could judge"
        places = tuple(piece.place() for piece, _ in lacking)
        return Outcome(Verdict.UNDECIDED, f"{metric} has no value: {why}", places, {"metric": metric})
    places = tuple(piece.place() for piece in pieces)
    return Outcome(Verdict.PASSED, f"{metric} has a value", places, {"metric": metric, "runs": len(pieces)})


def _lacks(rule: EvidenceRule, piece: Piece, metric: str) -> str:
    """Return what keeps a metric of a piece from being one of enough texts, or nothing."""
    found = piece.metrics.get(metric)
    if found is None:
        return "was not scored by it"
    if math.isnan(found.value):
        return "could not be scored by it"
    if found.n_texts is not None and found.n_texts < rule.min_texts:
        return f"was scored by it on {found.n_texts} texts, and {rule.min_texts} are asked for"
    return ""
