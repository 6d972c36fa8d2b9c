"""What an audit found, for readers, programs and exit codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from interpreto_mlops.audit.catalogue.texts import storable
from interpreto_mlops.audit.policies.verdicts import RuleVerdict, Verdict, worst
from interpreto_mlops.text.terminal import one_line

_CODES = {Verdict.PASSED: 0, Verdict.FAILED: 1, Verdict.UNDECIDED: 2}


@dataclass(frozen=True)
class Promotion:
    """What became of the alias that was to name the version after a pass.

    Arguments:
        alias: its name.
        moved: whether it names the version now.
        detail: a sentence without its dot.
    """

    alias: str
    moved: bool
    detail: str


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Arguments:
        uri: as it was given.
        pinned: the address that it meant when the audit began.
        subject: `model` or `dictionary`.
        policy: its name.
        policy_sha256: of its text.
        at: when the audit began, in UTC.
        rules: the verdict on each.
        against: the pinned address of the version that it was compared with.
        promote: the alias that was to be moved after a pass.
        set_aside: runs that name the version and are no evidence, and why.
        seals: of the runs that are evidence, the sha256 of their manifests.
        run_id: of the audit's run, once it is written.
        promotion: what became of the alias.
        notes: what could not be done beside the audit itself.
    """

    uri: str
    pinned: str
    subject: str
    policy: str
    policy_sha256: str
    at: str
    rules: tuple[RuleVerdict, ...]
    against: str | None = None
    promote: str | None = None
    set_aside: tuple[Mapping[str, str], ...] = ()
    seals: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    promotion: Promotion | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Failed where a rule failed, else undecided where one is, else passed."""
        return worst(rule.verdict for rule in self.rules)

    @property
    def exit_code(self) -> int:
        """0 where all passed and what was asked for was done, 1 where a rule failed, 2 where one could not be decided.

        A promotion that was due and did not come about is 1, too.
        """
        if self.verdict is Verdict.PASSED and self.promotion is not None and not self.promotion.moved:
            return 1
        return _CODES[self.verdict]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what `report/audit.json` holds, and what came after it."""
        values: Mapping[str, Any] = {
            **vars(self),
            "verdict": self.verdict.value,
            "rules": [rule.to_dict() for rule in self.rules],
            "promotion": None if self.promotion is None else vars(self.promotion),
            "exit_code": self.exit_code,
        }
        return {name: _plain(value) for name, value in values.items()}

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text that a terminal can be shown."""
        for rule in self.rules:
            yield one_line(f"{rule.verdict.value}: {rule.title}: {rule.detail}")
        for why, runs in self._set_aside_for().items():
            more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
            yield one_line(f"no evidence: run {runs[0]}{more}: {why}")
        for note in self.notes:
            yield one_line(f"note: {note}")
        counts = ", ".join(f"{n} {verdict.value}" for verdict in Verdict if (n := self.count(verdict)))
        yield one_line(
            f"{self.pinned}: {self.verdict.value} ({counts}) by the policy {self.policy!r}, run {self.run_id}"
        )
        if self.promotion is not None:
            yield one_line(self.promotion.detail)

    def _set_aside_for(self) -> dict[str, list[str]]:
        """Return the runs that are no evidence, by the reason."""
        found: dict[str, list[str]] = {}
        for aside in self.set_aside:
            found.setdefault(aside["why"], []).append(aside["run"])
        return found

    def count(self, verdict: Verdict) -> int:
        """Return how many rules have a verdict."""
        return sum(rule.verdict is verdict for rule in self.rules)


def _plain(value: Any) -> Any:
    """Return plain data as JSON and every file can hold it: no NaN, no half of a character."""
    if isinstance(value, Mapping):
        return {storable(str(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return storable(value) if isinstance(value, str) else value
