"""The benchmark asks every question, and gets answers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from interpreto_mlops.audit.catalogue import QUESTIONS, Catalogue


@pytest.mark.slow
def test_the_benchmark_times_every_question(small: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    benchmark = importlib.import_module("catalogue")
    try:
        rates, times = benchmark.measure(small, 40_000)
    finally:
        for name in ("catalogue", "report"):
            sys.modules.pop(name, None)
    assert set(times) == set(QUESTIONS.names())
    assert all(0 < median <= worst for median, worst in times.values())
    assert set(rates) == {"whole runs", "rows alone"}
    found = small.ask("texts_with_word", word="word0", version="models:/reviews/2", k=20)
    assert len(found) > 100
    assert "| texts_with_word |" in benchmark.table("sqlite", rates, times)
