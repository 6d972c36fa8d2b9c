"""Principal components as concepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows
from interpreto_mlops.concepts.linear import LinearDictionary, linear_state
from interpreto_mlops.concepts.moments import Moments, MomentsLearner, check_within_width, leading_directions
from interpreto_mlops.concepts.training import DataFacts, State


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

    def begin(self, facts: DataFacts) -> MomentsLearner:
        """Return what gathers the covariance.

        Raises:
            InputError: more components than dimensions or than rows.
        """
        check_within_width("PCA", self.n_concepts, facts)
        check_enough_rows(facts, self.n_concepts)
        return MomentsLearner(facts, self._solve)

    def _solve(self, moments: Moments) -> State:
        _, components = leading_directions(moments.covariance, self.n_concepts)
        return linear_state(moments.mean, 1.0, components, torch.zeros(self.n_concepts), components)
