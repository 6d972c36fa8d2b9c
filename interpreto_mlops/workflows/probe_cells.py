"""One probe of a job on its way to a finished run, and the table of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
from interpreto_mlops.concepts import Probe, ProbeScores
from interpreto_mlops.tracking.logged_models import LoggedFolder

Shown = dict[str, str]


@dataclass
class ProbeCell:
    """One probe of a layer, a method and a column of labels.

    Arguments:
        layer: as the recipe calls it.
        path: the layer's module path.
        label: the column.
        probe: fitted on all labelled texts.
        scores: of the same family, cross-validated; None until they are known.
        metrics: by the run schema's names.
        run_id: of its run.
        hash: of its full configuration.
        logged: the logged model.
        registered: its registered name and version, for the best of a column.
    """

    layer: int | str
    path: str
    label: str
    probe: Probe
    scores: ProbeScores | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str = ""
    hash: str = ""
    logged: LoggedFolder | None = None
    registered: tuple[str, str] | None = None

    @property
    def known(self) -> ProbeScores:
        """The scores, once they are there."""
        assert self.scores is not None
        return self.scores


SHOWN: Shown = {
    "balanced accuracy": "probing/balanced_accuracy",
    "AUROC": "probing/auroc",
    "control": "probing/control",
    "selectivity": "probing/selectivity",
}
"""The metrics of tables, by their heads."""


def best_of(cells: Sequence[ProbeCell], metric: str) -> ProbeCell:
    """Return the probe with the best value of a metric; one that could not be computed is the worst."""
    known = CONCEPT_METRICS.get(metric)
    return max(cells, key=lambda cell: known.goodness(cell.metrics[metric]))


def probe_table(cells: list[ProbeCell]) -> pd.DataFrame:
    """Return the results as a table: a row for each probe."""
    return pd.DataFrame(
        [
            {
                "layer": cell.path,
                "label": cell.label,
                "method": cell.probe.name,
                **{title: cell.metrics.get(name, float("nan")) for title, name in SHOWN.items()},
                "registered as": "" if cell.registered is None else "{} v{}".format(*cell.registered),
            }
            for cell in cells
        ]
    )
