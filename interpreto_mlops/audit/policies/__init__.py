"""Policies: what must be true of a model's evidence, in YAML, and the verdict on each rule of one."""

from __future__ import annotations

from interpreto_mlops.audit.policies.judging import judge
from interpreto_mlops.audit.policies.reading import load_policy, parse_policy
from interpreto_mlops.audit.policies.schema import Policy
from interpreto_mlops.audit.policies.verdicts import RuleVerdict, Verdict

__all__ = ["Policy", "RuleVerdict", "Verdict", "judge", "load_policy", "parse_policy"]
