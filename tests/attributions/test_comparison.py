"""Paired tests held to scipy and to simulation; what a comparison says of methods whose differences are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from interpreto_mlops.attributions.comparison import compare, holm, paired_tests, pareto
from interpreto_mlops.attributions.metrics.results import MetricResult, SanityResult
from interpreto_mlops.errors import InputError


def result(name, method, values, *, random=0.5, higher=True, **changes):
    values = np.asarray(values, dtype=np.float64)
    known = np.where(np.isnan(values), np.nan, 1.0)
    given = {
        "name": name,
        "method": method,
        "values": values,
        "random_values": random * known,
        "better_than_random": known,
        "higher_is_better": higher,
        "skipped": {"no elements": int(np.isnan(values).sum())} if np.isnan(values).any() else {},
    }
    return MetricResult(**{**given, **changes})


@pytest.mark.parametrize("n", [1, 2, 5, 9, 13])
def test_few_differences_are_tested_exactly_as_scipy_does(n):
    differences = np.random.default_rng(n).normal(0.4, 1, size=(n, 4))
    found = paired_tests(differences)
    for column in range(4):
        sample = differences[:, column]
        exact = (
            stats.permutation_test((sample,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
            if n > 1
            else 1.0
        )
        assert found.p_value[column] == pytest.approx(exact, abs=1e-12)


def test_signs_alone_are_the_sign_test():
    """Of differences of one size, the sign-flip test knows only how many are positive: scipy's binomial test."""
    for n, positive in ((9, 8), (12, 6), (40, 29)):
        differences = np.where(np.arange(n) < positive, 0.2, -0.2)[:, None]
        found = paired_tests(differences).p_value[0]
        assert found == pytest.approx(stats.binomtest(positive, n).pvalue, abs=0.01 if n > 13 else 1e-12)


def test_many_differences_are_close_to_the_t_test_where_that_is_right():
    differences = np.random.default_rng(0).normal([0.0, 0.2, 0.35], 1, size=(80, 3))
    found = paired_tests(differences)
    assert found.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    half = stats.sem(differences) * stats.norm.ppf(0.975)
    assert found.low == pytest.approx(differences.mean(axis=0) - half, abs=0.03)
    assert found.high == pytest.approx(differences.mean(axis=0) + half, abs=0.03)


@pytest.mark.parametrize(("n", "seed"), [(8, 0), (30, 1)])
def test_equal_methods_differ_in_five_of_a_hundred_and_the_interval_holds_zero(n, seed):
    """Heavy tails, as faithfulness has: 1,000 comparisons of two methods that are equally good."""
    draws = np.random.default_rng(seed).standard_t(3, size=(n, 1000))
    found = paired_tests(draws, seed=seed)
    rejected = (found.p_value < 0.05).mean()
    # Four standard errors of a share of 5 % in 1,000; the exact test of 8 differences can only be below.
    assert 0.025 < rejected < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 1000)
    inside = ((found.low <= 0) & (found.high >= 0)).mean()
    assert inside > (0.86 if n == 8 else 0.9)


def test_a_difference_that_is_there_is_found_about_as_often_as_the_t_test_finds_it():
    draws = np.random.default_rng(2).normal(0.5, 1, size=(40, 1000))
    found = (paired_tests(draws).p_value < 0.05).mean()
    expected = (stats.ttest_1samp(draws, 0).pvalue < 0.05).mean()
    assert expected > 0.8
    assert found == pytest.approx(expected, abs=0.02)


def test_ties_and_missing_values_change_nothing():
    sample = np.random.default_rng(3).normal(0.5, 1, size=10)
    padded = np.concatenate([sample, np.zeros(7), np.full(4, np.nan)])
    found, alone = paired_tests(padded[:, None]), paired_tests(sample[:, None])
    assert found.p_value[0] == pytest.approx(alone.p_value[0], abs=1e-12)
    assert found.n[0] == 17
    assert found.mean[0] == pytest.approx(np.nanmean(padded))


def test_too_little_to_tell_is_said_by_the_numbers():
    nothing = np.full((3, 1), np.nan)
    found = paired_tests(np.concatenate([nothing, np.zeros((3, 1)), [[0.7], [np.nan], [np.nan]]], axis=1))
    assert found.n.tolist() == [0, 3, 1]
    assert np.isnan(found.mean[0])
    assert np.isnan(found.p_value[0])
    assert found.p_value[1:].tolist() == [1.0, 1.0]
    assert np.isnan(found.low[[0, 2]]).all()
    assert found.low[1] == found.high[1] == 0
    assert paired_tests(np.zeros((0, 2))).n.tolist() == [0, 0]
    assert paired_tests(np.full((5, 1), 1.0)).p_value[0] == 2 / 2**5


def test_the_same_seed_gives_the_same_numbers_whatever_else_is_tested():
    draws = np.random.default_rng(4).normal(size=(25, 6))
    every, first = paired_tests(draws, seed=5), paired_tests(draws[:, :1], seed=5)
    assert every.p_value[0] == first.p_value[0]
    assert every.low[0] == first.low[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5, np.nan, 0.02], [0.5, np.nan, 0.04]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(given, expected):
    np.testing.assert_allclose(holm(np.array(given)), expected)


def test_holm_keeps_the_chance_of_any_false_finding():
    uniform = np.random.default_rng(6).uniform(size=(4000, 10))
    any_false = np.mean([(holm(row) < 0.05).any() for row in uniform])
    assert any_false == pytest.approx(0.049, abs=4 * np.sqrt(0.05 * 0.95 / 4000))


def three_methods():
    """By deletion `good` is better than `same` by next to nothing, than `bad` by a lot; by insertion all are equal."""
    rng = np.random.default_rng(7)
    base = rng.uniform(0.2, 0.4, size=30)
    noise = rng.normal(0, 0.02, size=(3, 30))
    return {
        "good": [result("deletion", "good", base + noise[0], higher=False), result("insertion", "good", base)],
        "same": [result("deletion", "same", base + noise[1] + 0.001, higher=False), result("insertion", "same", base)],
        "bad": [result("deletion", "bad", base + noise[2] + 0.1, higher=False), result("insertion", "bad", base)],
    }


def test_the_table_has_each_method_and_metric_with_its_mean_interval_and_random_ranking():
    given = three_methods()
    table = compare(given, {"good": (30, 1.5), "same": (60, 2.0)}).table.set_index(["method", "metric"])
    assert len(table) == 6
    for label, results in given.items():
        for each in results:
            row = table.loc[label, each.name]
            assert row["mean"] == each.mean
            assert (row["low"], row["high"]) == each.interval()
            assert row["random_mean"] == 0.5
            assert row["texts"] == 30
    assert table.loc["good", "deletion"]["evaluations"] == 30
    assert np.isnan(table.loc["bad", "deletion"]["seconds"])


def test_the_best_is_marked_and_so_are_those_that_do_not_differ_from_it():
    found = compare(three_methods())
    table = found.table.set_index(["metric", "method"])
    best, tied = table["best"], table["tied_with_best"]
    winner = table.loc["deletion"]["mean"].idxmin()
    assert {winner} < {"good", "same"}
    assert best["deletion"].to_dict() == {name: name == winner for name in ("good", "same", "bad")}
    assert tied["deletion"].to_dict() == {name: name in {"good", "same"} - {winner} for name in ("good", "same", "bad")}
    assert tied["insertion"].sum() == 2
    pairs = found.pairs.set_index(["metric", "first", "second"])
    assert pairs.loc["deletion", "good", "bad"]["better"] == "good"
    assert pairs.loc["deletion", "good", "bad"]["difference"] == pytest.approx(-0.1, abs=0.02)
    assert pairs.loc["deletion", "good", "same"]["better"] == ""
    assert (pairs.loc["insertion"]["p_holm"] == 1).all()


def test_worse_than_random_is_significant_and_not_good():
    found = compare({"upside_down": [result("deletion", "m", np.linspace(0.8, 0.9, 20), higher=False)]})
    (row,) = found.table.to_dict("records")
    assert row["p_random"] < 0.001
    assert row["mean"] > row["random_mean"]
    assert len(found.pairs) == 0


def test_texts_that_one_method_skips_leave_the_pair():
    a = result("deletion", "a", [0.1, np.nan, 0.3, 0.2])
    b = result("deletion", "b", [0.3, 0.2, np.nan, 0.1])
    found = compare({"a": [a], "b": [b]})
    (pair,) = found.pairs.to_dict("records")
    assert pair["texts"] == 2
    assert pair["difference"] == pytest.approx((-0.2 + 0.1) / 2)
    assert found.table["skipped"].tolist() == [1, 1]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="same texts"):
        compare({"a": [result("deletion", "a", [1, 2])], "b": [result("deletion", "b", [1])]})
    assert compare({}).table.empty


def test_a_metric_that_cannot_judge_a_method_is_compared_among_the_others():
    a, b, c = (result("deletion", name, [0.1, 0.2, 0.3 + i]) for i, name in enumerate("abc"))
    found = compare({"a": [a], "b": [b, result("insertion", "b", [0.5, 0.6, 0.7])], "c": [c]})
    assert found.table[found.table["metric"] == "insertion"]["method"].tolist() == ["b"]
    assert found.pairs["metric"].tolist() == ["deletion"] * 3


def test_nothing_scored_has_no_best():
    found = compare({"a": [result("deletion", "a", [np.nan, np.nan])]})
    assert not found.table["best"].any()
    assert not found.table["tied_with_best"].any()


def test_pareto_by_brute_force():
    rng = np.random.default_rng(8)
    for higher in (True, False):
        costs, values = rng.integers(1, 8, size=(2, 40)).astype(float)
        costs[3], values[4] = np.nan, np.nan
        found = pareto(costs, values, higher_is_better=higher)
        for i in range(40):
            beaten = any(
                costs[j] <= costs[i]
                and (values[j] >= values[i] if higher else values[j] <= values[i])
                and (costs[j], values[j]) != (costs[i], values[i])
                for j in range(40)
            )
            assert found[i] == (not beaten and i not in (3, 4))
    assert pareto(np.zeros(0), np.zeros(0), higher_is_better=True).tolist() == []


def test_the_best_of_a_sanity_check_is_the_nearest_to_no_correlation():
    rng = np.random.default_rng(0)
    values = {"mirrored": -0.9 + 0.05 * rng.random(12), "lost": 0.1 * (rng.random(12) - 0.5)}
    found = {
        label: [SanityResult(**vars(result("sanity_check", label, each, random=0.0, higher=False)))]
        for label, each in values.items()
    }
    comparison = compare(found)
    assert comparison.table.set_index("method")["best"].to_dict() == {"mirrored": False, "lost": True}
    assert comparison.pairs["better"].tolist() == ["lost"]
