"""Every rule of a policy judged by a version's evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interpreto_mlops.audit.policies import schema
from interpreto_mlops.audit.policies.champion_rules import judge_champion
from interpreto_mlops.audit.policies.concept_rules import judge_concepts
from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.evidence_rules import judge_evidence
from interpreto_mlops.audit.policies.integrity_rules import judge_integrity
from interpreto_mlops.audit.policies.threshold_rules import judge_margin, judge_stability, judge_threshold
from interpreto_mlops.audit.policies.verdicts import RuleVerdict, Verdict
from interpreto_mlops.audit.policies.word_rules import judge_words
from interpreto_mlops.errors import DataError

_JUDGES: dict[str, Callable[[Any, Evidence], RuleVerdict]] = {
    "evidence": judge_evidence,
    "threshold": judge_threshold,
    "margin": judge_margin,
    "words": judge_words,
    "concepts": judge_concepts,
    "stability": judge_stability,
    "integrity": judge_integrity,
}


def judge(policy: schema.Policy, evidence: Evidence, champion: Evidence | None = None) -> list[RuleVerdict]:
    """Return the verdict on each rule of a policy, in its order.

    Arguments:
        policy: whose rules are judged.
        evidence: of the version.
        champion: of the version that it is compared with, if one was named.

    Raises:
        TrackingError: the store fails.
    """
    return [_judge(rule, evidence, champion) for rule in policy.rules]


def _judge(rule: schema.Rule, evidence: Evidence, champion: Evidence | None) -> RuleVerdict:
    try:
        if isinstance(rule, schema.ChampionRule):
            return judge_champion(rule, evidence, champion)
        return _JUDGES[rule.rule](rule, evidence)
    except DataError as error:
        return RuleVerdict(rule.rule, rule.title, Verdict.UNDECIDED, str(error))
