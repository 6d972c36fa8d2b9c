"""Agreement of rankings against scipy and enumeration, and shifts of importance that were planted."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, spearmanr

from interpreto_mlops.attributions.results import Target
from interpreto_mlops.audit.comparison.models import (
    SHIFT_COLUMNS,
    agreement,
    importance_shift,
    most_changed,
    rank_agreement,
    top_words,
)
from interpreto_mlops.concepts.importance.results import ConceptImportance
from tests.visuals.hostile import attribution, continued

WORDS = "one two three four five six seven eight nine ten"


def explained(scores, text=WORDS, **changes):
    return attribution(text, scores=np.asarray(scores, dtype=np.float64).reshape(1, -1), **changes)


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy_and_of_counting_pairs(ties):
    rng = np.random.default_rng(0)
    for n in (2, 3, 7, 20):
        a, b = rng.normal(size=(2, n))
        if ties:
            a, b = a.round(0), b.round(0)
            a[0], a[-1], b[0], b[-1] = 5.0, -5.0, -5.0, 5.0
        found = rank_agreement(a, b, 3)
        assert found["spearman"] == pytest.approx(spearmanr(a, b).statistic)
        signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(n), 2)]
        both = sum(x * y for x, y in signs)
        tied = [sum(pair[side] != 0 for pair in signs) for side in (0, 1)]
        assert found["kendall"] == pytest.approx(both / np.sqrt(tied[0] * tied[1]))
        assert found["kendall"] == pytest.approx(kendalltau(a, b).statistic)


def test_the_overlap_is_of_the_highest_signed_scores_and_chance_gives_k_of_n():
    a, b = np.array([5.0, -9.0, 3.0, 1.0, 2.0]), np.array([5.0, 9.0, 3.0, -1.0, 2.0])
    found = rank_agreement(a, b, 2)
    assert (found["overlap"], found["overlap_random"]) == (0.5, 0.4)
    rng = np.random.default_rng(1)
    draws = [rank_agreement(*rng.normal(size=(2, 10)), 3) for _ in range(2000)]
    assert np.mean([each["overlap"] for each in draws]) == pytest.approx(0.3, abs=0.02)
    assert np.mean([each["spearman"] for each in draws]) == pytest.approx(0.0, abs=0.03)


TIED = (
    [3.0, 2.0, 1.0, 1.0, 0.0],
    [2.0, 2.0, 2.0, 2.0, 1.0],
    [1.0, 1.0, 0.0, 0.0, 0.0],
    [1.0, 0.0, 0.0, 0.0, 0.0],
    [4.0, 3.0, 2.0, 1.0, 0.0],
)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("first", TIED)
@pytest.mark.parametrize("second", TIED)
def test_with_ties_the_overlap_over_all_orders_is_what_chance_is_said_to_give(first, second, k):
    found = [rank_agreement(np.array(first), np.array(order), k) for order in permutations(second)]
    overlap, said = ([each[name] for each in found] for name in ("overlap", "overlap_random"))
    assert set(said) == {said[0]}
    assert np.mean(overlap) == pytest.approx(said[0], abs=1e-12)
    assert 0 <= min(overlap) <= max(overlap) <= 1
    assert rank_agreement(np.array(first), np.array(first), k)["overlap"] == 1.0
    if first != second:
        assert said[0] == k / 5


def test_in_a_simulation_chance_gives_k_of_n_however_scores_tie():
    rng = np.random.default_rng(5)
    for levels in (2, 3, 5):
        draws = [rank_agreement(*rng.integers(0, levels, size=(2, 12)).astype(float), 3) for _ in range(2000)]
        assert np.nanmean([each["overlap"] for each in draws]) == pytest.approx(0.25, abs=0.02)
    places = rng.integers(10, size=(2000, 2))
    sparse = [rank_agreement(np.eye(10)[a], np.eye(10)[b], 3) for a, b in places]
    said = sparse[0]["overlap_random"]
    assert np.mean([each["overlap"] for each in sparse]) == pytest.approx(said, abs=0.03)
    # Of ten places, one in ten is the same: 3 / 10 + (1 − (1 + 9 · (2 / 9)²) / 3) / 10.
    assert said == pytest.approx(0.3 + (1 - (1 + 4 / 9) / 3) / 10)


def test_elements_that_tie_at_the_edge_share_the_free_places():
    # Two of four tie for one place: half a place each.
    found = rank_agreement(np.array([3.0, 1.0, 1.0, 0.0]), np.array([3.0, 2.0, 1.0, 0.0]), 2)
    assert (found["overlap"], found["overlap_random"]) == (0.75, 0.5)
    assert np.isnan(rank_agreement(np.zeros(10), np.arange(10.0), 3)["overlap"])
    assert np.isnan(rank_agreement(np.arange(10.0), np.zeros(10), 3)["overlap_random"])


@pytest.mark.parametrize("scores", [[], [1.0], [2.0, 2.0, 2.0]])
def test_what_cannot_be_ranked_has_no_agreement(scores):
    found = rank_agreement(np.asarray(scores), np.asarray(scores), 3)
    assert all(np.isnan(value) for value in found.values())


def test_the_same_explanations_agree_exactly_and_the_reversed_ones_not_at_all():
    rng = np.random.default_rng(2)
    items = {str(i): explained(rng.normal(size=10).round(1), index=i) for i in range(40)}
    same = agreement(items, items).summary()
    assert same[["mean", "low", "high"]].to_numpy().tolist() == [[1.0] * 3] * 3
    assert same["texts"].tolist() == [40] * 3
    assert same["random"].tolist() == [0.0, 0.0, pytest.approx(0.3)]
    turned = {name: replace(item, scores=-item.scores) for name, item in items.items()}
    assert agreement(items, turned).summary()["mean"].tolist()[:2] == [pytest.approx(-1.0)] * 2


def test_only_equal_elements_and_targets_are_ranked_and_the_others_are_counted():
    up, down = np.arange(10.0), -np.arange(10.0)
    other = Target(0, "negative")
    first = {"a": explained(up), "b": explained(up), "c": explained(up), "d": explained([1.0, 1.0], "two words")}
    second = {
        "a": explained(down, index=3),
        "b": explained(down, targets=(other,)),
        "c": attribution(WORDS, granularity="sentence"),
        "d": explained([1.0, 2.0], "two words"),
        "e": explained(down),
    }
    found = agreement(first, second)
    assert (found.shared, found.other_elements, found.unranked) == (4, 1, 1)
    assert found.texts["text"].tolist() == ["a", "d"]
    assert found.texts["index_second"].tolist()[0] == 3
    assert found.targets[["text", "target_first", "target_second"]].to_numpy().tolist() == [
        ["b", "positive", "negative"]
    ]
    assert found.summary()["texts"].tolist() == [1, 1, 1]
    # The same class under another number is the same.
    renumbered = {"a": explained(down, targets=(Target(7, "positive"),))}
    assert len(agreement({"a": first["a"]}, renumbered).texts) == 1
    assert len(agreement({}, second).texts) == 0
    assert agreement({}, second).summary()["mean"].isna().all()


def test_words_of_which_only_hashes_were_kept_are_ranked_beside_the_words():
    shown = explained(np.arange(10.0))
    hidden = shown.hidden()
    for first, second in ((shown, hidden), (hidden, shown), (hidden, hidden)):
        assert agreement({"x": first}, {"x": second}).texts["spearman"].tolist() == [1.0]
    assert top_words(hidden, 1) == f"{hidden.elements[9][:15]}… +9.000"


def test_of_several_targets_the_agreement_is_the_mean_and_what_comes_later_is_left_out():
    first = continued("once upon a time ", "there was food")
    second = replace(first, scores=np.where(np.isnan(first.scores), np.nan, -first.scores))
    assert np.isnan(first.scores).any()
    (row,) = agreement({"x": first}, {"x": second}).texts.to_dict("records")
    assert row["spearman"] == pytest.approx(-1.0)
    mixed = replace(first, scores=np.vstack([first.scores[:1], second.scores[1:]]))
    (row,) = agreement({"x": first}, {"x": mixed}).texts.to_dict("records")
    assert row["spearman"] == pytest.approx((1 - 1 - 1) / 3)
    other = continued("once upon a time ", "the food was")
    assert len(agreement({"x": first}, {"x": other}).targets) == 1


def test_the_texts_that_changed_most_come_first_with_their_words():
    rng = np.random.default_rng(3)
    base = np.arange(10.0)
    first = {str(i): explained(base) for i in range(5)}
    second = {name: explained(base + 5.0 * rng.normal(size=10)) for name in first}
    second["3"], second["4"] = explained(-base), explained(base * 2.0)
    changed = most_changed(agreement(first, second), 2)
    assert changed["text"].tolist()[0] == "3"
    assert len(changed) == 2
    assert sorted(most_changed(agreement(first, second), 9)["text"]) == ["0", "1", "2", "3"]
    assert top_words(first["3"], 2) == "ten +9.000, nine +8.000"
    assert top_words(replace(first["3"], targets=(), scores=np.zeros((0, 10)))) == ""


def test_a_planted_shift_of_importance_is_found_under_the_concepts_new_number():
    rng = np.random.default_rng(4)
    values = rng.normal(size=(2, 6))
    order = np.array([3, 0, 5, 1, 2, 4])
    moved = values.copy()
    moved[1, 2] += 50.0
    first = ConceptImportance(("no", "yes"), values, (3, 4)).to_frame()
    second = ConceptImportance(("no", "yes"), moved[:, order], (3, 4)).to_frame()
    pairs = [(int(old), new) for new, old in enumerate(order)]
    shift = importance_shift(first, second, pairs)
    assert tuple(shift.columns) == SHIFT_COLUMNS
    top = shift.iloc[0]
    assert (top["class"], top["concept_first"], top["concept_second"]) == ("yes", 2, 4)
    expected = moved[1, 2] / np.abs(moved[1]).sum() - values[1, 2] / np.abs(values[1]).sum()
    assert top["shift"] == pytest.approx(expected)
    assert (shift.loc[shift["class"] == "no", "shift"].abs() < 1e-12).all()
    assert len(shift) == 12
    assert len(importance_shift(first, second, [])) == 0
    assert len(importance_shift(first, second.assign(**{"class": "else"}), pairs)) == 0
    nobody = ConceptImportance(("no", "yes"), np.vstack([values[0], np.full(6, np.nan)]), (3, 0)).to_frame()
    assert set(importance_shift(first, nobody, [(0, 0)])["class"]) == {"no"}
    assert (importance_shift(first, first, [(i, i) for i in range(6)])["shift"] == 0.0).all()
    assert isinstance(shift, pd.DataFrame)
