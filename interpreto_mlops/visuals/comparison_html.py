"""Methods compared, as blocks of a report and as a piece of HTML for a notebook."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from interpreto_mlops.attributions.comparison import ALPHA, Comparison
from interpreto_mlops.visuals import figures, page
from interpreto_mlops.visuals.metric_names import metric_name
from interpreto_mlops.visuals.page import MINUS, number
from interpreto_mlops.visuals.report_html import Block, Cell, Column, Picture, Table

_OPEN_PAIRS = 10


def comparison_figures(comparison: Comparison) -> Iterator[tuple[str, Figure, str]]:
    """Yield the figures of a comparison, each with its name and what is to be seen on it."""
    table = comparison.table
    if table.empty:
        return
    panels = {str(metric): _panel(rows) for metric, rows in table.groupby("metric", sort=False)}
    directions = dict(zip(table["metric"], table["higher_is_better"], strict=True))
    yield (
        "comparison",
        figures.comparison_figure(panels, higher_is_better=directions),
        "Each metric of each method with its interval, beside random rankings",
    )
    if (table["evaluations"] > 0).any():
        yield "cost", figures.cost_figure(table), "Each metric of each method over its evaluations for one text"
    curved = [
        dataclasses.replace(result, method=label)
        for label, results in comparison.results.items()
        for result in results.values()
        if result.curve is not None
    ]
    if curved:
        yield "curves", figures.curves_figure(curved), "Insertion and deletion curves of each method"


def comparison_blocks(
    comparison: Comparison,
    links: Mapping[str, str] | None = None,
    drawn: Mapping[str, tuple[Figure, str]] | None = None,
) -> list[Block]:
    """Return a comparison as blocks of a report: the table, the paired differences, the figures.

    Arguments:
        comparison: what is shown.
        links: where each method's run is.
        drawn: the figures by name, each with what is to be seen on it; drawn here by default.
    """
    if drawn is None:
        drawn = {name: (figure, alt) for name, figure, alt in comparison_figures(comparison)}
    blocks: list[Block] = [methods_table(comparison, links)]
    if len(comparison.pairs):
        blocks.append(pairs_table(comparison))
    return blocks + [Picture(figures.to_png(figure), alt) for figure, alt in drawn.values()]


def methods_table(comparison: Comparison, links: Mapping[str, str] | None = None) -> Table:
    """Return the table of methods: each metric's mean, its interval beneath, the best marked, and the costs."""
    table = comparison.table
    metrics = list(dict.fromkeys(table["metric"]))
    columns = [Column("method"), *(_metric_column(table, metric) for metric in metrics)]
    columns += [
        Column("evaluations", True, False, "rows and gradients that the method asks of the model for one text", 0),
        Column(
            "seconds",
            True,
            False,
            "for all texts, less what an earlier method has evaluated already",
            2,
        ),
    ]
    known = {(row["method"], row["metric"]): row for row in table.to_dict("records")}
    rows: list[list[str | int | float | Cell | None]] = []
    for label, explanations in comparison.explanations.items():
        asked = explanations.counters.get("evaluations_asked")
        rows.append(
            [
                Cell(label, link=(links or {}).get(label, "")),
                *(_score_cell(known.get((label, metric))) for metric in metrics),
                None if asked is None else asked / max(len(explanations), 1),
                explanations.seconds,
            ]
        )
    about = (
        "Mean over the texts; beneath, its 95 % bootstrap interval, and random rankings of the same texts. "
        "★ best mean; ≈ not significantly different from it, or from random "
        f"(paired tests, Holm's correction, {100 * ALPHA:.0f} %)."
    )
    return Table(columns, rows, about if metrics else "")


def _metric_column(table: pd.DataFrame, metric: str) -> Column:
    higher = bool(table.loc[table["metric"] == metric, "higher_is_better"].iloc[0])
    known = metric_name(metric)
    return Column(known.title, True, higher, known.meaning)


def _score_cell(row: Mapping[Any, Any] | None) -> Cell:
    if row is None:
        return Cell(None)
    note = f"{number(row['low'])} … {number(row['high'])}{_random_note(row)}"
    return Cell(row["mean"], row["best"], note, tone="tied" if row["tied_with_best"] else "")


def _random_note(row: Mapping[Any, Any]) -> str:
    if math.isnan(row["random_mean"]):
        return ""
    better = (row["mean"] > row["random_mean"]) == row["higher_is_better"]
    how = "≈ " if row["p_random"] >= ALPHA else "" if better else "worse than "
    return f"\n{how}random {number(row['random_mean'])}"


def _panel(rows: pd.DataFrame) -> dict[str, tuple[float, float, float, float]]:
    values = zip(rows["mean"], rows["random_mean"], rows["low"], rows["high"], strict=True)
    return dict(zip(rows["method"], values, strict=True))


def pairs_table(comparison: Comparison) -> Table:
    """Return the table of differences: a row for each pair of methods, a column for each metric."""
    pairs = comparison.pairs
    metrics = list(dict.fromkeys(pairs["metric"]))
    columns = [Column("first − second"), *(_metric_column(comparison.table, metric) for metric in metrics)]
    columns = [dataclasses.replace(column, meaning="") for column in columns]
    rows: list[list[str | int | float | Cell | None]] = []
    for (first, second), group in pairs.groupby(["first", "second"], sort=False):
        found = {row["metric"]: row for row in group.to_dict("records")}
        rows.append([f"{first} − {second}", *(_pair_cell(found.get(metric)) for metric in metrics)])
    significant, count = int((pairs["better"] != "").sum()), len(pairs)
    about = (
        "Difference of the means on the same texts; beneath, its 95 % bootstrap interval, and the p-value of a paired "
        "sign-flip test after Holm's correction over the pairs of the metric. Where it is significant, "
        "the better method is named: blue for the first, red for the second."
    )
    folded = f"{significant} of {count} paired differences between methods are significant"
    return Table(columns, rows, about, folded=folded, open=len(rows) <= _OPEN_PAIRS)


def _pair_cell(row: Mapping[Any, Any] | None) -> Cell:
    if row is None:
        return Cell(None)
    difference, low, high = (_fixed(row[name]) for name in ("difference", "low", "high"))
    note = f"{low} … {high}\np {'< 0.001' if row['p_holm'] < 1e-3 else number(row['p_holm'])}"
    if not row["better"]:
        return Cell(difference, note=note)
    tone = "first" if row["better"] == row["first"] else "second"
    return Cell(difference, note=f"{note} · {row['better']}", tone=tone)


def _fixed(value: float) -> str:
    """Write a difference with as many decimals as its neighbours, however small it is."""
    return number(value) if math.isnan(value) else f"{value:+.3f}".replace("-", MINUS)


def render_fragment(comparison: Comparison) -> str:
    """Return a piece of HTML with its own style, for a notebook cell."""
    return page.render("comparison_fragment.html", blocks=comparison_blocks(comparison), summary=repr(comparison))
