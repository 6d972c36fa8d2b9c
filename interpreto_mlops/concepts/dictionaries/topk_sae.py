"""The TopK sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.autoencoder import SelectingAutoencoder
from interpreto_mlops.concepts.base import DICTIONARIES
from interpreto_mlops.concepts.sae_architecture import SelectingEncoder
from interpreto_mlops.concepts.sparse_step import Places, largest


@DICTIONARIES.register("topk_sae")
@dataclass(kw_only=True, eq=False)
class TopKSAEConcepts(SelectingAutoencoder):
    """A sparse autoencoder in which each row keeps its k largest concepts.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        k: the most concepts that a row may hold; 16 explains most of a small transformer's layer.
        k_aux: how many dead concepts explain the residual of a row; None takes half of the width.

    The other arguments: `SparseAutoencoder`.

    Source: Gao et al. 2024 (arXiv 2406.04093), sections 2.3 and A.2.
    """

    def architecture(self, width: int) -> SelectingEncoder:
        """Return the architecture in which every row keeps its k largest codes."""
        k_aux = self.k_aux or max(1, width // 2)
        return _TopK(self.n_concepts, width, self.seed, k=self.k, k_aux=k_aux, low_precision=self.low_precision)

    def activate(self, codes: torch.Tensor) -> torch.Tensor:
        """Keep the k largest codes of each row that are positive."""
        best = codes.topk(self.k, dim=1)
        return torch.zeros_like(codes).scatter_(1, best.indices, best.values.relu())


class _TopK(SelectingEncoder):
    def __init__(self, n_concepts: int, width: int, seed: int, *, k: int, k_aux: int, low_precision: bool) -> None:
        super().__init__(n_concepts, width, seed, k_aux=k_aux, low_precision=low_precision)
        self.k = k

    def select(self, before: torch.Tensor) -> Places:
        return Places.of_rows(largest(before, self.k), self.n_concepts)
