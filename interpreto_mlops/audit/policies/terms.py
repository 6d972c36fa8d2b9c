"""Forbidden words and labels as sequences of whole words, found in texts whatever their case and punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from interpreto_mlops.audit.catalogue.texts import hidden_word
from interpreto_mlops.text.granularity import word_spans

Words = tuple[str, ...]
Span = tuple[int, int]

_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def words_of(text: str) -> list[tuple[str, Span]]:
    """Return the words of a text as they are compared, with the characters where each stands; punctuation is left out.

    A word is what the granularity `word` cuts: in folded case, one form of its letters, without what cannot be seen.
    """
    spans = [(int(start), int(end)) for start, end in word_spans(text)]
    found = ((_folded(text[start:end]), (start, end)) for start, end in spans)
    return [(word, span) for word, span in found if any(letter.isalnum() for letter in word)]


def term_of(text: str) -> Words:
    """Return a word, or several in a row, as they are looked for."""
    return tuple(word for word, _ in words_of(text))


def is_hash(text: str) -> bool:
    """Return whether a hash stands for a text or label that was not to be kept."""
    return _HASH.fullmatch(text) is not None


def hashed_term(text: str) -> Words:
    """Return a word, or several in a row, as they stand among the hashes of a hidden text's words."""
    return tuple(hidden_word(text[start:end]) for start, end in word_spans(text).tolist())


def occurrences(words: Sequence[tuple[str, Span]], term: Words) -> Iterator[Span]:
    """Yield where a term stands in a text, from the first to the last character of it.

    Arguments:
        words: of the text.
        term: at least one word.
    """
    for start in range(len(words) - len(term) + 1):
        part = words[start : start + len(term)]
        if all(word == wanted for (word, _), wanted in zip(part, term, strict=True)):
            yield part[0][1][0], part[-1][1][1]


def _folded(word: str) -> str:
    seen = "".join(letter for letter in word if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
