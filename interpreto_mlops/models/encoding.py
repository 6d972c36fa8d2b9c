"""One tokenised text, tied to the raw text by character offsets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interpreto_mlops.text.granularity import Elements, Granularity, Spans, elements_of

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoding:
    """One tokenised text.

    Arguments:
        text: the raw text.
        index: its place in the data set, for messages.
        ids: token ids, shape (tokens,).
        special: which tokens are special, shape (tokens,).
        tokens: the tokenizer's own strings.
        offsets: character spans, shape (tokens, 2), or None.
        token_type_ids: segment ids, shape (tokens,), or None when the model takes none.
        truncated: whether the text was longer than the model takes.
    """

    text: str
    index: int
    ids: Ids
    special: npt.NDArray[np.bool_]
    tokens: tuple[str, ...]
    offsets: Spans | None
    token_type_ids: Ids | None = None
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def elements(self, granularity: Granularity) -> Elements:
        """Return the scored pieces of this text at that granularity."""
        return elements_of(self.text, granularity, self.offsets, self.special, self.tokens)

    def seed(self, seed: int) -> int:
        """Return a seed that depends on `seed` and on the token ids alone, not on place or company of the text."""
        digest = hashlib.sha256(f"{seed}:".encode() + self.ids.tobytes()).digest()
        return int.from_bytes(digest[:7], "big")
