"""What a sparse autoencoder is made of while it is trained: tensors, codes, and the losses beside the squared error.

A family brings an `Architecture`; `SparseAutoencoder` in `autoencoder.py` says how it plugs in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from interpreto_mlops.concepts.sparse_step import Places, sparse_decode, sparse_read
from interpreto_mlops.concepts.training import State

_CHUNK = 1024


class Codes(Protocol):
    """The codes of a batch, differentiable."""

    def decode(self, decoder: torch.Tensor) -> torch.Tensor:
        """Return codes · decoder, shape (rows, width), for a decoder of shape (n_concepts, width)."""
        ...

    def fired(self) -> torch.Tensor:
        """Return in how many rows each concept is above 0, shape (n_concepts,)."""
        ...


def multiply(left: torch.Tensor, right: torch.Tensor, *, low_precision: bool) -> torch.Tensor:
    """Return left · right in float32, multiplied as they are or as bfloat16 numbers; differentiable."""
    if low_precision:
        return (left.bfloat16() @ right.bfloat16()).float()
    return left @ right


@dataclass(frozen=True)
class DenseCodes:
    """Codes as a matrix.

    Arguments:
        values: shape (rows, n_concepts).
        before: the encoder's outputs that they were made from, of the same shape.
        low_precision: whether they are decoded as bfloat16 numbers.
    """

    values: torch.Tensor
    before: torch.Tensor
    low_precision: bool

    def decode(self, decoder: torch.Tensor) -> torch.Tensor:
        """Return codes · decoder."""
        return multiply(self.values, decoder, low_precision=self.low_precision)

    def fired(self) -> torch.Tensor:
        """Count the rows of each concept."""
        values = self.values.detach()
        # As numbers and not as truth values, which are slower to sum.
        return torch.gt(values, 0, out=torch.empty_like(values)).sum(dim=0)


@dataclass(frozen=True)
class SparseCodes:
    """Codes by the places that are not zero.

    Arguments:
        places: where they are.
        values: shape (places,).
    """

    places: Places
    values: torch.Tensor

    def decode(self, decoder: torch.Tensor) -> torch.Tensor:
        """Return codes · decoder."""
        return sparse_decode(self.places, self.values, decoder)

    def fired(self) -> torch.Tensor:
        """Count the rows of each concept."""
        positive = (self.values.detach() > 0).float()
        return torch.bincount(self.places.concepts, positive, minlength=self.places.n_concepts)


class Architecture(ABC):
    """Tensors that Adam changes (`learned`), tensors that go along (`kept`), and how codes come from rows.

    Rows are centred and have a mean square of 1. The loss of a batch is the mean over its rows of
    |row − codes · decoder() − bias|² / width + sparsity + aux_coefficient · revival.

    Arguments:
        n_concepts: how many concepts.
        width: of a row.
        seed: draws the decoder's rows from the sphere.
        low_precision: whether dense products are of bfloat16 numbers; weights and their updates stay float32.
    """

    def __init__(self, n_concepts: int, width: int, seed: int, *, low_precision: bool = False) -> None:
        self.n_concepts, self.width, self.low_precision = n_concepts, width, low_precision
        self.generator = torch.Generator().manual_seed(seed)
        self.learned: State = {}
        self.kept: State = {}
        self.pace: dict[str, float] = {}  # multiples of the learning rate, by the tensors' names
        directions = torch.randn(n_concepts, width, generator=self.generator)
        self.learn("decoder", directions / directions.norm(dim=1, keepdim=True))
        self.learn("bias", torch.zeros(width))

    def learn(self, name: str, start: torch.Tensor) -> None:
        """Add a tensor that training changes."""
        self.learned[name] = start.clone().requires_grad_(True)

    @abstractmethod
    def codes(self, rows: torch.Tensor) -> Codes:
        """Return the codes of a batch, shape (rows, width), as training sees them; differentiable in `learned`."""

    def test_codes(self, rows: torch.Tensor) -> Codes:
        """Return the codes that the finished dictionary would give; those of training where nothing else is said."""
        return self.codes(rows)

    def decoder(self) -> torch.Tensor:
        """Return the decoder with rows of norm 1, shape (n_concepts, width), differentiable in `learned`."""
        return self.learned["decoder"]

    def sparsity(self, codes: Codes, done: float) -> torch.Tensor | None:
        """Return the sum over the rows of the sparsity loss; None without one.

        Arguments:
            codes: of the batch.
            done: share of the training that is behind it; 1 asks for the loss at its full weight.
        """
        return None

    def revival(
        self, rows: torch.Tensor, codes: Codes, error: torch.Tensor, dead: torch.Tensor, residual: float
    ) -> torch.Tensor | None:
        """Return the sum over the rows of a loss that brings dead concepts back; None without one.

        Arguments:
            rows: the batch.
            codes: of the batch.
            error: what they leave unexplained, detached, shape (rows, width).
            dead: numbers of the dead concepts, at least one.
            residual: mean of |error|² / width over the rows of the last update; 1 before the first.
        """
        return None

    @torch.no_grad()
    def project(self) -> None:
        """Take from the gradients, before they are clipped, what the constraints forbid: the decoder's radial part."""
        decoder = self.learned["decoder"]
        if decoder.grad is None:
            return
        # Chunk by chunk the products stay in the cache.
        for gradient, rows in zip(decoder.grad.split(_CHUNK), decoder.split(_CHUNK), strict=True):
            gradient.addcmul_((gradient * rows).sum(dim=1, keepdim=True), rows, value=-1)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the constraints right after an update: the decoder's rows back on the sphere."""
        for rows in self.learned["decoder"].split(_CHUNK):
            rows /= rows.norm(dim=1, keepdim=True)

    def weights(self) -> State:
        """Return what the family's `_encode` needs beside `mean`, `scale` and `decoder`."""
        return {}


class LinearEncoder(Architecture):
    """An architecture whose codes come from `before` = (rows − bias) · encoderᵀ + encoder_bias, by any rule.

    The encoder starts as the decoder's transpose times `gain`.
    """

    def __init__(
        self, n_concepts: int, width: int, seed: int, *, low_precision: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__(n_concepts, width, seed, low_precision=low_precision)
        self.learn("encoder", gain * self.learned["decoder"].detach())
        self.learn("encoder_bias", torch.zeros(n_concepts))

    def before(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the encoder's outputs, shape (rows, n_concepts), differentiable in `learned`."""
        encoder, shift = self.learned["encoder"], self.learned["bias"]
        outputs = multiply(rows - shift.detach(), encoder.T, low_precision=self.low_precision)
        # Zeros that carry the gradient of the shift: without them it would take a product as large as the others.
        carrier = encoder.detach() @ (shift.detach() - shift)
        return outputs + (self.learned["encoder_bias"] + carrier)

    def weights(self) -> State:
        """Return `encoder` and `encoder_bias`."""
        return {name: self.learned[name].detach() for name in ("encoder", "encoder_bias")}


class SelectingEncoder(LinearEncoder):
    """A linear encoder of whose outputs a batch keeps few, when they are positive; `select` says which.

    Arguments:
        k_aux: how many dead concepts explain the residual of a row.

    The other arguments: `LinearEncoder`.

    Source: the auxiliary loss of Gao et al. 2024 (arXiv 2406.04093, section A.2).
    """

    def __init__(
        self, n_concepts: int, width: int, seed: int, *, k_aux: int, low_precision: bool = False, gain: float = 1.0
    ) -> None:
        super().__init__(n_concepts, width, seed, low_precision=low_precision, gain=gain)
        self.k_aux = k_aux

    @abstractmethod
    def select(self, before: torch.Tensor) -> Places:
        """Choose the places to keep from the encoder's outputs, shape (rows, n_concepts), float32 or bfloat16."""

    def codes(self, rows: torch.Tensor) -> SparseCodes:
        """Return what the chosen places hold."""
        return self.chosen(rows, self.select)

    def chosen(self, rows: torch.Tensor, select: Callable[[torch.Tensor], Places]) -> SparseCodes:
        """Return what the encoder gives at the places that a function of its outputs chooses."""
        encoder, encoder_bias, shift = (self.learned[name] for name in ("encoder", "encoder_bias", "bias"))
        with torch.no_grad():
            centred = rows - shift
            if self.low_precision:
                before = torch.addmm(encoder_bias.bfloat16(), centred.bfloat16(), encoder.bfloat16().T)
            else:
                before = torch.addmm(encoder_bias, centred, encoder.T)
            places = select(before)
            known = before.view(-1)[places.flat].float()
        return SparseCodes(places, sparse_read(places, known, centred, shift, encoder, encoder_bias).relu())

    def revival(
        self, rows: torch.Tensor, codes: Codes, error: torch.Tensor, dead: torch.Tensor, residual: float
    ) -> torch.Tensor | None:
        """Return how badly the k_aux largest dead concepts alone explain what is left, relative to what was left."""
        centred = rows - self.learned["bias"].detach()
        low = self.low_precision
        outputs = multiply(centred, self.learned["encoder"][dead].T, low_precision=low)
        values = (outputs + self.learned["encoder_bias"][dead]).relu()
        if len(dead) > self.k_aux:
            best = values.topk(self.k_aux, dim=1)
            values = torch.zeros_like(values).scatter(1, best.indices, best.values)
        return (error - multiply(values, self.decoder()[dead], low_precision=low)).square().sum() / (
            self.width * max(residual, 1e-12)
        )


class PenalisedEncoder(LinearEncoder):
    """A linear encoder whose codes are dense, and sparse by a penalty that the loss has.

    Arguments:
        coefficient: weight of the penalty, for rows scaled to a mean squared norm of 1.
        ramp: share of the training over which that weight rises from 0.

    The other arguments: `LinearEncoder`.

    Source: the loss for dead concepts is the pre-activation loss of Conerly et al. 2025, "Dictionary Learning
    Optimization Techniques" (Anthropic, January 2025).
    """

    def __init__(
        self,
        n_concepts: int,
        width: int,
        seed: int,
        *,
        coefficient: float,
        ramp: float,
        low_precision: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__(n_concepts, width, seed, low_precision=low_precision, gain=gain)
        self.coefficient, self.ramp = coefficient, ramp

    @abstractmethod
    def codes(self, rows: torch.Tensor) -> DenseCodes:
        """Return the codes of a batch."""

    @abstractmethod
    def penalty(self, codes: DenseCodes) -> torch.Tensor:
        """Return the sum over the rows of the penalty, before its weight."""

    @abstractmethod
    def threshold(self) -> torch.Tensor:
        """Return what the encoder's output must exceed for a concept to fire, shape (n_concepts,)."""

    def sparsity(self, codes: Codes, done: float) -> torch.Tensor | None:
        """Return the penalty at the weight that it has by now."""
        assert isinstance(codes, DenseCodes)
        weight = self.coefficient * min(1.0, done / self.ramp if self.ramp else 1.0)
        return self.penalty(codes).mul(weight)

    def revival(
        self, rows: torch.Tensor, codes: Codes, error: torch.Tensor, dead: torch.Tensor, residual: float
    ) -> torch.Tensor | None:
        """Return by how much the outputs of dead concepts miss their thresholds."""
        assert isinstance(codes, DenseCodes)
        missing = (self.threshold()[dead] - codes.before[:, dead]).relu()
        return missing.sum().div(math.sqrt(self.width))
