"""Plausibility: the ERASER scorer's definitions worked out by hand, and real rationales."""

from __future__ import annotations

import ast
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc, precision_recall_curve

from interpreto_mlops.attributions import Attribution, AttributionSet, Target
from interpreto_mlops.attributions.metrics import Plausibility, spans_of_characters
from interpreto_mlops.attributions.metrics.rationales import (
    area_under_precision_recall,
    elements_in,
    rationale_spans,
    runs,
    span_hits,
    token_f1,
)
from interpreto_mlops.errors import InputError
from interpreto_mlops.text.granularity import word_spans

TOXIC = (Target(1, "toxic"),)


def explanation(text: str, scores, index: int = 0, targets=TOXIC) -> Attribution:
    spans = word_spans(text)
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    nothing = np.zeros(len(targets))
    return Attribution(
        text=text,
        index=index,
        elements=tuple(text[a:b] for a, b in spans.tolist()),
        spans=spans,
        scores=scores,
        targets=tuple(targets),
        output=nothing,
        baseline_output=nothing,
        standard_error=None,
        method="given",
    )


def mask(bits: str) -> np.ndarray:
    return np.array([bit == "1" for bit in bits])


# Six words, the rationale is the 2nd and 3rd ("b c"), k = 2 throughout, unless said otherwise.
TEXT = "a b c d e f"
RATIONALE = [(2, 5)]


def test_the_area_under_precision_and_recall_by_hand():
    """Scores 6 5 4 3 2 1, truth 0 1 1 0 0 0. After each element: hits 0 1 2, precision 0/1 1/2 2/3, recall 0 1/2 1.

    Trapezoids from (0, 1): recall 0 to 0 nothing; 0 to 1/2 with (0 + 1/2) / 2 = 1/4; 1/2 to 1 with (1/2 + 2/3) / 2 =
    7/12. Area = 1/8 + 7/24 = 5/12.
    """
    assert area_under_precision_recall(mask("011000"), np.arange(6.0, 0, -1)) == pytest.approx(5 / 12, abs=1e-12)


def test_ties_come_together_under_precision_and_recall():
    """All scores equal: one point, precision 1/3 at recall 1; the trapezoid from (0, 1) is (1 + 1/3) / 2 = 2/3."""
    assert area_under_precision_recall(mask("011000"), np.zeros(6)) == pytest.approx(2 / 3, abs=1e-12)


def test_the_area_equals_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 30))
        truth = rng.random(n) < 0.3
        truth[rng.integers(n)] = True
        scores = rng.integers(-3, 4, n) / 2 if rng.random() < 0.5 else rng.normal(size=n)
        precision, recall, _ = precision_recall_curve(truth, scores)
        assert area_under_precision_recall(truth, scores) == pytest.approx(auc(recall, precision), abs=1e-12)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("011000", 1.0),  # both right
        ("110000", 0.5),  # one of two chosen, one of two found
        ("111000", 0.8),  # precision 2/3, recall 1: 2 (2/3) / (5/3)
        ("100001", 0.0),  # none
    ],
)
def test_token_f1_by_hand(chosen, expected):
    assert token_f1(mask("011000"), mask(chosen)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("truth", "chosen", "hits"),
    [
        ("011000", "011000", (1, 1, 1)),  # the same run
        ("011000", "110000", (0, 1, 1)),  # 1 shared of 3: 1/3
        ("011000", "010000", (1, 1, 1)),  # 1 of 2: exactly one half hits
        ("011000", "010011", (1, 2, 1)),  # one of two runs
        ("011011", "011110", (1, 1, 2)),  # best of 2/4 and 1/5
        ("011011", "111111", (0, 1, 2)),  # 2/6 twice: the best counts, not their sum
        ("110110", "100100", (2, 2, 2)),
    ],
)
def test_span_hits_by_hand(truth, chosen, hits):
    assert span_hits(mask(truth), mask(chosen)) == hits


def test_runs_of_adjacent_elements():
    assert runs(mask("0110011")).tolist() == [[1, 3], [5, 7]]
    assert runs(mask("000")).tolist() == []


def test_data_set_figures_by_hand():
    """Two texts of six words; k = round((2 + 3) / 2) = 2.

    Text 1: truth 011000, chosen 011000 (scores 0 6 5 0 0 0): token F1 1; one predicted run, a hit; one human run.
    Text 2: truth 110001, chosen 100100 (scores 6 0 0 5 0 0): token precision 1/2, recall 1/3, F1 2/5. Predicted runs
    [0], [3], human [0, 1], [5]: the first hits with 1/2, the second does not.
    Token F1 = (1 + 2/5) / 2 = 0.7. IOU micro: precision 2/3, recall 2/3, F1 2/3. Macro: precision (1 + 1/2) / 2 = 3/4,
    recall (1 + 1/2) / 2 = 3/4, F1 3/4.
    AUPRC: text 1: 1, found first. Text 2: hit, miss, then the other four tie: precision 1, 1/2, 3/6 at recall 1/3, 1/3,
    1: 1/3 · 1 + 2/3 · (1/2 + 1/2) / 2 = 2/3. Mean 5/6.
    """
    texts = AttributionSet([explanation(TEXT, [0, 6, 5, 0, 0, 0]), explanation(TEXT, [6, 0, 0, 5, 0, 0], index=1)])
    result = Plausibility([RATIONALE, [(0, 3), (10, 11)]])(texts)
    expected = {"auprc": 5 / 6, "token_f1": 0.7, "iou_f1": 0.75, "iou_f1_micro": 2 / 3}
    assert {name.split("/")[1]: found.mean for name, found in result.items()} == pytest.approx(expected, abs=1e-12)
    assert result["plausibility/token_f1"].values == pytest.approx([1, 0.4])
    assert result["plausibility/iou_f1"].parameters["top_elements"] == 2


def test_macro_is_the_f1_of_means_and_not_the_mean_of_f1():
    """Text 1: precision 1, recall 1/2 (one run hit of two human ones). Text 2: precision 1/2, recall 1.

    F1 of the means (3/4, 3/4) is 3/4; the mean of the F1s (2/3 each) would be 2/3.
    """
    texts = AttributionSet([explanation(TEXT, [6, 5, 0, 0, 0, 0]), explanation(TEXT, [6, 0, 0, 5, 0, 0], index=1)])
    # Text 1: human runs [0, 1] and [5]: k = round((3 + 1) / 2) = 2. Text 2: human run [0].
    result = Plausibility([[(0, 3), (10, 11)], [(0, 1)]])(texts)
    assert result["plausibility/iou_f1"].mean == pytest.approx(0.75, abs=1e-12)
    assert result["plausibility/iou_f1"].values == pytest.approx([2 / 3, 2 / 3])


def test_a_perfect_rationale_and_a_disjoint_one():
    perfect = Plausibility([RATIONALE])(AttributionSet([explanation(TEXT, [0, 2, 1, 0, 0, 0])]))
    assert {result.mean for result in perfect.values()} == {1.0}
    disjoint = Plausibility([RATIONALE])(AttributionSet([explanation(TEXT, [5, 0, 0, 4, 3, 2])]))
    for name in ("token_f1", "iou_f1", "iou_f1_micro"):
        assert disjoint[f"plausibility/{name}"].mean == 0


def test_an_element_is_in_a_rationale_when_they_share_a_character():
    spans = word_spans("good, awful soup")  # [0, 4), [4, 5), [6, 11), [12, 16)
    for rationale, expected in (([(0, 1)], "1000"), ([(3, 5)], "1100"), ([(5, 6)], "0000"), ([(10, 13)], "0011")):
        assert elements_in(spans, rationale_spans(rationale, 0, 16)).tolist() == mask(expected).tolist()


def test_texts_without_a_rationale_are_skipped_and_counted():
    items = [explanation(TEXT, [0, 6, 5, 0, 0, 0], index=i) for i in range(4)]
    items.append(explanation("", np.zeros((1, 0)), index=4))
    result = Plausibility([RATIONALE, None, [], [(1, 2)], None])(AttributionSet(items))
    for found in result.values():
        assert found.skipped == {"no rationale": 2, "no element in the rationale": 1, "no elements": 1}
        assert np.isnan(found.values).tolist() == [False, True, True, True, True]
        assert found.mean == 1
    none = Plausibility([None])(AttributionSet(items[:1]))
    assert all(math.isnan(found.mean) for found in none.values())


def test_the_scores_of_a_gold_class_can_be_asked_for():
    targets = (Target(1, "toxic"), Target(0, "neutral"))
    item = explanation(TEXT, [[5, 0, 0, 4, 3, 2], [0, 6, 5, 0, 0, 0]], targets=targets)
    texts = AttributionSet([item])
    assert Plausibility([RATIONALE])(texts)["plausibility/token_f1"].mean == 0
    for gold in ("neutral", 0):
        assert Plausibility([RATIONALE], gold=[gold])(texts)["plausibility/token_f1"].mean == 1
    with pytest.raises(InputError, match=r"text 0 has no explanation of the gold class 'rude'; it has 1 \(toxic\)"):
        Plausibility([RATIONALE], gold=["rude"])(texts)


def test_elements_that_a_target_cannot_see_take_no_part():
    item = explanation(TEXT, [np.nan, 6, 5, 0, np.nan, np.nan])
    assert Plausibility([RATIONALE])(AttributionSet([item]))["plausibility/auprc"].mean == 1


def test_random_scores_are_the_own_ones_permuted():
    """Two of six words at random: token F1 is 1, 1/2 or 0 with 1, 8, 6 of 15 choices; its mean is 5/15 = 1/3."""
    texts = AttributionSet([explanation(TEXT, [0, 6, 5, 0, 0, -1])])
    result = Plausibility([RATIONALE], n_random=3000)(texts)["plausibility/token_f1"]
    assert result.random_mean == pytest.approx(1 / 3, abs=0.02)
    assert result.diagnosticity == pytest.approx(1 - 0.5 / 15, abs=0.01)
    again = Plausibility([RATIONALE], n_random=3000)(texts)["plausibility/token_f1"]
    np.testing.assert_array_equal(result.random_draws, again.random_draws)
    other = Plausibility([RATIONALE], n_random=3000, seed=1)(texts)["plausibility/token_f1"]
    assert (other.random_draws != result.random_draws).any()


@pytest.mark.parametrize("rationale", [[(0, 99)], [(3, 3)], [(-1, 2)], ["ab"], [(0.5, 2)], [3]])
def test_a_rationale_that_is_none_is_refused(rationale):
    with pytest.raises(InputError, match="the rationale of text 0 must be pairs"):
        Plausibility([rationale])(AttributionSet([explanation(TEXT, np.arange(6))]))


def test_as_many_rationales_as_texts():
    with pytest.raises(InputError, match="2 rationales were given for 1 texts"):
        Plausibility([RATIONALE, RATIONALE])(AttributionSet([explanation(TEXT, np.arange(6))]))
    with pytest.raises(InputError, match="threshold"):
        Plausibility([], threshold=0)


def test_marked_characters_become_spans():
    assert spans_of_characters([3, 4, 5, 9, 10, 4]) == [(3, 6), (9, 11)]
    assert spans_of_characters([]) == []


def test_real_rationales_have_the_elements_they_mark(shared):
    """Toxic spans: words that were often marked in the training set agree with the annotators of the test set.

    Scores are the share of a word's occurrences that are marked: a model of words, which knows no test label.
    """
    folder = shared / "data" / "toxic_spans"
    if not folder.is_dir():
        pytest.skip(f"the data set is not there: no folder {folder}")
    train, test = (pd.read_csv(folder / f"tsd_{name}.csv") for name in ("train", "test"))
    counts: dict[str, list[int]] = {}
    for text, marked in zip(train["text"][:3000], train["spans"][:3000], strict=True):
        spans = word_spans(text)
        chosen = elements_in(spans, rationale_spans(spans_of_characters(ast.literal_eval(marked)), 0, len(text)))
        for (start, end), is_in in zip(spans.tolist(), chosen.tolist(), strict=True):
            known = counts.setdefault(text[start:end].lower(), [0, 0])
            known[is_in] += 1
    texts = test["text"][:300].tolist()
    rationales = [spans_of_characters(ast.literal_eval(marked)) for marked in test["spans"][:300]]
    items = []
    for index, text in enumerate(texts):
        known = [counts.get(text[a:b].lower(), [1, 0]) for a, b in word_spans(text).tolist()]
        items.append(explanation(text, [marked / (marked + other + 1) for other, marked in known], index))
    results = Plausibility(rationales)(AttributionSet(items))
    for result in results.values():
        assert result.skipped["no rationale"] == sum(not spans for spans in rationales)
        assert result.gain > 0.2
        assert result.z > 10
    assert results["plausibility/auprc"].diagnosticity > 0.9
    low, high = results["plausibility/iou_f1_micro"].interval()
    assert low < results["plausibility/iou_f1_micro"].mean < high
