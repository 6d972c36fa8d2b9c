"""Pieces of a text that receive a score: tokens, words, sentences, cut on the raw text by character offsets.

Words and sentences depend on the text alone, so that two models with different tokenizers have the same elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import regex

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.registry import Choice

Spans = npt.NDArray[np.int64]
"""Character spans, shape (n, 2): start and end (exclusive) of each piece in the raw text."""

NO_ELEMENT = -1
"""The element index of a token that belongs to none (special tokens, white space)."""

# Joiners and variation selectors stay with the character before them.
_TAIL = r"\p{M}\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
_WORD = regex.compile(
    rf"\p{{Han}}[{_TAIL}]*"
    rf"|(?:(?!\p{{Han}})[\p{{L}}\p{{N}}\p{{M}}])(?:(?!\p{{Han}})[\p{{L}}\p{{N}}{_TAIL}])*"
    rf"|[^\s\p{{Cc}}\p{{Cf}}][{_TAIL}]*"
)
_SENTENCE_END = regex.compile(r"""[.?!]+["'”’»)\]]*(?=\s)|\n""")
_ABBREVIATION = regex.compile(
    r"(?:^|[\s(\[\"'“‘])(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|cf|al|fig|eq|vol|pp|approx|dept|inc|ltd|co"
    r"|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|[a-z])\.$",
    regex.IGNORECASE,
)


class Granularity(Choice):
    """How large an element is."""

    ALL_TOKENS = "all_tokens"
    TOKEN = "token"
    WORD = "word"
    SENTENCE = "sentence"


_NGRAM = regex.compile(r"([1-9][0-9]{0,3})-grams?")


@dataclass(frozen=True)
class NGrams:
    """Elements of n words of one sentence, one after the other without overlap; the last of a sentence may be shorter.

    Arguments:
        n: how many words.
    """

    n: int

    @property
    def value(self) -> str:
        """The name, such as `2-grams`."""
        return f"{self.n}-grams"


Grain = Granularity | NGrams
"""How large an element is."""


def parse_grain(value: str | Grain) -> Grain:
    """Return the granularity of that name: one of `Granularity`, or `2-grams`, `3-grams` and so on.

    Raises:
        UnknownNameError: there is none; the message lists those there are.
    """
    if isinstance(value, NGrams):
        return value
    if isinstance(value, str) and (found := _NGRAM.fullmatch(value)):
        return NGrams(int(found[1]))
    try:
        return Granularity(value)
    except ValueError:
        raise UnknownNameError("granularity", value, [*(member.value for member in Granularity), "2-grams"]) from None


@dataclass(frozen=True)
class Elements:
    """The scored pieces of one tokenised text.

    Arguments:
        names: a slice of the raw text for each element, outer white space cut; length n.
        spans: where each lies in the raw text, shape (n, 2).
        of_token: the element of each token, shape (tokens,); `NO_ELEMENT` for tokens that belong to none.
    """

    names: tuple[str, ...]
    spans: Spans
    of_token: npt.NDArray[np.int64]

    def ends(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the places of each element's first and last token, shape (n,) each."""
        places = np.flatnonzero(self.of_token != NO_ELEMENT)
        first, last = np.full(len(self), len(self.of_token)), np.full(len(self), -1)
        np.minimum.at(first, self.of_token[places], places)
        np.maximum.at(last, self.of_token[places], places)
        return first, last

    def __len__(self) -> int:
        return len(self.names)


def word_spans(text: str) -> Spans:
    """Cut a text into words: runs of letters, digits and marks, or one other visible character.

    Each CJK ideograph is a word of its own.

    Returns:
        The spans, shape (words, 2).
    """
    return _as_spans([match.span() for match in _WORD.finditer(text)])


def sentence_spans(text: str) -> Spans:
    """Cut a text into sentences, at a newline or at `. ? !` before white space unless an abbreviation stands there.

    Returns:
        The spans without outer white space, shape (sentences, 2).
    """
    spans, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if match.group().startswith(".") and _ABBREVIATION.search(text[start : match.start() + 1]):
            continue
        spans.append((start, match.end()))
        start = match.end()
    spans.append((start, len(text)))
    stripped = (_strip(text, *span) for span in spans)
    return _as_spans([span for span in stripped if span[0] < span[1]])


def ngram_spans(text: str, n: int) -> Spans:
    """Cut each sentence of a text into runs of n words, the last of a sentence perhaps shorter.

    Returns:
        The spans, shape (runs, 2).
    """
    runs = []
    for start, end in sentence_spans(text).tolist():
        words = (word_spans(text[start:end]) + start).tolist()
        runs += [(words[k][0], words[min(k + n, len(words)) - 1][1]) for k in range(0, len(words), n)]
    return _as_spans(runs)


def elements_of(
    text: str,
    granularity: Grain,
    offsets: Spans | None,
    special: npt.NDArray[np.bool_],
    tokens: tuple[str, ...],
    boundary: int | None = None,
) -> Elements:
    """Group the tokens of a text into elements.

    Arguments:
        text: the raw text.
        granularity: how large an element is.
        offsets: character span of each token, shape (tokens, 2); None when the tokenizer knows none.
        special: which tokens are special, shape (tokens,); they are elements only for `all_tokens`.
        tokens: the tokenizer's own strings, the names of tokens that have no place in the text.
        boundary: the character where a second part of the text starts (the continuation of a prompt); no word or
            sentence crosses it.

    Raises:
        InputError: words or sentences are asked for and the tokenizer gives no offsets.
    """
    if granularity is Granularity.ALL_TOKENS or granularity is Granularity.TOKEN:
        return _token_elements(text, granularity is Granularity.ALL_TOKENS, offsets, special, tokens)
    if offsets is None:
        raise InputError(
            f"granularity {granularity.value!r} needs character offsets, which this tokenizer lacks; use 'token'"
        )
    border = len(text) if boundary is None else boundary
    pieces = np.concatenate([_cut(text[:border], granularity), _cut(text[border:], granularity) + border])
    return _joined_elements(text, pieces, visible_spans(text, offsets), special)


def _cut(text: str, granularity: Grain) -> Spans:
    if isinstance(granularity, NGrams):
        return ngram_spans(text, granularity.n)
    return word_spans(text) if granularity is Granularity.WORD else sentence_spans(text)


def _token_elements(
    text: str, with_special: bool, offsets: Spans | None, special: npt.NDArray[np.bool_], tokens: tuple[str, ...]
) -> Elements:
    visible = np.zeros((len(tokens), 2), dtype=np.int64) if offsets is None else visible_spans(text, offsets)
    kept = ~special if offsets is None else ~special & (visible[:, 0] < visible[:, 1])
    if with_special:
        kept = kept | special
    of_token = np.where(kept, np.cumsum(kept) - 1, NO_ELEMENT)
    names = tuple(
        text[start:end] if start < end and not is_special else token
        for (start, end), is_special, token, keep in zip(
            visible.tolist(), special.tolist(), tokens, kept.tolist(), strict=True
        )
        if keep
    )
    return Elements(names, visible[kept], of_token)


def _joined_elements(text: str, pieces: Spans, visible: Spans, special: npt.NDArray[np.bool_]) -> Elements:
    """Give each token to the piece of its first visible character; join pieces that one token covers."""
    starts = pieces[:, 0]
    belongs = ~special & (visible[:, 0] < visible[:, 1])
    first = np.searchsorted(starts, visible[:, 0], side="right") - 1
    last = np.searchsorted(starts, visible[:, 1] - 1, side="right") - 1
    belongs &= first >= 0
    # An element is a group of adjacent pieces; a token over two pieces puts both in one group.
    joined = np.zeros(len(pieces), dtype=bool)
    for begin, end in zip(first[belongs].tolist(), last[belongs].tolist(), strict=True):
        joined[begin + 1 : end + 1] = True
    group = np.cumsum(~joined) - 1
    used, of_used = np.unique(group[first[belongs]], return_inverse=True)
    of_token = np.full(len(special), NO_ELEMENT, dtype=np.int64)
    of_token[belongs] = of_used
    first_of, last_of = (np.searchsorted(group, used, side) for side in ("left", "right"))
    spans = np.stack([pieces[first_of, 0], pieces[last_of - 1, 1]], axis=1)
    return Elements(tuple(text[start:end] for start, end in spans.tolist()), spans, of_token)


def visible_spans(text: str, offsets: Spans) -> Spans:
    """Cut white space from both ends of each token's span, shape (tokens, 2)."""
    spans = offsets.copy()
    if not len(text):
        return _as_spans([_strip(text, start, end) for start, end in spans.tolist()])
    space = np.fromiter(map(str.isspace, text), dtype=bool, count=len(text))
    last = len(text) - 1
    outer = space[np.minimum(spans[:, 0], last)] | space[np.clip(spans[:, 1] - 1, 0, last)]
    for place in np.flatnonzero(outer | (spans[:, 0] > spans[:, 1])):
        spans[place] = _strip(text, *spans[place].tolist())
    return spans


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    left = start + len(piece) - len(piece.lstrip())
    return left, max(left, end - (len(piece) - len(piece.rstrip())))


def _as_spans(spans: list[tuple[int, int]]) -> Spans:
    return np.asarray(spans, dtype=np.int64).reshape(-1, 2)
