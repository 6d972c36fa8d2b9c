"""From texts to token ids, tied to the texts by character offsets. The tokenizer is left as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.encoding import Encoding, Ids

UNSET_LENGTH = 10**9
"""From here on a tokenizer's largest length means that it has none: transformers writes 1e30."""

_TOKENIZER_CHUNK = 256


class TextTokens:
    """A tokenizer as a model needs it.

    Arguments:
        tokenizer: of the model.
        max_length: the most tokens that the model takes, or None.
        takes_segments: whether the model takes segment ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None, *, takes_segments: bool) -> None:
        self.tokenizer, self.max_length, self.takes_segments = tokenizer, max_length, takes_segments

    def special_places(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Return which token ids are special wherever they stand, shape (tokens,)."""
        return np.fromiter(map(self._special_ids.__contains__, ids.tolist()), dtype=bool, count=len(ids))

    @cached_property
    def _special_ids(self) -> frozenset[int | None]:
        tokenizer = self.tokenizer
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        return frozenset(special - ({tokenizer.unk_token_id} - ends))

    def encode(self, texts: Iterable[str | tuple[str, str]], *, first: int = 0) -> Iterator[Encoding]:
        """Tokenise texts lazily, cutting those that are longer than the model takes on the right, with a warning.

        A tuple of two strings is a pair, such as premise and hypothesis; its text is both with a line break between.
        Places are counted from `first`.

        Raises:
            InputError: something other than a string among the texts, or one string instead of a list of them.
        """
        if isinstance(texts, str):
            raise InputError(f"give a list of texts, not one string ({texts[:40]!r})")
        iterator = iter(texts)
        index = first
        while chunk := list(islice(iterator, _TOKENIZER_CHUNK)):
            for place, text in enumerate(chunk, index):
                for part in _parts(text):
                    check_text(part, place)
            # A tokenizer takes single texts or pairs, not both in one call.
            for paired, group in groupby(enumerate(chunk, index), key=lambda item: isinstance(item[1], tuple)):
                items = list(group)
                yield from self._encode_chunk([text for _, text in items], items[0][0], paired)
            index += len(chunk)

    def tokenized(self, texts: Sequence[str], seconds: Sequence[str] | None = None, *, special: bool = True) -> Any:
        """Tokenise without cutting; `special` says whether the tokenizer's template adds its tokens."""
        with _unchanged_truncation(self.tokenizer), _unchanged_limit(self.tokenizer):
            return self.tokenizer(
                list(texts),
                seconds,
                add_special_tokens=special,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_special_tokens_mask=True,
                return_offsets_mapping=self.tokenizer.is_fast,
            )

    def _encode_chunk(self, texts: Sequence[Any], first: int, paired: bool) -> Iterator[Encoding]:
        with _unchanged_truncation(self.tokenizer):
            rows = self.tokenizer(
                [text[0] for text in texts] if paired else list(texts),
                [text[1] for text in texts] if paired else None,
                truncation=self.max_length is not None,
                max_length=self.max_length,
                padding=False,
                return_attention_mask=False,
                return_special_tokens_mask=True,
                return_offsets_mapping=self.tokenizer.is_fast,
            )
        for place, text in enumerate(texts):
            yield self._encoding(text, first + place, rows, place)

    def _encoding(self, text: str | tuple[str, str], index: int, rows: Any, place: int) -> Encoding:
        ids = np.asarray(rows["input_ids"][place], dtype=np.int64)
        by_template = np.asarray(rows["special_tokens_mask"][place], dtype=bool)
        segments = rows["token_type_ids"][place] if "token_type_ids" in rows and self.takes_segments else None
        truncated = self._is_cut(text, rows, place)
        if truncated:
            message = f"text {index} is longer than {self.max_length} tokens and was cut there"
            warnings.warn(message, TextWarning, stacklevel=2)
        joined, offsets = "\n".join(_parts(text)), self._offsets(text, rows, place)
        return Encoding(
            text=joined,
            index=index,
            ids=ids,
            special=by_template | (self.special_places(ids) & ~self._unknown_words(joined, ids, offsets)),
            tokens=tuple(self.tokenizer.convert_ids_to_tokens(ids.tolist())),
            offsets=offsets,
            token_type_ids=None if segments is None else np.asarray(segments, dtype=np.int64),
            truncated=truncated,
            boundary=len(text[0]) + 1 if isinstance(text, tuple) else None,
        )

    def _unknown_words(self, text: str, ids: Ids, offsets: npt.NDArray[np.int64] | None) -> npt.NDArray[np.bool_]:
        """Return where a word is unknown, though its id is that of padding or of an end, too; shape (tokens,)."""
        unknown = np.zeros(len(ids), dtype=bool)
        if offsets is None or self.tokenizer.unk_token_id not in self._special_ids:
            return unknown
        for place in np.flatnonzero(ids == self.tokenizer.unk_token_id):
            start, end = offsets[place].tolist()
            unknown[place] = start < end and text[start:end] != self.tokenizer.unk_token
        return unknown

    def _offsets(self, text: str | tuple[str, str], rows: Any, place: int) -> npt.NDArray[np.int64] | None:
        if not self.tokenizer.is_fast:
            return None
        offsets = np.asarray(rows["offset_mapping"][place], dtype=np.int64).reshape(-1, 2)
        if isinstance(text, tuple):
            second = np.asarray([part == 1 for part in rows.sequence_ids(place)])
            offsets[second] += len(text[0]) + 1
        return offsets

    def _is_cut(self, text: str | tuple[str, str], rows: Any, place: int) -> bool:
        if self.tokenizer.is_fast:
            return bool(rows.encodings[place].overflowing)
        # A slow tokenizer does not say; a row of the full length was cut if the text alone gives more.
        full = len(rows["input_ids"][place]) == self.max_length
        return full and len(self.tokenizer(*_parts(text), truncation=False)["input_ids"]) > len(
            rows["input_ids"][place]
        )


def _parts(text: Any) -> tuple[Any, ...]:
    """Return the two texts of a pair, or the one of a single text."""
    return text if isinstance(text, tuple) and len(text) == 2 else (text,)


@contextmanager
def _unchanged_limit(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Keep a tokenizer from warning, once in its life, that a text is longer than its model takes."""
    limit, tokenizer.model_max_length = tokenizer.model_max_length, UNSET_LENGTH
    try:
        yield
    finally:
        tokenizer.model_max_length = limit


def check_text(text: object, place: int) -> None:
    """Refuse what is no text.

    Raises:
        InputError: something other than a string, or one with half a character in it.
    """
    if not isinstance(text, str):
        raise InputError(f"text {place} is not a string but {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"text {place} holds half a character (a lone surrogate) at {error.start}") from None


@contextmanager
def _unchanged_truncation(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Cut on the right, and put a tokenizer's own truncation and padding back, which each call of it overwrites."""
    side, tokenizer.truncation_side = tokenizer.truncation_side, "right"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        try:
            yield
        finally:
            tokenizer.truncation_side = side
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        tokenizer.truncation_side = side
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()
