"""Element scores from token scores, by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from interpreto_mlops.attributions.aggregation import Aggregation, aggregate

OF_TOKEN = np.array([-1, 0, 0, 1, 3, 3, 3, -1])
BY_HAND = {
    "sum": sum,
    "mean": lambda own: sum(own) / len(own),
    "max": max,
    "min": min,
    "signed_max": lambda own: max(own, key=abs),
    "first": lambda own: own[0],
    "last": lambda own: own[-1],
}


@pytest.mark.parametrize("name", [member.value for member in Aggregation])
def test_every_aggregation_equals_its_definition(name):
    scores = np.random.default_rng(0).normal(size=(3, 2, 8))
    found = aggregate(scores, OF_TOKEN, 4, Aggregation.parse(name))
    assert found.shape == (3, 2, 4)
    for place in np.ndindex(3, 2):
        for element in range(4):
            own = [scores[place][t] for t in range(8) if OF_TOKEN[t] == element]
            assert found[(*place, element)] == pytest.approx(BY_HAND[name](own) if own else 0, abs=1e-12)


def test_the_signed_maximum_is_the_first_of_equals():
    assert aggregate(np.array([[-2.0, 2.0]]), np.array([0, 0]), 1, Aggregation.SIGNED_MAX)[0, 0] == -2


def test_one_token_an_element_changes_nothing():
    scores = np.random.default_rng(0).normal(size=(2, 5))
    for how in Aggregation:
        np.testing.assert_array_equal(aggregate(scores, np.arange(5), 5, how), scores)
