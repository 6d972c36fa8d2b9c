"""Shapley values from coalitions: which ones to evaluate, and how to solve for the values."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb, factorial

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Presence = npt.NDArray[np.bool_]

_MOST_DRAWS_PER_PAIR = 64


@dataclass(frozen=True)
class Plan:
    """Coalitions for the Shapley regression.

    Arguments:
        present: shape (rows, players).
        weights: the weight of each row in the regression, shape (rows,).
        pair: for each row the number of its sampled pair, or -1 for a row of an enumerated size, shape (rows,).
    """

    present: Presence
    weights: Floats
    pair: npt.NDArray[np.int64]


def all_coalitions(n: int) -> Presence:
    """Return every coalition of n players, shape (2 ** n, n); row 0 is empty, the last one full."""
    return ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(bool)


def exact_shapley(values: Floats) -> Floats:
    """Return the Shapley values from the values of all coalitions.

    Arguments:
        values: in the order of `all_coalitions`, shape (2 ** n, targets).

    Returns:
        Shape (targets, n): sum over C without i of |C|! (n − |C| − 1)! / n! (v(C + i) − v(C)).
    """
    n = int(values.shape[0]).bit_length() - 1
    present = all_coalitions(n)
    size = present.sum(axis=1)
    weight = np.asarray([factorial(s) * factorial(n - s - 1) / factorial(n) for s in range(n)] + [0.0])
    signed = np.where(present, weight[size - 1][:, None], -weight[size][:, None])
    scores: Floats = values.T @ signed
    return scores


def plan_coalitions(n: int, budget: int, rng: np.random.Generator) -> Plan:
    """Choose coalitions for the Shapley regression: enumerate sizes from the outside in, sample the others in pairs.

    A pair of sizes {s, n − s} is taken whole while its number of coalitions is no more than its share of the kernel's
    mass that is left times the budget that is left. The others are drawn with the kernel's size distribution, each with
    its complement, repeated pairs counted instead of evaluated.

    Arguments:
        n: players, at least 2.
        budget: evaluations beside those of the empty and the full coalition; less than 2 ** n − 2.
        rng: random numbers.

    Source: Lundberg & Lee 2017 (arXiv 1705.07874); pairs: Covert & Lee 2021 (arXiv 2012.01536).
    """
    mass = {s: (n - 1) / (s * (n - s)) for s in range(1, n)}
    blocks, weights = [], []
    left, first = budget, 1
    while first <= n // 2:
        sizes = sorted({first, n - first})
        rest = sum(mass[s] for s in range(first, n - first + 1))
        count = sum(comb(n, s) for s in sizes)
        if count > sum(mass[s] for s in sizes) / rest * left:
            break
        for s in sizes:
            blocks.append(_of_size(n, s))
            weights.append(np.full(comb(n, s), mass[s] / comb(n, s)))
        left, first = left - count, first + 1
    enumerated = sum(len(block) for block in blocks)
    sizes = list(range(first, n - first + 1))
    pairs = left // 2 if sizes else 0
    drawn, counts = _draw_pairs(n, np.asarray([mass[s] for s in sizes]), sizes, pairs, rng)
    total = sum(mass[s] for s in sizes)
    share = total * counts / (2 * max(1, counts.sum()))
    return Plan(
        np.concatenate([*blocks, drawn, ~drawn]) if blocks or len(drawn) else np.zeros((0, n), dtype=bool),
        np.concatenate([*weights, share, share]),
        np.concatenate([np.full(enumerated, -1), np.arange(len(drawn)), np.arange(len(drawn))]),
    )


def _of_size(n: int, size: int) -> Presence:
    rows = np.zeros((comb(n, size), n), dtype=bool)
    members = np.asarray(list(combinations(range(n), size)), dtype=np.int64)
    rows[np.arange(len(rows))[:, None], members] = True
    return rows


def _draw_pairs(
    n: int, mass: Floats, sizes: list[int], pairs: int, rng: np.random.Generator
) -> tuple[Presence, Floats]:
    """Draw until `pairs` different pairs are known; return one coalition of each and how often it was drawn."""
    counts: dict[bytes, int] = {}
    drawn = 0
    while len(counts) < pairs and drawn < _MOST_DRAWS_PER_PAIR * pairs:
        size = rng.choice(sizes, size=pairs, p=mass / mass.sum())
        rank = rng.random((pairs, n)).argsort(axis=1).argsort(axis=1)
        rows = rank < size[:, None]
        rows ^= rows[:, :1]  # one name for a pair: the one of the two without player 0
        for row in rows:
            if len(counts) == pairs and row.tobytes() not in counts:
                break
            counts[row.tobytes()] = counts.get(row.tobytes(), 0) + 1
        drawn += pairs
    known = np.frombuffer(b"".join(counts), dtype=bool).reshape(-1, n)
    return known, np.asarray(list(counts.values()), dtype=np.float64)


def solve_shapley(present: Presence, weights: Floats, gains: Floats, total: Floats) -> Floats:
    """Solve the weighted least squares with the constraint that the values sum to `total`.

    Arguments:
        present: coalitions, shape (rows, n).
        weights: shape (rows,).
        gains: v(C) − v(empty) of each row, shape (rows, targets).
        total: v(full) − v(empty), shape (targets,).

    Returns:
        The values, shape (targets, n); they sum to `total` whatever the rows. Source: Covert & Lee 2021, section 2.
    """
    last = present[:, -1:].astype(np.float64)
    root = np.sqrt(weights)[:, None]
    columns = (present[:, :-1] - last) * root
    right = (gains - last * total) * root
    others, *_ = np.linalg.lstsq(columns, right, rcond=None)
    return np.concatenate([others, total[None] - others.sum(axis=0, keepdims=True)]).T


def jackknife_error(plan: Plan, gains: Floats, total: Floats, groups: int = 10) -> Floats:
    """Return the standard error of `solve_shapley` by leaving out groups of sampled pairs, shape (targets, n).

    NaN when fewer than two pairs were sampled; zeros when none had to be.
    """
    sampled = plan.pair >= 0
    n_pairs = int(plan.pair.max(initial=-1)) + 1
    shape = (gains.shape[1], plan.present.shape[1])
    if n_pairs < 2:
        return np.full(shape, np.nan if n_pairs else 0.0)
    groups = min(groups, n_pairs)
    mass = plan.weights[sampled].sum()
    solutions = []
    for group in range(groups):
        keep = ~sampled | (plan.pair % groups != group)
        weights = plan.weights.copy()
        weights[sampled] *= mass / weights[sampled & keep].sum()
        solutions.append(solve_shapley(plan.present[keep], weights[keep], gains[keep], total))
    spread = np.stack(solutions)
    error: Floats = np.sqrt((groups - 1) / groups * ((spread - spread.mean(axis=0)) ** 2).sum(axis=0))
    return error
