"""The matching pursuit sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.autoencoder import SparseAutoencoder
from interpreto_mlops.concepts.base import DICTIONARIES, check_integer
from interpreto_mlops.concepts.matching_pursuit import Pursuit, explain, pursue
from interpreto_mlops.concepts.sae_architecture import Architecture, Codes


@DICTIONARIES.register("mp_sae")
@dataclass(kw_only=True, eq=False)
class MPSAEConcepts(SparseAutoencoder):
    """A sparse autoencoder without an encoder: each row is explained by k steps of matching pursuit.

    Every step takes the concept of the largest product with what is left of the row, and takes from it as much as that
    product. Concepts may resemble each other, since the second is chosen by what the first has left.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        k: steps, and so the most concepts that a row may hold.

    The other arguments: `SparseAutoencoder`. Dead concepts come back by pursuing what the living ones leave.

    Source: Costa et al. 2025 (arXiv 2506.03093); codes are kept at 0 or above by ending the pursuit of a
    row where no product is above 0.
    """

    k: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("k", self.k, 1)

    def architecture(self, width: int) -> Architecture:
        """Return the architecture whose codes are found by matching pursuit."""
        return _MatchingPursuit(self.n_concepts, width, self.seed, k=self.k, low_precision=self.low_precision)

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        # In float64 the choice among nearly equal concepts does not depend on the company that a row is encoded in.
        mean, scale, decoder = (self.tensor(name).double() for name in ("mean", "scale", "decoder"))
        return pursue((rows.double() - mean) / scale, decoder, self.k).codes(self.n_concepts).float()


@dataclass(frozen=True)
class _PursuitCodes:
    """The codes of a batch by the steps that found them.

    Arguments:
        rows: what was pursued, shape (rows, width), differentiable.
        found: the steps.
        n_concepts: how many there are.
    """

    rows: torch.Tensor
    found: Pursuit
    n_concepts: int

    def decode(self, decoder: torch.Tensor) -> torch.Tensor:
        return explain(self.rows, decoder, self.found)

    def fired(self) -> torch.Tensor:
        # A row that holds a concept by two steps counts once.
        idle = self.found.values <= 0
        concepts = self.found.concepts.masked_fill(idle, self.n_concepts).sort(dim=1).values
        concepts[:, 1:].masked_fill_(concepts[:, 1:] == concepts[:, :-1], self.n_concepts)
        return torch.bincount(concepts.flatten(), minlength=self.n_concepts + 1)[:-1]


class _MatchingPursuit(Architecture):
    def __init__(self, n_concepts: int, width: int, seed: int, *, k: int, low_precision: bool) -> None:
        super().__init__(n_concepts, width, seed, low_precision=low_precision)
        self.k = k

    def codes(self, rows: torch.Tensor) -> Codes:
        centred = rows - self.learned["bias"]
        return _PursuitCodes(centred, self._pursue(centred, self.decoder()), self.n_concepts)

    def revival(
        self, rows: torch.Tensor, codes: Codes, error: torch.Tensor, dead: torch.Tensor, residual: float
    ) -> torch.Tensor:
        decoder = self.decoder()[dead]
        explained = explain(error, decoder, self._pursue(error, decoder))
        return (error - explained).square().sum() / (self.width * max(residual, 1e-12))

    def _pursue(self, rows: torch.Tensor, decoder: torch.Tensor) -> Pursuit:
        return pursue(rows, decoder, self.k, low_precision=self.low_precision)
