"""The verdict on a rule: what was found, and the evidence that decided it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interpreto_mlops.audit.policies.schema import Rule
from interpreto_mlops.registry import Choice

_TOLD = 5


class Verdict(Choice):
    """What is said of a rule, and of a whole audit."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


_WORST = (Verdict.FAILED, Verdict.UNDECIDED, Verdict.PASSED)


@dataclass(frozen=True)
class Outcome:
    """What one piece of evidence says of a rule.

    Arguments:
        verdict: of this piece alone.
        detail: a sentence without its dot.
        evidence: addresses of the runs and files that it comes from.
        facts: numbers and names, as plain JSON.
    """

    verdict: Verdict
    detail: str
    evidence: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RuleVerdict:
    """The verdict on a rule.

    Arguments:
        rule: its kind.
        title: what the report calls it.
        verdict: passed, failed, or undecided where evidence is missing.
        detail: a sentence or a few that say why.
        evidence: addresses of the runs and files that decided it.
        facts: what was found, piece by piece, as plain JSON.
    """

    rule: str
    title: str
    verdict: Verdict
    detail: str
    evidence: tuple[str, ...] = ()
    facts: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "rule": self.rule,
            "title": self.title,
            "verdict": self.verdict.value,
            "detail": self.detail,
            "evidence": list(self.evidence),
            "facts": [dict(each) for each in self.facts],
        }


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return failed where one failed, else undecided where one is; of nothing nothing can be said."""
    found = set(verdicts)
    return next((verdict for verdict in _WORST if verdict in found), Verdict.UNDECIDED)


def combine(rule: Rule, outcomes: Sequence[Outcome], nothing: str) -> RuleVerdict:
    """Return the verdict that follows from all pieces of evidence: each of them must pass.

    Arguments:
        rule: that is judged.
        outcomes: of the pieces.
        nothing: why it is undecided where there is no piece at all.
    """
    if not outcomes:
        return RuleVerdict(rule.rule, rule.title, Verdict.UNDECIDED, nothing)
    verdict = worst(outcome.verdict for outcome in outcomes)
    deciding = [outcome for outcome in outcomes if outcome.verdict is verdict]
    told = "; ".join(outcome.detail for outcome in deciding[:_TOLD])
    more = len(deciding) - _TOLD
    return RuleVerdict(
        rule.rule,
        rule.title,
        verdict,
        f"{told}; and {more} more" if more > 0 else told,
        tuple(dict.fromkeys(place for outcome in deciding for place in outcome.evidence)),
        tuple({"verdict": outcome.verdict.value, **outcome.facts} for outcome in outcomes),
    )
