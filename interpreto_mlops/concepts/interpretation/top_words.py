"""What a concept responds to: words and contexts of its largest activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from interpreto_mlops.concepts.interpretation.description import ConceptDescription, Context, Word
from interpreto_mlops.concepts.interpretation.units import pieces_at
from interpreto_mlops.concepts.ranking import TopKeys
from interpreto_mlops.errors import InputError
from interpreto_mlops.text.granularity import Spans, word_spans

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

# Rows that stand for one word; those of the others (sentence, sample, cls) hold many.
_WORD_ROWS = ("token", "all_tokens", "word")
_ROWS_FOR_WORDS = 32

Integers = npt.NDArray[np.int64]


def top_words(
    dictionary: ConceptDictionary,
    activations: ActivationSet,
    *,
    n_words: int = 8,
    n_contexts: int = 4,
    window: int = 60,
) -> list[ConceptDescription]:
    """Describe every concept by the words and contexts of its largest codes.

    Words are whole words of the raw text, in lower case; a concept's words are those on which its code is largest.
    Where a row stands for more than a word (sentence, sample, cls), they are the words over-represented in the
    concept's top 32 rows: those with the largest n · log((n / top rows) / (frequency among all rows)), n being the top
    rows with it. Of a signed dictionary the positive side is described. Rows are read twice, in bounded memory.

    Arguments:
        dictionary: fitted; its `descriptions` stay as they are.
        activations: of the layer that it was fitted on.
        n_words: the most words of a concept.
        n_contexts: the most contexts of a concept, each from another text.
        window: characters of context on each side.

    Returns:
        One description for each concept, in order.

    Raises:
        NotFittedError: the dictionary is not fitted.
        InputError: activations of another width, or a number that is negative.
    """
    for name, value in (("n_words", n_words), ("n_contexts", n_contexts), ("window", window)):
        if value < 0:
            raise InputError(f"{name} must not be negative, not {value!r}")
    places = _Places(activations)
    gathered = _Gathered(dictionary, activations, places, n_words, n_contexts)
    finder = _words_of_rows if places.one_word else _words_of_bags
    words = finder(gathered, n_words)
    return [
        ConceptDescription(
            concept,
            tuple(words[concept]),
            tuple(places.context(row, value, window) for _, value, row in gathered.texts.entries(concept)),
            float(gathered.n_active[concept] / len(activations)),
            float(gathered.largest[concept]),
        )
        for concept in range(dictionary.n_concepts)
    ]


class _Places:
    """Where the rows lie in the texts, and which words they hold."""

    def __init__(self, activations: ActivationSet) -> None:
        self.one_word = activations.granularity in _WORD_ROWS
        self._joined = activations.granularity == "word"
        self._texts = activations.texts
        self._text_ids, self._spans = activations.text_ids, activations.spans

    def text_ids(self, start: int, stop: int) -> Integers:
        """Return the texts of some rows; -1 for rows that are nowhere in their text."""
        spans = self._spans[start:stop]
        return np.where(spans[:, 0] < spans[:, 1], self._text_ids[start:stop], -1)

    def word(self, row: int) -> tuple[int, int]:
        """Return the span of the word that a row stands for, or begins in."""
        text, span = self._texts[self._text_ids[row]], self._spans[row]
        return tuple(self._word_spans(text, span[None])[0].tolist())

    def _word_spans(self, text: str, spans: Spans) -> Spans:
        return spans if self._joined else pieces_at(word_spans(text), spans)

    def words(self) -> tuple[Integers, list[str]]:
        """Return the word of each row, as a place in the list of all words; -1 for rows without one."""
        known: dict[str, int] = {}
        of_row = np.full(len(self._text_ids), -1, dtype=np.int64)
        starts = np.flatnonzero(np.diff(self._text_ids, prepend=-1))
        for start, stop in pairwise([*starts.tolist(), len(of_row)]):
            text = self._texts[self._text_ids[start]]
            spans = self._spans[start:stop]
            for row, (first, last) in enumerate(self._word_spans(text, spans).tolist(), start):
                if first < last:
                    of_row[row] = known.setdefault(text[first:last].lower(), len(known))
        return of_row, list(known)

    def bag(self, row: int) -> set[str]:
        """Return the distinct words of a row that holds many."""
        first, last = self._spans[row].tolist()
        piece = self._texts[self._text_ids[row]][first:last]
        return {piece[start:end].lower() for start, end in word_spans(piece).tolist()}

    def context(self, row: int, activation: float, window: int) -> Context:
        """Return the surroundings of a row's word, or the beginning of a row that holds many."""
        index = int(self._text_ids[row])
        text = self._texts[index]
        if self.one_word:
            first, last = self.word(row)
            return Context(
                index, text[max(0, first - window) : first], text[first:last], text[last : last + window], activation
            )
        first, last = self._spans[row].tolist()
        return Context(index, "", text[first : min(last, first + 2 * window)], "", activation)


class _Gathered:
    """What one pass over the codes leaves: the top words, texts and rows of each concept."""

    def __init__(
        self, dictionary: ConceptDictionary, activations: ActivationSet, places: _Places, n_words: int, n_contexts: int
    ) -> None:
        self.dictionary, self.activations, self.places = dictionary, activations, places
        n_concepts = dictionary.n_concepts
        self.n_active = np.zeros(n_concepts, dtype=np.int64)
        self.largest = np.zeros(n_concepts)
        self.texts = TopKeys(n_concepts, n_contexts)
        self.words = TopKeys(n_concepts, n_words if places.one_word else 0)
        self.rows = TopKeys(n_concepts, 0 if places.one_word else _ROWS_FOR_WORDS)
        self.word_of_row, self.vocabulary = places.words() if places.one_word else (np.empty(0, np.int64), [])
        for start, codes in self.chunks():
            stop = start + len(codes)
            self.n_active += (codes > 0).sum(axis=0)
            self.largest = np.maximum(self.largest, codes.max(axis=0))
            self.texts.add(places.text_ids(start, stop), codes, start)
            if places.one_word:
                self.words.add(self.word_of_row[start:stop], codes, start)
            else:
                self.rows.add(np.arange(start, stop), codes, start)

    def chunks(self) -> Iterable[tuple[int, npt.NDArray[np.float32]]]:
        """Yield the number of the first row and the codes of each chunk."""
        start = 0
        for _, codes in self.dictionary.encode_chunks(self.activations):
            yield start, codes.numpy()
            start += len(codes)


def _words_of_rows(gathered: _Gathered, n_words: int) -> list[list[Word]]:
    """Name the top words, and count in a second pass the rows with them on which the concept fires."""
    n_concepts, size = gathered.dictionary.n_concepts, max(1, len(gathered.vocabulary))
    entries = [gathered.words.entries(concept) for concept in range(n_concepts)]
    wanted = np.asarray(sorted(c * size + key for c in range(n_concepts) for key, _, _ in entries[c]), dtype=np.int64)
    counts = np.zeros(len(wanted), dtype=np.int64)
    for start, codes in gathered.chunks() if len(wanted) else ():
        rows, concepts = np.nonzero(codes > 0)
        found = gathered.word_of_row[start + rows]
        keys = concepts * size + found
        place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
        hit = (wanted[place] == keys) & (found >= 0)
        counts += np.bincount(place[hit], minlength=len(wanted))
    count_of = dict(zip(wanted.tolist(), counts.tolist(), strict=True))
    return [
        [Word(gathered.vocabulary[key], value, count_of[c * size + key]) for key, value, _ in entries[c]]
        for c in range(n_concepts)
    ]


def _words_of_bags(gathered: _Gathered, n_words: int) -> list[list[Word]]:
    """Find the words over-represented in each concept's top rows."""
    n_rows = len(gathered.activations)
    everywhere = Counter(word for row in range(n_rows) for word in gathered.places.bag(row))
    return [
        _over_represented(
            [(gathered.places.bag(row), value) for _, value, row in gathered.rows.entries(concept)], everywhere, n_rows
        )[:n_words]
        for concept in range(gathered.dictionary.n_concepts)
    ]


def _over_represented(top: list[tuple[set[str], float]], everywhere: Counter[str], n_rows: int) -> list[Word]:
    activations: dict[str, list[float]] = {}
    for bag, value in top:
        for word in bag:
            activations.setdefault(word, []).append(value)
    scores = {
        word: len(values) * math.log(len(values) / len(top) * n_rows / everywhere[word])
        for word, values in activations.items()
    }
    # Words that one row alone holds say little, unless there is only one row.
    least = min(2, len(top))
    kept = [word for word, score in scores.items() if score > 0 and len(activations[word]) >= least]
    kept.sort(key=lambda word: (-scores[word], word))
    return [Word(word, float(np.mean(activations[word])), len(activations[word])) for word in kept]
