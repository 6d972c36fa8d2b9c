"""Metrics of scores against the game: definitions by one model call a coalition, and their laws."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.stats import pearsonr

from interpreto_mlops.attributions import AttributionSet, KernelShap, Occlusion
from interpreto_mlops.attributions.metrics import FaithfulnessCorrelation, Infidelity, SensitivityN
from interpreto_mlops.attributions.metrics.game_metrics import best_factor, draw_coalitions, of_one_size
from interpreto_mlops.errors import InputError, UnknownNameError
from tests.attributions.test_methods import word_values

METRICS = [Infidelity, FaithfulnessCorrelation, SensitivityN]
FIVE = "awful soup , not good"


def subsets(n, sizes):
    return [set(c) for size in sizes for c in itertools.combinations(range(n), size)]


def reference(model, item):
    """Sums of scores and losses of the score for every set of words, by one model call each."""
    v, n = word_values(model, item.text, item.targets[0].id)
    everyone = set(range(n))

    def pair(removed):
        return item.scores[0, sorted(removed)].sum(), v(everyone) - v(everyone - removed)

    return pair, n


def test_infidelity_equals_its_definition_over_all_coalitions(tiny_model):
    """Sizes as KernelSHAP weighs them: P(C) = 1 / (s (n − s)) / (number of sets of that size), normalised."""
    model = tiny_model()
    item = Occlusion(model)([FIVE])[0]
    pair, n = reference(model, item)
    sizes = {s: 1 / (s * (n - s)) for s in range(1, n)}
    total = sum(sizes.values())
    expected = sum(
        sizes[len(c)] / total / math.comb(n, len(c)) * (pair(c)[0] - pair(c)[1]) ** 2 for c in subsets(n, sizes)
    )
    assert Infidelity(model)(AttributionSet([item])).values[0] == pytest.approx(expected, rel=1e-4)
    uniform = np.mean([np.mean([(pair(c)[0] - pair(c)[1]) ** 2 for c in subsets(n, [s])]) for s in range(1, n + 1)])
    assert Infidelity(model, sizes="uniform")(AttributionSet([item])).values[0] == pytest.approx(uniform, rel=1e-4)


def test_the_normalising_factor_is_the_best_one(tiny_model):
    model = tiny_model()
    item = Occlusion(model)([FIVE])[0]

    def plain(beta):
        scaled = dataclasses.replace(item, scores=beta * item.scores)
        return Infidelity(model)(AttributionSet([scaled])).values[0]

    best = Infidelity(model, normalize=True)(AttributionSet([item])).values[0]
    assert best <= min(plain(beta) for beta in np.linspace(-2, 3, 101)) + 1e-12
    rng = np.random.default_rng(0)
    sums, losses, weights = rng.normal(size=(2, 9)), rng.normal(size=(2, 9)), np.full(9, 1 / 9)
    beta = best_factor(sums, losses, weights)[:, None]
    slope = (2 * sums * (beta * sums - losses)) @ weights
    np.testing.assert_allclose(slope, 0, atol=1e-12)


@pytest.mark.parametrize("text", ["good", "good food was", "the food was great but service very slow and cold !"])
def test_exact_additive_scores_have_no_infidelity_and_full_correlation(toy, text):
    model = toy("linear")
    explanations = Occlusion(model)([text], targets=0)
    for options in ({}, {"normalize": True}, {"sizes": "uniform"}):
        np.testing.assert_allclose(Infidelity(model, **options)(explanations).values, 0, atol=1e-12)
    if len(text.split()) > 1:
        for metric in (FaithfulnessCorrelation, SensitivityN):
            np.testing.assert_allclose(metric(model)(explanations).values, 1, atol=1e-12)


def test_normalised_infidelity_does_not_depend_on_the_unit(tiny_model, texts):
    model = tiny_model()
    explanations = KernelShap(model)(texts)
    other = AttributionSet(dataclasses.replace(item, scores=1000 * item.scores) for item in explanations)
    metric = Infidelity(model, normalize=True)
    np.testing.assert_allclose(metric(other).values, metric(explanations).values, rtol=1e-9)


def test_correlations_equal_their_definitions(tiny_model):
    """Five words: all 5 sets of one, all 10 of two, and so on."""
    model = tiny_model()
    item = Occlusion(model)([FIVE])[0]
    pair, n = reference(model, item)

    def correlation(size):
        return pearsonr(*zip(*map(pair, subsets(n, [size])), strict=True)).statistic

    one = AttributionSet([item])
    assert FaithfulnessCorrelation(model)(one).values[0] == pytest.approx(correlation(1), abs=1e-4)
    assert FaithfulnessCorrelation(model, share=0.4)(one).values[0] == pytest.approx(correlation(2), abs=1e-4)
    # Of 5 elements 10 and 25 % are one, 50 % two, 75 % four.
    expected = np.mean([correlation(size) for size in (1, 2, 4)])
    assert SensitivityN(model)(one).values[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_are_read_in_the_mode_that_they_explain(toy, metric):
    """Logits of the linear toy are additive, its probabilities are not."""
    model = toy("linear")
    texts = ["the food was great but"]
    logits, softmax = (Occlusion(model, inference_mode=mode)(texts, targets=0) for mode in ("logits", "softmax"))
    perfect = 0.0 if metric is Infidelity else 1.0
    judge = metric(model, **({"share": 0.4} if metric is FaithfulnessCorrelation else {}))
    assert judge(logits).values[0] == pytest.approx(perfect, abs=1e-12)
    assert judge(softmax).values[0] != pytest.approx(perfect, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_random_scores_are_the_own_ones_permuted(tiny_model, metric):
    """A three-word text has six permutations: their metrics are the only random values there are."""
    model = tiny_model()
    item = Occlusion(model)(["awful cold soup"])[0]
    known = [
        metric(model)(AttributionSet([dataclasses.replace(item, scores=item.scores[:, list(order)])])).values[0]
        for order in itertools.permutations(range(3))
    ]
    result = metric(model, n_random=600)(AttributionSet([item]))
    assert np.abs(result.random_draws[:, None] - np.asarray(known)).min(axis=1).max() < 1e-9
    assert result.random_mean == pytest.approx(np.mean(known), abs=0.1 * np.ptp(known))


@pytest.mark.parametrize("metric", METRICS)
def test_the_result_depends_on_the_text_alone(tiny_model, texts, metric):
    model = tiny_model()
    together = metric(model)(Occlusion(model)(texts))
    alone = [metric(model)(Occlusion(model)([text])) for text in texts]
    np.testing.assert_allclose(together.values, [result.values[0] for result in alone], atol=1e-5)
    np.testing.assert_allclose(together.random_values, [result.random_values[0] for result in alone], atol=1e-5)


def test_what_has_no_correlation_is_skipped_and_counted(tiny_model):
    model = tiny_model()
    explanations = Occlusion(model)(["good", "good food", "bad soup"], targets=0)
    flat = dataclasses.replace(explanations[1], scores=np.ones((1, 2)))
    for metric in (FaithfulnessCorrelation, SensitivityN):
        result = metric(model)(AttributionSet([explanations[0], flat, explanations[2]]))
        assert np.isnan(result.values).tolist() == [True, True, False]
        assert result.skipped == {"too few elements": 1, "constant sums or differences": 1}
    assert Infidelity(model)(explanations[:1]).values[0] == pytest.approx(0, abs=1e-9)


def test_drawn_coalitions_follow_the_law_of_the_enumerated_ones():
    rng = np.random.default_rng(0)
    for sizes in ("shapley", "uniform"):
        exact, weights = draw_coalitions(6, 64, sizes, rng)
        assert weights.sum() == pytest.approx(1)
        drawn, equal = draw_coalitions(6, 63, sizes, rng)
        assert len(drawn) == 63
        many = np.concatenate([draw_coalitions(6, 63, sizes, rng)[0] for _ in range(400)])
        share = np.bincount(many.sum(axis=1), minlength=7) / len(many)
        expected = np.bincount(exact.sum(axis=1), weights=weights, minlength=7)
        np.testing.assert_allclose(share, expected, atol=0.02)
        np.testing.assert_allclose(many.mean(axis=0), 0.5 if sizes == "shapley" else 3.5 / 6, atol=0.02)
        assert equal.sum() == pytest.approx(1)
    assert of_one_size(6, 2, 15, rng)[0].sum(axis=1).tolist() == [2] * 15
    assert (of_one_size(30, 4, 50, rng)[0].sum(axis=1) == 4).all()


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (Infidelity, {"sizes": "kernel"}),
        (Infidelity, {"n_coalitions": 1}),
        (FaithfulnessCorrelation, {"share": 0}),
        (SensitivityN, {"shares": ()}),
        (SensitivityN, {"shares": (0.5, 2)}),
    ],
)
def test_nonsense_is_refused(tiny_model, metric, options):
    with pytest.raises((InputError, UnknownNameError)):
        metric(tiny_model(), **options)
