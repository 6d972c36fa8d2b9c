"""Pieces of texts that rows of activations lie in: the token, the word, some words, the sentence, the whole text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.text.granularity import NGrams, Spans, parse_grain, sentence_spans, word_spans

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet

UNITS = ("token", "word", "2-grams", "sentence", "text")
"""What a piece of text can be; any number of words may stand for the 2."""

Integers = npt.NDArray[np.int64]

_OF_ROWS = {
    "token": "token",
    "all_tokens": "token",
    "word": "word",
    "sentence": "sentence",
    "sample": "text",
    "cls": "text",
}
_PLACES = 2**32


def pieces_at(pieces: Spans, spans: Spans) -> Spans:
    """Return for each span the piece that it begins in, or itself where it begins in none.

    Arguments:
        pieces: of the text, in order, shape (pieces, 2).
        spans: shape (spans, 2); an empty one is nowhere in the text.
    """
    if not len(pieces):
        return spans
    piece = pieces[np.maximum(np.searchsorted(pieces[:, 0], spans[:, 0], side="right") - 1, 0)]
    # A token that is nowhere in the text has the span (0, 0), and is not in the first word.
    inside = (piece[:, 0] <= spans[:, 0]) & (spans[:, 0] < piece[:, 1]) & (spans[:, 0] < spans[:, 1])
    return np.where(inside[:, None], piece, spans)


def check_unit(unit: str | None) -> None:
    """Refuse what is no piece of text.

    Raises:
        UnknownNameError: it is none; the message lists those there are.
    """
    if unit is not None and unit not in UNITS and _n_words(unit) is None:
        raise UnknownNameError("unit", unit, UNITS)


def _n_words(unit: str) -> int | None:
    try:
        grain = parse_grain(unit)
    except UnknownNameError:
        return None
    return grain.n if isinstance(grain, NGrams) else None


class Units:
    """The pieces of text in which the rows of an activation set lie.

    Arguments:
        activations: the rows.
        unit: one of `UNITS`; None for what a row is. `n-grams` are the n words that end with the row's, as far as its
            sentence has them.

    Raises:
        UnknownNameError: an unknown unit.
        InputError: one that is smaller than a row.
    """

    def __init__(self, activations: ActivationSet, unit: str | None = None) -> None:
        check_unit(unit)
        own = _OF_ROWS[activations.granularity]
        self.unit = unit or own
        self._n = _n_words(self.unit)
        order = ["token", "word", self.unit if self._n else "2-grams", "sentence", "text"]
        if order.index(self.unit) < order.index(own):
            raise InputError(
                f"the rows are {activations.granularity!r}, and nothing says on which {self.unit!r} of a row a concept "
                f"fires; take the unit {own!r}, a larger one, or top_words"
            )
        self._rows_are_words = activations.granularity == "word"
        self._texts = activations.texts
        self._text_ids, self._spans = activations.text_ids, activations.spans

    def spans(self, start: int, stop: int) -> Spans:
        """Return where the units of some rows lie in their texts, shape (rows, 2); empty for rows that are nowhere."""
        found = np.zeros((stop - start, 2), dtype=np.int64)
        for first, last in self._texts_of(start, stop):
            found[first - start : last - start] = self._around(first, last)
        return found

    def keys(self, start: int, stop: int, *, unique: bool) -> Integers:
        """Return a number for the unit of each row, shape (rows,); -1 for rows that are nowhere in their text.

        Arguments:
            start, stop: the rows.
            unique: whether units of the same characters, upper and lower case alike, have the same number; else units
                in the same place have.
        """
        spans = self.spans(start, stop)
        there = spans[:, 0] < spans[:, 1]
        if not unique:
            # By their ends: the first runs of words of a sentence begin in the same place.
            return np.where(there, self._text_ids[start:stop] * _PLACES + spans[:, 1], -1)
        keys = np.full(stop - start, -1, dtype=np.int64)
        for first, last in self._texts_of(start, stop):
            text, part = self._texts[self._text_ids[first]], slice(first - start, last - start)
            distinct, inverse = np.unique(spans[part], axis=0, return_inverse=True)
            numbers = np.asarray([_number(text[begin:end]) for begin, end in distinct.tolist()])
            keys[part] = np.where(there[part], numbers[inverse.reshape(-1)], -1)
        return keys

    def place(self, row: int) -> tuple[int, int, int]:
        """Return the text in which a row's unit lies, and where it begins and ends there."""
        begin, end = self.spans(row, row + 1)[0].tolist()
        return int(self._text_ids[row]), begin, end

    def text(self, index: int) -> str:
        """Return a text of the set."""
        return self._texts[index]

    def _texts_of(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the first row of each text among some rows, and the one after its last."""
        if start == stop:
            return
        starts = np.flatnonzero(np.diff(self._text_ids[start:stop], prepend=-1)) + start
        yield from pairwise([*starts.tolist(), stop])

    def _around(self, first: int, last: int) -> Spans:
        """Return the units of some rows of one text."""
        text, spans = self._texts[self._text_ids[first]], self._spans[first:last]
        there = (spans[:, 0] < spans[:, 1])[:, None]
        if self.unit == "token":
            return spans
        if self.unit == "text":
            return np.where(there, np.asarray([[0, len(text)]]), 0)
        if self.unit == "sentence":
            return np.where(there, pieces_at(sentence_spans(text), spans), 0)
        words = self._words(first)
        own = pieces_at(words, spans)
        return np.where(there, own if self._n is None else _runs(text, words, own, self._n), 0)

    def _words(self, row: int) -> Spans:
        """Return all words of a row's text, as the rows have them where rows are words."""
        index = self._text_ids[row]
        if not self._rows_are_words:
            return word_spans(self._texts[index])
        # A row may be several words that one token covers.
        first, last = np.searchsorted(self._text_ids, [index, index + 1])
        return self._spans[first:last]


def _runs(text: str, words: Spans, own: Spans, n: int) -> Spans:
    """Return the n words that end with each of some words of a text, or as many as its sentence has."""
    if not len(words):
        return own
    place = np.maximum(np.searchsorted(words[:, 0], own[:, 0], side="right") - 1, 0)
    sentence = pieces_at(sentence_spans(text), own)
    earliest = np.minimum(np.searchsorted(words[:, 0], sentence[:, 0], side="left"), place)
    first = np.maximum(place - n + 1, earliest)
    return np.stack([np.minimum(words[first, 0], own[:, 0]), own[:, 1]], axis=1)


def _number(text: str) -> int:
    """Return 63 bits of a hash: a table of all pieces would grow with the texts."""
    folded = text.casefold().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(folded, digest_size=8).digest(), "big") >> 1
