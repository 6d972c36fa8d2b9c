from __future__ import annotations

import dataclasses

import numpy as np

from interpreto_mlops.attributions.comparison import Comparison, compare
from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.visuals import comparison_html
from interpreto_mlops.visuals.comparison_html import comparison_blocks, methods_table, pairs_table, render_fragment
from interpreto_mlops.visuals.report_html import Report, Section, render_page
from tests.visuals.hostile import PAYLOADS, Page, assert_harmless, attribution


def result(name: str, method: str, values: np.ndarray, *, random: float = 0.5) -> MetricResult:
    higher = name == "insertion"
    curve = np.column_stack([np.linspace(0, 1, 5), np.linspace(0.9, 0.1, 5)])
    shape = np.ones_like(values)
    return MetricResult(name, method, values, random * shape, shape, higher, curve, curve)


def comparison(labels: list[str], *, random: float = 0.5) -> Comparison:
    """Methods of which the first is best by deletion, and the second close behind; by insertion all are equal."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.4, size=20)
    shifts = [0.0, 0.0005, *(0.1 * i for i in range(1, len(labels)))]
    results = {
        label: [
            result("deletion", label, base + shifts[i] + rng.normal(0, 1e-2, 20) * (i == 1), random=random),
            result("insertion", label, base),
        ]
        for i, label in enumerate(labels)
    }
    found = compare(results, {label: (20.0 * 10**i, 1.5) for i, label in enumerate(labels)})
    items = [attribution("good soup", index=i) for i in range(20)]
    sets = {
        label: AttributionSet(items, seconds=1.5, counters={"evaluations_asked": 20.0 * 10**i})
        for i, label in enumerate(labels)
    }
    return dataclasses.replace(found, explanations=sets)


def hostile_comparison() -> Comparison:
    return comparison(list(PAYLOADS))


def test_hostile_labels_do_nothing() -> None:
    page = assert_harmless(
        render_page(
            Report("x", [Section("s", comparison_blocks(hostile_comparison(), {PAYLOADS[0]: "https://a.org"}))])
        )
    )
    cells = [text for _, text in page.find("td")]
    assert all(payload in cells for payload in PAYLOADS)
    assert_harmless(f"<html>{render_fragment(hostile_comparison())}</html>")


def test_the_table_says_mean_interval_random_and_what_is_no_worse_than_the_best() -> None:
    found = comparison(["a", "b", "c"])
    table = methods_table(found, {"a": "https://a.org/run"})
    assert [column.name for column in table.columns] == ["method", "deletion", "insertion", "evaluations", "seconds"]
    a, b, c = table.cells()
    assert a[0].link == "https://a.org/run"
    assert (a[1].best, a[1].tone) == (True, "")
    assert (b[1].best, b[1].tone) == (False, "tied")
    assert (c[1].best, c[1].tone) == (False, "")
    row = found.table.iloc[0]
    assert a[1].note == f"{row['low']:.3f} … {row['high']:.3f}\nrandom 0.500"
    assert [cells[3].value for cells in (a, b, c)] == [1, 10, 100]
    page = Page(render_page(Report("x", [Section("s", [table])])))
    assert page.find("td", "tied")[0][1].startswith(f"{found.table['mean'][1]:.3f}")


def test_no_better_and_worse_than_random_is_said() -> None:
    same = comparison(["a"], random=float(np.mean(np.random.default_rng(0).uniform(0.2, 0.4, size=20))))
    assert "\n≈ random" in methods_table(same).cells()[0][1].note
    worse = comparison(["a"], random=0.1)
    assert "\nworse than random 0.100" in methods_table(worse).cells()[0][1].note
    unknown = comparison(["a"], random=np.nan)
    assert "random" not in methods_table(unknown).cells()[0][1].note
    assert pairs_table(comparison(["a", "b"])).rows


def test_pairs_say_the_difference_the_interval_the_p_value_and_the_better_method() -> None:
    found = comparison(["a", "b", "c"])
    table = pairs_table(found)
    assert table.folded == "2 of 6 paired differences between methods are significant"
    assert table.open
    by_name = {str(row[0].value): row for row in table.cells()}
    assert list(by_name) == ["a − b", "a − c", "b − c"]
    decided = by_name["a − c"][1]
    assert decided.value == "−0.100"
    assert decided.tone == "first"
    assert decided.note.endswith("p < 0.001 · a")
    assert by_name["a − b"][1].tone == ""
    assert by_name["a − b"][2].note == "+0.000 … +0.000\np 1.000"


def test_many_pairs_are_folded_at_first() -> None:
    table = pairs_table(comparison([f"m{i}" for i in range(6)]))
    assert len(table.rows) == 15
    assert not table.open
    page = Page(render_page(Report("x", [Section("s", [table])])))
    ((attributes, _),) = page.find("details")
    assert "open" not in attributes


def test_the_figures_are_drawn_once_and_only_where_there_is_something() -> None:
    drawn = [name for name, _, _ in comparison_html.comparison_figures(comparison(["a", "b"]))]
    assert drawn == ["comparison", "cost", "curves"]
    assert list(comparison_html.comparison_figures(compare({}))) == []
