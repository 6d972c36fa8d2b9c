"""Methods that see all rows at once get an even sample of bounded size."""

from __future__ import annotations

import numpy as np
import torch

from interpreto_mlops.concepts.gathering import MOST_NUMBERS, GatheringLearner
from interpreto_mlops.concepts.training import DataFacts, State

ROWS = torch.arange(60.0).reshape(20, 3)
FACTS = DataFacts(20, np.zeros(3), np.ones(3))


def solve(rows: torch.Tensor) -> State:
    return {"rows": rows.clone()}


def test_all_rows_are_solved_for() -> None:
    learner = GatheringLearner(FACTS, solve)
    for block in ROWS.split(7):
        learner.observe(block)
    assert torch.equal(learner.finish()["rows"], ROWS)


def test_what_is_beyond_the_bound_is_not_kept() -> None:
    learner = GatheringLearner(FACTS, solve, most_rows=9)
    for block in ROWS.split(7):
        learner.observe(block)
    assert torch.equal(learner.finish()["rows"], ROWS[:9])


def test_by_default_half_a_gigabyte_is_held() -> None:
    facts = DataFacts(2**40, np.zeros(2**20), np.ones(2**20))
    assert GatheringLearner(facts, solve)._rows.shape == (MOST_NUMBERS // 2**20, 2**20)
