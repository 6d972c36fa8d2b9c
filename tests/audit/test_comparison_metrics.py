"""Metrics of several subjects on the same texts: against plain formulae, and pairing by place or by content."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from interpreto_mlops.attributions.comparison import holm, paired_tests
from interpreto_mlops.attributions.metrics.sanity import SanityCheck
from interpreto_mlops.audit.comparison.metrics import (
    PAIR_COLUMNS,
    SCORE_COLUMNS,
    compare_scores,
    text_keys,
)
from tests.visuals.hostile import attribution, continued


def scores(subject, values, *, texts=None, metric="deletion", method="occlusion", higher=False, random=0.5):
    values = np.asarray(values, dtype=np.float64)
    texts = [str(i) for i in range(len(values))] if texts is None else texts
    columns = (subject, method, metric, higher, texts, values, np.broadcast_to(random, values.shape))
    return pd.DataFrame(dict(zip(SCORE_COLUMNS, columns, strict=True)))


def compared(*frames, level=0.95):
    every = pd.concat(frames, ignore_index=True)
    return compare_scores(every, list(dict.fromkeys(every["subject"])), level=level)


def test_a_subject_compared_with_itself_differs_by_exactly_nothing():
    values = np.random.default_rng(0).normal(size=30)
    table, pairs = compared(scores("a", values), scores("b", values))
    (row,) = pairs.to_dict("records")
    assert (row["difference"], row["low"], row["high"], row["p_value"], row["better"]) == (0.0, 0.0, 0.0, 1.0, "")
    assert (row["texts"], row["paired"]) == (30, True)
    assert table["mean"].tolist() == [pytest.approx(values.mean())] * 2


def test_only_the_same_texts_with_values_are_paired_whatever_their_order():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=12), rng.normal(size=10)
    a[3] = np.nan
    names = [f"t{i}" for i in range(12)]
    order = rng.permutation(10)
    second = scores("b", b[order], texts=[names[i + 2] for i in order])
    table, pairs = compared(scores("a", a, texts=names), second)
    shared = [i for i in range(2, 12) if i != 3]
    differences = np.array(sorted(a[i] - b[i - 2] for i in shared))
    (row,) = pairs.to_dict("records")
    assert row["texts"] == 9
    assert row["difference"] == pytest.approx(differences.mean())
    # All 2⁹ sets of signs.
    signs = 1.0 - 2.0 * ((np.arange(2**9)[:, None] >> np.arange(9)) & 1)
    assert row["p_value"] == pytest.approx((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())
    first, other = table.to_dict("records")
    assert (first["texts"], first["skipped"], first["mean"]) == (11, 1, pytest.approx(np.nanmean(a)))
    assert (other["texts"], other["skipped"], other["mean"]) == (10, 0, pytest.approx(b.mean()))
    found = paired_tests(b[sorted(range(10), key=lambda i: names[i + 2])][:, None])
    assert (other["low"], other["high"]) == pytest.approx((found.low[0], found.high[0]))
    assert other["p_random"] == pytest.approx(
        holm(np.array([paired_tests(each[:, None] - 0.5).p_value[0] for each in (a, b[order])]))[1]
    )


def test_without_a_shared_text_the_means_are_subtracted_and_nothing_is_tested():
    _, pairs = compared(scores("a", [1.0, 3.0], texts=["x", "y"]), scores("b", [5.0], texts=["z"]))
    (row,) = pairs.to_dict("records")
    assert (row["difference"], row["texts"], row["paired"], row["better"]) == (-3.0, 0, False, "")
    assert all(np.isnan(row[name]) for name in ("low", "high", "p_value", "p_holm"))


@pytest.mark.parametrize(("higher", "winner"), [(True, "b"), (False, "a")])
def test_the_better_one_is_named_by_the_direction_of_the_metric_after_holm_over_pairs_and_methods(higher, winner):
    rng = np.random.default_rng(2)
    low = rng.normal(size=40)
    frames = [
        scores(subject, low + shift + noise * rng.normal(size=40), method=method, higher=higher)
        for method, noise in (("x", 0.1), ("y", 3.0))
        for subject, shift in (("a", 0.0), ("b", 1.0), ("c", 1.0))
    ]
    _, pairs = compared(*frames)
    assert len(pairs) == 6
    assert pairs["p_holm"].tolist() == pytest.approx(holm(pairs["p_value"].to_numpy()).tolist())
    x = {(row["first"], row["second"]): row["better"] for row in pairs[pairs["method"] == "x"].to_dict("records")}
    assert x[("a", "b")] == winner
    assert x[("b", "c")] == ""
    significant = pairs["p_holm"] < 0.05
    assert (pairs["better"] != "").tolist() == significant.tolist()


def test_both_sides_of_zero_are_bad_for_a_sanity_check():
    name = SanityCheck.name
    values = np.linspace(-0.9, -0.7, 20)
    _, pairs = compared(scores("a", values, metric=name), scores("b", values / 10, metric=name))
    (row,) = pairs.to_dict("records")
    assert row["difference"] == pytest.approx(0.9 * 0.8)
    assert row["better"] == "b"


def test_nothing_gives_empty_tables_and_a_metric_of_one_subject_no_pair():
    table, pairs = compare_scores(pd.DataFrame(columns=list(SCORE_COLUMNS)), ["a", "b"])
    assert len(table) == len(pairs) == 0
    assert tuple(pairs.columns) == PAIR_COLUMNS
    table, pairs = compared(scores("a", [1.0]), scores("b", [np.nan], metric="insertion"))
    assert len(pairs) == 0
    assert np.isnan(table["mean"].iloc[1])


def test_texts_go_by_place_where_the_data_are_the_same_and_else_by_what_they_say():
    a = [attribution("good food", index=0), attribution("bad", index=1), attribution("bad", index=2)]
    b = [attribution("bad", index=5), attribution("other", index=6), attribution("bad", index=7)]
    assert text_keys([("d", a), ("d", a[1:])]) == ("digest", [["0", "1", "2"], ["1", "2"]])
    by, (first, second) = text_keys([("d", a), ("e", b)])
    assert by == "content"
    assert len(set(first) & set(second)) == 2
    assert first[1:] == [second[0], second[2]]
    assert text_keys([(None, a), (None, a)])[0] == "content"
    # An index that comes twice is no name.
    assert text_keys([("d", a + a), ("d", a)])[0] == "content"


def test_places_are_no_names_where_another_text_stands_at_one_of_them():
    every = [attribution(text) for text in ("good food", "bad", "never again", "a cold soup")]
    first = [replace(item, index=place) for place, item in enumerate(every[:3])]
    rest = [replace(item, index=place) for place, item in enumerate(every[2:])]
    by, (names, others) = text_keys([("d", first), ("d", rest)])
    assert by == "content"
    assert set(names) & set(others) == {names[2]} == {others[0]}
    # One text that is hidden, of three sets, is still the same text at the same place.
    assert text_keys([("d", first), ("d", [first[1].hidden()]), ("d", first[1:])])[0] == "digest"
    moved = [replace(first[1], index=2)]
    assert text_keys([("d", first[:2]), ("d", first), ("d", moved)])[0] == "content"


def test_at_one_place_a_prompt_may_have_several_continuations():
    first, second = continued("once upon ", "a time there"), continued("once upon ", "the hill")
    assert text_keys([("d", [first]), ("d", [second])]) == ("digest", [["0"], ["0"]])


def test_a_text_of_which_only_the_hash_was_kept_is_the_same_text():
    shown = attribution("good food")
    _, ((a,), (b,)) = text_keys([("d", [shown]), ("e", [shown.hidden()])])
    assert a == b


def test_of_hidden_prompts_the_hash_of_the_prompt_counts_beside_shown_ones_and_each_other():
    first, second = continued("once upon ", "a time there"), continued("once upon ", "the hill")
    every = [("d", [first]), ("e", [second.hidden()]), ("f", [first.hidden()])]
    by, names = text_keys(every)
    assert by == "content"
    assert names[0] == names[1] == names[2]
    # A prompt alone is the same text as a prompt with something after it.
    assert text_keys([every[1], ("g", [attribution("once upon ")])])[1] == [names[0], names[0]]
    assert text_keys([("d", [first]), ("d", [second.hidden()])])[0] == "digest"
    other = continued("long ago ", "a time there").hidden()
    assert text_keys([every[2], ("g", [other])])[1][1] != names[0]


def test_beside_prompts_that_an_earlier_version_hid_the_whole_text_counts():
    first, second = continued("once upon ", "a time there"), continued("once upon ", "the hill")
    old = replace(first.hidden(), prompt_sha256=None)
    _, ((a,), (b,), (c,), (d,)) = text_keys([("d", [old]), ("e", [first]), ("f", [second]), ("g", [first.hidden()])])
    assert a == b == d != c


def test_of_a_prompt_with_its_continuation_the_prompt_counts():
    first, second = continued("once upon ", "a time there"), continued("once upon ", "the hill")
    _, ((a,), (b,)) = text_keys([("d", [first]), ("e", [second])])
    assert a == b
