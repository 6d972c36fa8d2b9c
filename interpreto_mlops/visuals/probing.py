"""What layers know: scores of probes over layers, a panel for each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interpreto_mlops.visuals.figures import _DIM, _INK, _figure, _look, _styled
from interpreto_mlops.visuals.lettering import drawable
from interpreto_mlops.visuals.metric_names import metric_name
from interpreto_mlops.visuals.page import arrow


@dataclass(frozen=True)
class LayerScore:
    """A score at a layer.

    Arguments:
        mean: over folds.
        low, high: its interval.
        random: what dealt-out labels, or a control task, give; None without one.
    """

    mean: float
    low: float
    high: float
    random: float | None = None


def probing_figure(layers: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[LayerScore]]]) -> Figure:
    """Draw scores over layers: a panel for each metric, a line with its band for each probe, chance dashed.

    Arguments:
        layers: their names, in the order of the scores.
        panels: for each metric and each probe its scores, one for each layer.
    """
    figure = _figure(0.8 + 3.4 * max(1, len(panels)), 3.4)
    for place, (metric, probes) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for number, (name, scores) in enumerate(probes.items()):
            _line(axes, name, scores, number)
        known = metric_name(metric)
        axes.set_title(f"{drawable(known.title)} {arrow(known.higher_is_better)}", loc="left", fontsize=10, color=_INK)
        axes.set_xticks(range(len(layers)), [drawable(layer, 16) for layer in layers])
        axes.set_xlabel("layer")
        axes.margins(x=0.06)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _styled(figure, grid="y")


def _line(axes: Axes, name: str, scores: Sequence[LayerScore], number: int) -> None:
    colour, marker = _look(number)
    places = np.arange(len(scores))
    axes.plot(places, [each.mean for each in scores], color=colour, marker=marker, ms=4, lw=1.5, label=drawable(name))
    axes.fill_between(
        places, [each.low for each in scores], [each.high for each in scores], color=colour, alpha=0.14, lw=0
    )
    if any(each.random is not None for each in scores):
        chance = [np.nan if each.random is None else each.random for each in scores]
        axes.plot(places, chance, color=colour if number else _DIM, lw=1.0, ls="--", alpha=0.7)
