"""What methods have in common that evaluate every coalition where they fit in the budget, else a sample."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from interpreto_mlops.attributions.base import Attributor, Estimate, Game, as_integer
from interpreto_mlops.attributions.coalitions import (
    Floats,
    Integers,
    Presence,
    all_coalitions,
    count_coalitions,
    exact_shapley,
)
from interpreto_mlops.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SamplingAttributor(Attributor):
    """Explains by the scores of coalitions: of every one where they fit in the budget, else of a sample.

    Arguments:
        n_perturbations: the most evaluations for a text, the full and the empty one included; 512 are every coalition
            of up to 9 elements.
        seed: of the sampling, which depends on it and on the text alone.
    """

    n_perturbations: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_perturbations", as_integer("n_perturbations", self.n_perturbations, 2))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))

    def fits(self, game: Game) -> bool:
        """Return whether every coalition of this text fits in the budget."""
        return game.n_players == 1 or 2**game.n_players <= self.n_perturbations


def as_number(value: Any) -> float:
    """Return a real number of whatever type as a float; NaN for anything else, which no range holds."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else float("nan")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    Raises:
        InputError: something else.
    """
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, not {value!r}")


Sampled = Generator[Presence, Floats, Estimate]
"""Yields coalitions, receives their scores, returns an estimate."""


def enumerate_shapley(game: Game) -> Sampled:
    """Return exact Shapley values from every coalition."""
    present = all_coalitions(game.n_players)
    values = yield present
    scores = exact_shapley(values)
    return Estimate(scores, np.zeros_like(scores), {"exact": 1.0, "evaluations": float(len(present))})


def sample_orders(game: Game, budget: int, seed: int, *, antithetic: bool = True) -> Sampled:
    """Return what each element adds to those before it, averaged over random orders; the full text is one of its ends.

    Arguments:
        game: the text, of at least two elements.
        budget: the most evaluations, the full and the empty text included; at least one order is taken.
        seed: of the orders.
        antithetic: whether each order comes with its reverse, where two fit in the budget.
    """
    n = game.n_players
    orders = max(1, (budget - 2) // (n - 1))
    pairs = orders // 2 if antithetic else 0
    forward = game.generator(seed).permuted(np.tile(np.arange(n), (pairs or orders, 1)), axis=1)
    used = np.concatenate([forward, forward[:, ::-1]]) if pairs else forward
    place = used.argsort(axis=1)
    # Row k of an order holds its first k + 1 elements.
    present = (place[:, None, :] <= np.arange(n - 1)[None, :, None]).reshape(-1, n)
    values = yield present
    added = _marginals(game, values.reshape(len(used), n - 1, -1), place)
    independent = (added[:pairs] + added[pairs:]) / 2 if pairs else added
    few = len(independent) < 2
    error = np.nan if few else independent.std(axis=0, ddof=1).T / np.sqrt(len(independent))
    checks = {"exact": 0.0, "evaluations": count_coalitions(present), "permutations": float(len(used))}
    scores = independent.mean(axis=0).T
    return Estimate(scores, np.broadcast_to(error, scores.shape).copy(), checks)


def _marginals(game: Game, inner: Floats, place: Integers) -> Floats:
    """Return what each element adds in each order, shape (orders, n, targets).

    Arguments:
        game: the text.
        inner: the values of the prefixes of 1 to n − 1 elements, shape (orders, n − 1, targets).
        place: where each element stands in each order, shape (orders, n).
    """
    shape = (len(inner), 1, inner.shape[2])
    ends = np.broadcast_to(game.empty, shape), np.broadcast_to(game.full, shape)
    steps = np.diff(np.concatenate([ends[0], inner, ends[1]], axis=1), axis=1)
    return np.take_along_axis(steps, place[:, :, None], axis=1)


def with_efficiency(game: Game, estimate: Estimate, **checks: Any) -> Estimate:
    """Add the gap between the sum of the scores that a target has and full − empty text to the checks."""
    sums = np.where(game.valid, estimate.scores, 0.0).sum(axis=1)
    gap = float(np.abs(sums - (game.full - game.empty)).max())
    checks = {**estimate.checks, "efficiency_gap": gap, **checks}
    return Estimate(estimate.scores, estimate.standard_error, checks)
