"""The BatchTopK sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.autoencoder import SelectingAutoencoder
from interpreto_mlops.concepts.base import DICTIONARIES
from interpreto_mlops.concepts.sae_architecture import SelectingEncoder, SparseCodes
from interpreto_mlops.concepts.sparse_step import Places, largest
from interpreto_mlops.concepts.training import State

# The threshold is a running mean over the batches: the plain one over the first 50, then with this weight of the last.
_LEAST_WEIGHT = 0.02


@DICTIONARIES.register("batchtopk_sae")
@dataclass(kw_only=True, eq=False)
class BatchTopKSAEConcepts(SelectingAutoencoder):
    """A sparse autoencoder whose rows hold k concepts on average: rows with more in them may hold more.

    In training a batch keeps as many codes as it has rows, times k: its largest. The fitted dictionary keeps the codes
    above a threshold, the mean over the last batches of the least code kept, so that a row's codes are its own affair.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        k: concepts of a row, on average over rows like those of the training.
        k_aux: how many dead concepts explain the residual of a row; None takes half of the width.

    The other arguments: `SparseAutoencoder`; with `accumulate`, each batch chooses for itself.

    Source: Bussmann et al. 2024 (arXiv 2412.06410), equations 4 to 6; the auxiliary loss of Gao et al. 2024.
    """

    def architecture(self, width: int) -> SelectingEncoder:
        """Return the architecture in which a batch keeps its largest codes."""
        k_aux = self.k_aux or max(1, width // 2)
        return _BatchTopK(self.n_concepts, width, self.seed, k=self.k, k_aux=k_aux, low_precision=self.low_precision)

    @property
    def threshold(self) -> torch.Tensor:
        """What a code must exceed to be kept: one number, in the unit of the codes.

        Raises:
            NotFittedError: the dictionary is not fitted.
        """
        return self.tensor("threshold")

    def activate(self, codes: torch.Tensor) -> torch.Tensor:
        """Keep the codes above the threshold."""
        return torch.where(codes > self.threshold, codes, 0.0)


class _BatchTopK(SelectingEncoder):
    def __init__(self, n_concepts: int, width: int, seed: int, *, k: int, k_aux: int, low_precision: bool) -> None:
        super().__init__(n_concepts, width, seed, k_aux=k_aux, low_precision=low_precision)
        self.k = k
        self.kept = {"threshold": torch.zeros(()), "batches": torch.zeros(())}
        self._least = torch.zeros(())

    def select(self, before: torch.Tensor) -> Places:
        flat = before.reshape(1, -1)
        chosen = largest(flat, len(before) * self.k)[0]
        self._least = flat[0, chosen].min().float().clamp(min=0.0)
        return Places.of_batch(chosen, len(before), self.n_concepts)

    @torch.no_grad()
    def settle(self) -> None:
        super().settle()
        # Here and not in `select`: a batch whose gradient was left out has no say.
        self.kept["batches"] += 1
        self.kept["threshold"].lerp_(self._least, max(_LEAST_WEIGHT, 1.0 / float(self.kept["batches"])))

    def test_codes(self, rows: torch.Tensor) -> SparseCodes:
        return self.chosen(rows, self._above)

    def _above(self, before: torch.Tensor) -> Places:
        flat = (before > self.kept["threshold"]).view(-1).nonzero().flatten()
        return Places.of_batch(flat, len(before), self.n_concepts)

    def weights(self) -> State:
        return {**super().weights(), "threshold": self.kept["threshold"]}
