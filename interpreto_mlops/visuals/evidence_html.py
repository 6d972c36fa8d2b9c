"""The page of a comparison of evidence, from the plain data of its JSON: it shows, and computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interpreto_mlops.visuals import figures
from interpreto_mlops.visuals.metric_names import metric_name
from interpreto_mlops.visuals.page import MINUS, number
from interpreto_mlops.visuals.report_html import (
    Block,
    Cell,
    Column,
    Paragraph,
    Picture,
    Report,
    Section,
    Table,
    Value,
)
from interpreto_mlops.visuals.report_html import render_page as render_report

_MOST_FIGURES = 3
_PAIRS_ABOUT = (
    "Difference of the means over the texts that both have; beneath, its bootstrap interval, and the p-value of a "
    "paired sign-flip test after Holm's correction over all pairs and methods of the metric. Where it is significant "
    "the better one is named: blue for the first, red for the second. Without a text in common the means alone are "
    "subtracted, and there is no test."
)

Row = Mapping[str, Any]


def render_page(content: Row, title: str, command: str = "") -> str:
    """Return the comparison as a whole HTML page.

    Arguments:
        content: `EvidenceComparison.to_dict()`.
        title: of the page.
        command: what repeats it.
    """
    sections = [section for section in _sections(content) if section.blocks]
    return render_report(Report(title, sections, lead(content), command=command))


def lead(content: Row) -> str:
    """Return the finding in a few sentences."""
    said = []
    pairs = content["pairs"]
    if pairs:
        differ = sum(bool(row["better"]) for row in pairs)
        tested = sum(bool(row["paired"]) for row in pairs)
        said.append(f"{differ} of {tested} differences between metrics on the same texts are significant.")
    elif content["single"]:
        said.append("Metrics of dictionaries side by side.")
    return " ".join(said)


def _sections(content: Row) -> Iterator[Section]:
    yield Section("What is compared", _subjects(content))
    yield Section("Faithfulness", [block for group in _methods(content["table"]) for block in _scores(content, group)])
    yield Section("Metrics of dictionaries", _single(content["single"]))


def _subjects(content: Row) -> list[Block]:
    rows: list[list[Value | Cell]] = [
        [Cell(each["label"], link=each["link"] or ""), each["kind"], each["given"], each["pinned"]]
        for each in content["subjects"]
    ]
    blocks: list[Block] = [Table([Column("subject"), Column("kind"), Column("given"), Column("which is now")], rows)]
    blocks += [_groups(content["groups"])] if content["groups"] else []
    blocks += [_pairing(content["pairing"])] if content["pairing"] else []
    return blocks + [Paragraph(note) for note in content["notes"]]


def _groups(groups: Sequence[Row]) -> Table:
    columns = [Column("method"), Column("subject"), Column("data"), Column("digest"), Column("texts", True, digits=0)]
    rows: list[list[Value | Cell]] = [
        [Cell(each["method"], link=each["link"] or "", note=_settings(each["settings"]))]
        + [each[name] for name in ("subject", "data", "digest", "texts")]
        for each in groups
    ]
    return Table(columns, rows, folded="The runs whose evidence is compared", open=False)


def _settings(settings: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _pairing(pairing: Sequence[Row]) -> Table:
    columns = [
        Column("method"),
        Column("first"),
        Column("second"),
        Column("told by", meaning="digest: the data are the same; content: they are not, and texts are compared"),
        Column("same texts", True, digits=0),
        Column("only first", True, digits=0),
        Column("only second", True, digits=0),
    ]
    names = ("method", "first", "second", "by", "shared", "only_first", "only_second")
    return Table(columns, [[each[name] for name in names] for each in pairing], "Only the same texts are paired.")


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _scores(content: Row, method: str) -> list[Block]:
    table = [row for row in content["table"] if row["method"] == method]
    pairs = [row for row in content["pairs"] if row["method"] == method]
    blocks: list[Block] = [_means(method, table)]
    blocks += [_differences(pairs, table)] if pairs else []
    if _methods(content["table"]).index(method) < _MOST_FIGURES:
        panels: dict[str, dict[str, tuple[float, float, float, float]]] = {}
        for row in table:
            drawn = (_real(row["mean"]), _real(row["random_mean"]), _real(row["low"]), _real(row["high"]))
            panels.setdefault(row["metric"], {})[row["subject"]] = drawn
        directions = {row["metric"]: row["higher_is_better"] for row in table}
        picture = figures.comparison_figure(panels, higher_is_better=directions)
        blocks.append(Picture(figures.to_png(picture), f"The metrics of {method} with their intervals"))
    return blocks


def _real(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _means(method: str, table: Sequence[Row]) -> Table:
    metrics = list(dict.fromkeys(row["metric"] for row in table))
    known = {(row["subject"], row["metric"]): row for row in table}
    columns = [Column(method), *(_metric_column(table, metric) for metric in metrics)]
    subjects = dict.fromkeys(row["subject"] for row in table)
    rows: list[list[Value | Cell]] = [
        [subject, *(_mean_cell(known.get((subject, metric))) for metric in metrics)] for subject in subjects
    ]
    about = (
        "Mean over each one's own texts; beneath, its bootstrap interval, the mean of random rankings of the same "
        "texts with the p-value of the paired test against them, and the number of texts."
    )
    return Table(columns, rows, about)


def _metric_column(rows: Sequence[Row], metric: str, *, explained: bool = True) -> Column:
    higher = next(row["higher_is_better"] for row in rows if row["metric"] == metric)
    known = metric_name(metric)
    return Column(known.title, True, higher, known.meaning if explained else "")


def _mean_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell(None)
    note = f"{number(row['low'])} … {number(row['high'])}"
    if row["random_mean"] is not None:
        note += f"\nrandom {number(row['random_mean'])} ({_p(row['p_random'])})"
    skipped = f", {row['skipped']} not judged" if row["skipped"] else ""
    return Cell(row["mean"], note=f"{note}\n{row['texts']} texts{skipped}")


def _differences(pairs: Sequence[Row], table: Sequence[Row]) -> Table:
    metrics = list(dict.fromkeys(row["metric"] for row in pairs))
    columns = [Column("first − second"), *(_metric_column(table, metric, explained=False) for metric in metrics)]
    known = {(row["first"], row["second"], row["metric"]): row for row in pairs}
    rows: list[list[Value | Cell]] = [
        [f"{a} {MINUS} {b}", *(_pair_cell(known.get((a, b, metric))) for metric in metrics)]
        for a, b in dict.fromkeys((row["first"], row["second"]) for row in pairs)
    ]
    return Table(columns, rows, _PAIRS_ABOUT)


def _pair_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell(None)
    shown = "n/a" if row["difference"] is None else f"{row['difference']:+.3f}".replace("-", MINUS)
    if not row["paired"]:
        return Cell(shown, note="other texts: not tested")
    note = f"{number(row['low'])} … {number(row['high'])}\n{_p(row['p_holm'])}, {row['texts']} texts"
    if not row["better"]:
        return Cell(shown, note=note)
    return Cell(
        shown, note=f"{note}\n{row['better']} is better", tone="first" if row["better"] == row["first"] else "second"
    )


def _p(value: float | None) -> str:
    if value is None:
        return "p n/a"
    return "p < 0.001" if value < 1e-3 else f"p {number(value)}"


def _single(rows: Sequence[Row]) -> list[Block]:
    if not rows:
        return []
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    columns = [Column("metric"), *(Column(subject, True) for subject in subjects)]
    blocks: list[Block] = [
        Paragraph(
            "Each of these is one number for a whole dictionary and its data, not a mean over texts: there is nothing "
            "to resample, so it has no interval and no test. Fits with other seeds would tell how much it varies."
        )
    ]
    for method in _methods(rows):
        own = [row for row in rows if row["method"] == method]
        known = {(row["metric"], row["subject"]): row for row in own}
        lines: list[list[Value | Cell]] = [
            [_named(own, metric), *(_single_cell(known.get((metric, subject))) for subject in subjects)]
            for metric in dict.fromkeys(row["metric"] for row in own)
        ]
        blocks.append(Table(columns, lines, method))
    return blocks


def _named(rows: Sequence[Row], metric: str) -> str:
    higher = next(row["higher_is_better"] for row in rows if row["metric"] == metric)
    return metric if higher is None else f"{metric} {'↑' if higher else '↓'}"


def _single_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell(None)
    return Cell(row["value"], note="" if row["random"] is None else f"random {number(row['random'])}")
