"""The benchmark counts right, times every method, and writes where it should."""

from __future__ import annotations

import csv
import importlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import measure, report
from interpreto_mlops.attributions import METHODS
from interpreto_mlops.models.text_model import TextModel

ROOT = Path(__file__).resolve().parents[1]


class TestMeasure:
    def test_counts_rows_by_length_and_by_gradient(self, tiny_model: Callable[..., TextModel]) -> None:
        model = tiny_model().model
        ids = torch.ones(3, 6, dtype=torch.long)
        mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 4 + [0] * 2])

        def call() -> str:
            with torch.no_grad():
                model(input_ids=ids, attention_mask=mask)
            model(input_ids=ids[:2, :5])
            return "done"

        cost = measure.measure(model, call)
        assert cost.result == "done"
        assert cost.scored == Counter({4: 2, 6: 1})
        assert cost.differentiated == Counter({5: 2})
        assert (cost.evaluations, cost.tokens) == (5, 24)
        assert cost.cpu > 0
        assert not model.base_model._forward_pre_hooks

    def test_the_floor_grows_with_the_rows_and_with_gradients(self, tiny_model: Callable[..., TextModel]) -> None:
        model = tiny_model().model
        few, many = (measure.Cost(scored=Counter({8: rows})) for rows in (1, 100))
        floor = measure.Floor(model, rounds=3)
        scored = floor.seconds(many)
        assert scored == pytest.approx(100 * floor.seconds(few))
        assert floor.seconds(measure.Cost(differentiated=Counter({8: 100}))) > scored > 0
        floor.forget()
        assert floor.seconds(many) != scored


class TestReport:
    def test_writes_between_its_markers_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        page = tmp_path / "page.md"
        page.write_text("before\n<!-- a: generated -->\nold\n<!-- a: end -->\nafter\n")
        monkeypatch.setattr(report, "PAGE", page)
        report.write("a", "new \\1")
        assert page.read_text() == "before\n<!-- a: generated -->\n\nnew \\1\n\n<!-- a: end -->\nafter\n"
        with pytest.raises(SystemExit, match="no markers"):
            report.write("b", "new")

    def test_the_page_has_the_markers(self) -> None:
        page = report.PAGE.read_text(encoding="utf-8")
        for name in ("attributions", "memory", "plausibility", "tracking"):
            assert f"<!-- {name}: generated -->" in page
            assert f"<!-- {name}: end -->" in page

    def test_errors_are_relative_to_the_exact_values(self) -> None:
        runs = [{"values": [3.0, 4.5], "evaluations": 7}, {"values": [2.0, 4.0], "evaluations": 9}]
        records = [
            {"library": "a", "method": "exact", "runs": [{"values": [3.0, 4.0], "evaluations": 4}]},
            {"library": "b", "method": "m", "runs": runs},
            {"library": "c", "failed": "no such thing"},
        ]
        assert list(report.errors(records)) == [
            ("b", "m", "9", "0.150", "0.100", "0.200"),
            ("c", "all", "", "not run: no such thing", "", ""),
        ]

    def test_a_bar_that_is_missed_says_so(self) -> None:
        timed = {"kind": "classification", "library": report.OWN, "texts": 1, "floor": 1.0}
        records = [{**timed, "method": "occlusion", "cpu": 1.2}, {**timed, "method": "rise", "cpu": 1.0}]
        found = report.bars({"classification": records, "shapley": [], "generation": []})
        assert [met for _, _, met in found] == ["**no**", "yes"]


MARKED = ("awful", "stupid", "dumb")
PLAIN = ("soup", "train", "letter", "window", "garden", "river", "paper", "music", "market", "coffee")


def write_posts(path: Path, posts: int, seed: int) -> None:
    """Posts of a sentence without a marked word and a like one with it."""
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("spans", "text"))
        for _ in range(posts):
            one, two, three, four, bad = *(rng.choice(PLAIN) for _ in range(4)), rng.choice(MARKED)
            text = f"This {one} {two} is not a {three}. This {bad} {two} is not a {four}."
            start = text.index(bad)
            writer.writerow((list(range(start, start + len(bad))), text))


class TestPlausibility:
    def test_sentences_keep_their_marked_characters(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        plausibility = importlib.import_module("plausibility")
        write_posts(tmp_path / "posts.csv", 5, seed=0)
        found = plausibility.sentences(tmp_path / "posts.csv")
        assert [bool(spans) for _, spans in found] == [False, True] * 5
        for text, spans in found[1::2]:
            ((start, end),) = spans
            assert text[start:end] in MARKED
        data = plausibility.balanced(found, "posts", most=3, seed=0)
        assert Counter(data.labels) == {"toxic": 3, "neutral": 3}

    @pytest.mark.slow
    def test_occlusion_finds_the_marked_words(self, tmp_path: Path) -> None:
        for seed, (name, posts) in enumerate((("train", 300), ("test", 30))):
            write_posts(tmp_path / f"tsd_{name}.csv", posts, seed)
        out = tmp_path / "out.json"
        command = [sys.executable, ROOT / "benchmarks" / "plausibility.py", "--data", tmp_path, "--json", out]
        options = ["--methods", "occlusion", "--texts", "20", "--epochs", "3", "--threads", "1"]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        records = {record["metric"]: record for record in json.loads(out.read_text())["records"]}
        assert set(records) == {"auprc", "token_f1", "iou_f1"}
        assert records["auprc"]["mean"] > 2 * records["auprc"]["random"]


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, ROOT / "benchmarks" / "memory.py", "--quick", "--texts", "1,3", "--methods", "occlusion"]
    done = subprocess.run([*command, "--json", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())
    assert [record["texts"] for record in records] == [1, 3]
    assert all(record["peak"] >= record["before"] > 0 for record in records)


@pytest.mark.slow
def test_a_quick_run_times_every_method(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, ROOT / "benchmarks" / "attributions.py", "--quick", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = json.loads(out.read_text())["records"]
    timed = {record["method"]: record for record in records if record["kind"] == "classification"}
    assert set(timed) == set(METHODS.names())
    for record in timed.values():
        assert record["evaluations"] > 0
        assert record["cpu"] > 0
        assert record["floor"] > 0
    assert {record["kind"] for record in records} == {"classification", "shapley", "generation"}
    assert "| occlusion | interpreto_mlops |" in done.stdout


@pytest.mark.slow
def test_a_quick_quickstart_times_what_it_tracks(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-W", "ignore", ROOT / "benchmarks" / "tracking.py", "--quick", "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    # The runs of three methods, eight dictionaries, a classifier and a report.
    assert found["calls"]["MLflow"] > 13 * 5
    assert 0 < sum(found["seconds"].values()) < found["stages"]["total"]
    assert "| calls of MLflow |" in done.stdout
    assert list(tmp_path.iterdir()) == [out]
