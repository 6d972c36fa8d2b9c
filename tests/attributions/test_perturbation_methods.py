"""Methods that evaluate coalitions: each against its law, brute force and independent libraries."""

from __future__ import annotations

import inspect
import itertools
import math
import time

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, ShapleyValues, ShapleyValueSampling
from captum.attr import Occlusion as CaptumOcclusion
from SALib.analyze import sobol as salib_sobol
from scipy.stats import qmc
from sklearn.linear_model import LinearRegression, Ridge

from interpreto_mlops.attributions import Banzhaf, KernelShap, Lime, Occlusion, Rise, ShapleySampling, Sobol
from interpreto_mlops.attributions.coalitions import (
    all_coalitions,
    draw_different,
    draw_pairs,
    exact_shapley,
    plan_coalitions,
    plan_leverage,
)
from interpreto_mlops.attributions.methods.sobol import jansen
from interpreto_mlops.attributions.regression import determines, jackknife_error, solve_shapley
from interpreto_mlops.errors import InputError
from tests.attributions.games import TableGame, bits, smooth

EIGHT = "the food was great but service very slow"
ELEVEN = "the food was great but service very slow and place cold"
SHAPLEY = [KernelShap, ShapleySampling]
LINEAR = [Occlusion, Lime, KernelShap, ShapleySampling, Banzhaf, Rise]
METHODS = [*LINEAR, Sobol]


def options(**each):
    """Cases of a method with options, named by both."""
    return [
        pytest.param(method, chosen, id="-".join([method.name, *(f"{k}={v}" for k, v in chosen.items())]))
        for method, choices in ((globals()[name], choices) for name, choices in each.items())
        for chosen in choices
    ]


def shapley_by_definition(values):
    n = len(values).bit_length() - 1
    phi = np.zeros((values.shape[1], n))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for coalition in itertools.combinations(others, size):
                without = sum(1 << j for j in coalition)
                phi[:, i] += weight * (values[without | 1 << i] - values[without])
    return phi


def banzhaf_by_definition(values):
    present = all_coalitions(len(values).bit_length() - 1)
    return np.stack([values[row].mean(axis=0) - values[~row].mean(axis=0) for row in present.T], axis=1)


def relative(scores, right):
    return np.linalg.norm(scores - right) / np.linalg.norm(right)


def weights_of(model, text, target):
    ids = model.tokenizer(text)["input_ids"]
    return (1 if target == 0 else -1) * model.embedding.weight.detach().numpy()[ids, 0]


# O1: a linear game


@pytest.mark.parametrize(
    ("method", "chosen"),
    options(
        Occlusion=[{}],
        Lime=[
            {},
            {"n_perturbations": 60},
            {"n_perturbations": 60, "sampling": "uniform"},
            {"n_perturbations": 60, "kernel_width": None},
        ],
        KernelShap=[
            {"n_perturbations": b, "sampling": s} for b in (5, 33, 34, 60, 400) for s in ("paired", "leverage")
        ],
        ShapleySampling=[{"n_perturbations": b, "antithetic": a} for b in (2, 12, 60, 2048) for a in (True, False)],
        Banzhaf=[{"n_perturbations": b} for b in (46, 100, 2048)],
        Rise=[{"n_perturbations": 2048}, {"n_perturbations": 2048, "p": 0.2}],
    ),
)
def test_a_linear_game_gives_its_weights(toy, method, chosen):
    model = toy("linear")
    item = method(model, **chosen)([ELEVEN])[0]
    np.testing.assert_allclose(item.scores[0], weights_of(model, ELEVEN, item.targets[0].id), atol=1e-10)
    assert item.scores.sum() == pytest.approx(float(item.output[0] - item.baseline_output[0]), abs=1e-10)


# O5, O6: Shapley values


@pytest.mark.parametrize("method", SHAPLEY)
@pytest.mark.parametrize("n", range(1, 11))
def test_with_all_coalitions_shapley_values_are_exact(toy, method, n):
    game = TableGame(np.random.default_rng(n).normal(size=(2**n, 2)))
    estimate = game.play(method(toy("random"), n_perturbations=max(2, 2**n)))
    np.testing.assert_allclose(estimate.scores, shapley_by_definition(game.values), atol=1e-12)
    np.testing.assert_array_equal(estimate.standard_error, 0)
    assert estimate.checks["exact"] == 1
    assert estimate.checks["evaluations"] == 2**n


@pytest.mark.parametrize(
    ("method", "chosen"),
    options(KernelShap=[{}, {"sampling": "leverage"}], ShapleySampling=[{}, {"antithetic": False}]),
)
def test_shapley_values_sum_to_the_difference_at_every_budget(toy, method, chosen):
    for budget in range(2, 140):
        game = TableGame(np.random.default_rng(budget).normal(size=(2**7, 2)))
        estimate = game.play(method(toy("random"), n_perturbations=budget, seed=budget, **chosen))
        np.testing.assert_allclose(estimate.scores.sum(axis=1), game.full - game.empty, atol=1e-10)
        assert estimate.checks["efficiency_gap"] < 1e-10
        rows = np.concatenate(game.asked)
        least = game.n_players + 1  # one order
        assert estimate.checks["evaluations"] <= max(budget, least)
        assert estimate.checks["evaluations"] == len({*bits(rows), 0, 2**7 - 1})


def test_one_permutation_is_what_each_element_adds_in_that_order(toy):
    game = TableGame(np.random.default_rng(0).normal(size=(2**6, 1)))
    estimate = game.play(ShapleySampling(toy("random"), n_perturbations=7))
    assert estimate.checks["permutations"] == 1
    (prefixes,) = game.asked
    order = [int(np.flatnonzero(row)[0]) for row in np.diff(prefixes.astype(int), axis=0, prepend=0)]
    order.append(next(iter(set(range(6)) - set(order))))
    value = game.values[np.cumsum([0, *(1 << i for i in order)]), 0]
    np.testing.assert_allclose(estimate.scores[0, order], np.diff(value), atol=1e-12)
    assert np.isnan(estimate.standard_error).all()


# O7: dummies and equal players


@pytest.mark.parametrize(
    ("method", "chosen"),
    options(
        Occlusion=[{}],
        KernelShap=[{"n_perturbations": b} for b in (20, 2048)],
        ShapleySampling=[{"n_perturbations": b} for b in (2, 100, 2048)],
        Banzhaf=[{"n_perturbations": 2048}],
        Rise=[{"n_perturbations": 2048}],
        Sobol=[{}, {"n_samples": 512}, {"n_samples": 512, "order": "first"}],
    ),
)
def test_a_dummy_gets_nothing(toy, method, chosen):
    item = method(toy("dummy"), **chosen)([ELEVEN])[0]
    np.testing.assert_allclose(item.scores[:, 2], 0, atol=1e-12)
    assert (np.abs(np.delete(item.scores[0], 2)) > 1e-6).all(), "and it alone"


@pytest.mark.parametrize("method", METHODS)
def test_equal_players_are_equal_under_enumeration(toy, method):
    item = method(toy("symmetric"))([EIGHT])[0]
    assert item.scores[0, 0] == pytest.approx(item.scores[0, 1], abs=1e-12)
    assert abs(item.scores[0, 0] - item.scores[0, 2]) > 1e-6


# Additivity, which is O8


@pytest.mark.parametrize("budget", [8, 40, 100, 200, 2048])
@pytest.mark.parametrize(
    ("method", "chosen"),
    options(
        Occlusion=[{"window": 1}, {"window": 3}],
        Lime=[{}, {"alpha": 0.5}, {"sampling": "uniform"}],
        KernelShap=[{}, {"sampling": "leverage"}],
        ShapleySampling=[{}, {"antithetic": False}],
        Banzhaf=[{}],
        Rise=[{}, {"p": 0.3}, {"raw": True}],
    ),
)
def test_the_scores_of_a_sum_are_the_sum_of_the_scores(toy, method, chosen, budget):
    first, second = (np.random.default_rng(seed).normal(size=(2**11, 1)) for seed in (1, 2))
    given = chosen if method is Occlusion else {"n_perturbations": budget, **chosen}
    explainer = method(toy("random"), **given)
    parts = [TableGame(values).play(explainer).scores for values in (first, second, first + second)]
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], atol=1e-10)


def test_the_scores_of_models_that_add_up_add_up(toy):
    for method in LINEAR:
        models = [toy("random", seed=seed) for seed in (1, 2, 3)]
        models[2].model.table = models[0].model.table + models[1].model.table
        scores = [method(model)([ELEVEN], targets=0)[0].scores for model in models]
        np.testing.assert_allclose(scores[0] + scores[1], scores[2], atol=1e-10)


# O9: LIME without kernel, Banzhaf and RISE


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_lime_without_kernel_banzhaf_and_centred_rise_agree(toy, n):
    game = TableGame(np.random.default_rng(n).normal(size=(2**n, 3)))
    right = banzhaf_by_definition(game.values)
    model = toy("random")
    for explainer in (Lime(model, sampling="uniform", kernel_width=None), Banzhaf(model), Rise(model)):
        estimate = game.play(explainer)
        np.testing.assert_allclose(estimate.scores, right, atol=1e-12)
        assert estimate.checks["exact"] == 1


# O10, O11: Sobol indices


@pytest.mark.parametrize("order", ["total", "first"])
def test_sobol_indices_of_an_additive_game_are_shares_of_squares(toy, order):
    model = toy("linear")
    item = Sobol(model, order=order)([EIGHT])[0]
    squares = weights_of(model, EIGHT, 0) ** 2
    np.testing.assert_allclose(item.scores[0], squares / squares.sum(), atol=1e-12)
    assert item.checks["index_sum"] == pytest.approx(1, abs=1e-12)
    assert item.checks["exact"] == 1


def test_sobol_indices_by_enumeration_are_those_of_the_definition(toy):
    n = 6
    values = np.random.default_rng(0).normal(size=(2**n, 1))
    present, v = all_coalitions(n), values[:, 0]
    mean_given = {i: [v[present[:, i] == side].mean() for side in (False, True)] for i in range(n)}
    first = [np.var(mean_given[i]) / v.var() for i in range(n)]
    rest = np.asarray([[v[[row & ~(1 << i), row | 1 << i]].var() for row in range(2**n)] for i in range(n)])
    total = rest.mean(axis=1) / v.var()
    model = toy("random")
    np.testing.assert_allclose(TableGame(values).play(Sobol(model, order="first")).scores[0], first, atol=1e-12)
    np.testing.assert_allclose(TableGame(values).play(Sobol(model)).scores[0], total, atol=1e-12)
    assert total.sum() > 1
    assert (total >= first).all()


def test_jansens_estimators_equal_salibs(toy):
    n, samples = 5, 2**12
    table = smooth(n, seed=3)[:, 0]
    masks = qmc.Sobol(2 * n, rng=0).random(samples) >= 0.5
    a, b = masks[:, :n], masks[:, n:]
    exchanged = np.repeat(a[:, None], n, axis=1)
    exchanged[:, np.arange(n), np.arange(n)] = b
    value_a, value_b, value_ab = table[bits(a)], table[bits(b)], table[bits(exchanged)]
    theirs = salib_sobol.analyze(
        {"num_vars": n, "names": [f"x{i}" for i in range(n)], "bounds": [[0, 1]] * n},
        np.column_stack([value_a, value_ab, value_b]).ravel(),
        calc_second_order=False,
        num_resamples=2,
        seed=0,
    )
    for order, name in (("total", "ST"), ("first", "S1")):
        part, variance = jansen(value_a[:, None], value_b[:, None], value_ab[:, :, None], order)
        # The same estimator of the total order; another one, with the same limit, of the first.
        np.testing.assert_allclose(part[:, 0] / variance, theirs[name], atol=1e-12 if order == "total" else 0.01)


@pytest.mark.parametrize("order", ["total", "first"])
def test_sampled_sobol_indices_come_closer_to_the_enumerated_ones(toy, order):
    values, model = smooth(11, seed=5), toy("random")
    right = TableGame(values).play(Sobol(model, order=order, n_samples=256)).scores
    errors = {}
    for samples in (8, 128):
        sampled = [
            TableGame(values).play(Sobol(model, order=order, n_samples=samples, seed=seed)) for seed in range(12)
        ]
        assert all(estimate.checks["exact"] == 0 for estimate in sampled)
        errors[samples] = np.mean([relative(estimate.scores, right) for estimate in sampled])
    assert errors[128] < 0.4 * errors[8]
    assert errors[128] < (0.1 if order == "total" else 1)


def test_total_indices_are_not_below_first_ones_but_for_noise(toy):
    model, values = toy("random"), smooth(11, targets=3, seed=6)
    total, first = (TableGame(values).play(Sobol(model, order=o, n_samples=128)).scores for o in ("total", "first"))
    assert (total >= first - 0.1).all()
    assert (total >= 0).all()


def test_sobol_indices_of_a_score_that_does_not_vary_are_0(toy, tiny_model):
    constant = TableGame(np.full((2**11, 1), 3.7))
    np.testing.assert_array_equal(constant.play(Sobol(toy("random"))).scores, 0)
    model = tiny_model()
    torch.nn.init.zeros_(model.model.classifier.weight)
    np.testing.assert_array_equal(Sobol(model)(["never again"])[0].scores, 0)


def test_the_one_element_of_a_text_takes_all_of_the_variance(toy):
    for order in ("total", "first"):
        assert Sobol(toy("linear"), order=order)(["good"])[0].scores[0, 0] == pytest.approx(1, abs=1e-12)


def exchanges(n, order="total", seed=0, samples=32, toy=None):
    """The blocks that Sobol asks for, and for each of the other rows the element that it changes."""
    game = TableGame(np.zeros((2, 1)))
    game.n_players = n
    rows = next(Sobol(toy("random"), order=order, seed=seed, n_samples=samples).estimate(game))
    a, b, changed = np.split(rows, [samples, 2 * samples])
    sample, element = np.nonzero(a != b)
    expected = a[sample]
    expected[np.arange(len(sample)), element] ^= True
    np.testing.assert_array_equal(changed, expected)
    return a, b, element


@pytest.mark.parametrize(("n", "samples"), [(11, 32), (24, 32), (40, 32), (12, 4), (20, 2)])
def test_no_element_passes_for_a_dummy_because_its_masks_never_change(toy, n, samples):
    """Rounded to bits, 32 points of a Sobol sequence have 16 different columns and their complements."""
    always = []
    for seed in range(30):
        a, b, element = exchanges(n, seed=seed, samples=samples, toy=toy)
        always.append((np.bincount(element) == samples).mean())
        assert (a.sum(axis=0) == samples // 2).all()
        assert (b.sum(axis=0) == samples // 2).all()
        assert (np.bincount(element, minlength=n) > 0).all()
    assert samples < 32 or np.mean(always) < 0.005, "nor do the two blocks mirror each other"


def test_sampled_total_indices_are_salibs_but_for_the_number_of_exchanges(toy):
    n, values = 11, smooth(11, seed=4)
    a, b, element = exchanges(n, toy=toy)
    exchanged = np.repeat(a[:, None], n, axis=1)
    exchanged[:, np.arange(n), np.arange(n)] = b
    theirs = salib_sobol.analyze(
        {"num_vars": n, "names": [f"x{i}" for i in range(n)], "bounds": [[0, 1]] * n},
        np.column_stack([values[bits(a), 0], values[bits(exchanged), 0], values[bits(b), 0]]).ravel(),
        calc_second_order=False,
        num_resamples=2,
        seed=0,
    )
    ours = TableGame(values).play(Sobol(toy("random"))).scores[0]
    np.testing.assert_allclose(ours * np.bincount(element) / 16, theirs["ST"], atol=1e-12)


def test_sobol_takes_half_the_rows_that_it_names(toy):
    game = TableGame(np.random.default_rng(0).normal(size=(2**11, 1)))
    checks = game.play(Sobol(toy("random"))).checks
    assert checks["evaluations"] <= 32 * (11 / 2 + 2) * 1.2


# O16: each coalition once


@pytest.mark.parametrize("method", METHODS)
def test_the_model_sees_each_coalition_once(toy, method):
    model = toy("random")
    seen = []

    def note(_module, _args, given, _output):
        lengths = given["attention_mask"].sum(-1)
        seen.extend(tuple(row[:length].tolist()) for row, length in zip(given["input_ids"], lengths, strict=True))

    handle = model.model.register_forward_hook(note, with_kwargs=True)
    item = method(model)([ELEVEN])[0]
    handle.remove()
    assert len(seen) == len(set(seen)) == item.checks["evaluations"]
    reference = toy("random")
    reference.engine.token_budget = 1  # one row a call, in whatever order
    np.testing.assert_allclose(method(reference)([ELEVEN])[0].scores, item.scores, atol=1e-12)


# Independent libraries


@pytest.fixture
def as_captum_sees_it(tiny_model):
    """A model, a text's ids, their replacements and a function of ids, one token a word."""
    model, text = tiny_model(), "never very good but fine"
    encoding = next(model.encode([text]))
    ids = torch.from_numpy(encoding.ids)[None]
    special = torch.from_numpy(encoding.special)[None]
    # Special tokens are one more feature, which has its own value as a baseline and so changes nothing.
    features = torch.where(special, 0, (~special).cumsum(-1))
    baseline = torch.where(special, ids, model.tokenizer.mask_token_id)

    def forward(rows):
        with torch.no_grad():
            return model.model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits

    given = {"baselines": baseline, "target": 1, "feature_mask": features}
    return model, text, forward, ids, given, ~special[0].numpy()


def test_occlusion_equals_captum(as_captum_sees_it):
    model, text, forward, ids, given, words = as_captum_sees_it
    expected = FeatureAblation(forward).attribute(ids, **given)[0, words]
    np.testing.assert_allclose(Occlusion(model)([text], targets=1)[0].scores[0], expected, atol=1e-5)


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_occlusion_with_a_window_equals_captum(as_captum_sees_it, window):
    model, text, forward, ids, _, words = as_captum_sees_it
    start = int(np.flatnonzero(words)[0])

    def of_words(rows):
        return forward(torch.cat([ids[:, :start].expand(len(rows), -1), rows, ids[:, -1:].expand(len(rows), -1)], 1))

    expected = CaptumOcclusion(of_words).attribute(
        ids[:, words], (window,), baselines=model.tokenizer.mask_token_id, target=1
    )
    scores = Occlusion(model, window=window)([text], targets=1)[0].scores
    np.testing.assert_allclose(scores[0], expected[0], atol=1e-5)


def test_a_window_wider_than_the_text_takes_all_out(toy):
    item = Occlusion(toy("random"), window=50)([EIGHT])[0]
    np.testing.assert_allclose(item.scores[0], np.full(8, item.output - item.baseline_output), atol=1e-12)
    assert item.checks["evaluations"] == 2


def test_shapley_values_equal_captum(as_captum_sees_it):
    model, text, forward, ids, given, words = as_captum_sees_it
    expected = ShapleyValues(forward).attribute(ids, perturbations_per_eval=64, **given)[0, words]
    for method in SHAPLEY:
        np.testing.assert_allclose(method(model)([text], targets=1)[0].scores[0], expected, atol=1e-5)


def test_shapley_sampling_estimates_what_captums_does(as_captum_sees_it):
    model, text, forward, ids, given, words = as_captum_sees_it
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = ShapleyValueSampling(forward).attribute(ids, n_samples=300, perturbations_per_eval=64, **given)
    ours = ShapleySampling(model, n_perturbations=26)([text], targets=1)[0]
    assert ours.checks["permutations"] == 6
    far = np.abs(ours.scores[0] - theirs[0, words].numpy()) / ours.standard_error[0]
    assert np.median(far) < 2


@pytest.mark.parametrize("plan", [plan_coalitions, plan_leverage])
@pytest.mark.parametrize("budget", [34, 60, 200])
def test_the_shapley_regression_equals_scikit_learns(plan, budget):
    values, rng = smooth(11, targets=2), np.random.default_rng(0)
    chosen = plan(11, budget, rng)
    assert determines(chosen)
    gains, total = values[bits(chosen.present)] - values[0], values[-1] - values[0]
    # The constraint is eliminated here; it is projected out there.
    last = chosen.present[:, -1:].astype(float)
    fit = LinearRegression(fit_intercept=False)
    fit.fit(chosen.present[:, :-1] - last, gains - last * total, sample_weight=chosen.weights)
    expected = np.column_stack([fit.coef_, total - fit.coef_.sum(axis=1)])
    valid = np.ones((2, 11), dtype=bool)
    solved = solve_shapley(chosen.present, chosen.weights, gains, total, valid)
    np.testing.assert_allclose(solved, expected, atol=1e-9)


def lime_weights(explainer, present):
    """The weight of each coalition by the definition: its probability times the kernel."""
    n = present.shape[1]
    size = present.sum(axis=1)
    law = [1 / (n + 1) / math.comb(n, s) for s in size] if explainer.sampling == "size" else np.full(len(size), 0.5**n)
    distance = 1 - np.sqrt(size / n)  # cosine similarity to a row of ones
    width = explainer.kernel_width
    return np.asarray(law) * (1 if width is None else np.exp(-(distance**2) / (2 * width**2)))


@pytest.mark.parametrize("sampling", ["size", "uniform"])
@pytest.mark.parametrize("kernel_width", [0.25, 1.0, None])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_enumerated_lime_equals_scikit_learns_regression(toy, sampling, kernel_width, alpha):
    explainer = Lime(toy("random"), sampling=sampling, kernel_width=kernel_width, alpha=alpha)
    game = TableGame(np.random.default_rng(0).normal(size=(2**8, 2)))
    estimate = game.play(explainer)
    present = all_coalitions(8)
    weights = lime_weights(explainer, present)
    weights /= weights.sum()
    fit = Ridge(alpha=alpha, solver="svd") if alpha else LinearRegression()
    fit.fit(present.astype(float), game.values, sample_weight=weights)
    np.testing.assert_allclose(estimate.scores, fit.coef_, atol=1e-10)
    if not alpha:
        r2 = [
            LinearRegression().fit(present, y, sample_weight=weights).score(present, y, weights) for y in game.values.T
        ]
        assert estimate.checks["r2"] == pytest.approx(min(r2), abs=1e-10)


@pytest.mark.parametrize("sampling", ["size", "uniform"])
@pytest.mark.parametrize("kernel_width", [0.25, None])
def test_sampled_lime_fits_what_enumerated_lime_fits(toy, sampling, kernel_width):
    model, values = toy("random"), smooth(11, seed=1)
    given = {"sampling": sampling, "kernel_width": kernel_width}
    right = TableGame(values).play(Lime(model, n_perturbations=2048, **given)).scores
    errors = {}
    for budget in (64, 1024):
        games = [TableGame(values) for _ in range(8)]
        estimates = [g.play(Lime(model, n_perturbations=budget, seed=s, **given)) for s, g in enumerate(games)]
        errors[budget] = np.mean([relative(estimate.scores, right) for estimate in estimates])
        for game, estimate in zip(games, estimates, strict=True):
            rows = np.concatenate(game.asked)
            assert {0, 2**11 - 1} < set(bits(rows)), "the untouched and the empty text are rows"
            assert len(rows) == len(set(bits(rows))) == estimate.checks["evaluations"] == budget
            assert estimate.checks["exact"] == 0
    assert errors[1024] < 0.35 * errors[64]
    assert errors[1024] < 0.07


def test_lime_weighs_what_is_near_the_untouched_text(toy):
    """A game that is linear but for what happens when most players are out: a narrow kernel sees the linear part."""
    n = 9
    size = all_coalitions(n).sum(axis=1)
    slopes = np.random.default_rng(0).normal(size=n)
    values = (all_coalitions(n) @ slopes + np.where(size < 4, 25.0, 0.0))[:, None]
    near, flat = (
        TableGame(values).play(Lime(toy("random"), kernel_width=width)).scores[0] - slopes for width in (0.1, None)
    )
    assert np.abs(near).max() < 0.05
    assert np.abs(flat).max() > 1


def test_lime_with_too_few_rows_takes_the_smallest_slopes_that_fit(toy):
    game = TableGame(np.random.default_rng(0).normal(size=(2**11, 1)))
    estimate = game.play(Lime(toy("random"), n_perturbations=6))
    rows = np.concatenate(game.asked).astype(float)
    right = game.values[bits(rows.astype(bool)), 0]
    centred = rows - rows[0]
    np.testing.assert_allclose(estimate.scores[0], np.linalg.pinv(centred) @ (right - right[0]), atol=1e-9)
    assert estimate.checks["r2"] == pytest.approx(1)


# Sampled estimates: what they converge to, and whether they know their error


@pytest.mark.parametrize(
    ("method", "chosen"),
    options(
        KernelShap=[{"n_perturbations": b, "sampling": s} for b in (150, 400) for s in ("paired", "leverage")],
        ShapleySampling=[{"n_perturbations": 150}, {"n_perturbations": 150, "antithetic": False}],
        Banzhaf=[{"n_perturbations": b} for b in (30, 150, 1600)],
        Rise=[{"n_perturbations": 150}, {"n_perturbations": 1600}, {"p": 0.3}, {"raw": True}, {"raw": True, "p": 0.7}],
    ),
)
def test_the_standard_error_is_that_of_the_estimate(toy, method, chosen):
    model, ratios, means = toy("random"), [], []
    values = smooth(11, seed=9) + 1
    exact = {**chosen, "n_perturbations": 2048}
    right = TableGame(values).play(method(model, **exact)).scores
    for seed in range(60):
        estimate = TableGame(values).play(method(model, seed=seed, **chosen))
        assert estimate.checks["exact"] == 0
        ratios.append(((estimate.scores - right) ** 2).mean() / (estimate.standard_error**2).mean())
        means.append(estimate.scores)
    assert 0.5 < np.mean(ratios) < 1.6
    off = np.abs(np.mean(means, axis=0) - right) / (np.std(means, axis=0) / np.sqrt(60))
    assert off.max() < 4.5, "biased"


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_rise_is_the_difference_of_conditional_means(toy, p):
    n, model = 6, toy("random")
    game = TableGame(np.random.default_rng(0).normal(size=(2**n, 2)))
    present = all_coalitions(n)
    chance = np.prod(np.where(present, p, 1 - p), axis=1)
    kept = np.stack([(chance[row, None] * game.values[row]).sum(0) / p for row in present.T], axis=1)
    out = np.stack([(chance[~row, None] * game.values[~row]).sum(0) / (1 - p) for row in present.T], axis=1)
    np.testing.assert_allclose(game.play(Rise(model, p=p)).scores, kept - out, atol=1e-12)
    np.testing.assert_allclose(game.play(Rise(model, p=p, raw=True)).scores, kept, atol=1e-12)


@pytest.mark.parametrize("p", [0.3, 0.5, 0.8])
def test_masks_of_rise_come_in_pairs_that_mirror_each_other(toy, p):
    game = TableGame(smooth(11))
    game.play(Rise(toy("random"), p=p))
    first, second = np.split(game.asked[0], 2)
    assert game.asked[0].mean() == pytest.approx(p, abs=0.03)
    if p <= 0.5:
        assert not (first & second).any()
    if p >= 0.5:
        assert (first | second).all()


def test_an_element_that_no_mask_keeps_gets_0_and_no_error(toy):
    estimate = TableGame(smooth(11)).play(Rise(toy("random"), p=0.01, n_perturbations=6))
    missing = np.isnan(estimate.standard_error[0])
    assert missing.any()
    np.testing.assert_array_equal(estimate.scores[0, missing], 0)


def test_the_centred_form_of_rise_and_the_regression_of_banzhaf_have_less_noise(toy):
    model, values = toy("random"), smooth(11, seed=2) + 30

    def noise(method, **chosen):
        right = TableGame(values).play(method(model, n_perturbations=2048, **chosen)).scores
        plays = [TableGame(values).play(method(model, n_perturbations=200, seed=s, **chosen)) for s in range(10)]
        return np.mean([np.linalg.norm(play.scores - right) for play in plays])

    assert noise(Banzhaf) < 0.5 * noise(Rise)
    assert noise(Rise, p=0.3) < 0.2 * noise(Rise, p=0.3, raw=True)


@pytest.mark.parametrize("sampling", ["paired", "leverage"])
def test_kernel_shap_of_eleven_words_is_within_seven_per_cent_at_400_evaluations(cebab_model, sampling):
    text = "The waiter was rude but the pasta tasted absolutely great tonight"
    right = KernelShap(cebab_model, n_perturbations=2**11)([text])[0]
    assert len(right) == 11
    assert right.checks["exact"] == 1
    errors = [
        relative(
            KernelShap(cebab_model, n_perturbations=400, seed=s, sampling=sampling)([text])[0].scores, right.scores
        )
        for s in range(4)
    ]
    assert np.mean(errors) <= 0.07


# Regressions just above three evaluations an element


def test_every_regression_determines_the_values(toy):
    """At 12 players and 36 evaluations some draws leave a direction open; an additive game shows it."""
    values = all_coalitions(12) @ np.random.default_rng(0).normal(size=(12, 1))
    right = values[1 << np.arange(12)].T
    for sampling, plan in (("paired", plan_coalitions), ("leverage", plan_leverage)):
        assert not all(determines(plan(12, 34, np.random.default_rng(seed))) for seed in range(100))
        kinds = set()
        for seed in range(100):
            explainer = KernelShap(toy("random"), n_perturbations=36, seed=seed, sampling=sampling)
            estimate = TableGame(values).play(explainer)
            np.testing.assert_allclose(estimate.scores, right, atol=1e-9)
            kinds.add("permutations" in estimate.checks)
        assert kinds == {False, True}


def test_an_open_direction_is_left_at_equal_shares():
    present = np.asarray([[1, 0, 0, 0], [0, 1, 1, 1]], dtype=bool)
    gains, total = np.asarray([[1.0], [6.0]]), np.asarray([7.0])
    solved = solve_shapley(present, np.ones(2), gains, total, np.ones((1, 4), dtype=bool))
    np.testing.assert_allclose(solved, [[1, 2, 2, 2]], atol=1e-12)


# Leverage scores


@pytest.mark.parametrize("n", [4, 5, 7])
def test_leverage_scores_of_the_shapley_regression_are_one_over_the_number_of_each_size(n):
    present = all_coalitions(n)[1:-1]
    size = present.sum(axis=1)
    kernel = np.asarray([(n - 1) / (math.comb(n, s) * s * (n - s)) for s in size])
    rows = np.sqrt(kernel)[:, None] * (present - size[:, None] / n)
    leverage = np.diag(rows @ np.linalg.pinv(rows))
    np.testing.assert_allclose(leverage, [1 / math.comb(n, s) for s in size], atol=1e-12)


@pytest.mark.parametrize(("n", "budget"), [(7, 40), (8, 60), (8, 252), (11, 60), (12, 100)])
def test_the_leverage_plan_is_unbiased_and_holds_its_budget(n, budget):
    kernel = np.zeros(2**n)
    for row, size in enumerate(all_coalitions(n).sum(axis=1)):
        if 0 < size < n:
            kernel[row] = (n - 1) / (math.comb(n, size) * size * (n - size))
    runs, average, by_size = 400, np.zeros(2**n), np.zeros(n)
    for seed in range(runs):
        plan = plan_leverage(n, budget, np.random.default_rng(seed))
        rows = bits(plan.present)
        assert len(rows) == len(set(rows)) == budget
        assert set(rows) == set(2**n - 1 - rows), "complements come along"
        assert plan.weights.sum() == pytest.approx(sum((n - 1) / (s * (n - s)) for s in range(1, n)))
        average[rows] += plan.weights / runs
        np.add.at(by_size, plan.present.sum(axis=1), 1 / runs)
    size = all_coalitions(n).sum(axis=1)
    for s in range(1, n):
        chance = min(1.0, by_size[s] / math.comb(n, s))
        spread = kernel[size == s] * np.sqrt((1 - chance) / chance / runs)
        assert (np.abs(average[size == s] - kernel[size == s]) <= 5 * spread + 1e-12).all()
    # Every size alike, but for those that have fewer.
    open_sizes = [by_size[s] for s in range(1, n) if by_size[s] < math.comb(n, s) - 0.01]
    assert max(open_sizes, default=1) - min(open_sizes, default=1) < 0.2


# Targets that see some elements only


VIEWS = np.asarray([[1] * 11, [1] * 8 + [0] * 3, [0, 1] + [0] * 9, [1, 0, 0, 1] + [0] * 7, [1] * 8 + [0] * 3], bool)


@pytest.mark.parametrize(
    ("method", "chosen"),
    options(KernelShap=[{}, {"sampling": "leverage"}], ShapleySampling=[{}], Lime=[{}], Banzhaf=[{}]),
)
def test_what_a_target_cannot_see_takes_no_part(toy, method, chosen):
    values, model = smooth(11, targets=5), toy("random")
    for budget in (20, 40, 100, 300, 2048):
        game = TableGame(values, VIEWS)
        estimate = game.play(method(model, n_perturbations=budget, **chosen))
        np.testing.assert_allclose(estimate.scores[~VIEWS], 0, atol=1e-12)
        total = game.full - game.empty
        if method in SHAPLEY:
            np.testing.assert_allclose(np.where(VIEWS, estimate.scores, 0).sum(axis=1), total, atol=1e-10)
            np.testing.assert_allclose(estimate.scores[2, 1], total[2], atol=1e-10)
        if method is KernelShap and 40 <= budget < 2048:
            # The values of each left-out group sum to the difference too: one value alone cannot err, two err alike.
            assert estimate.standard_error[2, 1] == pytest.approx(0, abs=1e-9)
            assert estimate.standard_error[3, 0] == pytest.approx(estimate.standard_error[3, 3], rel=1e-6)
            assert estimate.standard_error[3, 0] > 0


def test_a_target_on_its_own_elements_is_the_regression_without_the_others():
    values, plan = smooth(11, targets=5), plan_coalitions(11, 100, np.random.default_rng(0))
    game = TableGame(values, VIEWS)
    gains, total = game.values[bits(plan.present)] - game.empty, game.full - game.empty
    together = solve_shapley(plan.present, plan.weights, gains, total, VIEWS)
    errors = jackknife_error(plan, gains, total, VIEWS)
    for t, see in enumerate(VIEWS):
        alone = np.ones((1, see.sum()), dtype=bool)
        narrow = type(plan)(plan.present[:, see], plan.weights, plan.pair)
        given = gains[:, [t]], total[[t]], alone
        np.testing.assert_allclose(together[t, see], solve_shapley(narrow.present, plan.weights, *given)[0], atol=1e-12)
        np.testing.assert_allclose(errors[t, see], jackknife_error(narrow, *given)[0], atol=1e-12)
    every = all_coalitions(11)
    kernel = np.asarray([0 if s in (0, 11) else 10 / (math.comb(11, s) * s * (11 - s)) for s in every.sum(axis=1)])
    complete = solve_shapley(every, kernel, game.values - game.empty, total, VIEWS)
    np.testing.assert_allclose(complete, exact_shapley(game.values), atol=1e-10)


# Drawing


def test_draws_stop_when_the_next_different_one_would_be_too_many():
    stream = iter([0, 1, 0, 1, 2, 1, 3, 0])
    drawn, counts = draw_different(lambda k: all_coalitions(2)[[next(stream) for _ in range(k)]], 3)
    np.testing.assert_array_equal(bits(drawn), [0, 1, 2])
    np.testing.assert_array_equal(counts, [2, 3, 1])


def test_draws_end_when_there_are_no_more():
    rng = np.random.default_rng(0)
    drawn, counts = draw_different(lambda k: rng.random((k, 2)) < 0.5, 10)
    assert sorted(bits(drawn)) == [0, 1, 2, 3]
    assert counts.sum() == 640


@pytest.mark.parametrize("n", [3, 9, 40, 70, 200])
def test_pairs_are_different_and_uniform(n):
    rows = draw_pairs(n, 300, np.random.default_rng(0))
    assert len(rows) == min(300, 2 ** (n - 1)) == len({row.tobytes() for row in rows})
    assert not rows[:, 0].any()
    assert abs(rows[:, 1:].mean() - 0.5) < 0.05


@pytest.mark.parametrize(
    ("method", "chosen"),
    options(
        Occlusion=[{}],
        Lime=[{}, {"sampling": "uniform"}],
        KernelShap=[{}, {"sampling": "leverage"}],
        ShapleySampling=[{}],
        Banzhaf=[{}],
        Rise=[{}],
        Sobol=[{}],
    ),
)
def test_the_mathematics_of_a_long_text_takes_milliseconds(toy, method, chosen):
    slopes = np.random.default_rng(0).normal(size=40)
    explainer = method(toy("random"), **chosen)

    def seconds():
        game = TableGame(np.zeros((2, 1)))
        game.n_players, game.valid = 40, np.ones((1, 40), dtype=bool)
        game.full = np.asarray([slopes.sum()])
        start = time.thread_time()
        steps = explainer.estimate(game)
        present = next(steps)
        with pytest.raises(StopIteration):
            steps.send((present @ slopes)[:, None])
        return time.thread_time() - start

    assert min(seconds() for _ in range(5)) < 0.05


# Parameters


def test_defaults():
    for method in (Lime, KernelShap, ShapleySampling, Banzhaf, Rise):
        assert inspect.signature(method).parameters["n_perturbations"].default == 512
    parameters = inspect.signature(Sobol).parameters
    assert (parameters["order"].default, parameters["n_samples"].default) == ("total", 32)
    assert inspect.signature(Occlusion).parameters["window"].default == 1


@pytest.mark.parametrize(
    ("method", "chosen", "words"),
    [
        (Lime, {"sampling": "normal"}, "unknown sampling 'normal'; known: 'size', 'uniform'"),
        (Lime, {"kernel_width": 0}, "kernel_width must be above 0, or None for equal weights, not 0"),
        (Lime, {"kernel_width": "wide"}, "not 'wide'"),
        (Lime, {"alpha": -1}, "alpha must be a number of at least 0, not -1"),
        (Lime, {"alpha": float("nan")}, "not nan"),
        (Lime, {"n_perturbations": 1}, "n_perturbations must be a whole number of at least 2, not 1"),
        (KernelShap, {"sampling": "random"}, "unknown sampling 'random'; known: 'leverage', 'paired'"),
        (Sobol, {"order": "second"}, "unknown order 'second'; known: 'total', 'first'"),
        (Sobol, {"n_samples": 33}, "n_samples must be a power of two, as 16, 32 or 64, not 33"),
        (Sobol, {"n_samples": 0}, "n_samples must be a whole number of at least 2, not 0"),
        (Sobol, {"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        (Rise, {"p": 0}, "p must be above 0 and below 1, not 0"),
        (Rise, {"p": None}, "p must be above 0 and below 1, not None"),
        (Rise, {"p": True}, "p must be above 0 and below 1, not True"),
        (Rise, {"raw": "yes"}, "raw must be True or False, not 'yes'"),
        (ShapleySampling, {"antithetic": 2}, "antithetic must be True or False, not 2"),
        (Banzhaf, {"n_perturbations": 2.5}, "not 2.5"),
        (Occlusion, {"window": 0}, "window must be a whole number of at least 1, not 0"),
        (Occlusion, {"window": "2"}, "not '2'"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(toy, method, chosen, words):
    with pytest.raises(InputError, match=words):
        method(toy("linear"), **chosen)


def test_numbers_of_any_type_are_kept_as_plain_ones(toy, tmp_path):
    model = toy("linear")
    for explainer in (
        Rise(model, p=np.float32(0.25)),
        Lime(model, kernel_width=np.int64(1), alpha=np.float32(0.5)),
        Sobol(model, n_samples=np.int16(16)),
        Occlusion(model, window=np.int8(2)),
    ):
        explanations = explainer([EIGHT])
        assert type(explanations).load(explanations.save(tmp_path)) == explanations


@pytest.mark.parametrize("method", [Lime, KernelShap, ShapleySampling, Banzhaf, Rise, Sobol])
def test_seeds_give_samples(toy, method):
    model = toy("random")
    first, again, other = (method(model, seed=seed)([ELEVEN])[0].scores for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6
