"""Products over the few concepts that a row holds, forwards and backwards, in place of the dense ones.

Of the five matrix products of an autoencoder's step only one stays, rows · encoderᵀ; the other four (decoding, and the
gradients of codes, decoder and encoder) run over the places of the codes that are not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

Gradient = torch.Tensor | None

# Rows at least this long are first searched by the maxima of groups of so many; both found by measurement.
_GROUPED, _GROUP = 2048, 8


@dataclass(frozen=True)
class Places:
    """Which concepts the rows of a batch hold: row r those in `concepts[offsets[r] : offsets[r + 1]]`.

    Arguments:
        concepts: shape (places,), int64.
        offsets: shape (rows + 1,), int64.
        n_concepts: how many there are.
    """

    concepts: torch.Tensor
    offsets: torch.Tensor
    n_concepts: int

    @classmethod
    def of_rows(cls, concepts: torch.Tensor, n_concepts: int) -> Places:
        """Return the places of rows that hold k concepts each, shape (rows, k)."""
        n_rows, k = concepts.shape
        return cls(concepts.reshape(-1), torch.arange(0, n_rows * k + 1, k), n_concepts)

    @classmethod
    def of_batch(cls, flat: torch.Tensor, n_rows: int, n_concepts: int) -> Places:
        """Return the places given by their numbers in the flattened (rows, n_concepts), in any order."""
        flat = flat.sort().values
        rows = torch.div(flat, n_concepts, rounding_mode="floor")
        offsets = torch.zeros(n_rows + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(rows, minlength=n_rows), dim=0, out=offsets[1:])
        return cls(flat - rows * n_concepts, offsets, n_concepts)

    @property
    def n_rows(self) -> int:
        """The rows of the batch."""
        return len(self.offsets) - 1

    @cached_property
    def flat(self) -> torch.Tensor:
        """The places' numbers in the flattened (rows, n_concepts), shape (places,)."""
        return torch.repeat_interleave(torch.arange(self.n_rows), self.offsets.diff()) * self.n_concepts + self.concepts

    @cached_property
    def by_concept(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The places in the order of their concepts, their rows in that order, and the concepts' offsets in it."""
        numbers = np.arange(len(self.concepts), dtype=np.int64)
        shape = (self.n_rows, self.n_concepts)
        columns = csr_matrix((numbers, self.concepts.numpy(), self.offsets.numpy()), shape=shape).tocsc()
        order, rows, offsets = (torch.from_numpy(a) for a in (columns.data, columns.indices, columns.indptr))
        return order, rows.long(), offsets.long()


def largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """Return where each row's k largest entries are, shape (rows, k), in no order.

    Arguments:
        values: shape (rows, n), float32 or bfloat16.
        k: from 1 to n.
    """
    n = values.shape[1]
    n_groups = n // _GROUP
    if n < _GROUPED or n_groups < 2 * k:
        return _partition(values, k)
    # An entry among the k largest is in one of the k groups with the largest maxima: few have to be looked at.
    whole = n_groups * _GROUP
    best = _partition(values[:, :whole].view(-1, _GROUP, n_groups).amax(dim=1), k)
    members = best.unsqueeze(1) + (torch.arange(_GROUP) * n_groups).unsqueeze(1)
    candidates = torch.cat([members.flatten(1), torch.arange(whole, n).expand(len(values), -1)], dim=1)
    return candidates.gather(1, _partition(values.gather(1, candidates), k))


def _partition(values: torch.Tensor, k: int) -> torch.Tensor:
    numbers = values.float().numpy()
    first = numbers.shape[1] - k
    return torch.from_numpy(np.argpartition(numbers, first, axis=1)[:, first:].copy())


def weighted_sums(places: Places, values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return codes · table, shape (rows, width), for codes with `values` at the places and 0 elsewhere.

    Arguments:
        places: of the codes.
        values: shape (places,).
        table: shape (n_concepts, width).
    """
    return _sums(places.concepts, places.offsets, values, table)


def weighted_sums_by_concept(places: Places, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return codesᵀ · rows, shape (n_concepts, width), for rows of shape (rows, width)."""
    order, holders, offsets = places.by_concept
    return _sums(holders, offsets, values[order], rows)


def _sums(chosen: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.embedding_bag(
        chosen, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, decoder: torch.Tensor, places: Places) -> torch.Tensor:
        with torch.enable_grad():
            ctx.values = values.detach().requires_grad_()
            ctx.decoded = weighted_sums(places, ctx.values, decoder.detach())
        ctx.places = places
        decoded: torch.Tensor = ctx.decoded.detach()
        return decoded

    @staticmethod
    def backward(ctx: Any, *of_rows: torch.Tensor) -> tuple[Gradient, Gradient, None]:
        (gradient,) = of_rows
        of_values = of_decoder = None
        if ctx.needs_input_grad[0]:
            (of_values,) = torch.autograd.grad(ctx.decoded, ctx.values, gradient)
        if ctx.needs_input_grad[1]:
            of_decoder = weighted_sums_by_concept(ctx.places, ctx.values.detach(), gradient)
        return of_values, of_decoder, None


def sparse_decode(places: Places, values: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
    """Return codes · decoder, shape (rows, width), differentiable in the values and the decoder."""
    decoded: torch.Tensor = _Decode.apply(values, decoder, places)  # type: ignore[no-untyped-call]
    return decoded


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        known: torch.Tensor,
        centred: torch.Tensor,
        shift: torch.Tensor,
        encoder: torch.Tensor,
        bias: torch.Tensor,
        places: Places,
    ) -> torch.Tensor:
        ctx.save_for_backward(centred, encoder)
        ctx.places = places
        return known.clone()

    @staticmethod
    def backward(ctx: Any, *of_values: torch.Tensor) -> tuple[None, None, Gradient, Gradient, Gradient, None]:
        (gradient,) = of_values
        centred, encoder = ctx.saved_tensors
        places: Places = ctx.places
        of_bias = torch.bincount(places.concepts, gradient, minlength=places.n_concepts).float()
        of_encoder = weighted_sums_by_concept(places, gradient, centred)
        return None, None, -(of_bias @ encoder), of_encoder, of_bias, None


def sparse_read(
    places: Places,
    known: torch.Tensor,
    centred: torch.Tensor,
    shift: torch.Tensor,
    encoder: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Return the encoder's outputs at the places, differentiable in shift, encoder and bias.

    Arguments:
        places: where.
        known: the outputs there, (rows − shift) · encoderᵀ + bias, shape (places,).
        centred: rows − shift, shape (rows, width), detached.
        shift: shape (width,).
        encoder: shape (n_concepts, width).
        bias: shape (n_concepts,).
    """
    values: torch.Tensor = _Read.apply(known, centred, shift, encoder, bias, places)  # type: ignore[no-untyped-call]
    return values
