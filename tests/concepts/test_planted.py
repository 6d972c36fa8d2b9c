"""Concepts that were planted are found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from benchmarks import planted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topk_sae", "batchtopk_sae", "mp_sae", "nmf"])
def test_planted_concepts_are_found(name: str) -> None:
    (record,) = planted.measure([name])
    assert record["cosine"] > 0.95
    assert record["reconstruction/r2"] > 0.8  # a row may hold more than k concepts


def test_the_measure_is_a_matching() -> None:
    rows, directions = planted.planted()
    from interpreto_mlops.concepts import PCAConcepts

    dictionary = PCAConcepts(n_concepts=24).fit(rows[:2000], progress=False)
    dictionary.weights["decoder"] = -directions.flip(0)
    assert planted.recovered(dictionary, directions) == pytest.approx(1.0, abs=1e-5)
