"""Forbidden words and labels as sequences of whole words, found in texts whatever their case and punctuation."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

from interpreto_mlops.audit.catalogue.texts import hidden_word
from interpreto_mlops.text.granularity import word_spans

Words = tuple[str, ...]
Span = tuple[int, int]

# The full-width forms of what can be typed in ASCII.
_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


def words_of(text: str) -> list[tuple[str, Span]]:
    """Return the words of a text as they are compared, with the characters where each stands; punctuation is left out.

    A word is what the granularity `word` cuts: in folded case, one form of its letters, without what cannot be seen.
    """
    spans = [(int(start), int(end)) for start, end in word_spans(text)]
    found = ((_folded(text[start:end]), (start, end)) for start, end in spans)
    return [(word, span) for word, span in found if _is_word(word)]


def term_of(text: str) -> Words:
    """Return a word, or several in a row, as they are looked for."""
    return tuple(word for word, _ in words_of(text))


def is_hash(text: str) -> bool:
    """Return whether a hash stands for a text or label that was not to be kept."""
    return _HASH.fullmatch(text) is not None


def hashed_terms(text: str) -> list[Words]:
    """Return a word, or several in a row, as they may stand among the hashes of a hidden text's words.

    A hash is that of the letters as they were typed, in folded case: composed or not, compatible forms, full width.
    Other ways, such as one with a letter that cannot be seen, are not found.
    """
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD"))]
    forms.append(forms[3].translate(_WIDE))
    pieces = ([form[start:end] for start, end in word_spans(form).tolist()] for form in forms)
    terms = dict.fromkeys(tuple(hidden_word(each) for each in found if _is_word(each)) for found in pieces)
    return [term for term in terms if term]


def is_punctuation(element: str) -> bool:
    """Return whether a hash is that of a single character that belongs to no word."""
    return element in _hashed_punctuation()


@cache
def _hashed_punctuation() -> frozenset[str]:
    letters = map(chr, range(sys.maxunicode + 1))
    return frozenset(hidden_word(each) for each in letters if unicodedata.category(each)[0] in "PS")


def _is_word(text: str) -> bool:
    return any(letter.isalnum() for letter in text)


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
