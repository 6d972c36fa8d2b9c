"""Where the colours go: a text cut into plain and highlighted pieces that join to the text again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.text.hiding import short
from interpreto_mlops.visuals.page import number, signed

_N_TOP = 5
_FAINT = 0.1
_WITHOUT_SCORE = {
    "unknown": "no finite score",
    "later": "not before what is explained",
}


@dataclass(frozen=True)
class Tone:
    """How one score is drawn.

    Arguments:
        sign: `for`, `against`, `zero`, or `unknown` for a score that is NaN or infinite; `later` for the target of a
            continuation itself and what comes after it.
        strength: 0 to 1, the score's size beside the largest of the text.
    """

    sign: str
    strength: float

    @property
    def colour(self) -> str:
        """The CSS colour, made from the page's variables so that it follows the light or dark scheme."""
        if self.sign in ("zero", "later"):
            return "transparent"
        return "rgb(var(--unknown)/.3)" if self.sign == "unknown" else f"rgb(var(--{self.sign})/{self.opacity:.2f})"

    @property
    def opacity(self) -> float:
        """Of the colour; the strongest one still lets the text be read."""
        return 0.02 + 0.58 * self.strength


@dataclass(frozen=True)
class Piece:
    """A stretch of the text.

    Arguments:
        text: its raw characters.
        tones: one for each element here: none between elements, several where elements share characters.
        title: the scores in words.
        unseen: whether the model did not read it (the text was cut there).
        begins: whether a continuation, or the second text of a pair, begins here.
        explained: whether it is what the row explains: a generated token, the token of a label.
    """

    text: str
    tones: tuple[Tone, ...] = ()
    title: str = ""
    unseen: bool = False
    begins: bool = False
    explained: bool = False

    @property
    def css_class(self) -> str:
        """The sign of the element's score, and `faint` where it hardly counts; `shared` where there are several."""
        marks = (" begins" if self.begins else "") + (" target" if self.explained else "")
        if len(self.tones) > 1:
            return f"shared{marks}"
        tone = self.tones[0]
        return f"{tone.sign}{' faint' if tone.strength < _FAINT else ''}{marks}"

    @property
    def style(self) -> str:
        """The CSS declarations of the background; several tones stand side by side."""
        if len(self.tones) == 1:
            return f"background:{self.tones[0].colour}"
        step = 100 / len(self.tones)
        stops = (f"{tone.colour} {step * i:.4g}% {step * (i + 1):.4g}%" for i, tone in enumerate(self.tones))
        return f"background:linear-gradient(90deg,{','.join(stops)})"


@dataclass(frozen=True)
class Word:
    """An element in the lists of those that count most."""

    text: str
    score: float
    tone: Tone


@dataclass(frozen=True)
class Highlighted:
    """One row of scores laid over its text.

    Arguments:
        pieces: join to the raw text.
        outside: elements that have no place in the text (special tokens, tokens without offsets).
        speaks_for: the elements of the highest positive scores, highest first.
        speaks_against: the elements of the lowest negative scores, lowest first.
    """

    pieces: tuple[Piece, ...]
    outside: tuple[Piece, ...]
    speaks_for: tuple[Word, ...]
    speaks_against: tuple[Word, ...]


def highlight(attribution: Attribution, target: int = 0) -> Highlighted:
    """Lay the scores of one target over the text.

    Arguments:
        attribution: the scores and the text.
        target: the row of `attribution.scores`.
    """
    scores = attribution.scores[target]
    tones = _tones(attribution, target)
    titles = _titles(attribution, target, tones)
    placed = (attribution.spans[:, 0] < attribution.spans[:, 1]) & (attribution.spans[:, 1] <= len(attribution.text))
    order = np.flatnonzero(placed)[np.argsort(attribution.spans[placed, 0], kind="stable")]
    outside = tuple(Piece(attribution.elements[i], (tones[i],), titles[i]) for i in np.flatnonzero(~placed).tolist())
    ranked = [i for i in attribution.ranking(target).tolist() if np.isfinite(scores[i])]
    words = [Word(short(attribution.elements[i]), float(scores[i]), tones[i]) for i in ranked]
    if attribution.is_hidden:
        pieces = _hashes(attribution, tones, titles)
        outside = ()
    else:
        pieces = _pieces(attribution, order.tolist(), tones, titles, _explained(attribution, target))
    return Highlighted(
        pieces=tuple(pieces),
        outside=outside,
        speaks_for=tuple(word for word in words if word.score > 0)[:_N_TOP],
        speaks_against=tuple(word for word in reversed(words) if word.score < 0)[:_N_TOP],
    )


def _hashes(attribution: Attribution, tones: Sequence[Tone], titles: Sequence[str]) -> Iterator[Piece]:
    """Yield the elements in their order, each by what people see of its hash."""
    boundary = attribution.boundary
    for i, element in enumerate(attribution.elements):
        begins = boundary is not None and int(attribution.spans[i, 0]) >= boundary
        boundary = None if begins else boundary
        if i:
            yield Piece(" ")
        yield Piece(short(element), (tones[i],), titles[i], begins=begins)


def _pieces(
    attribution: Attribution,
    order: Sequence[int],
    tones: Sequence[Tone],
    titles: Sequence[str],
    explained: frozenset[int],
) -> Iterator[Piece]:
    text, position, boundary = attribution.text, 0, attribution.boundary
    for group in _overlapping(attribution, order):
        start = int(attribution.spans[group[0], 0])
        end = int(max(attribution.spans[i, 1] for i in group))
        if position < start:
            # A text cut on the left begins with what was not read; otherwise only white space comes before.
            yield Piece(text[position:start], unseen=attribution.truncated and position == 0)
        begins = boundary is not None and start >= boundary
        boundary = None if begins else boundary
        yield Piece(
            text[start:end],
            tuple(tones[i] for i in group),
            "\n".join(titles[i] for i in group),
            begins=begins,
            explained=not explained.isdisjoint(group),
        )
        position = end
    if position < len(text):
        # A prompt is cut at its start; what stands after the last element is then a special token.
        yield Piece(text[position:], unseen=attribution.truncated and attribution.prompt_tokens is None)


def _overlapping(attribution: Attribution, order: Sequence[int]) -> Iterator[list[int]]:
    """Group the elements that share characters: byte-level tokens of one emoji all lie on the same one."""
    group: list[int] = []
    end = 0
    for i in order:
        if group and attribution.spans[i, 0] >= end:
            yield group
            group = []
        group.append(i)
        end = max(end, int(attribution.spans[i, 1]))
    if group:
        yield group


def _tones(attribution: Attribution, target: int) -> list[Tone]:
    scores = attribution.scores[target]
    tones = tones_of(scores, scores)
    if attribution.boundary is not None and attribution.prompt_tokens is not None:
        for i in np.flatnonzero(np.isnan(scores) & (attribution.spans[:, 0] >= attribution.boundary)).tolist():
            tones[i] = Tone("later", 1.0)
    return tones


def _explained(attribution: Attribution, target: int) -> frozenset[int]:
    """Return the elements that hold what is explained, where that is a part of the text."""
    positions = np.asarray(attribution.targets[target].positions, dtype=np.int64)
    if attribution.of_token is None:
        return frozenset()
    # A generated token is read at the place before its own.
    places = positions if attribution.prompt_tokens is None else positions + 1
    return frozenset(attribution.of_token[places[places < len(attribution.of_token)]].tolist()) - {-1}


def tones_of(scores: npt.NDArray[np.float64], among: npt.NDArray[np.float64]) -> list[Tone]:
    """Return the tone of each score, shape (n,), beside the largest of others (any shape)."""
    largest = float(np.abs(among[np.isfinite(among)]).max(initial=0.0))
    return [_tone(float(score), largest) for score in scores]


def _tone(score: float, largest: float) -> Tone:
    if not np.isfinite(score):
        return Tone("unknown", 0.0)
    if score == 0:
        return Tone("zero", 0.0)
    return Tone("for" if score > 0 else "against", abs(score) / largest)


def _titles(attribution: Attribution, target: int, tones: Sequence[Tone]) -> list[str]:
    scores, n = attribution.scores[target], len(attribution)
    order = attribution.ranking(target)
    rank = np.zeros(n, dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    errors = None if attribution.standard_error is None else attribution.standard_error[target]
    return [
        signed(scores[i]) + ("" if errors is None else f" ± {number(errors[i])}") + f" · rank {rank[i]} of {len(order)}"
        if np.isfinite(scores[i])
        else _WITHOUT_SCORE[tones[i].sign]
        for i in range(n)
    ]
