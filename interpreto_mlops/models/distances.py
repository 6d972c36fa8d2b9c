"""How far the next-token distributions of a language model move: Hellinger distances, without keeping distributions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.readouts import TokenScores
from interpreto_mlops.models.requests import Readout
from interpreto_mlops.models.text_model import TextModel

Roots = npt.NDArray[np.float32]
"""Square roots of next-token probabilities, shape (target tokens, vocabulary)."""


@dataclass(frozen=True, eq=False, repr=False)
class Distances(Readout):
    """The Hellinger distance of the distributions that predict target tokens from known ones.

    H(p, q) = ‖√p − √q‖ / √2, between 0 and 1.

    Arguments:
        asked: where the tokens are predicted.
        vocabulary: how many logits the model has at each place.
        known: the roots to measure from; None to read the roots themselves.
    """

    asked: TokenScores
    vocabulary: int
    known: Roots | None = None

    def embed(self, model: TextModel, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of rows of token ids, shape (rows, tokens) to (rows, tokens, width)."""
        return self.asked.embed(model, ids)

    @classmethod
    def inputs(
        cls, model: TextModel, encodings: Sequence[Encoding], rows: Sequence[Ids], readouts: Sequence[Readout]
    ) -> dict[str, torch.Tensor]:
        """Return the model's inputs for rows of token ids, padded on the right."""
        asked = _asked(readouts)
        return type(asked[0]).inputs(model, encodings, rows, asked)

    @classmethod
    def embeddings_replaced(
        cls, model: TextModel, embeddings: torch.Tensor, readouts: Sequence[Readout]
    ) -> AbstractContextManager[None]:
        """Make the model compute on these embeddings of the rows' tokens, shape (rows, tokens, width)."""
        asked = _asked(readouts)
        return type(asked[0]).embeddings_replaced(model, embeddings, asked)

    @property
    def width(self) -> int:
        """One number a token; of roots as many as the vocabulary has entries for each."""
        return len(self.asked.positions) * (self.vocabulary if self.known is None else 1)

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Return each token's distance, shape (rows, tokens), or the roots, shape (rows, tokens · vocabulary)."""
        mine = cast("Sequence[Distances]", readouts)
        asked = _asked(readouts)
        logits, where = type(asked[0]).logits(model, batch, asked)
        found = []
        for row, places, readout in zip(logits, where, mine, strict=True):
            wide = row[places] if row.dtype == torch.float64 else row[places].float()
            roots = (wide.log_softmax(-1) / 2).exp()
            if readout.known is None:
                found.append(roots.flatten())
            else:
                known = torch.from_numpy(readout.known).to(roots)
                found.append((roots - known).norm(dim=-1) / 2**0.5)
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)


def _asked(readouts: Sequence[Readout]) -> list[TokenScores]:
    return [readout.asked for readout in cast("Sequence[Distances]", readouts)]
