"""Clusters as concepts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer
from interpreto_mlops.concepts.gathering import GatheringLearner
from interpreto_mlops.concepts.linear import LinearDecoder
from interpreto_mlops.concepts.scikit import MOST_ROWS, noting_convergence, random_state
from interpreto_mlops.concepts.training import DataFacts, State
from interpreto_mlops.errors import UnknownNameError

Codes = Literal["assignment", "similarity"]

# Softness is chosen on so many rows, among so many powers of two of the mean squared distance to the nearest centre.
_ROWS_FOR_SOFTNESS = 4096
_SOFTEST, _HARDEST = 3, -12


@DICTIONARIES.register("kmeans")
@dataclass(kw_only=True, eq=False)
class KMeansConcepts(LinearDecoder):
    """Clusters of rows, found by scikit-learn's k-means on an even sample; a direction is a centre minus the mean.

    With `codes="assignment"` a row's code is 1 for its nearest centre and 0 for all others, and what is decoded is that
    centre. With "similarity" all codes are positive and sum to 1: code_k ∝ exp(−‖row − centre_k‖² / (2 softness)), and
    what is decoded is the mean of the centres with these weights; `softness` is what reconstructs the rows best (at 0
    it would be the assignment), so that soft codes never reconstruct worse on the rows that were fitted. Directions
    are not of norm 1: their lengths are the distances of the centres from the mean.

    Arguments:
        n_concepts: how many clusters.
        seed: decides the rows that the centres start from (k-means++).
        codes: "assignment" or "similarity".
        n_init: how many starts, of which the best is taken.
        max_iter: the most iterations of a start.
        max_rows: how many rows the centres are learned from, an even sample.

    Source: Lloyd 1982; Arthur and Vassilvitskii 2007 for the start. Soft codes are the posterior probabilities of a
    mixture of Gaussians of variance `softness` in every direction.
    """

    codes: Codes = "assignment"
    n_init: int = 1
    max_iter: int = 300
    max_rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes not in get_args(Codes):
            raise UnknownNameError("kind of codes", self.codes, get_args(Codes))
        check_integer("n_init", self.n_init, 1)
        check_integer("max_iter", self.max_iter, 1)
        check_integer("max_rows", self.max_rows, self.n_concepts)

    @property
    def centres(self) -> torch.Tensor:
        """The clusters' centres, shape (n_concepts, width)."""
        return self.dictionary + self.mean

    @property
    def softness(self) -> float:
        """The variance of the Gaussians that soft codes are the posterior probabilities of; 0 for assignments."""
        return float(self.tensor("softness"))

    def begin(self, facts: DataFacts) -> GatheringLearner:
        """Return what gathers the rows.

        Raises:
            InputError: fewer rows than clusters, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        mean, scale = torch.from_numpy(facts.mean), facts.scale

        def solve(rows: torch.Tensor) -> State:
            scaled = rows.double().sub_(mean).div_(scale)
            some = scaled[:_ROWS_FOR_SOFTNESS] * scale
            decoder = torch.from_numpy(self._centres(scaled.numpy())) * scale
            softness = self._softness(some, decoder)
            return {"mean": mean, "scale": torch.tensor(1.0), "decoder": decoder, "softness": torch.tensor(softness)}

        return GatheringLearner(facts, solve, most_rows=self.max_rows)

    def _centres(self, rows: np.ndarray) -> np.ndarray:
        """Return the centres, shape (n_concepts, width), of rows that are spent."""
        solver = KMeans(
            self.n_concepts,
            n_init=self.n_init,
            copy_x=False,
            max_iter=self.max_iter,
            random_state=random_state(self.seed),
        )
        # The order in which threads add up their parts changes from one run to the next.
        with threadpool_limits(1, "openmp"), noting_convergence() as warned:
            centres = np.asarray(solver.fit(rows).cluster_centers_)
        if warned:
            warnings.warn(
                f"there are fewer different rows than {self.n_concepts} clusters, so some share a centre", stacklevel=2
            )
        return centres

    def _softness(self, rows: torch.Tensor, decoder: torch.Tensor) -> float:
        if self.codes == "assignment":
            return 0.0
        distances = _squared_distances(rows, decoder)
        unit = float(distances.amin(dim=1).mean())
        errors = {0.0: unit}
        for power in range(_HARDEST, _SOFTEST + 1):
            softness = unit * 2.0**power
            errors[softness] = float((rows - _soft(distances, softness) @ decoder).square().sum(dim=1).mean())
        return min(errors, key=lambda softness: errors[softness])

    @property
    def differentiable(self) -> bool:
        """Soft codes are; the number of the nearest centre is not."""
        return self.softness > 0.0

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        distances = _squared_distances(rows.double() - self.mean.double(), self.dictionary.double())
        return _soft(distances, self.softness).float()


def _squared_distances(rows: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Return ‖row − centre‖², shape (rows, centres)."""
    products = torch.addmm(centres.square().sum(dim=1), rows, centres.T, alpha=-2.0)
    return (products + rows.square().sum(dim=1, keepdim=True)).clamp_(min=0.0)


def _soft(distances: torch.Tensor, softness: float) -> torch.Tensor:
    if softness > 0.0:
        return (-distances / (2.0 * softness)).softmax(dim=1)
    return torch.zeros_like(distances).scatter_(1, distances.argmin(dim=1, keepdim=True), 1.0)
