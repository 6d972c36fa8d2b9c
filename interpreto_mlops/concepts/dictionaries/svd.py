"""Singular vectors as concepts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows
from interpreto_mlops.concepts.linear import LinearDictionary, linear_state
from interpreto_mlops.concepts.moments import Moments, MomentsLearner, check_within_width, leading_directions
from interpreto_mlops.concepts.training import DataFacts, State


@DICTIONARIES.register("svd")
@dataclass(kw_only=True, eq=False)
class SVDConcepts(LinearDictionary):
    """The truncated singular value decomposition of the rows as they are: exact, in one pass, in float64.

    Nothing is centred, which is the difference from PCA: `mean` is zero, a row of zeros has zero codes, and where rows
    lie far from the origin the first concept points at them all. Codes are signed, and the largest entry of each
    direction is positive.

    Arguments:
        n_concepts: how many singular vectors, at most the width of the layer.
        seed: has no influence, for nothing is random; it is there because every family has one.

    Source: Eckart and Young 1936; the signs as in scikit-learn's `TruncatedSVD`.
    """

    signed: ClassVar[bool] = True

    def begin(self, facts: DataFacts) -> MomentsLearner:
        """Return what gathers the second moments.

        Raises:
            InputError: more components than dimensions or than rows.
        """
        check_within_width("SVD", self.n_concepts, facts)
        check_enough_rows(facts, self.n_concepts)
        return MomentsLearner(facts, self._solve)

    def _solve(self, moments: Moments) -> State:
        second_moments = moments.covariance + torch.outer(moments.mean, moments.mean)
        _, directions = leading_directions(second_moments, self.n_concepts)
        origin = torch.zeros_like(moments.mean)
        return linear_state(origin, 1.0, directions, torch.zeros(self.n_concepts), directions)
