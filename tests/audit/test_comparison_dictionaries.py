"""Concepts of two dictionaries matched: against enumeration, numpy and what was planted."""

from __future__ import annotations

import copy
from itertools import permutations

import numpy as np
import pytest
import torch

from interpreto_mlops.audit.comparison.dictionaries import (
    Correlation,
    assign,
    match_by_activations,
    match_by_directions,
    pooled,
    same_rows,
    way_of,
)
from interpreto_mlops.concepts import PCAConcepts, VanillaSAEConcepts
from interpreto_mlops.concepts.interpretation import ConceptDescription, Word
from interpreto_mlops.concepts.linear import linear_state
from interpreto_mlops.concepts.metrics import matching, stability, stability_random
from interpreto_mlops.errors import InputError, IntegrityError
from tests.concepts.stored import store


def dictionary_of(directions, *, provenance=None, family=VanillaSAEConcepts, labels=None):
    """A dictionary with these directions, which also encode."""
    made = family(n_concepts=len(directions))
    width = directions.shape[1]
    made.complete(
        linear_state(torch.zeros(width), 1.0, directions, torch.zeros(len(directions)), directions),
        [],
        provenance or {},
    )
    if labels is not None:
        made.descriptions = [
            ConceptDescription(i, (Word(label, 1.0, 1),), (), 0.5, 1.0) for i, label in enumerate(labels)
        ]
    return made


def orthonormal(n, width, seed):
    drawn = torch.randn(width, n, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q.T.contiguous()


def sources(n_rows, n_concepts, seed=0):
    """Codes that are seldom, positive, and independent."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(n_rows, n_concepts)) * (rng.random((n_rows, n_concepts)) < 0.2)
    return torch.from_numpy(values).float()


def test_a_permuted_copy_matches_perfectly_and_has_no_new_concept():
    first = dictionary_of(orthonormal(12, 16, 0), labels=[f"word {i}" for i in range(12)])
    order = np.random.default_rng(1).permutation(12)
    second = dictionary_of(first.dictionary[order] * 3.0, labels=[f"word {i}" for i in order])
    found = match_by_directions(first, second)
    assert len(found.new) == len(found.vanished) == 0
    assert {(a, int(order[b])) for a, b in found.pairs} == {(i, i) for i in range(12)}
    assert found.mean == pytest.approx(1.0)
    assert found.matched["similarity"].min() == pytest.approx(1.0)
    assert not found.matched["label_changed"].any()
    assert (found.by, found.n_pairs, found.silent) == ("directions", 12, (0, 0))


def test_a_label_that_was_kept_as_its_hash_is_the_same_label():
    shown = dictionary_of(orthonormal(4, 8, 0), labels=["a", "b", "c", "d"])
    match = match_by_directions(shown, shown.hidden())
    assert match.matched["label_changed"].tolist() == [False] * 4
    assert match.n_changed_labels == 0


def test_three_replaced_directions_are_named_as_new_and_vanished():
    every = orthonormal(13, 20, 2)
    first = dictionary_of(every[:10], labels=[f"old {i}" for i in range(10)])
    replaced = every[:10].clone()
    replaced[[1, 4, 7]] = every[10:]
    second = dictionary_of(replaced.flip(0), labels=[f"new {i}" for i in range(10)])
    found = match_by_directions(first, second)
    assert found.vanished["concept"].tolist() == [1, 4, 7]
    assert found.new["concept"].tolist() == [9 - 7, 9 - 4, 9 - 1]
    assert found.new["label"].tolist() == ["new 2", "new 5", "new 8"]
    assert (found.new["similarity"] < 0.7).all()
    assert found.matched["label_changed"].all()
    assert len(found.matched) == 7


def test_the_matching_and_its_baseline_are_those_of_the_stability_metric():
    drawn = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(3))
    for family in (VanillaSAEConcepts, PCAConcepts):
        first, second = (dictionary_of(each, family=family) for each in drawn)
        found = match_by_directions(first, second, threshold=-1.0)
        assert found.mean == pytest.approx(stability([first, second]))
        assert found.random_mean == stability_random([first, second])
        pairs, cosines = matching(first, second)
        known = {tuple(pair): value for pair, value in zip(pairs.tolist(), cosines, strict=True)}
        assert {(a, b): s for a, b, s in found.matched[["first", "second", "similarity"]].to_numpy()} == (
            pytest.approx(known)
        )


def test_zero_rows_take_no_part_and_the_surplus_of_a_larger_dictionary_is_new():
    directions = orthonormal(6, 8, 4)
    first = dictionary_of(torch.cat([directions[:4], torch.zeros(1, 8)]))
    second = dictionary_of(directions)
    found = match_by_directions(first, second)
    assert (found.silent, found.n_pairs) == ((1, 0), 4)
    assert found.new["concept"].tolist() == [4, 5]
    assert found.vanished["concept"].tolist() == []
    assert found.matched["label_changed"].isna().all()


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_the_assignment_is_the_best_of_all(shape):
    similarity = np.random.default_rng(5).normal(size=shape)
    pairs = assign(similarity)
    wide = similarity if shape[0] <= shape[1] else similarity.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(order)) for order in permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert similarity[pairs[:, 0], pairs[:, 1]].sum() == pytest.approx(best)
    similarity[1] = np.nan
    assert 1 not in assign(similarity)[:, 0]


def test_correlations_in_pieces_are_those_of_numpy():
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(100, 4)) * 1e-3 + 1e4, rng.normal(size=(100, 3))
    b[:, 1] = a[:, 2] * -2.0
    b[:, 2] = 0.1
    found = Correlation()
    for start in range(0, 100, 17):
        found.add(a[start : start + 17], b[start : start + 17])
    expected = np.corrcoef(a.T, b[:, :2].T)[:4, 4:]
    assert found.matrix()[:, :2] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(found.matrix()[:, 2]).all()
    assert Correlation().matrix().shape == (0, 0)


def planted(tmp_path, n_rows=3000, rows_per_text=10, widths=(12, 20), per_text=None):
    """The same six sources in layers of two widths, the second in another order with one more."""
    every = sources(n_rows, 7)
    order = [3, 0, 5, 1, 4, 6]
    first = dictionary_of(orthonormal(6, widths[0], 7), labels=list("abcdef"))
    second = dictionary_of(orthonormal(6, widths[1], 8), labels=list("dafbeg"))
    rows = [
        store(tmp_path / "first", every[:, :6] @ first.dictionary, rows_per_text=rows_per_text),
        store(
            tmp_path / "second",
            every[:, order] @ second.dictionary,
            rows_per_text=per_text or rows_per_text,
        ),
    ]
    return first, rows[0], second, rows[1], order


def test_planted_pairs_of_different_widths_are_found_row_by_row(tmp_path):
    first, first_rows, second, second_rows, order = planted(tmp_path)
    found = match_by_activations(first, first_rows, second, second_rows)
    assert (found.unit, found.rows) == ("rows", 3000)
    assert dict(found.pairs) == {old: new for new, old in enumerate(order) if old != 6}
    assert found.matched["similarity"].min() > 0.999
    assert (found.vanished["concept"].tolist(), found.new["concept"].tolist()) == ([2], [5])
    assert found.new["label"].tolist() == ["g"]
    assert not found.matched["label_changed"].any()
    assert found.random_mean < 0.1
    codes = [each.encode(rows).numpy() for each, rows in ((first, first_rows), (second, second_rows))]
    expected = np.corrcoef(codes[0].T, codes[1].T)[:6, 6:]
    for a, b, similarity in found.matched[["first", "second", "similarity"]].to_numpy():
        assert similarity == pytest.approx(expected[int(a), int(b)], abs=1e-6)


def test_where_tokens_differ_codes_are_pooled_over_each_text(tmp_path):
    n_texts = 300
    every = sources(n_texts, 6, seed=9)
    first, second = dictionary_of(orthonormal(6, 9, 10)), dictionary_of(orthonormal(6, 14, 11))
    # Each text's code stands in one of its rows; the second set has fewer rows in a text.
    rows = torch.zeros(n_texts * 4, 9)
    rows[1::4] = every @ first.dictionary
    others = torch.zeros(n_texts * 3, 14)
    others[2::3] = every.flip(1) @ second.dictionary
    a = store(tmp_path / "first", rows, rows_per_text=4)
    b = store(tmp_path / "second", others, rows_per_text=3)
    assert not same_rows(a, b)
    assert pooled(first, a) == pytest.approx(every.numpy(), abs=1e-5)
    found = match_by_activations(first, a, second, b)
    assert (found.unit, found.rows) == ("texts", n_texts)
    assert dict(found.pairs) == {i: 5 - i for i in range(6)}


def test_a_pooled_code_is_the_largest_without_its_sign(tmp_path):
    rows = torch.tensor([[1.0, -5.0], [-2.0, 3.0], [0.5, 0.25]])
    signed = dictionary_of(torch.eye(2), family=PCAConcepts)
    assert pooled(signed, store(tmp_path / "a", rows, rows_per_text=2)).tolist() == [[-2.0, -5.0], [0.5, 0.25]]


def test_the_sign_of_a_signed_dictionary_means_nothing(tmp_path):
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(12))
    first = dictionary_of(orthonormal(4, 5, 13), family=PCAConcepts)
    second = dictionary_of(-first.dictionary, family=PCAConcepts)
    a = store(tmp_path / "a", rows)
    found = match_by_activations(first, a, second, a)
    assert sorted(found.pairs) == [(i, i) for i in range(4)]
    assert found.mean == pytest.approx(1.0)
    unsigned = [dictionary_of(each.dictionary) for each in (first, second)]
    assert match_by_activations(unsigned[0], a, unsigned[1], a).mean < 0.5


def test_the_way_follows_from_width_layer_and_model():
    def of(width, fingerprint=None, layer=None):
        model = {} if fingerprint is None else {"model": {"fingerprint": fingerprint}}
        return dictionary_of(orthonormal(3, width, 0), provenance={**model, "layer": layer})

    assert way_of(of(8, "m", "l"), of(8, "m", "l")) == "directions"
    assert way_of(of(8), of(8, "m", "l")) == "directions"
    assert way_of(of(8, "m", "l"), of(8, "n", "l")) == "activations"
    assert way_of(of(8, "m", "l"), of(8, "m", "k")) == "activations"
    assert way_of(of(8), of(9)) == "activations"
    assert way_of(of(8, "m", "l"), of(8, "n", "l"), "directions") == "directions"
    with pytest.raises(InputError, match="width 8 and 9"):
        way_of(of(8), of(9), "directions")
    with pytest.raises(InputError, match="not by 'magic'"):
        way_of(of(8), of(8), "magic")


def test_what_cannot_be_compared_is_said(tmp_path):
    first, a, second, b, _ = planted(tmp_path, n_rows=40)
    with pytest.raises(InputError, match="width 12 and 20"):
        match_by_directions(first, second)
    other = store(tmp_path / "other", torch.zeros(60, 20), rows_per_text=10)
    with pytest.raises(InputError, match="the same texts"):
        match_by_activations(first, a, second, other)
    few = [store(tmp_path / f"few {width}", torch.ones(2, width)) for width in (12, 20)]
    with pytest.raises(InputError, match="at least 3"):
        match_by_activations(first, few[0], second, few[1])
    flat = [store(tmp_path / f"flat {width}", torch.ones(10, width)) for width in (12, 20)]
    with pytest.raises(InputError, match="no code of one of the dictionaries changes"):
        match_by_activations(first, flat[0], second, flat[1])
    foreign = copy.copy(first)
    foreign.provenance = {"layer": "layer.9"}
    known = store(tmp_path / "known", torch.rand(40, 12), rows_per_text=10, provenance={"layer": "layer.1"})
    with pytest.raises(IntegrityError, match=r"layer\.9"):
        match_by_activations(foreign, known, second, b)
