"""Concepts learned from labels: probes, how selective they are, and what the model makes of their directions.

Every file of the package that defines families registers them in `PROBES`.
"""

from interpreto_mlops.concepts.probes.activation_vectors import TCAVResult, tcav
from interpreto_mlops.concepts.probes.base import PROBES, Probe
from interpreto_mlops.concepts.probes.labels import label_concepts
from interpreto_mlops.concepts.probes.selectivity import ProbeScores, cross_validate
from interpreto_mlops.registry import discover

discover("interpreto_mlops.concepts.probes")

__all__ = ["PROBES", "Probe", "ProbeScores", "TCAVResult", "cross_validate", "label_concepts", "tcav"]
