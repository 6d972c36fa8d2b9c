"""Shapley values of concepts."""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.importance.base import IMPORTANCE, Floats, Steps, VariantMethod


@IMPORTANCE.register("shapley")
@dataclass(frozen=True, kw_only=True)
class Shapley(VariantMethod):
    """The Shapley value of each concept in the game of keeping some of the text's concepts.

    The values of a text sum to its score less that of the text without its concepts, whatever the number of
    permutations. Texts with few concepts are enumerated: then the values are exact.

    Arguments:
        n_permutations: orders in which concepts are taken in, each with its reverse.
        exact_up_to: the most concepts of a text that are enumerated, at 2^n runs from the layer on.

    Source: Yeh et al. 2020 (ConceptSHAP); Castro, Gómez and Tejada 2009 for the permutations, antithetic as in Mitchell
    et al. 2022.
    """

    n_permutations: int = 16
    exact_up_to: int = 6

    def __post_init__(self) -> None:
        check_integer("n_permutations", self.n_permutations, 1)
        check_integer("exact_up_to", self.exact_up_to, 0)

    def steps(self, n_active: int, full: Floats, rng: np.random.Generator) -> Steps:
        """Enumerate, or walk along permutations."""
        if n_active <= self.exact_up_to:
            masks = (np.arange(2**n_active)[:, None] >> np.arange(n_active)) & 1
            scores = yield masks.astype(np.float32)
            return _exact(masks.astype(bool), scores)
        orders = [rng.permutation(n_active) for _ in range(self.n_permutations)]
        orders = [each for order in orders for each in (order, order[::-1])]
        masks = np.concatenate([_prefixes(order) for order in orders])
        scores = (yield masks.astype(np.float32)).reshape(len(orders), n_active + 1, -1)
        gains = np.diff(scores, axis=1)
        values = np.zeros((gains.shape[2], n_active))
        for order, gain in zip(orders, gains, strict=True):
            values[:, order] += gain.T
        return values / len(orders)


def _prefixes(order: np.ndarray) -> np.ndarray:
    """Return the coalitions on the way along an order, from none to all."""
    ranks = np.argsort(order)
    return ranks[None, :] < np.arange(len(order) + 1)[:, None]


def _exact(masks: np.ndarray, scores: Floats) -> Floats:
    n = masks.shape[1]
    sizes = masks.sum(axis=1)
    shares = [factorial(k) * factorial(n - k - 1) / factorial(n) for k in range(n)]
    share = np.asarray([*shares, 0.0])[sizes]
    values = np.zeros((scores.shape[1], n))
    for i in range(n):
        without = np.flatnonzero(~masks[:, i])
        gain = scores[without + 2**i] - scores[without]
        values[:, i] = (share[without][:, None] * gain).sum(axis=0)
    return values
