"""Matching pursuit: concept by concept, take from a row what the best of them explains of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Numbers of one chunk's correlations: what stays in the cache of one core.
_CHUNK_NUMBERS = 2**17
_ROUNDING = 32


@dataclass(frozen=True)
class Pursuit:
    """What k steps have found.

    Arguments:
        concepts: the concept of each step, shape (rows, k); it can be the same in two steps.
        values: how much of it was taken, at least 0, shape (rows, k).
        residual: what is left, shape (rows, width).
    """

    concepts: torch.Tensor
    values: torch.Tensor
    residual: torch.Tensor

    def codes(self, n_concepts: int) -> torch.Tensor:
        """Return the sum over the steps, shape (rows, n_concepts)."""
        codes = self.values.new_zeros(len(self.values), n_concepts)
        return codes.scatter_add_(1, self.concepts, self.values)


@torch.no_grad()
def pursue(rows: torch.Tensor, decoder: torch.Tensor, k: int, *, low_precision: bool = False) -> Pursuit:
    """Take k times what the concept of the largest correlation explains of what is left; nothing if none is above 0.

    Correlations are kept up to date by the concepts' products with each other, or computed anew from what is left where
    those products cost more: k steps cost about one or two of the dense products of which they would take k.

    Arguments:
        rows: shape (rows, width).
        decoder: the concepts, of norm 1, shape (n_concepts, width).
        k: how many steps.
        low_precision: choose concepts by products of bfloat16 numbers; what is taken is exact all the same.

    Source: Mallat and Zhang 1993; as an encoder, Costa et al. 2025 (arXiv 2506.03093).
    """
    table = decoder.bfloat16() if low_precision else decoder
    products = (table @ table.T).to(rows.dtype) if len(decoder) <= k * len(rows) else None
    found = Pursuit(torch.empty(len(rows), k, dtype=torch.int64), rows.new_empty(len(rows), k), rows.clone())
    for start in range(0, len(rows), size := max(1, _CHUNK_NUMBERS // len(decoder))):
        part = slice(start, start + size)
        _pursue(Pursuit(found.concepts[part], found.values[part], found.residual[part]), decoder, table, products)
    return found


def _pursue(found: Pursuit, decoder: torch.Tensor, table: torch.Tensor, products: torch.Tensor | None) -> None:
    """Fill in the concepts and values, and take what they explain from the residual."""
    residual = found.residual
    # What is smaller is rounding: a concept's product with what it has left is 0 or thereabouts.
    least = _ROUNDING * torch.finfo(residual.dtype).eps * residual.norm(dim=1)
    correlations = _correlations(residual, table)
    for step in range(found.concepts.shape[1]):
        if step and products is None:
            correlations = _correlations(residual, table)
        # numpy's search for the largest is some fifteen times as fast as torch's.
        best = torch.from_numpy(correlations.numpy().argmax(axis=1))
        directions = decoder.index_select(0, best)
        values = (directions * residual).sum(dim=1)
        values *= values > least
        found.concepts[:, step], found.values[:, step] = best, values
        residual.addcmul_(directions, values.unsqueeze(1), value=-1)
        if products is not None:
            correlations.addcmul_(products.index_select(0, best), values.unsqueeze(1), value=-1)


def _correlations(residual: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return (residual.to(table.dtype) @ table.T).to(residual.dtype)


class _Explain(torch.autograd.Function):
    """rows − residual, where every step takes (dᵀr) d from what is left; the choice of the d has no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, decoder: torch.Tensor, found: Pursuit) -> torch.Tensor:
        ctx.save_for_backward(decoder)
        ctx.found = found
        return rows - found.residual

    @staticmethod
    def backward(ctx: Any, *of_explained: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (decoder,) = ctx.saved_tensors
        found: Pursuit = ctx.found
        residual = found.residual.clone()
        of_residual = -of_explained[0]
        of_decoder = torch.zeros_like(decoder)
        for step in reversed(range(found.concepts.shape[1])):
            concepts, values = found.concepts[:, step], found.values[:, step].unsqueeze(1)
            directions = decoder.index_select(0, concepts)
            # A step that took nothing passes its gradient on as it is.
            along = (directions * of_residual).sum(dim=1, keepdim=True) * (values > 0)
            residual.addcmul_(directions, values)  # what was left before the step
            of_decoder.index_add_(0, concepts, values * of_residual + along * residual, alpha=-1)
            of_residual = of_residual - along * directions
        return of_explained[0] + of_residual, of_decoder, None


def explain(rows: torch.Tensor, decoder: torch.Tensor, found: Pursuit) -> torch.Tensor:
    """Return what a pursuit has explained of the rows, shape (rows, width); differentiable in the rows and the decoder.

    Arguments:
        rows: what was pursued, shape (rows, width).
        decoder: by which, shape (n_concepts, width).
        found: what `pursue` returned for them.

    Source: the gradient of Costa et al. 2025 through all steps, by reverse accumulation.
    """
    explained: torch.Tensor = _Explain.apply(rows, decoder, found)  # type: ignore[no-untyped-call]
    return explained
