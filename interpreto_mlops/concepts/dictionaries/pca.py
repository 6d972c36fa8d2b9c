"""Principal components as concepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows
from interpreto_mlops.concepts.linear import LinearDictionary, linear_state
from interpreto_mlops.concepts.training import DataFacts, Learner, State
from interpreto_mlops.errors import InputError


@DICTIONARIES.register("pca")
@dataclass(kw_only=True, eq=False)
class PCAConcepts(LinearDictionary):
    """The directions of largest variance: exact, in one pass, by the eigenvectors of the covariance in float64.

    Codes are signed: a concept has a positive and a negative side. The first components are the same whatever
    `n_concepts` is, and the largest entry of each is positive.

    Arguments:
        n_concepts: how many components, at most the width of the layer.
        seed: has no influence, for nothing is random; it is there because every family has one.

    Source: Pearson 1901; the signs as in scikit-learn's `PCA`.
    """

    signed: ClassVar[bool] = True

    def begin(self, facts: DataFacts) -> _Covariance:
        """Return what gathers the covariance.

        Raises:
            InputError: more components than dimensions or than rows.
        """
        if self.n_concepts > facts.width:
            raise InputError(
                f"PCA of activations of width {facts.width} has no more components than that, not {self.n_concepts}"
            )
        check_enough_rows(facts, self.n_concepts)
        return _Covariance(facts, self.n_concepts)


class _Covariance(Learner):
    def __init__(self, facts: DataFacts, n_components: int) -> None:
        self._n_components = n_components
        # The mean that is known beforehand keeps the sums small; the rows' own mean then makes them exact.
        self._near_mean = torch.from_numpy(facts.mean)
        self._count = 0
        self._sum = torch.zeros(facts.width, dtype=torch.float64)
        self._products = torch.zeros(facts.width, facts.width, dtype=torch.float64)

    def observe(self, block: torch.Tensor) -> None:
        centred = block.double() - self._near_mean
        self._count += len(block)
        self._sum += centred.sum(dim=0)
        self._products.addmm_(centred.T, centred)

    def state(self) -> State:
        return {"count": torch.tensor(self._count), "sum": self._sum.clone(), "products": self._products.clone()}

    def restore(self, state: State) -> None:
        self._count = int(state["count"])
        self._sum, self._products = state["sum"].clone(), state["products"].clone()

    def finish(self) -> State:
        shift = self._sum / self._count
        covariance = self._products / self._count - torch.outer(shift, shift)
        # Eigenvalues ascend, and eigenvectors are columns.
        _, vectors = torch.linalg.eigh(covariance)
        components = vectors.T.flip(0)[: self._n_components]
        largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
        components = components * largest.sign()
        return linear_state(self._near_mean + shift, 1.0, components, torch.zeros(self._n_components), components)
