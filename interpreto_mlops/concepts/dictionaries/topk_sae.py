"""The TopK sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from interpreto_mlops.concepts.autoencoder import SparseAutoencoder
from interpreto_mlops.concepts.base import DICTIONARIES, check_integer
from interpreto_mlops.concepts.overcomplete_import import overcomplete_module
from interpreto_mlops.errors import InputError


@DICTIONARIES.register("topk_sae")
@dataclass(kw_only=True, eq=False)
class TopKSAEConcepts(SparseAutoencoder):
    """A sparse autoencoder in which each row keeps its k largest concepts.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        k: the most concepts that a row may hold; 16 explains most of a small transformer's layer.

    The other arguments: `SparseAutoencoder`.

    Source: Gao et al. 2024 (arXiv 2406.04093); the architecture is overcomplete's `TopKSAE`.
    """

    k: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("k", self.k, 1)
        if self.k > self.n_concepts:
            raise InputError(f"k must be at most n_concepts ({self.n_concepts}), not {self.k}")

    def _module(self, width: int) -> Any:
        # On the meta device the constructors draw no random numbers; the learner draws its own. overcomplete makes its
        # encoder on the default device before it moves it, hence the context.
        with torch.device("meta"):
            sae = overcomplete_module("sae").TopKSAE(width, self.n_concepts, top_k=self.k, device="meta")
        return sae.to_empty(device="cpu").train()

    def activate(self, codes: torch.Tensor) -> torch.Tensor:
        """Keep the k largest codes of each row that are positive."""
        best = codes.topk(self.k, dim=1)
        return torch.zeros_like(codes).scatter_(1, best.indices, best.values.relu())
