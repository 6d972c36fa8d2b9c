"""The metrics of rankings against a slow, obvious reference, and their laws."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from interpreto_mlops.attributions import AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.metrics import (
    METRICS,
    Aopc,
    Comprehensiveness,
    Deletion,
    FaithfulnessMetric,
    Insertion,
    InsertionMinusDeletion,
    Monotonicity,
    NormalizedAopc,
    Sufficiency,
)
from interpreto_mlops.errors import InputError

RANKINGS = {name: metric for name, metric in METRICS.items() if issubclass(metric, FaithfulnessMetric)}
ALL = [pytest.param(metric, id=name) for name, metric in RANKINGS.items()]


def probability(model, text, kept, target):
    """p(target) with only the words in `kept`, by one call of the model; each word is one token here."""
    ids = model.tokenizer(text)["input_ids"]
    places = [i for i, token in enumerate(ids) if token not in (2, 3)]
    row = [
        token if i not in places or places.index(i) in kept else model.tokenizer.mask_token_id
        for i, token in enumerate(ids)
    ]
    with torch.no_grad():
        return float(model.model(input_ids=torch.tensor([row])).logits.softmax(-1)[0, target])


def reference(name, model, item):
    """The metrics by their definitions, one model call a point."""
    n, target = len(item.elements), item.targets[0].id
    order = sorted(range(n), key=lambda i: (-item.scores[0, i], i))

    def p(kept):
        return probability(model, item.text, set(kept), target)

    deleted, inserted = [p(order[k:]) for k in range(n + 1)], [p(order[:k]) for k in range(n + 1)]
    areas = [(sum(y) - y[0] / 2 - y[-1] / 2) / n for y in (deleted, inserted)]
    if name in ("deletion", "insertion"):
        return areas[name == "insertion"]
    if name == "insertion_minus_deletion":
        return areas[1] - areas[0]
    if name == "aopc":
        return sum(p(range(n)) - y for y in deleted) / (n + 1)
    if name == "monotonicity":
        rising = [p(order[k:]) for k in range(n, -1, -1)]  # from nothing, the lowest score first
        return np.mean([after >= before - 1e-6 for before, after in itertools.pairwise(rising)])
    tops = [order[: max(1, round(share * n))] for share in (0.01, 0.05, 0.1, 0.2, 0.5)]
    if name == "comprehensiveness":
        return np.mean([p(range(n)) - p(set(range(n)) - set(top)) for top in tops])
    return np.mean([p(range(n)) - p(top) for top in tops])


@pytest.mark.parametrize("metric", ALL)
def test_equals_the_slow_reference(tiny_model, texts, metric):
    model = tiny_model()
    explanations = Occlusion(model)(texts)
    result = metric(model)(explanations)
    expected = [reference(metric.name, model, item) for item in explanations]
    np.testing.assert_allclose(result.values, expected, atol=1e-5)
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.parametrize("metric", ALL)
def test_the_random_baseline_is_the_metric_of_random_orders(tiny_model, texts, metric):
    """With every order drawn often enough, the baseline of a two-element text is the mean of its two orders."""
    model = tiny_model()
    item = Occlusion(model)(["awful soup"])[0]
    values = []
    for scores in ([[1.0, 0.0]], [[0.0, 1.0]]):
        other = dataclasses.replace(item, scores=np.array(scores))
        values.append(metric(model)(AttributionSet([other])).values[0])
    result = metric(model, n_random=4000)(AttributionSet([item]))
    assert result.random_mean == pytest.approx(np.mean(values), abs=0.05 * (abs(values[0] - values[1]) + 1e-6))


def test_insertion_of_a_ranking_is_deletion_of_its_opposite_reversed(tiny_model, texts):
    model = tiny_model()
    explanations = Occlusion(model)(texts)
    opposite = AttributionSet(
        dataclasses.replace(item, scores=-item.scores + 1e-9 * np.arange(len(item))) for item in explanations
    )
    distinct = AttributionSet(
        dataclasses.replace(item, scores=item.scores - 1e-9 * np.arange(len(item))) for item in explanations
    )
    np.testing.assert_allclose(Insertion(model)(distinct).values, Deletion(model)(opposite).values, atol=1e-6)


@pytest.mark.parametrize("metric", ALL)
def test_a_monotone_transform_of_the_scores_changes_nothing(tiny_model, texts, metric):
    model = tiny_model()
    explanations = Occlusion(model)(texts)
    bent = AttributionSet(dataclasses.replace(item, scores=np.exp(item.scores / 7) * 3) for item in explanations)
    np.testing.assert_array_equal(metric(model)(bent).values, metric(model)(explanations).values)


def test_bins_of_a_hundred_per_cent(tiny_model, texts):
    model = tiny_model()
    explanations = Occlusion(model, inference_mode="softmax")(texts)
    lost = [float(item.output[0] - item.baseline_output[0]) for item in explanations]
    np.testing.assert_allclose(Comprehensiveness(model, bins=(1.0,))(explanations).values, lost, atol=1e-6)
    np.testing.assert_allclose(Sufficiency(model, bins=(1.0,))(explanations).values, 0, atol=1e-12)


@pytest.mark.parametrize("metric", [Deletion, Insertion])
def test_the_curve_runs_between_full_and_empty_text(tiny_model, texts, metric):
    model = tiny_model()
    explanations = Occlusion(model, inference_mode="softmax")(texts)
    curve = metric(model)(explanations).curve
    full = np.mean([item.output[0] for item in explanations])
    empty = np.mean([item.baseline_output[0] for item in explanations])
    ends = (full, empty) if metric is Deletion else (empty, full)
    assert curve.shape == (101, 2)
    np.testing.assert_allclose(curve[[0, -1], 0], [0, 1])
    np.testing.assert_allclose(curve[[0, -1], 1], ends, atol=1e-6)


def test_long_texts_are_sampled_at_a_hundred_and_one_counts(tiny_model):
    from interpreto_mlops.attributions.metrics.curves import area, counts

    assert len(counts(5000)) == 101
    assert counts(5000)[[0, -1]].tolist() == [0, 5000]
    assert counts(100).tolist() == list(range(101))
    shares = counts(5000) / 5000
    assert area(shares, shares**2) == pytest.approx(1 / 3, abs=1e-4)
    assert area(shares, np.full(101, 0.7)) == pytest.approx(0.7)


@pytest.mark.parametrize("metric", ALL)
def test_texts_without_elements_are_skipped_and_counted(tiny_model, metric):
    model = tiny_model()
    with pytest.warns(UserWarning, match="nothing to attribute"):
        explanations = Occlusion(model)(["good food", "", "bad soup"], targets=0)
    result = metric(model)(explanations)
    assert np.isnan(result.values).tolist() == [False, True, False]
    assert result.skipped == {"no elements": 1}
    assert result.mean == pytest.approx(np.nanmean(result.values))


@pytest.mark.parametrize("metric", ALL)
def test_no_text_at_all_gives_nan(tiny_model, metric):
    result = metric(tiny_model())(AttributionSet([]))
    assert np.isnan(result.mean)
    assert result.n_skipped == 0


@pytest.mark.parametrize("metric", ALL)
def test_ties_are_broken_by_position(tiny_model, metric):
    model = tiny_model()
    item = Occlusion(model)(["awful soup , not good"])[0]
    flat = dataclasses.replace(item, scores=np.zeros_like(item.scores))
    falling = dataclasses.replace(item, scores=-np.arange(len(item), dtype=float)[None])
    assert metric(model)(AttributionSet([flat])).values == metric(model)(AttributionSet([falling])).values


@pytest.mark.parametrize("metric", ALL)
def test_several_targets_give_their_mean(tiny_model, metric):
    model, text = tiny_model(), ["awful soup , not good"]
    both = metric(model)(Occlusion(model)(text, targets=[[0, 2]])).values[0]
    each = [metric(model)(Occlusion(model)(text, targets=target)).values[0] for target in (0, 2)]
    assert both == pytest.approx(np.mean(each), abs=1e-6)


def test_metrics_and_methods_share_what_they_evaluate(tiny_model, texts):
    model = tiny_model()
    engine = model.engine
    with engine.shared_table():
        explanations = [method(model)(texts) for method in (Occlusion, KernelShap)]
        first = Deletion(model)(explanations[0])
        again = Deletion(model)(explanations[0])
        inserted = Insertion(model)(explanations[0])
    assert first.counters["evaluations_run"] > 0
    assert again.counters["evaluations_run"] == 0
    np.testing.assert_array_equal(first.values, again.values)
    # The random orders of insertion visit the coalitions of deletion; only its own ranking may be new.
    assert inserted.counters["evaluations_run"] < 0.1 * inserted.counters["evaluations_asked"]
    assert Deletion(model)(explanations[0]).counters["evaluations_run"] > 0, "the table outlived its context"


@pytest.mark.parametrize("metric", ALL)
def test_the_result_does_not_depend_on_the_other_texts(tiny_model, texts, metric):
    model = tiny_model()
    together = metric(model)(IntegratedGradients(model)(texts))
    for i, text in enumerate(texts):
        alone = metric(model)(IntegratedGradients(model)([text]))
        assert together.values[i] == pytest.approx(alone.values[0], abs=1e-5)
        assert together.random_values[i] == pytest.approx(alone.random_values[0], abs=1e-5)


def test_explanations_of_other_elements_are_refused(tiny_model, texts):
    model = tiny_model()
    item = Occlusion(model)(["awful soup , not good"])[0]
    wrong = dataclasses.replace(item, spans=item.spans + 1)
    with pytest.raises(InputError, match="elements of text 0 are not those of 'tiny'"):
        Deletion(model)(AttributionSet([wrong]))


@pytest.mark.parametrize("options", [{"n_random": 0}, {"bins": (0.0, 0.5)}, {"bins": ()}, {"replacement": "x"}])
def test_nonsense_is_refused(tiny_model, options):
    with pytest.raises(InputError):
        Comprehensiveness(tiny_model(), **options)


@pytest.mark.parametrize("metric", ALL)
def test_direction_and_bounds_are_stated(tiny_model, texts, metric):
    result = metric(tiny_model())(Occlusion(tiny_model())(texts))
    low, high = metric.bounds
    assert ((low <= result.values) & (result.values <= high)).all()
    assert ("higher" if metric.higher_is_better else "lower") in repr(result)


def test_explanations_of_other_classes_are_refused(tiny_model):
    explanations = Occlusion(tiny_model())(["good food"], targets=2)
    other = tiny_model()
    other.model.config.id2label = {0: "bad", 1: "good", 2: "fair"}
    with pytest.raises(InputError, match="explains the class 'LABEL_2', which 'tiny' lacks"):
        Deletion(other)(explanations)


def test_the_random_orders_are_closed_under_reversal(tiny_model, texts):
    """So a curve's random rows are those of its opposite: insertion's baseline equals deletion's."""
    model = tiny_model()
    explanations = Occlusion(model)(texts)
    inserted, deleted = (metric(model)(explanations) for metric in (Insertion, Deletion))
    np.testing.assert_allclose(inserted.random_values, deleted.random_values, atol=1e-6)
    np.testing.assert_allclose(InsertionMinusDeletion(model)(explanations).random_values, 0, atol=1e-6)


@pytest.mark.parametrize("metric", [Deletion, Insertion, Aopc, InsertionMinusDeletion, Monotonicity])
def test_a_curve_can_stop_early(tiny_model, metric):
    """A fifth of 12 elements are 3: the curve has the points 0, 1, 2, 3 of the whole one, over the share 0.25."""
    model, text = tiny_model(), "The food was great and the service was very quick ! !"
    item = Occlusion(model)([text])[0]
    n, target = len(item), item.targets[0].id
    assert n == 12
    order = item.ranking().tolist()
    deleted = [probability(model, text, set(order[k:]), target) for k in range(4)]
    inserted = [probability(model, text, set(order[:k]), target) for k in range(4)]
    areas = [(sum(y) - (y[0] + y[-1]) / 2) / 12 for y in (deleted, inserted)]
    expected = {
        Deletion: areas[0],
        Insertion: areas[1],
        InsertionMinusDeletion: areas[1] - areas[0],
        Aopc: deleted[0] - np.mean(deleted),
        Monotonicity: np.mean([a - b >= -1e-6 for a, b in itertools.pairwise(deleted)]),
    }
    result = metric(model, max_fraction=0.2)(AttributionSet([item]))
    assert result.values[0] == pytest.approx(expected[metric], abs=1e-6)
    assert result.parameters["max_fraction"] == 0.2
    if result.curve is not None:
        assert result.curve.shape == (21, 2)
        np.testing.assert_allclose(result.curve[[0, -1], 0], [0, 0.2])


@pytest.mark.parametrize("share", [0, 1.01, -0.1, "all", True])
def test_a_share_that_is_none_is_refused(tiny_model, share):
    with pytest.raises(InputError, match="max_fraction must be a share above 0 and up to 1, not"):
        Deletion(tiny_model(), max_fraction=share)


@pytest.mark.parametrize("metric", ALL)
def test_a_constant_model_has_the_constants_it_must_have(toy, metric):
    model = toy("linear")
    model.model.embedding.weight.data.zero_()
    result = metric(model)(Occlusion(model)(["good food was here", "bad"], targets=0))
    constant = {"deletion": 0.5, "insertion": 0.5, "monotonicity": 1.0}.get(metric.name, 0.0)
    np.testing.assert_allclose(result.values, constant, atol=1e-12)
    np.testing.assert_allclose(result.random_values, constant, atol=1e-12)
    assert result.diagnosticity == 0.5
    assert np.isnan(result.z)


@pytest.mark.parametrize("metric", ALL)
def test_joint_targets_share_one_ranking_and_the_geometric_mean(tiny_model, metric):
    """Two targets as one: the ranking of the summed scores, y = sqrt(p0 p2)."""
    model, text = tiny_model(), "awful soup , not good"
    item = Occlusion(model)([text], targets=[[0, 2]])[0]
    order = item.scores.sum(axis=0).argsort()[::-1]
    n = len(item)

    def p(kept):
        return math.sqrt(math.prod(probability(model, text, set(kept), target) for target in (0, 2)))

    deleted, inserted = [p(order[k:]) for k in range(n + 1)], [p(order[:k]) for k in range(n + 1)]
    areas = [(sum(y) - y[0] / 2 - y[-1] / 2) / n for y in (deleted, inserted)]
    sizes = [max(1, round(share * n)) for share in (0.01, 0.05, 0.1, 0.2, 0.5)]
    expected = {
        "deletion": areas[0],
        "insertion": areas[1],
        "insertion_minus_deletion": areas[1] - areas[0],
        "aopc": deleted[0] - np.mean(deleted),
        "monotonicity": np.mean([a - b >= -1e-6 for a, b in itertools.pairwise(deleted)]),
        "comprehensiveness": deleted[0] - np.mean([deleted[size] for size in sizes]),
        "sufficiency": deleted[0] - np.mean([inserted[size] for size in sizes]),
    }
    result = metric(model, joint=True)(AttributionSet([item]))
    assert result.values[0] == pytest.approx(expected[metric.name], abs=1e-6)


def test_normalised_aopc_is_exact_against_all_rankings(tiny_model):
    """Five words: the bounds are the least and greatest AOPC of all 120 rankings."""
    model, text = tiny_model(), "awful soup , not good"
    item = Occlusion(model)([text])[0]
    n, target = len(item), item.targets[0].id
    table = {
        kept: probability(model, text, set(kept), target)
        for size in range(n + 1)
        for kept in itertools.combinations(range(n), size)
    }

    def aopc(order):
        return np.mean([table[tuple(range(n))] - table[tuple(sorted(order[k:]))] for k in range(n + 1)])

    every = [aopc(order) for order in itertools.permutations(range(n))]
    low, high = min(every), max(every)
    result = NormalizedAopc(model)(AttributionSet([item]))
    assert result.values[0] == pytest.approx((aopc(item.ranking().tolist()) - low) / (high - low), abs=1e-4)
    for order, expected in ((every.index(low), 0.0), (every.index(high), 1.0)):
        ranking = list(itertools.permutations(range(n)))[order]
        scores = -np.argsort(ranking).astype(float)[None]
        extreme = dataclasses.replace(item, scores=scores)
        assert NormalizedAopc(model)(AttributionSet([extreme])).values[0] == pytest.approx(expected, abs=1e-4)


def test_the_beam_search_finds_the_exact_bounds_when_it_is_wide(tiny_model):
    """Nine words are searched; a beam of all coalitions of a size misses nothing."""
    model = tiny_model()
    explanations = Occlusion(model)(["the food was great but service very slow ."])
    item = explanations[0]
    n, target = len(item), item.targets[0].id
    assert n == 9
    rows = [[i for i in range(n) if bits >> i & 1] for bits in range(2**n)]
    p = [probability(model, item.text, set(row), target) for row in rows]
    bounds = []
    for pick in (min, max):
        best = [p[-1] - value for value in p]
        for row in range(2**n - 2, -1, -1):
            best[row] += pick(best[row | 1 << i] for i in range(n) if not row >> i & 1)
        bounds.append(best[0] / (n + 1))
    order = item.ranking().tolist()
    aopc = np.mean([p[-1] - p[sum(1 << i for i in order[k:])] for k in range(n + 1)])
    expected = (aopc - bounds[0]) / (bounds[1] - bounds[0])
    assert NormalizedAopc(model, beam_size=126)(explanations).values[0] == pytest.approx(expected, abs=1e-4)
    assert NormalizedAopc(model)(explanations).values[0] == pytest.approx(expected, abs=0.1)


def test_normalised_aopc_of_a_constant_model_is_skipped(toy):
    model = toy("linear")
    model.model.embedding.weight.data.zero_()
    result = NormalizedAopc(model)(Occlusion(model)(["good food"], targets=0))
    assert result.skipped == {"all rankings alike": 1}
