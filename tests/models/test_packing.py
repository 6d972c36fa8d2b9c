"""Batches of least cost, against every way to cut the rows into batches."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from interpreto_mlops.models.packing import first_batch


def cost(sizes, lengths, budget, call):
    """What a cut into batches costs, or infinity where one of several rows is above the budget."""
    total, first = 0.0, 0
    for size in sizes:
        tokens = size * lengths[first]
        if size > 1 and tokens > budget:
            return float("inf")
        total, first = total + tokens + call, first + size
    return total


def every_cut(n):
    for cuts in itertools.product([False, True], repeat=n - 1):
        borders = [0, *(k + 1 for k, cut in enumerate(cuts) if cut), n]
        yield [b - a for a, b in itertools.pairwise(borders)]


@pytest.mark.parametrize("call", [0, 5, 41, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_a_job_cut_batch_by_batch_costs_no_more_than_any_other_cut(seed, call):
    lengths = sorted(np.random.default_rng(seed).integers(3, 60, size=10).tolist(), reverse=True)
    budget, sizes, left = 150, [], list(lengths)
    while left:
        sizes.append(first_batch(left, budget, call))
        left = left[sizes[-1] :]
    best = min(cost(cut, lengths, budget, call) for cut in every_cut(len(lengths)))
    assert cost(sizes, lengths, budget, call) == pytest.approx(best)


def test_rows_of_one_length_fill_the_budget():
    assert first_batch([40] * 100, 1024, 41) == 25
    assert first_batch([40] * 30, 1024, 41) == 25
    assert first_batch([40] * 7, 1024, 41) == 7


def test_a_row_above_the_budget_runs_alone():
    assert first_batch([5000, 4000, 3], 1024, 41) == 1


def test_choosing_takes_little_time():
    lengths = np.linspace(60, 5, 500).astype(int).tolist()
    start = time.process_time()
    for _ in range(20):
        first_batch(lengths, 1024, 41)
    assert time.process_time() - start < 1
