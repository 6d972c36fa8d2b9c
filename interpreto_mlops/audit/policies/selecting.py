"""Which explanations a rule looks at, and what is said where there are none."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.pieces import Piece
from interpreto_mlops.audit.policies.schema import SelectingRule
from interpreto_mlops.audit.policies.verdicts import Outcome, Verdict

_NAMED = 10


def chosen(evidence: Evidence, rule: SelectingRule, kind: str | None = None) -> list[Piece]:
    """Return the pieces that a rule's keys ask for, the oldest first.

    Arguments:
        evidence: of a version.
        rule: that looks at it.
        kind: `attributions` or `concepts`, where the rule is about one of them.
    """
    return [piece for piece in any_age(evidence, rule, kind) if is_fresh(evidence, rule, piece)]


def any_age(evidence: Evidence, rule: SelectingRule, kind: str | None = None) -> list[Piece]:
    """Return the pieces that a rule's keys ask for, those that are too old, too."""
    return [
        piece
        for piece in evidence.pieces
        if (kind is None or piece.kind == kind)
        and (rule.methods is None or piece.names & set(rule.methods))
        and (rule.layers is None or piece.layer in rule.layers)
        and (rule.data is None or rule.data in piece.data)
    ]


def is_fresh(evidence: Evidence, rule: SelectingRule, piece: Piece) -> bool:
    """Return whether a piece is as young as a rule asks for."""
    return rule.within_days is None or evidence.now - piece.began <= timedelta(days=rule.within_days)


def newest(pieces: Iterable[Piece]) -> list[Piece]:
    """Return, of pieces that come one in the place of the other, the last."""
    return list({piece.group: piece for piece in pieces}.values())


def missing(evidence: Evidence, rule: SelectingRule, pieces: Iterable[Piece], what: str) -> list[Outcome]:
    """Return an outcome for each method and layer that a rule names and no piece is of.

    Arguments:
        evidence: of a version.
        rule: that names them.
        pieces: that could decide it.
        what: they lack, in words.
    """
    there = list(pieces)
    named = [("method", name, {n for p in there for n in p.names}) for name in rule.methods or ()]
    named += [("layer", name, {str(p.layer) for p in there}) for name in rule.layers or ()]
    return [
        Outcome(
            Verdict.UNDECIDED, f"there is no {what} for the {kind} {name!r}{_of(evidence, rule)}", facts={kind: name}
        )
        for kind, name, known in named
        if name not in known
    ]


def unknown(evidence: Evidence) -> list[Outcome]:
    """Return an outcome for each run that is not as it was logged, or of which that cannot be told.

    It may have held what a rule looks for, so that without it nobody can say that it was not found.
    """
    return [
        Outcome(
            Verdict.UNDECIDED,
            f"the run {each.run_id} is no evidence, and what it found is not known: {each.why}; look at it, and delete "
            "it where it is to be left out",
            (f"runs:/{each.run_id}",),
            {"run": each.run_id},
        )
        for each in evidence.set_aside
        if each.broken or each.unsealed
    ]


def nothing(evidence: Evidence, rule: SelectingRule, what: str) -> str:
    """Return why nothing can be said where no piece could decide a rule."""
    return f"there is no {what}{_of(evidence, rule)}"


def _of(evidence: Evidence, rule: SelectingRule) -> str:
    """Return words on what was looked for, and on what there is."""
    asked = f" on the data {rule.data!r}" if rule.data is not None else ""
    asked += f" of the last {rule.within_days:g} days" if rule.within_days is not None else ""
    there = sorted({repr(piece.label) for piece in evidence.pieces})
    count = len(evidence.pieces)
    held = f"it has {count} explanations by {', '.join(there[:_NAMED])}" if count else "it has no explanation"
    aside = len(evidence.set_aside)
    others = f", and {aside} runs that are no evidence" if aside else ""
    return f"{asked} of {evidence.model.uri!r}: {held}{others}"
