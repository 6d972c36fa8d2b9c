"""One tokenised text, tied to the raw text by character offsets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interpreto_mlops.text.granularity import Elements, Grain, Spans, elements_of

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoding:
    """One tokenised text, or one text and its continuation.

    Arguments:
        text: the raw text; a prompt together with its continuation, two texts of a pair with a line break between.
        index: its place in the data set, for messages.
        ids: the token ids that the model is given, shape (tokens,). With a continuation: the prompt's ids and the
            continuation's without the last (decoder); or the source's ids and the decoder's (encoder-decoder).
        special: which tokens are special, shape (tokens or more,): a continuation's last token is described, too.
        tokens: the tokenizer's own strings, as many as `special`.
        offsets: character spans, shape (as many, 2), or None.
        token_type_ids: segment ids, shape (tokens,), or None when the model takes none.
        truncated: whether the text was longer than the model takes.
        boundary: the character at which the second part of the text starts, or None when it has one part.
        prompt_tokens: how many of the ids belong to the prompt or source; None without a continuation.
    """

    text: str
    index: int
    ids: Ids
    special: npt.NDArray[np.bool_]
    tokens: tuple[str, ...]
    offsets: Spans | None
    token_type_ids: Ids | None = None
    truncated: bool = False
    boundary: int | None = None
    prompt_tokens: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def elements(self, granularity: Grain) -> Elements:
        """Return the scored pieces of this text at that granularity, those of a continuation's last token included."""
        return elements_of(self.text, granularity, self.offsets, self.special, self.tokens, self.boundary)

    @property
    def first_part(self) -> int:
        """How many of the ids belong to the prompt, or to the text when it has no continuation."""
        return len(self) if self.prompt_tokens is None else self.prompt_tokens

    def seed(self, seed: int) -> int:
        """Return a seed that depends on `seed` and on the token ids alone, not on place or company of the text."""
        digest = hashlib.sha256(f"{seed}:".encode() + self.ids.tobytes()).digest()
        return int.from_bytes(digest[:7], "big")
