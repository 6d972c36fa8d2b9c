"""What methods ask of the engine, and what they get back.

A method is a *program*: a generator that yields lists of requests for one text and receives their results. The engine
runs the programs of many texts side by side and fills its batches from all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.text_model import TextModel

Floats = npt.NDArray[np.float64]


class Readout(ABC):
    """How rows are given to the model and what is read from it: a value object.

    Rows whose readouts have the same type share a batch; each brings what it wants to know (for a classifier nothing;
    for a language model the positions and ids of the target tokens).
    """

    @property
    def width(self) -> int | None:
        """How many numbers a row of this readout has; None when as many as `read` returns."""
        return None

    @property
    def gradients(self) -> int:
        """How many targets a row may have, each with a gradient of its own."""
        return 1

    @property
    def whole(self) -> Readout:
        """What to read where others may want more of the same row; `taken` finds this readout's part of it."""
        return self

    def taken(self, values: Floats) -> Floats:
        """Return this readout's part of what was read for `whole`, shape (rows, width)."""
        return values

    def numbers(self, model: TextModel) -> int:
        """Return how many numbers the model makes for a row beside its tokens, such as logits of a vocabulary."""
        return 0

    def without(self, kept: npt.NDArray[np.bool_]) -> Readout:
        """Return the same question for a row of which only some tokens are left, shape (tokens,).

        Raises:
            InputError: what is read is at a token that is taken out.
        """
        return self

    def embed(self, model: TextModel, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of rows of token ids, shape (rows, tokens) to (rows, tokens, width)."""
        return model.embed(ids)

    @classmethod
    def inputs(
        cls, model: TextModel, encodings: Sequence[Encoding], rows: Sequence[Ids], readouts: Sequence[Readout]
    ) -> dict[str, torch.Tensor]:
        """Return the model's inputs for rows of token ids, padded on the right."""
        return model.inputs(encodings, rows)

    @classmethod
    def embeddings_replaced(
        cls, model: TextModel, embeddings: torch.Tensor, readouts: Sequence[Readout]
    ) -> AbstractContextManager[Any]:
        """Make the model compute on these embeddings of the rows' tokens, shape (rows, tokens, width)."""
        return model.embeddings_replaced(embeddings)

    @classmethod
    @abstractmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Run the model once.

        Arguments:
            model: the model.
            batch: its inputs, padded on the right.
            readouts: what each row wants to know.

        Returns:
            One row of numbers for each row of the batch, at least in float32, shape (rows, the largest width): the
            engine cuts each row to its readout's `width`.
        """


@dataclass(frozen=True)
class ClassLogits(Readout):
    """The logits of all classes of a sequence classifier."""

    @classmethod
    def embeddings_replaced(
        cls, model: TextModel, embeddings: torch.Tensor, readouts: Sequence[Readout]
    ) -> AbstractContextManager[Any]:
        """Make the model compute on these embeddings; a decoder reads the same text, shifted."""
        stack = ExitStack()
        stack.enter_context(model.embeddings_replaced(embeddings))
        if model.model.config.is_encoder_decoder:
            start = torch.tensor([[model.model.config.decoder_start_token_id]], device=embeddings.device)
            first = model.decoder_embedding.forward(start).expand(len(embeddings), 1, -1).to(embeddings.dtype)
            shifted = torch.cat([first, embeddings[:, :-1]], dim=1)
            stack.enter_context(model.embeddings_replaced(shifted, model.decoder_embedding))
        return stack

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Return the logits, shape (rows, classes)."""
        network: Any = model.model
        if model.pools_by_padding and len(readouts) > 1:
            # A decoder classifier without a padding id cannot tell where its rows end; the mask can.
            hidden = model.call(network.base_model, batch).last_hidden_state
            last = batch["attention_mask"].sum(-1) - 1
            # At all tokens, as the network itself does: what its head reads may be a place that is looked at.
            logits = network.score(hidden)[torch.arange(len(last), device=last.device), last]
        else:
            logits = model.call(network, batch).logits
        return logits if logits.dtype == torch.float64 else logits.float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ScoreRequest:
    """Rows of one text that the model shall score.

    Arguments:
        encoding: the text.
        rows: the token ids of each row, some of them replaced or left out; a matrix, or arrays of any lengths.
        readout: what to read from the model, for all rows or one a row; all of one type and width.
        exact: how many of the first rows run in the model's own dtype even under autocast.
    """

    encoding: Encoding
    rows: Sequence[Ids] | Ids
    readout: Readout | Sequence[Readout] = field(default_factory=ClassLogits)
    exact: int = 0

    def readout_of(self, row: int) -> Readout:
        """Return what to read for one row."""
        return self.readout if isinstance(self.readout, Readout) else self.readout[row]


@dataclass(frozen=True)
class GradientRequest:
    """Points in the embedding space of one text at which gradients are wanted, summed with weights.

    Arguments:
        encoding: the text.
        anchors: token ids whose embeddings `points` starts from, shape (anchors, tokens); the first is the text itself.
        points: maps the anchors' embeddings, shape (anchors, tokens, width), and the numbers of some points, shape
            (r,), to those points, shape (r, tokens, width), on the model's device.
        weights: the weight of each point in the sums, shape (points,).
        objective: maps what was read, shape (r, read), to the scalars to differentiate, shape (r, targets).
        powers: the powers of the gradient whose weighted sums are wanted.
        variance: whether the weighted population variance of the gradient is wanted, too.
        readout: what to read from the model.
        rules: the rules of relevance propagation to differentiate by (`attn_lrp`, `cp_lrp`), or None for gradients.
    """

    encoding: Encoding
    anchors: Ids
    points: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    weights: Floats
    objective: Callable[[torch.Tensor], torch.Tensor]
    powers: tuple[int, ...] = (1,)
    variance: bool = False
    readout: Readout = field(default_factory=ClassLogits)
    rules: str | None = None


@dataclass(frozen=True)
class EmbeddingRequest:
    """Points in the embedding space of one text that the model shall score, without gradients.

    No row is looked up or remembered: points are built on the device from the anchors, a batch at a time.

    Arguments:
        encoding: the text.
        anchors: token ids whose embeddings `points` starts from, shape (anchors, tokens); the first is the text itself.
        points: maps the anchors' embeddings, shape (anchors, tokens, width), and the numbers of some points, shape
            (r,), to those points, shape (r, tokens, width), on the model's device.
        n_points: how many points there are.
        readout: what to read from the model.
    """

    encoding: Encoding
    anchors: Ids
    points: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    n_points: int
    readout: Readout = field(default_factory=ClassLogits)


@dataclass(frozen=True)
class GradientResult:
    """The answer to a `GradientRequest`.

    Arguments:
        moments: the weighted sums over points of gradient ** power, shape (powers, targets, tokens, width).
        values: the objective at each point, shape (points, targets).
        anchors: the embeddings of the anchors, shape (anchors, tokens, width).
        variance: of the gradient over points, shape (targets, tokens, width), when asked for; 0 for a single point.
    """

    moments: Floats
    values: Floats
    anchors: Floats
    variance: Floats | None = None


Request = ScoreRequest | EmbeddingRequest | GradientRequest
Result = Any
"""An array, shape (rows, read), for a `ScoreRequest`; (points, read) for an `EmbeddingRequest`; a `GradientResult` for
a `GradientRequest`."""

R = TypeVar("R")
Program = Generator[list[Request], list[Result], R]
