"""matplotlib figures from results, as `Figure` objects: pyplot and its global state are never used."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from interpreto_mlops.attributions.comparison import pareto
from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.errors import InputError
from interpreto_mlops.visuals.lettering import drawable, set_plainly
from interpreto_mlops.visuals.metric_names import metric_name
from interpreto_mlops.visuals.page import MINUS, arrow, named, number, signed

if TYPE_CHECKING:
    from interpreto_mlops.concepts.importance import ConceptImportance
    from interpreto_mlops.concepts.interpretation import ConceptDescription
    from interpreto_mlops.concepts.metrics import ActivationDensity

FOR, AGAINST, UNKNOWN = "#2166ac", "#b2182b", "#9aa3ad"
_INK, _DIM, _LINE, _PANEL = "#1b2430", "#5b6573", "#d9dee4", "#f4f6f8"
_DIVERGING = LinearSegmentedColormap.from_list("against_for", [AGAINST, "#f4a582", "#f7f7f7", "#92c5de", FOR])
# Okabe and Ito's colours, told apart by colour-blind readers; the markers tell them apart in print.
_METHODS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MIN_SHARE = 0.005
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_NAMES = 8  # methods whose names do not lie upon each other; of more the legend alone tells
_COSTS = {"evaluations": "evaluations for one text", "seconds": "seconds for one text"}


def attribution_figure(attribution: Attribution, target: int = 0, *, max_elements: int = 30) -> Figure:
    """Draw the scores of one text as bars, in the order of the text.

    Arguments:
        attribution: the scores.
        target: the row of `attribution.scores`.
        max_elements: of longer texts only the elements of the largest scores are drawn.
    """
    scores = attribution.scores[target]
    shown = _largest(scores, max_elements)
    if attribution.prompt_tokens is not None:
        # What comes after the target has no score, and that is no finding.
        shown = [i for i in shown if not np.isnan(scores[i])]
    figure = _figure(6.4, 1.1 + 0.26 * max(len(shown), 1))
    axes = figure.add_subplot()
    errors = None if attribution.standard_error is None else attribution.standard_error[target][shown]
    values = np.where(np.isfinite(scores[shown]), scores[shown], 0.0)
    axes.barh(range(len(shown)), values, color=[_colour(scores[i]) for i in shown], height=0.72, zorder=2)
    if errors is not None:
        axes.errorbar(values, range(len(shown)), xerr=np.nan_to_num(errors), fmt="none", ecolor=_INK, lw=0.9, capsize=2)
    axes.set_yticks(range(len(shown)), [drawable(attribution.elements[i], 24) or " " for i in shown])
    axes.invert_yaxis()
    axes.axvline(0, color=_DIM, lw=0.8)
    name, left_out = drawable(attribution.targets[target].name), len(attribution) - len(shown)
    axes.set_xlabel(f"{MINUS} against    score of {drawable(attribution.method)}    for +")
    more = f" · {len(shown)} largest of {len(attribution)}" if left_out else ""
    axes.set_title(
        f"for {name}, whose output is {number(attribution.output[target])}{more}", loc="left", fontsize=10, color=_INK
    )
    return _styled(figure, grid="x")


def curves_figure(results: Sequence[MetricResult]) -> Figure:
    """Draw the curves of metrics that have one: a panel for each metric, a line for each method, random dashed.

    Arguments:
        results: metrics of methods; those without a curve are left out.
    """
    results = [result for result in results if result.curve is not None]
    names = list(dict.fromkeys(result.name for result in results))
    methods = list(dict.fromkeys(result.method for result in results))
    figure = _figure(max(4.6, 4.2 * len(names)), 3.5)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), place)
        panel = [result for result in results if result.name == name]
        for result in panel:
            _curve(axes, result, methods.index(result.method))
        better = panel[0].higher_is_better
        known = metric_name(name)
        axes.set_title(f"{drawable(known.title)} {arrow(better)}", loc="left", fontsize=10, color=_INK)
        axes.set_xlabel("elements put back, %" if "insertion" in name else "elements taken away, %")
        scale = "concept's activation" if known.is_of_concepts else "probability"
        axes.set_ylabel(scale if place == 1 else "")
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i].startswith("random "))
        axes.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False, fontsize=8)
    return _styled(figure, grid="both")


def comparison_figure(
    table: Mapping[str, Mapping[str, tuple[float, float, float, float]]],
    *,
    higher_is_better: Mapping[str, bool] | None = None,
) -> Figure:
    """Compare methods: a panel for each metric, a dot with its interval for each method, random as a grey tick.

    Arguments:
        table: metric, then method, then (value, random, low, high); NaN where there is none.
        higher_is_better: direction of each metric, where the name alone does not say it.
    """
    methods = list(dict.fromkeys(method for row in table.values() for method in row))
    columns = min(max(len(table), 1), 4)
    rows = max(math.ceil(len(table) / columns), 1)
    figure = _figure(1.8 + 2.3 * columns, 0.3 + (0.8 + 0.3 * len(methods)) * rows)
    for place, (metric, row) in enumerate(table.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        for y, method in enumerate(methods):
            if method in row:
                _dot(axes, y, row[method], y)
        better = (higher_is_better or {}).get(metric, metric_name(metric).higher_is_better)
        axes.set_title(f"{drawable(metric_name(metric).title)} {arrow(better)}", loc="left", fontsize=10, color=_INK)
        axes.set_yticks(
            range(len(methods)), [drawable(m) for m in methods] if place % columns == 0 else [""] * len(methods)
        )
        axes.set_ylim(max(len(methods), 1) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.margins(x=0.08)
    figure.supxlabel("dot: mean with its interval · grey tick: random ranking", fontsize=8, color=_DIM)
    return _styled(figure, grid="x", background=_PANEL)


def cost_figure(table: pd.DataFrame, *, cost: str = "evaluations") -> Figure:
    """Draw faithfulness over cost: a panel for each metric, a point with its interval for each method.

    Methods that no other one beats, by costing no more and being no worse, are ringed, joined by a line and, of up to 8
    methods, named.

    Arguments:
        table: of a `Comparison`.
        cost: `evaluations` or `seconds`, drawn for one text on a logarithmic axis.

    Raises:
        InputError: another cost.
    """
    if cost not in _COSTS:
        raise InputError(f"the cost must be one of {', '.join(map(repr, _COSTS))}, not {cost!r}")
    metrics, methods = list(dict.fromkeys(table["metric"])), list(dict.fromkeys(table["method"]))
    columns = min(max(len(metrics), 1), 2 if len(metrics) in (2, 4) else 3)
    rows = max(math.ceil(len(metrics) / columns), 1)
    figure = _figure(0.6 + 3.6 * columns, 0.5 + 2.9 * rows + 0.22 * math.ceil(len(methods) / 3))
    for place, metric in enumerate(metrics, start=1):
        axes = figure.add_subplot(rows, columns, place)
        _cost_panel(axes, table[table["metric"] == metric], methods, cost)
        axes.set_title(
            f"{drawable(metric_name(metric).title)} {_arrow(table, metric)}", loc="left", fontsize=10, color=_INK
        )
        axes.set_xlabel(_COSTS[cost])
    if figure.axes:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return _styled(figure, grid="both")


def _arrow(table: pd.DataFrame, metric: str) -> str:
    return arrow(bool(table.loc[table["metric"] == metric, "higher_is_better"].iloc[0]))


def _cost_panel(axes: Axes, rows: pd.DataFrame, methods: Sequence[str], cost: str) -> None:
    costs = (rows[cost] / rows["texts"].clip(lower=1)).where(rows[cost] > 0).to_numpy(dtype=np.float64)
    values = rows["mean"].to_numpy(dtype=np.float64)
    best = pareto(costs, values, higher_is_better=bool(rows["higher_is_better"].iloc[0]))
    for x, y, ringed, row in zip(costs, values, best, rows.to_dict("records"), strict=True):
        colour, marker = _look(methods.index(row["method"]))
        label = drawable(row["method"], 40)
        axes.plot([x], [y], marker=marker, ms=6, ls="", color=colour, label=label, zorder=3)
        if np.isfinite([x, row["low"], row["high"]]).all():
            axes.plot([x, x], [row["low"], row["high"]], color=colour, lw=1.6, alpha=0.5, solid_capstyle="round")
        if ringed:
            axes.plot([x], [y], marker="o", ms=12, ls="", mfc="none", mec=_INK, mew=1.0, zorder=4)
            if len(methods) <= _MOST_NAMES:
                _name(axes, x, y, label, right=x * x > np.nanmin(costs) * np.nanmax(costs))
    front = np.flatnonzero(best)[np.argsort(costs[best], kind="stable")]
    axes.plot(costs[front], values[front], color=_INK, lw=0.8, ls=":", zorder=1)
    random = rows["random_mean"].mean()
    if np.isfinite(random):
        axes.axhline(random, color=UNKNOWN, lw=1.2, ls="--", zorder=1, label="random ranking (mean)")
    if np.isfinite(costs).any():
        _log_axis(axes, float(np.nanmin(costs)) / 2, float(np.nanmax(costs)) * 2)
        axes.margins(y=0.14)


def _name(axes: Axes, x: float, y: float, label: str, *, right: bool) -> None:
    """Write a name beside its point, towards the middle of the panel."""
    side, offset = ("right", -9) if right else ("left", 9)
    written = axes.annotate(
        label, (x, y), xytext=(offset, 7), textcoords="offset points", fontsize=7, color=_INK, ha=side, zorder=5
    )
    # Else the panel would be made narrower for a name that reaches over its edge.
    written.set_in_layout(False)


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """Make x logarithmic, with plain numbers; powers of ten are mathematics to matplotlib, which labels never are."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    wide = high / low > 30
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 3000 else (1.0, 3.0) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _look(place: int) -> tuple[str, str]:
    """Return a colour and a marker for each of up to 49 methods that no other one has together."""
    return _METHODS[place % len(_METHODS)], _MARKERS[(place + place // len(_METHODS)) % len(_MARKERS)]


def matrix_figure(attribution: Attribution, *, max_targets: int = 40, max_elements: int = 60) -> Figure:
    """Draw the scores of all targets: targets down, elements across, hatched where there is nothing to attribute.

    Arguments:
        attribution: the scores.
        max_targets: of more targets the first are drawn.
        max_elements: of longer texts the elements of the largest scores are drawn, in the order of the text.
    """
    largest = np.abs(np.where(np.isfinite(attribution.scores), attribution.scores, 0.0)).max(axis=0, initial=0.0)
    elements = _largest(largest, max_elements)
    scores = attribution.scores[:max_targets][:, elements]
    n_rows, n_columns = scores.shape
    figure = _figure(2.6 + 0.27 * max(n_columns, 4), 1.9 + 0.24 * max(n_rows, 2))
    axes = figure.add_subplot()
    limit = float(np.abs(scores[np.isfinite(scores)]).max(initial=0.0)) or 1.0
    if scores.size:
        axes.patch.set(hatch="////", edgecolor=_LINE)
        masked = np.ma.masked_invalid(scores)
        image = axes.imshow(masked, cmap=_DIVERGING, norm=TwoSlopeNorm(0, -limit, limit), aspect="auto")
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
        bar.ax.tick_params(labelsize=7)
    axes.set_yticks(
        range(n_rows), [drawable(named(target.name), 20) or " " for target in attribution.targets[:max_targets]]
    )
    names = [drawable(named(attribution.elements[i]), 16) or " " for i in elements]
    axes.set_xticks(range(n_columns), names, rotation=90)
    if attribution.boundary is not None and n_columns:
        continued = int((attribution.spans[elements, 0] < attribution.boundary).sum())
        axes.axvline(continued - 0.5, color=_INK, lw=1.0)
    rows_left, columns_left = len(attribution.targets) - n_rows, len(attribution) - n_columns
    parts = [f"scores of {drawable(attribution.method)}, a row for each target"]
    parts += [f"first {n_rows} of {len(attribution.targets)} targets"] if rows_left else []
    parts += [f"{n_columns} largest of {len(attribution)} elements"] if columns_left else []
    axes.set_title(" · ".join(parts), loc="left", fontsize=10, color=_INK)
    return _styled(figure, grid="")


def importance_figure(
    importance: ConceptImportance, descriptions: Sequence[ConceptDescription], *, max_concepts: int = 16
) -> Figure:
    """Draw how much each concept speaks for each class: concepts down, classes across, red against, blue for.

    Arguments:
        importance: of the concepts for the classes.
        descriptions: give the concepts' labels.
        max_concepts: the concepts of the largest share in any class are drawn.
    """
    shares = np.nan_to_num(np.asarray(importance.normalised, dtype=np.float64))
    largest = np.abs(shares).max(axis=0, initial=0.0)
    # Rows of zeros only say that there are more concepts; one is kept so that there is something to see.
    n_shown = min(max(int((largest >= _MIN_SHARE).sum()), 1), max_concepts)
    concepts = np.argsort(-largest, kind="stable")[:n_shown]
    labels = {description.concept: description.label for description in descriptions}
    figure = _figure(3.6 + 0.75 * len(importance.classes), 1.7 + 0.3 * len(concepts))
    axes = figure.add_subplot()
    shown = shares[:, concepts].T
    limit = float(np.abs(shown).max(initial=0.0)) or 1.0
    image = axes.imshow(shown, cmap=_DIVERGING, norm=TwoSlopeNorm(0, -limit, limit), aspect="auto")
    for (y, x), value in np.ndenumerate(shown):
        ink = "white" if abs(value) > 0.7 * limit else _INK
        axes.text(x, y, _percent(value), ha="center", va="center", fontsize=7, color=ink)
    axes.set_yticks(range(len(concepts)), [f"{drawable(labels.get(int(c), ''))}  {c}".strip() for c in concepts])
    names = [drawable(name, 18) for name in importance.classes]
    axes.set_xticks(
        range(len(names)), names, rotation=35 if len(names) > 4 else 0, ha="right" if len(names) > 4 else "center"
    )
    axes.set_title("share of each class's importance, %", loc="left", fontsize=10, color=_INK)
    figure.colorbar(image, ax=axes, format=lambda value, _: _percent(value), fraction=0.04)
    return _styled(figure, grid="")


def training_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw a training history: a panel for each quantity over epochs or steps.

    Arguments:
        history: one mapping for each point; `step` or `epoch`, where it is there, is the horizontal axis.
    """
    quantities = list(dict.fromkeys(key for point in history for key in point if key not in ("step", "epoch")))
    axis = next((name for name in ("step", "epoch") if history and all(name in point for point in history)), "")
    columns = min(max(len(quantities), 1), 4)
    rows = max(math.ceil(len(quantities) / columns), 1)
    figure = _figure(0.8 + 2.6 * columns, 2.4 * rows)
    x = [point[axis] for point in history] if axis else range(1, len(history) + 1)
    for place, name in enumerate(quantities, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.plot(x, [point.get(name, math.nan) for point in history], color=FOR, lw=1.6)
        axes.set_title(drawable(metric_name(name).title), loc="left", fontsize=10, color=_INK)
        axes.set_xlabel(axis or "point")
    return _styled(figure, grid="both")


def density_figure(density: ActivationDensity) -> Figure:
    """Draw how often concepts are active: a histogram over the share of rows, on a logarithmic axis.

    Arguments:
        density: of each concept; those never active are named in the title.
    """
    figure = _figure(5.4, 2.9)
    axes = figure.add_subplot()
    axes.bar(
        density.edges[:-1], density.counts, width=np.diff(density.edges), align="edge", color=FOR, edgecolor="white"
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10.0**value:.3g}"))
    axes.set_xlabel("share of the rows in which a concept is active")
    axes.set_ylabel("concepts")
    never = f"; {density.n_dead} never active" if density.n_dead else ""
    axes.set_title(
        f"{len(density.shares)} concepts over {density.n_rows:,} rows{never}", loc="left", fontsize=10, color=_INK
    )
    return _styled(figure, grid="y")


def to_png(figure: Figure, *, dots_per_inch: int = 144) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.05)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _styled(figure: Figure, *, grid: str, background: str = "white") -> Figure:
    for axes in figure.axes:
        axes.set_facecolor(background)
        axes.tick_params(labelsize=8, colors=_DIM, labelcolor=_INK, length=0)
        axes.xaxis.label.set(color=_DIM, fontsize=8)
        axes.yaxis.label.set(color=_DIM, fontsize=8)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        if grid and axes.get_label() != "<colorbar>":
            axes.grid(axis=grid, color=_LINE, lw=0.7)  # type: ignore[arg-type]
            axes.set_axisbelow(True)
    return set_plainly(figure)


def _largest(scores: npt.NDArray[np.float64], count: int) -> list[int]:
    size = np.where(np.isfinite(scores), np.abs(scores), -1.0)
    return sorted(np.argsort(-size, kind="stable")[:count].tolist())


def _colour(score: float) -> str:
    return UNKNOWN if not np.isfinite(score) else FOR if score >= 0 else AGAINST


def _curve(axes: Axes, result: MetricResult, place: int) -> None:
    assert result.curve is not None
    colour, marker = _look(place)
    label = f"{drawable(result.method)}  {number(result.mean)}"
    every = max(len(result.curve) // 6, 1)
    x, y = _points(result.curve)
    axes.plot(x, y, color=colour, marker=marker, markevery=every, ms=4, lw=1.7, label=label)
    if result.random_curve is not None:
        x, y = _points(result.random_curve)
        # All methods face the same random rankings of the same texts; one line in the legend says it.
        first = not any(line.get_linestyle() == "--" for line in axes.get_lines())
        axes.plot(
            x,
            y,
            color=UNKNOWN,
            ls="--",
            lw=1.3,
            zorder=1,
            label=f"random  {number(result.random_mean)}" if first else None,
        )


def _points(curve: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return 100 * curve[:, 0], curve[:, 1]


def _dot(axes: Axes, y: float, cell: Iterable[float], place: int) -> None:
    value, random, low, high = cell
    colour = _METHODS[place % len(_METHODS)]
    if np.isfinite([low, high]).all():
        axes.plot([low, high], [y, y], color=colour, lw=2.2, solid_capstyle="round", alpha=0.45)
    if np.isfinite(random):
        axes.plot([random, random], [y - 0.28, y + 0.28], color=UNKNOWN, lw=1.6)
    if np.isfinite(value):
        axes.plot([value], [y], marker="o", ms=6, color=colour)


def _percent(value: float) -> str:
    return signed(100 * value, 0) if abs(value) >= _MIN_SHARE else "0"
