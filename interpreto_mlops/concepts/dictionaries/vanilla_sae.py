"""The sparse autoencoder with an L1 penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.autoencoder import PenalisedAutoencoder
from interpreto_mlops.concepts.base import DICTIONARIES
from interpreto_mlops.concepts.sae_architecture import DenseCodes, PenalisedEncoder


@DICTIONARIES.register("vanilla_sae")
@dataclass(kw_only=True, eq=False)
class VanillaSAEConcepts(PenalisedAutoencoder):
    """A sparse autoencoder of rectified codes whose sum is made small.

    The loss of a row scaled to a mean squared norm of 1 is |row − codes · decoder|² + coefficient · Σ codes · |decoder
    row|; with decoder rows of norm 1 the weights by the norms are all 1.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        sparsity_coefficient: weight of the sum of codes; more gives fewer concepts a row.
        sparsity_warmup: share of the training over which that weight rises from 0.

    The other arguments: `SparseAutoencoder`.

    Source: Bricken et al. 2023, "Towards Monosemanticity"; the L1 penalty weighted by decoder norms and its warm-up of
    Conerly et al. 2024, "Update on how we train SAEs" (Anthropic, April 2024); dead concepts come back by the
    pre-activation loss of Conerly et al. 2025, "Dictionary Learning Optimization Techniques" (Anthropic, January 2025).
    """

    sparsity_coefficient: float = 0.1

    def architecture(self, width: int) -> PenalisedEncoder:
        """Return the architecture with an L1 penalty."""
        return _Vanilla(
            self.n_concepts,
            width,
            self.seed,
            coefficient=self.sparsity_coefficient,
            ramp=self.sparsity_warmup,
            low_precision=self.low_precision,
        )

    def activate(self, codes: torch.Tensor) -> torch.Tensor:
        """Keep what is positive."""
        return codes.relu()


class _Vanilla(PenalisedEncoder):
    def codes(self, rows: torch.Tensor) -> DenseCodes:
        before = self.before(rows)
        return DenseCodes(before.relu(), before, self.low_precision)

    def penalty(self, codes: DenseCodes) -> torch.Tensor:
        return codes.values.sum().div(math.sqrt(self.width))

    def threshold(self) -> torch.Tensor:
        return torch.zeros(self.n_concepts)
