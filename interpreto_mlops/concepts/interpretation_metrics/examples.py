"""Which pieces of text a judge is shown: where a concept is active, at all strengths, and where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from interpreto_mlops.errors import InputError
from interpreto_mlops.text.granularity import word_spans

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet

WORD_ROWS = ("token", "all_tokens", "word")
"""Granularities whose rows stand for a word or a piece of one; rows of the others are examples as they are."""

_TEXTS_IN_MEMORY = 4096

Codes = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """A piece of a text, as a judge is shown it.

    Arguments:
        text_id: the text's place in the activation set.
        text: the piece, of whole words.
        activation: the concept's code there that is largest without its sign, with its sign.
        words: the span of each word in the piece, shape (words, 2); none where a row holds many words.
        values: the concept's largest code on each word, shape (words,).
    """

    text_id: int
    text: str
    activation: float
    words: Integers
    values: Floats


class Examples:
    """The rows of an activation set, as pieces of text.

    Where a row is a token or a word, a piece is a window of whole words in a text, and every text gives one piece at
    the most of each kind; else a row's own text is the piece. Rows that are nowhere in a text (special tokens) are left
    out, and words that the model did not see, for the text was cut, are shown to nobody.

    Arguments:
        activations: the rows.
        window: words in a piece.

    Raises:
        InputError: no row is anywhere in a text.
    """

    def __init__(self, activations: ActivationSet, window: int) -> None:
        self.windowed = activations.granularity in WORD_ROWS
        self._window, self._texts = window, activations.texts
        spans = activations.spans
        self.rows = np.flatnonzero(spans[:, 0] < spans[:, 1])
        if not len(self.rows):
            raise InputError("no row of the activations is anywhere in a text: the tokenizer gives no offsets")
        self._spans, self._text_ids = spans[self.rows], activations.text_ids[self.rows]
        changes = np.flatnonzero(np.diff(self._text_ids)) + 1
        self.starts = np.concatenate([[0], changes]) if self.windowed else np.arange(len(self.rows))
        self._stops = np.append(self.starts[1:], len(self.rows))
        self._words = lru_cache(_TEXTS_IN_MEMORY)(self._words_of)

    def __len__(self) -> int:
        """How many places there are that each give a piece: texts, or rows that hold many words."""
        return len(self.starts)

    def active(self, codes: Codes, n: int, rng: np.random.Generator, *, floor: float, quantiles: int) -> list[Example]:
        """Draw pieces around a place's largest code, as many from each quantile of those codes.

        Arguments:
            codes: of one concept, shape (rows of the set,).
            n: how many; fewer where there are fewer.
            rng: draws.
            floor: a concept is active above it.
            quantiles: into how many parts of the same size the codes are divided.
        """
        codes = codes[self.rows]
        largest = np.maximum.reduceat(codes, self.starts)
        order = np.argsort(largest, kind="stable")
        order = order[largest[order] > floor]
        chosen = _stratified(order, n, quantiles, rng)
        return [self._around(int(place), self._peak(int(place), codes), codes) for place in chosen]

    def inactive(
        self, codes: Codes, n: int, rng: np.random.Generator, *, floor: float, near: Mask | None = None
    ) -> list[Example]:
        """Draw pieces in which the concept is active nowhere.

        Arguments:
            codes: of one concept, shape (rows of the set,).
            n: how many; fewer where there are fewer.
            rng: draws.
            floor: a concept is active above it.
            near: rows on which a concept like it is active, shape (rows of the set,): pieces with one are taken first.
        """
        codes = codes[self.rows]
        found: dict[int, Example] = {}
        for close in (None if near is None else near[self.rows], None):
            for place in rng.permutation(len(self)).tolist():
                if len(found) >= n:
                    break
                centres = () if place in found else self._quiet(place, codes, floor, close)
                if len(centres):
                    found[place] = self._around(place, int(rng.choice(centres)), codes)
        return list(found.values())

    def graded(self, codes: Codes, n: int, rng: np.random.Generator, *, top_share: float) -> list[Example]:
        """Take the places with the largest codes, and random ones for the rest.

        Arguments:
            codes: of one concept, shape (rows of the set,).
            n: how many; fewer where there are fewer.
            rng: draws.
            top_share: of the pieces that come from the largest codes.
        """
        codes, n = codes[self.rows], min(n, len(self))
        order = np.argsort(-np.maximum.reduceat(codes, self.starts), kind="stable")
        n_top = round(n * top_share)
        top, others = order[:n_top], rng.permutation(order[n_top:])[: n - n_top]
        found = [self._around(int(place), self._peak(int(place), codes), codes) for place in top]
        return found + [self._around(int(place), self._random_unit(int(place), rng), codes) for place in others]

    def _quiet(self, place: int, codes: Codes, floor: float, near: Mask | None) -> Integers:
        """Return the words of a place round which the window has no active row, and which are near something."""
        own = slice(self.starts[place], self._stops[place])
        if not self.windowed:
            return np.flatnonzero((codes[own] <= floor) & (True if near is None else near[own]))
        words, word_of, row_of = self._words(place)
        active = np.zeros(len(words) + 1, dtype=np.int64)
        np.add.at(active, word_of[codes[own][row_of] > floor] + 1, 1)
        before = np.cumsum(active)
        first, last = self._bounds(np.arange(len(words)), len(words))
        quiet = before[last] == before[first]
        if near is not None:
            close = np.zeros(len(words), dtype=bool)
            close[word_of[near[own][row_of]]] = True
            quiet &= close
        return np.flatnonzero(quiet)

    def _bounds(self, centre: Integers, n_words: int) -> tuple[Integers, Integers]:
        first = np.clip(centre - self._window // 2, 0, max(0, n_words - self._window))
        return first, np.minimum(first + self._window, n_words)

    def _peak(self, place: int, codes: Codes) -> int:
        """Return the word, of the place's own, with the largest code."""
        if not self.windowed:
            return 0
        _, word_of, row_of = self._words(place)
        return int(word_of[codes[self.starts[place] : self._stops[place]][row_of].argmax()])

    def _random_unit(self, place: int, rng: np.random.Generator) -> int:
        return int(rng.integers(len(self._words(place)[0]))) if self.windowed else 0

    def _around(self, place: int, centre: int, codes: Codes) -> Example:
        own = slice(self.starts[place], self._stops[place])
        text_id = int(self._text_ids[own.start])
        text, values = self._texts[text_id], codes[own]
        if not self.windowed:
            start, end = self._spans[own.start].tolist()
            return Example(text_id, text[start:end], float(values[0]), np.zeros((0, 2), np.int64), np.zeros(0))
        words, word_of, row_of = self._words(place)
        first, last = (int(each) for each in self._bounds(np.asarray(centre), len(words)))
        inside = (first <= word_of) & (word_of < last)
        largest = np.full(last - first, -np.inf)
        np.maximum.at(largest, word_of[inside] - first, values[row_of[inside]].astype(np.float64))
        start, end = int(words[first, 0]), int(words[last - 1, 1])
        return Example(text_id, text[start:end], _signed(values[row_of[inside]]), words[first:last] - start, largest)

    def _words_of(self, place: int) -> tuple[Integers, Integers, Integers]:
        """Find the words that the model saw of a place's text, and which rows are on which of them.

        Returns:
            The words' spans, shape (words, 2), and pairs of a word and a row of the text, shape (pairs,) each.
        """
        own = slice(self.starts[place], self._stops[place])
        spans = self._spans[own]
        words = word_spans(self._texts[int(self._text_ids[own.start])])
        # Nothing but invisible characters: the row's own span has to stand for a word.
        words = words if len(words) else spans[:1]
        words = words[words[:, 0] < spans[:, 1].max()]
        words = words if len(words) else spans[:1]
        first, last = (
            np.maximum(np.searchsorted(words[:, 0], place, side="right") - 1, 0)
            for place in (spans[:, 0], spans[:, 1] - 1)
        )
        # A token may go over several words.
        n_words = last - first + 1
        row_of = np.repeat(np.arange(len(spans)), n_words)
        within = np.arange(len(row_of)) - np.repeat(np.cumsum(n_words) - n_words, n_words)
        return words, first[row_of] + within, row_of


def of_texts(activations: ActivationSet, codes: Codes) -> tuple[Integers, Floats]:
    """Return the texts that have rows, and in each the code that is largest without its sign, with its sign.

    Rows that are nowhere in their text (special tokens) do not count.

    Arguments:
        activations: the rows.
        codes: of one concept, shape (rows,).

    Source: Puri et al. 2025 (FADE), section 3.
    """
    spans = activations.spans
    rows = np.flatnonzero(spans[:, 0] < spans[:, 1])
    text_ids = activations.text_ids[rows]
    starts = np.flatnonzero(np.diff(text_ids, prepend=-1))
    if not len(rows):
        return text_ids, np.zeros(0)
    most, least = np.maximum.reduceat(codes[rows], starts), np.minimum.reduceat(codes[rows], starts)
    return text_ids[starts], np.where(-least > most, least, most).astype(np.float64)


def _signed(codes: Codes) -> float:
    return float(codes[np.abs(codes).argmax()]) if len(codes) else 0.0


def _stratified(order: Integers, n: int, quantiles: int, rng: np.random.Generator) -> Iterator[int]:
    """Draw `n` of what is in order, as evenly as can be from parts of the same size; the last parts give what is left.

    Returns:
        What was drawn, in random order.
    """
    parts = [rng.permutation(part) for part in np.array_split(order, min(quantiles, max(1, len(order))))]
    taken: list[int] = []
    depth = 0
    while len(taken) < min(n, len(order)):
        taken += [int(part[depth]) for part in reversed(parts) if depth < len(part)]
        depth += 1
    return iter(rng.permutation(taken[:n]).tolist())
