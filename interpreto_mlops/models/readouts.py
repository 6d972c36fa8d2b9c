"""What is read from taggers and language models: logits at positions, and the scores of target tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.heads import head_rows
from interpreto_mlops.models.requests import Floats, Readout
from interpreto_mlops.models.text_model import TextModel

_LOGITS_AT_ONCE = 2**24  # numbers of the vocabulary's logits that are brought to float32 together


@dataclass(frozen=True)
class LabelLogits(Readout):
    """The logits of all labels of a token classifier at some positions.

    Arguments:
        positions: in the row.
        n_labels: of the model.
    """

    positions: tuple[int, ...]
    n_labels: int

    @property
    def width(self) -> int:
        """One number for each position and label."""
        return len(self.positions) * self.n_labels

    def without(self, kept: npt.NDArray[np.bool_]) -> Readout:
        """Refuse: a label belongs to a token, and a token that is taken out has none.

        Raises:
            InputError: a token is taken out.
        """
        if kept.all():
            return self
        raise InputError("replacement 'remove' leaves tokens without a place for their label; give a token id")

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Return the logits, shape (rows, positions · labels)."""
        network: Any = model.model
        mine = cast("Sequence[LabelLogits]", readouts)
        logits = _wide(model.call(network, batch).logits)
        return _gathered(logits, [readout.positions for readout in mine]).flatten(1)


@dataclass(frozen=True)
class TokenScores(Readout):
    """The logit of each target token of a decoder, and the log-sum-exp of all logits at its place.

    Every mode of every target follows from these two. All tokens come from one forward pass.

    Arguments:
        positions: where in the row each token is predicted, the place before its own.
        ids: the tokens.
        prompt_tokens: how many tokens of the row belong to the prompt.
    """

    positions: tuple[int, ...]
    ids: tuple[int, ...]
    prompt_tokens: int

    @property
    def width(self) -> int:
        """Two numbers a token."""
        return 2 * len(self.ids)

    @property
    def gradients(self) -> int:
        """At most one target a token."""
        return len(self.ids)

    def numbers(self, model: TextModel) -> int:
        """Return how many logits a row has, those of the places that are read."""
        return len(set(self.positions)) * model.vocabulary

    def without(self, kept: npt.NDArray[np.bool_]) -> Readout:
        """Return the places in a row of which only some tokens are left; one token stands for an empty prompt."""
        added = int(not kept[: self.prompt_tokens].any())
        places = kept.cumsum() - 1 + added
        return replace(
            self,
            positions=tuple(int(places[position]) for position in self.positions),
            prompt_tokens=int(kept[: self.prompt_tokens].sum()) + added,
        )

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Return logit and log-sum-exp of each token in turn, shape (rows, 2 · tokens)."""
        mine = cast("Sequence[TokenScores]", readouts)
        logits, where = cls.logits(model, batch, mine)
        return _scores_of(logits, where, [readout.ids for readout in mine])

    @classmethod
    def logits(
        cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[TokenScores]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Run the model; return logits, shape (rows, places, vocabulary), and the place of each position."""
        # Many targets are read at few places when there are contrasts.
        places = [sorted(set(readout.positions)) for readout in readouts]
        logits = model.logits_at(batch, _padded_rows(places))
        where = [[spot.index(p) for p in readout.positions] for spot, readout in zip(places, readouts, strict=True)]
        return logits, where


@dataclass(frozen=True)
class WholeTokenScores(TokenScores):
    """The same from a pass whose head runs at all tokens, so that what it reads can be looked at or exchanged."""

    def numbers(self, model: TextModel) -> int:
        """Return how many logits a row has, those of all its places."""
        return (max(self.positions) + 1) * model.vocabulary

    @classmethod
    def logits(
        cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[TokenScores]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Run the model; return logits, shape (rows, places, vocabulary), and the place of each position."""
        options = {"use_cache": False} if "use_cache" in model.accepts else {}
        logits = model.call(model.model, {**batch, **options}).logits
        return logits, [list(readout.positions) for readout in readouts]


@dataclass(frozen=True)
class TokenLogits(TokenScores):
    """The logit of each target token alone: where the head is a plain linear layer, no other logit is computed."""

    @property
    def width(self) -> int:
        """One number a token."""
        return len(self.ids)

    @property
    def whole(self) -> TokenScores:
        """Logits and log-sum-exps, which probabilities need, too."""
        return TokenScores(self.positions, self.ids, self.prompt_tokens)

    def taken(self, values: Floats) -> Floats:
        """Leave the log-sum-exps out, where they were read."""
        return values if values.shape[1] == len(self.ids) else values[:, ::2]

    def numbers(self, model: TextModel) -> int:
        """Return how many numbers a row has."""
        return len(self.ids) * model.embedding.weight.shape[1] if model.plain_head else super().numbers(model)

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Return the logit of each token in turn, shape (rows, tokens)."""
        if model.plain_head is None:
            return super().read(model, batch, readouts)[:, ::2]
        mine = cast("Sequence[TokenLogits]", readouts)
        hidden = model.hidden_at(batch, _padded_rows([readout.positions for readout in mine]))
        return _wide(head_rows(model.plain_head, hidden, _padded_rows([readout.ids for readout in mine])))


@dataclass(frozen=True)
class SourceTokenScores(TokenScores):
    """As `TokenScores`, for an encoder-decoder: a row is the source's ids followed by the decoder's input ids.

    `prompt_tokens` is the length of the source; positions count from the start of the row.
    """

    def without(self, kept: npt.NDArray[np.bool_]) -> Readout:
        """Return the places in a row of which only some tokens are left.

        Raises:
            InputError: the token that the decoder starts with is taken out (`all_tokens`).
        """
        if not kept[self.prompt_tokens]:
            raise InputError("replacement 'remove' leaves the decoder nothing to start with; give a token id")
        return super().without(kept)

    def numbers(self, model: TextModel) -> int:
        """Return how many logits a row has, those of all places of the decoder."""
        return (max(self.positions) + 1 - self.prompt_tokens) * model.vocabulary

    def embed(self, model: TextModel, ids: torch.Tensor) -> torch.Tensor:
        """Embed the source by the encoder's module, the rest by the decoder's."""
        source, rest = ids[:, : self.prompt_tokens], ids[:, self.prompt_tokens :]
        return torch.cat([model.embed(source), model.decoder_embedding.forward(rest)], dim=1)

    @classmethod
    def inputs(
        cls, model: TextModel, encodings: Sequence[Encoding], rows: Sequence[Ids], readouts: Sequence[Readout]
    ) -> dict[str, torch.Tensor]:
        """Return the inputs of encoder and decoder, each padded on the right."""
        cuts = [cast("SourceTokenScores", readout).prompt_tokens for readout in readouts]
        source = model.inputs(encodings, [row[:cut] for row, cut in zip(rows, cuts, strict=True)])
        decoder = model.inputs(encodings, [row[cut:] for row, cut in zip(rows, cuts, strict=True)])
        named = {f"decoder_{name}": tensor for name, tensor in decoder.items() if name != "token_type_ids"}
        return {**source, **named}

    @classmethod
    @contextmanager
    def embeddings_replaced(
        cls, model: TextModel, embeddings: torch.Tensor, readouts: Sequence[Readout]
    ) -> Iterator[None]:
        """Give the encoder the embeddings of the sources, the decoder those of the rest."""
        cuts = [cast("SourceTokenScores", readout).prompt_tokens for readout in readouts]
        ends = [embeddings.shape[1]] * len(cuts)
        with ExitStack() as stack:
            source = _parts(embeddings, [0] * len(cuts), cuts)
            stack.enter_context(model.embeddings_replaced(source))
            decoder = _parts(embeddings, cuts, ends)
            stack.enter_context(model.embeddings_replaced(decoder, model.decoder_embedding))
            yield

    @classmethod
    def logits(
        cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[TokenScores]
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """Run the model; return logits, shape (rows, places, vocabulary), and the place of each position."""
        where = [[p - readout.prompt_tokens for p in readout.positions] for readout in readouts]
        return model.call(model.model, {**batch, "use_cache": False}).logits, where


def _parts(embeddings: torch.Tensor, starts: list[int], ends: list[int]) -> torch.Tensor:
    """Cut a stretch out of each row, shape (rows, tokens, width) to (rows, longest stretch, width)."""
    pieces = [row[start:end] for row, start, end in zip(embeddings, starts, ends, strict=True)]
    return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)


def _padded_rows(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Put rows of numbers of different lengths into a matrix; a short one repeats its first."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in rows])


def _gathered(values: torch.Tensor, places: Sequence[Sequence[int]]) -> torch.Tensor:
    """Take some places of each row, shape (rows, places, …) to (rows, most places, …)."""
    index = _padded_rows(places).to(values.device)
    return torch.take_along_dim(values, index[..., None], dim=1)


def _scores_of(logits: torch.Tensor, places: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return logit and log-sum-exp of tokens at places, from logits of shape (rows, places, vocabulary)."""
    at, tokens = (_padded_rows(each).to(logits.device) for each in (places, ids))
    rows = torch.arange(len(logits), device=logits.device)[:, None]
    chosen = _wide(logits[rows, at, tokens])
    sums = torch.cat([_wide(part).logsumexp(-1) for part in logits.split(_rows_at_once(logits))])
    return torch.stack([chosen, torch.take_along_dim(sums, at, dim=1)], dim=-1).flatten(1)


def _rows_at_once(logits: torch.Tensor) -> int:
    return max(1, _LOGITS_AT_ONCE // max(1, logits[0].numel()))


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()
