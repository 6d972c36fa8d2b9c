"""The page of a comparison of evidence, from the plain data of its JSON: it shows, and computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interpreto_mlops.visuals import figures
from interpreto_mlops.visuals.metric_names import metric_name
from interpreto_mlops.visuals.page import MINUS, excerpt, number
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
_MOST_ROWS = 200
_MOST_SAID = 3
_MOST_CHARACTERS = 300
_MEASURES = {
    "spearman": "correlation of the ranks of a text's words",
    "kendall": "pairs of words in the same order less those in the opposite one, as a share",
    "overlap": "share of the words with the highest scores that both have among them",
}
_COSINE = "cosine of decoder directions"
_CORRELATION = "correlation of codes"
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
    ranked = [row for row in content["agreement"] if row["measure"] == "spearman" and row["mean"] is not None]
    said += [
        f"{row['first']} and {row['second']} rank words alike by {number(row['mean'])} ({row['method']}, Spearman)."
        for row in ranked[:_MOST_SAID]
    ]
    said += [
        f"{row['first']} and {row['second']} have {len(row['matched'])} concepts in common; new: {len(row['new'])}, "
        f"vanished: {len(row['vanished'])}."
        for row in content["dictionaries"][:_MOST_SAID]
    ]
    return " ".join(said) or "Metrics of dictionaries side by side."


def _sections(content: Row) -> Iterator[Section]:
    yield Section("What is compared", _subjects(content))
    yield Section("Faithfulness", [block for group in _methods(content["table"]) for block in _scores(content, group)])
    yield Section("Agreement of explanations", _agreement(content))
    yield Section("Metrics of dictionaries", _single(content["single"]))
    yield Section("Concepts", [block for each in content["dictionaries"] for block in _concepts(each)])
    yield Section("Importance of concepts", _shifts(content["shifts"]))


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
        Column("other target", True, digits=0),
        Column("other words", True, digits=0, meaning="cut into other elements, so that no word has a counterpart"),
        Column("not ranked", True, digits=0, meaning="fewer than two elements, or all of one score"),
    ]
    names = ["method", "first", "second", "by", "shared", "only_first", "only_second"]
    names += ["other_targets", "other_elements", "unranked"]
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


def _agreement(content: Row) -> list[Block]:
    blocks: list[Block] = []
    if content["agreement"]:
        columns = [Column("method"), Column("first"), Column("second")]
        columns += [Column(name, True, True, meaning) for name, meaning in _MEASURES.items()]
        known = {(row["method"], row["first"], row["second"], row["measure"]): row for row in content["agreement"]}
        rows: list[list[Value | Cell]] = [
            [*pair, *(_agreement_cell(known.get((*pair, measure))) for measure in _MEASURES)]
            for pair in dict.fromkeys((row["method"], row["first"], row["second"]) for row in content["agreement"])
        ]
        about = (
            "Mean over the texts that both explained for the same target by the same elements, its interval, chance."
        )
        blocks.append(Table(columns, rows, about))
    blocks += [_changed(content["changed"])] if content["changed"] else []
    blocks += [_targets(content["targets"])] if content["targets"] else []
    return blocks


def _agreement_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell(None)
    chance = f"chance {number(row['random'])}, " if row["texts"] else ""
    return Cell(row["mean"], note=f"{number(row['low'])} … {number(row['high'])}\n{chance}{row['texts']} texts")


def _changed(rows: Sequence[Row]) -> Table:
    columns = [Column("method"), Column("pair"), Column("text"), Column("words of the first"), Column("of the second")]
    columns += [Column("spearman", True, True), Column("overlap", True, True)]
    lines: list[list[Value | Cell]] = [
        [
            row["method"],
            f"{row['first']} / {row['second']}",
            Cell(_shown(row["text"]), note=f"for {row['target']}"),
            row["words_first"],
            row["words_second"],
            row["spearman"],
            row["overlap"],
        ]
        for row in rows
    ]
    return _long(columns, lines, "The texts whose explanation changed most")


def _targets(rows: Sequence[Row]) -> Table:
    columns = [Column("method"), Column("pair"), Column("text"), Column("first explains"), Column("second explains")]
    lines: list[list[Value | Cell]] = [
        [
            row["method"],
            f"{row['first']} / {row['second']}",
            _shown(row["text"]),
            row["target_first"],
            row["target_second"],
        ]
        for row in rows
    ]
    return _long(columns, lines, f"{len(rows)} explanations of another target, such as another predicted class")


def _shown(text: str) -> str:
    return excerpt(text, _MOST_CHARACTERS)


def _concepts(match: Row) -> list[Block]:
    similarity = _COSINE if match["by"] == "directions" else _CORRELATION
    named = f"{match['method']}: {match['first']} / {match['second']}"
    columns = [Column("compared by"), Column("threshold", True), Column("same", True, digits=0)]
    columns += [Column(name, True, digits=0) for name in ("new", "vanished", "labels changed", "silent")]
    columns += [Column("mean of all pairs", True, True, f"{similarity}, of the best one-to-one matching")]
    numbers = (len(match["matched"]), len(match["new"]), len(match["vanished"]), match["n_changed_labels"])
    about = f"{similarity}" + (f", on {match['rows']:,} {match['unit']}" if match["rows"] else "")
    mean = Cell(match["mean"], note=f"chance {number(match['random_mean'])}, {match['n_pairs']} pairs")
    row: list[Value | Cell] = [about, match["threshold"], *numbers, " / ".join(map(str, match["silent"])), mean]
    addresses = f"{match['uri_first']} and {match['uri_second']}"
    return [
        Table(columns, [row], f"{named} ({addresses})"),
        _matched(match["matched"]),
        _unmatched(match["new"], "New concepts, which only the second has"),
        _unmatched(match["vanished"], "Vanished concepts, which only the first has"),
    ]


def _matched(rows: Sequence[Row]) -> Table:
    columns = [Column("first", True, digits=0), Column("label"), Column("second", True, digits=0), Column("label")]
    columns += [Column("similarity", True, True), Column("label is")]
    ordered = sorted(rows, key=lambda row: not row["label_changed"])
    lines: list[list[Value | Cell]] = [
        [
            row["first"],
            row["label_first"] or "",
            row["second"],
            row["label_second"] or "",
            row["similarity"],
            {True: "another", False: "the same", None: "missing"}[row["label_changed"]],
        ]
        for row in ordered
    ]
    return _long(columns, lines, "The same concepts, those with another label first", closed=True)


def _unmatched(rows: Sequence[Row], title: str) -> Table:
    columns = [Column("concept", True, digits=0), Column("label"), Column("nearest", True, digits=0)]
    columns += [Column("its label"), Column("similarity", True)]
    lines: list[list[Value | Cell]] = [
        [row["concept"], row["label"] or "", row["nearest"], row["nearest_label"] or "", row["similarity"]]
        for row in rows
    ]
    return _long(columns, lines, f"{title}: {len(rows)}")


def _shifts(rows: Sequence[Row]) -> list[Block]:
    if not rows:
        return []
    columns = [Column("dictionary"), Column("pair"), Column("class"), Column("concept of the first")]
    columns += [Column("of the second"), Column("share before", True), Column("after", True), Column("shift", True)]
    ordered = sorted(rows, key=lambda row: -abs(row["shift"]))
    lines: list[list[Value | Cell]] = [
        [
            row["method"],
            f"{row['first']} / {row['second']}",
            row["class"],
            _concept(row["concept_first"], row["label_first"]),
            _concept(row["concept_second"], row["label_second"]),
            row["share_first"],
            row["share_second"],
            f"{row['shift']:+.3f}".replace("-", MINUS),
        ]
        for row in ordered
    ]
    about = (
        "The share of a concept in the importance of all concepts for a class, negative where it speaks against the "
        "class, in the first and in the second; only concepts that are the same."
    )
    return [Paragraph(about), _long(columns, lines, "Concepts whose importance shifted most")]


def _concept(number_of: int, label: str | None) -> str:
    return f"{number_of}: {label}" if label else str(number_of)


def _long(
    columns: Sequence[Column], rows: Sequence[Sequence[Value | Cell]], title: str, *, closed: bool = False
) -> Table:
    """Return a table that can be closed; of many rows the first, which it says."""
    cut = f"The first {_MOST_ROWS} of {len(rows)}; the JSON has all." if len(rows) > _MOST_ROWS else ""
    return Table(columns, rows[:_MOST_ROWS], cut, folded=title, open=not closed)
