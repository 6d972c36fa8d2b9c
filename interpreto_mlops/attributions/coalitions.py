"""Coalitions of a text's elements: all of them, the ones worth evaluating, and Shapley values from all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb, factorial

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Presence = npt.NDArray[np.bool_]

_MOST_DRAWS = 64


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
    pair: Integers


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


def count_coalitions(present: Presence) -> float:
    """Return how many different coalitions there are, with the full and the empty one, which are always evaluated."""
    n = present.shape[1]
    ends = np.stack([np.zeros(n, dtype=bool), np.ones(n, dtype=bool)])
    return float(len(_different(np.concatenate([ends, present]))[0]))


def _different(rows: Presence) -> tuple[Integers, Integers]:
    """Return where each different row stands first, in order, and which of them each row is."""
    packed = np.packbits(rows, axis=1)
    wide = np.zeros((len(rows), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    wide[:, : packed.shape[1]] = packed
    words = wide.view(np.uint64)
    order = np.lexsort(words.T)
    changes = np.append(True, (words[order[1:]] != words[order[:-1]]).any(axis=1))
    first = np.minimum.reduceat(order, np.flatnonzero(changes))
    by_place = np.argsort(first)
    which = np.empty(len(rows), dtype=np.int64)
    which[order] = np.argsort(by_place)[np.cumsum(changes) - 1]
    return first[by_place], which


def draw_different(draw: Callable[[int], Presence], count: int) -> tuple[Presence, Floats]:
    """Draw coalitions until `count` different ones are known.

    Arguments:
        draw: returns that many independent draws, shape (rows, n).
        count: how many to find; fewer come back when 64 times as many draws hold fewer.

    Returns:
        The different ones in the order of their first draw, and how often each was drawn.
    """
    drawn = draw(count)
    if count == 0:
        return drawn, np.zeros(0)
    first, which = _different(drawn)
    while len(first) < count and len(drawn) < _MOST_DRAWS * count:
        drawn = np.concatenate([drawn, draw(len(drawn))])
        first, which = _different(drawn)
    until = first[count] if len(first) > count else len(drawn)
    counts = np.bincount(which[:until], minlength=min(count, len(first))).astype(np.float64)
    return drawn[first[:count]], counts


def draw_of_sizes(sizes: Integers, n: int, rng: np.random.Generator) -> Presence:
    """Draw one coalition of each given size, uniformly, shape (len(sizes), n)."""
    order = rng.random((len(sizes), n)).argsort(axis=1)
    present = np.empty((len(sizes), n), dtype=bool)
    np.put_along_axis(present, order, np.arange(n) < sizes[:, None], axis=1)
    return present


def draw_pairs(n: int, pairs: int, rng: np.random.Generator) -> Presence:
    """Draw different pairs of a uniformly random coalition and its complement, without replacement.

    Returns:
        The one of each pair that player 0 is not in, shape (at most `pairs`, n).
    """

    def draw(rows: int) -> Presence:
        present = rng.random((rows, n)) < 0.5
        present[:, 0] = False
        return present

    return draw_different(draw, min(pairs, 2 ** (n - 1)))[0]


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
    mass = _mass(n)
    left, first = budget, 1
    while first <= n // 2:
        sizes = sorted({first, n - first})
        count = sum(comb(n, s) for s in sizes)
        if count > mass[sizes].sum() / mass[first : n - first + 1].sum() * left:
            break
        left, first = left - count, first + 1
    inner = np.arange(first, n - first + 1)
    whole = _whole(n, [s for s in range(1, n) if s < first or s > n - first])
    if len(inner) == 0:
        return whole
    share = mass[inner] / mass[inner].sum()

    def draw(rows: int) -> Presence:
        present = draw_of_sizes(rng.choice(inner, size=rows, p=share), n, rng)
        return present ^ present[:, :1]  # one name for a pair: the one of the two without player 0

    drawn, counts = draw_different(draw, left // 2)
    return _joined(whole, drawn, mass[inner].sum() * counts / (2 * max(1.0, counts.sum())))


def plan_leverage(n: int, budget: int, rng: np.random.Generator) -> Plan:
    """Choose coalitions for the Shapley regression by their leverage, 1 / C(n, size), in pairs without replacement.

    Each size gets the number of pairs that is expected under those probabilities, rounded at random, and no more than
    it has; its coalitions share its mass of the kernel, which undoes the sampling.

    Arguments:
        n: players, at least 2.
        budget: evaluations beside those of the empty and the full coalition; less than 2 ** n − 2, at least 2 n.
        rng: random numbers.

    Source: Musco & Witter 2025 (arXiv 2410.01917), which draws the number of each size independently, so that its
    budget is kept on average only.
    """
    mass = _mass(n)
    sizes = np.arange(1, n // 2 + 1)
    middle = 2 * sizes == n  # pairs within one size
    there = np.asarray([comb(n, s) for s in sizes], dtype=np.float64) / np.where(middle, 2, 1)
    taken = _numbers_of_pairs(there, np.where(middle, 0.5, 1.0), budget // 2, rng)
    complete = taken == there
    whole = _whole(n, [s for s in range(1, n) if complete[min(s, n - s) - 1]])
    blocks = [_draw_size(n, int(s), int(taken[s - 1]), rng) for s in sizes[~complete]]
    each = mass[sizes] / np.where(middle, 2, 1) / np.maximum(taken, 1)
    weights = np.repeat(each[~complete], [len(block) for block in blocks])
    return _joined(whole, np.concatenate([np.zeros((0, n), dtype=bool), *blocks]), weights)


def _mass(n: int) -> Floats:
    """Return the Shapley kernel's mass of each size, shape (n,); entry 0 is unused."""
    s = np.arange(1, n)
    return np.append(0.0, (n - 1) / (s * (n - s)))


def _whole(n: int, sizes: list[int]) -> Plan:
    """Take every coalition of some sizes."""
    blocks = [_of_size(n, s) for s in sizes]
    weights = [np.full(len(block), _mass(n)[s] / len(block)) for s, block in zip(sizes, blocks, strict=True)]
    present = np.concatenate([np.zeros((0, n), dtype=bool), *blocks])
    return Plan(present, np.concatenate([np.zeros(0), *weights]), np.full(len(present), -1))


def _joined(whole: Plan, drawn: Presence, weights: Floats) -> Plan:
    """Add sampled coalitions and their complements, each of the given weight, to the enumerated ones."""
    pair = np.arange(len(drawn))
    return Plan(
        np.concatenate([whole.present, drawn, ~drawn]),
        np.concatenate([whole.weights, weights, weights]),
        np.concatenate([whole.pair, pair, pair]),
    )


def _of_size(n: int, size: int) -> Presence:
    rows = np.zeros((comb(n, size), n), dtype=bool)
    members = np.asarray(list(combinations(range(n), size)), dtype=np.int64)
    rows[np.arange(len(rows))[:, None], members] = True
    return rows


def _numbers_of_pairs(there: Floats, ratio: Floats, pairs: int, rng: np.random.Generator) -> Integers:
    """Share pairs out over the sizes in the given ratio, none above what is there, rounded so that the sum holds."""
    full = np.zeros(len(there), dtype=bool)
    while True:
        left = pairs - there[full].sum()
        expected = np.where(full, there, ratio * left / max(ratio[~full].sum(), 0.5))
        if not (over := (expected >= there) & ~full).any():
            break
        full |= over
    bounds = np.floor(np.cumsum(np.where(full, 0.0, expected)) + rng.random())
    return np.where(full, there, np.diff(bounds, prepend=0.0)).astype(np.int64)


def _draw_size(n: int, size: int, count: int, rng: np.random.Generator) -> Presence:
    """Draw different coalitions of one size; of half the players, only such without player 0."""
    if 2 * size == n:
        return np.pad(_draw_size(n - 1, size, count, rng), ((0, 0), (1, 0)))
    if comb(n, size) <= 4 * count:
        return _of_size(n, size)[rng.choice(comb(n, size), size=count, replace=False)]
    return draw_different(lambda rows: draw_of_sizes(np.full(rows, size), n, rng), count)[0]
