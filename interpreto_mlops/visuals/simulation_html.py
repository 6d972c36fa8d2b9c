"""Simulatability as a page: what a reader scores in each setting, and by how much the explanation helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from interpreto_mlops.llm.simulation import SimulationResult
from interpreto_mlops.llm.simulation.settings import BASELINE
from interpreto_mlops.visuals import report_html
from interpreto_mlops.visuals.page import number
from interpreto_mlops.visuals.report_html import Block, Cell, Column, Paragraph, Report, Section, Table

_SHOWN = {
    "L1": "the classes alone",
    "E1": "the explanation of each class",
    "L2": "examples with what the model says",
    "E2": "the explanation of each class, and examples",
    "E3": "the same, each example explained",
    "U1": "the same, the texts that are asked for explained, too: an upper bound that leaks",
}


def render_page(results: Mapping[str, SimulationResult], *, title: str, facts: Mapping[str, object]) -> str:
    """Return a whole HTML page.

    Arguments:
        results: by what explained.
        title: of the page.
        facts: model, reader, data, …
    """
    sections = [Section(name, list(_blocks(result))) for name, result in results.items()]
    return report_html.render_page(Report(title=title, sections=sections, facts=dict(facts)))


def _blocks(result: SimulationResult) -> Iterator[Block]:
    yield Paragraph(_lead(result))
    columns = [
        Column("setting"),
        Column("the reader is shown"),
        Column("score", True, True, "the share of the texts of which the reader says what the model says"),
        Column("gain", True, True, "over L2, the examples alone, on the same texts"),
        Column("model right", True, None, "the score on the texts that the model gets right"),
        Column("model wrong", True, None, "the score on the texts that it gets wrong"),
        Column("clear answers", True, True, "the share of the answers that name one class", 2),
    ]
    rows = [
        [
            row["setting"],
            _SHOWN.get(row["setting"], ""),
            Cell(_number(row["score"]), note=_interval(row["low"], row["high"]) or row["reason"] or ""),
            _gain(row),
            _number(row["on_right"]),
            _number(row["on_wrong"]),
            _number(row["parse_share"]),
        ]
        for row in result.to_frame().to_dict("records")
    ]
    yield Table(columns, rows)
    for note in result.notes:
        yield Paragraph(note)


def _gain(row: Mapping[Any, Any]) -> Cell:
    """The gain of a setting over the baseline, which has none over itself."""
    if row["setting"] == BASELINE.value:
        return Cell(None)
    return Cell(_number(row["gain"]), note=_interval(row["gain_low"], row["gain_high"]))


def _lead(result: SimulationResult) -> str:
    chance = f"by chance {result.chance.uniform:.3f}, by always naming the most frequent class "
    chance += f"{result.chance.majority:.3f}"
    if result.score is None:
        return f"{result.model} reads, and there is no score; {chance}."
    gain = "" if result.gain is None or result.gain.score is None else f" ({result.gain.score:+.3f} over L2)"
    return f"{result.model} reads, and scores {result.score:.3f}{gain}; {chance}."


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _interval(low: float | None, high: float | None) -> str:
    found = _number(low), _number(high)
    return "" if found[0] is None or found[1] is None else f"{number(found[0])} to {number(found[1])}"
