"""A report as a page: titled sections of tables, paragraphs, figures and commands, put together by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from interpreto_mlops.errors import InputError
from interpreto_mlops.visuals import page

Value: TypeAlias = str | int | float | None

_TONES = ("", "tied", "first", "second")


@dataclass(frozen=True)
class Column:
    """The head of a table's column.

    Arguments:
        name: what it holds.
        numeric: numbers stand on the right.
        higher_is_better: draws an arrow beside the name.
        meaning: one line under the table that says what the column is.
        digits: decimals of its numbers.
    """

    name: str
    numeric: bool = False
    higher_is_better: bool | None = None
    meaning: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Cell:
    """A value of a table that is more than a value.

    Arguments:
        value: text or number; None is shown as missing.
        best: whether it is marked as the best of its column; the caller decides.
        note: small print beneath the value; line breaks are kept.
        link: an http, https or relative address.
        tone: how it stands out: `tied` with the best, or a difference in favour of the `first` or the `second`.
    """

    value: Value
    best: bool = False
    note: str = ""
    link: str = ""
    tone: str = ""

    def __post_init__(self) -> None:
        if self.link:
            page.safe_link(self.link)
        if self.tone not in _TONES:
            raise InputError(f"the tone of a cell is one of {', '.join(map(repr, _TONES))}, not {self.tone!r}")


@dataclass(frozen=True)
class Table:
    """Rows under typed columns; a plain value in a row is a `Cell` without anything else.

    Arguments:
        columns: their heads.
        rows: their values.
        caption: above the table.
        folded: the line by which the table is opened and closed; without one it cannot be closed.
        open: whether it is open at first.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Value | Cell]]
    caption: str = ""
    folded: str = ""
    open: bool = True
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(f"row {number} of a table has {len(row)} cells for {len(self.columns)} columns")

    def cells(self) -> list[list[Cell]]:
        """Return the rows with every value as a `Cell`."""
        return [[value if isinstance(value, Cell) else Cell(value) for value in row] for row in self.rows]


@dataclass(frozen=True)
class Paragraph:
    """Running text; line breaks are kept."""

    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Picture:
    """An embedded figure.

    Arguments:
        image: the bytes of a PNG or SVG file.
        alt: says what is to be seen, for those who cannot see it.
        caption: beneath it.
    """

    image: bytes = field(repr=False)
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "picture"

    def __post_init__(self) -> None:
        page.data_uri(self.image)


@dataclass(frozen=True)
class Command:
    """A command or code to copy."""

    text: str
    note: str = ""
    kind: ClassVar[str] = "command"


@dataclass(frozen=True)
class Links:
    """Labels with their addresses, which are http, https or relative."""

    addresses: Mapping[str, str]
    kind: ClassVar[str] = "links"

    def __post_init__(self) -> None:
        for address in self.addresses.values():
            page.safe_link(address)


Block: TypeAlias = Table | Paragraph | Picture | Command | Links


@dataclass(frozen=True)
class Section:
    """Blocks under a title."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """What a report page shows.

    Arguments:
        title: of the page.
        sections: in order.
        lead: the finding, in a sentence or two.
        facts: model, data set, suite, …
        command: what repeats the work; shown at the end.
    """

    title: str
    sections: Sequence[Section]
    lead: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    command: str = ""


def render_page(report: Report) -> str:
    """Return the report as a whole HTML page."""
    return page.render(
        "report.html",
        title=report.title,
        lead=report.lead,
        facts=page.facts(report.facts),
        sections=report.sections,
        command=report.command,
    )
