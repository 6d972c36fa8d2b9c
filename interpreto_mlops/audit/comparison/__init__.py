"""Runs, suites, versions of models and dictionaries compared with each other."""

from __future__ import annotations

from interpreto_mlops.audit.comparison.comparing import compare_evidence
from interpreto_mlops.audit.comparison.results import EvidenceComparison

__all__ = ["EvidenceComparison", "compare_evidence"]
