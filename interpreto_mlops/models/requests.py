"""What methods ask of the engine, and what they get back.

A method is a *program*: a generator that yields lists of requests for one text and receives their results. The engine
runs the programs of many texts side by side and fills its batches from all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.text_model import TextModel

Floats = npt.NDArray[np.float64]


class Readout(ABC):
    """How the numbers that a row is asked for are taken from the model: a value object, one a request.

    Rows whose readouts have the same type share a batch; each brings what it wants to know (for a classifier nothing;
    for a language model the positions and ids of the target tokens).
    """

    @classmethod
    @abstractmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Run the model once.

        Arguments:
            model: the model.
            batch: its inputs, padded on the right.
            readouts: what each row wants to know.

        Returns:
            One row of numbers for each row of the batch, shape (rows, width), at least in float32.
        """


@dataclass(frozen=True)
class ClassLogits(Readout):
    """The logits of all classes of a sequence classifier."""

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Return the logits, shape (rows, classes)."""
        network: Any = model.model
        if model.pools_by_padding and len(readouts) > 1:
            # A decoder classifier without a padding id cannot tell where its rows end; the mask can.
            hidden = network.base_model(**batch).last_hidden_state
            last = batch["attention_mask"].sum(-1) - 1
            logits = network.score(hidden[torch.arange(len(last), device=last.device), last])
        else:
            logits = network(**batch).logits
        return logits if logits.dtype == torch.float64 else logits.float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ScoreRequest:
    """Rows of one text that the model shall score.

    Arguments:
        encoding: the text.
        rows: the token ids of each row, some of them replaced or left out; a matrix, or arrays of any lengths.
        readout: what to read from the model.
    """

    encoding: Encoding
    rows: Sequence[Ids] | Ids
    readout: Readout = field(default_factory=ClassLogits)


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
        n_targets: how many scalars that are.
        powers: the powers of the gradient whose weighted sums are wanted.
        readout: what to read from the model.
    """

    encoding: Encoding
    anchors: Ids
    points: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    weights: Floats
    objective: Callable[[torch.Tensor], torch.Tensor]
    n_targets: int
    powers: tuple[int, ...] = (1,)
    readout: Readout = field(default_factory=ClassLogits)


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
    """

    moments: Floats
    values: Floats
    anchors: Floats


Request = ScoreRequest | EmbeddingRequest | GradientRequest
Result = Any
"""An array, shape (rows, read), for a `ScoreRequest`; (points, read) for an `EmbeddingRequest`; a `GradientResult` for
a `GradientRequest`."""

R = TypeVar("R")
Program = Generator[list[Request], list[Result], R]
