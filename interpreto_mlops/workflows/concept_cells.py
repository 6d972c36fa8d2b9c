"""One dictionary of a concepts job on its way to a finished run, and the table of all."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from interpreto_mlops.concepts import (
    ActivationDensity,
    ConceptDictionary,
    ConceptImportance,
)
from interpreto_mlops.tracking.logged_models import LoggedFolder


@dataclass
class ConceptCell:
    """One dictionary on its way to a finished run.

    Arguments:
        layer: as the recipe calls it.
        path: the layer's module path.
        dictionary: fitted.
        metrics: by the run schema's names.
        importance: of the concepts for the classes, or for what a language model writes.
        density: how often each concept is active in the rows that it was scored on.
        run_id: of its run, once there is one.
        hash: of its full configuration, once its run is open.
        logged: the logged model, once there is one.
        registered: its registered name and version, for the best of a layer.
        held_out: whether its metrics are of texts that it was not fitted on.
        selected_by: the metric that decides which one is registered.
    """

    layer: int | str
    path: str
    dictionary: ConceptDictionary
    metrics: dict[str, float] = field(default_factory=dict)
    importance: ConceptImportance | None = None
    density: ActivationDensity | None = None
    run_id: str = ""
    hash: str = ""
    logged: LoggedFolder | None = None
    registered: tuple[str, str] | None = None
    held_out: bool = True
    selected_by: str = ""


_SHOWN = {
    "R² ↑": "reconstruction/r2",
    "L0": "complexity/l0",
    "dead ↓": "complexity/dead",
    "stability ↑": "stability/stability",
    "stab. random": "stability/stability_random",
}


def concept_table(cells: list[ConceptCell]) -> pd.DataFrame:
    """Return the results as a table: a row for each dictionary."""
    return pd.DataFrame(
        [
            {
                "layer": cell.path,
                "method": cell.dictionary.name,
                "concepts": cell.dictionary.n_concepts,
                "seed": cell.dictionary.seed,
                **{title: cell.metrics.get(name, float("nan")) for title, name in _SHOWN.items()},
                "registered as": "" if cell.registered is None else "{} v{}".format(*cell.registered),
            }
            for cell in cells
        ]
    )
