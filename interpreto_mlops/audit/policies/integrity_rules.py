"""Whether a version and the runs that explain it are as they were logged."""

from __future__ import annotations

from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.schema import IntegrityRule
from interpreto_mlops.audit.policies.verdicts import Outcome, RuleVerdict, Verdict, combine
from interpreto_mlops.tracking.verification import BROKEN, UNDECIDED, verify_evidence

_VERDICTS = {"intact": Verdict.PASSED, "broken": Verdict.FAILED, "undecided": Verdict.UNDECIDED}


def judge_integrity(rule: IntegrityRule, evidence: Evidence) -> RuleVerdict:
    """Judge whether files, manifests and what they refer to are as they were: of the version, and of each run.

    The runs are those that are evidence, and those that would be if their seals held.
    """
    outcomes = [_of_version(evidence)]
    for aside in evidence.set_aside:
        if aside.broken or aside.unsealed:
            verdict = Verdict.FAILED if aside.broken else Verdict.UNDECIDED
            place = f"runs:/{aside.run_id}"
            outcomes.append(Outcome(verdict, f"run {aside.run_id}: {aside.why}", (place,), {"run": aside.run_id}))
    runs = dict.fromkeys(piece.run_id for piece in evidence.pieces)
    outcomes += [
        Outcome(Verdict.PASSED, f"run {run_id} is as it was sealed", (f"runs:/{run_id}",), {"run": run_id})
        for run_id in runs
    ]
    if not runs:
        why = f"there is no finished and sealed run of {evidence.model.uri!r} that could be intact"
        outcomes.append(Outcome(Verdict.UNDECIDED, why))
    return combine(rule, outcomes, "there is nothing to compare")


def _of_version(evidence: Evidence) -> Outcome:
    uri = evidence.model.uri
    found = verify_evidence(evidence.store, uri)
    verdict = _VERDICTS[found.verdict]
    telling = BROKEN if verdict is Verdict.FAILED else UNDECIDED
    reasons = [f"{each.subject}: {each.detail}" for each in found.findings if each.verdict in telling]
    detail = "; ".join(reasons) if reasons else f"the {found.n_files} files of {uri!r} are as they were logged"
    facts = {"uri": uri, "files": found.n_files, "findings": [dict(vars(each)) for each in found.findings]}
    return Outcome(verdict, detail, (uri,), facts)
