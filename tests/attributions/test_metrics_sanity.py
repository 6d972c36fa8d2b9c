"""The randomisation check on a trained model: gradients fall to the band, what ignores the model does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from interpreto_mlops.attributions import (
    METHODS,
    Attributor,
    Estimate,
    Game,
    IntegratedGradients,
    KernelShap,
    Occlusion,
)
from interpreto_mlops.attributions.metrics import MetricSet, SanityCheck
from interpreto_mlops.attributions.metrics.max_sensitivity import explained_again
from interpreto_mlops.attributions.metrics.sanity import cascade, rank_correlation, reinitialise
from interpreto_mlops.attributions.recall import recalled
from interpreto_mlops.errors import InputError
from tests.conftest import ARCHITECTURES


@dataclass(frozen=True, kw_only=True)
class Lengths(Attributor):
    """Scores words by their length: an explanation that never looks at the model's weights."""

    name: ClassVar[str] = "lengths"

    def estimate(self, game: Game):
        yield np.ones((1, game.n_players), dtype=bool)
        scores = np.array([float(len(name)) for name in game.elements.names]) + np.linspace(0, 0.5, game.n_players)
        return Estimate(np.tile(scores, (len(game.full), 1)))


@pytest.fixture(scope="module")
def reviews(cebab_reviews):
    return cebab_reviews["text"].tolist()[:340:17]


def test_gradients_fall_to_the_band_on_a_trained_model(cebab_model, reviews):
    explainer = IntegratedGradients(cebab_model, n_nodes=8)
    explanations = explainer(reviews)
    state = {name: value.clone() for name, value in cebab_model.model.state_dict().items()}
    random = torch.random.get_rng_state()
    result = SanityCheck(explainer)(explanations)
    torch.testing.assert_close(dict(cebab_model.model.state_dict()), state, rtol=0, atol=0)
    assert torch.equal(random, torch.random.get_rng_state())
    assert cebab_model.model.training is False
    frame = result.by_depth()
    assert frame["randomised"].tolist() == [
        "nothing",
        "head",
        "bert.encoder.layer.1",
        "bert.encoder.layer.0",
        "embeddings",
    ]
    assert frame["signed"][0] == pytest.approx(1)
    assert frame["absolute"][0] == pytest.approx(1)
    assert result.passes
    assert -0.2 < result.band[0] < 0 < result.band[1] < 0.2
    others = [SanityCheck(explainer, seed=seed)(explanations).mean for seed in (1, 2)]
    assert result.band[0] <= np.mean([result.mean, *others]) <= result.band[1]
    # The counters are those of the copy: the explanations of the four depths.
    assert result.counters["evaluations_run"] > 4 * len(reviews)


def test_an_explanation_that_ignores_the_weights_does_not_pass(cebab_model, reviews):
    explainer = Lengths(cebab_model)
    result = SanityCheck(explainer)(explainer(reviews))
    np.testing.assert_allclose(result.signed, 1)
    assert not result.passes
    assert result.diagnosticity == 0


def test_the_result_survives_a_file(cebab_model, reviews, tmp_path):
    explainer = Occlusion(cebab_model)
    result = SanityCheck(explainer, n_random=20)(explainer(reviews[:3]))
    again = MetricSet.load(MetricSet([result]).save(tmp_path / "sanity.json"))["sanity_check"]
    assert again == result
    assert again.by_depth().equals(result.by_depth())
    assert again.passes == result.passes


def test_the_check_is_the_same_again(cebab_model, reviews):
    explainer = IntegratedGradients(cebab_model, n_nodes=4)
    explanations = explainer(reviews[:4])
    first, again, other = (SanityCheck(explainer, n_random=20, seed=seed)(explanations) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.signed, again.signed)
    np.testing.assert_array_equal(first.random_draws, again.random_draws)
    assert (first.signed[1:] != other.signed[1:]).mean() > 0.8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_is_drawn_anew_from_the_head_down(tiny_model, architecture):
    model = tiny_model(architecture)
    before = {name: value.clone() for name, value in model.model.named_parameters()}
    owners = {id(p): name for name, p in model.model.named_parameters()}
    steps = cascade(model)
    names = [name for name, _ in steps]
    assert names[0] == "head"
    assert names[-1] == "embeddings"
    assert [int(name.rsplit(".", 1)[1]) for name in names[1:-1]] == [2, 1, 0]
    covered = [owners[id(p)] for _, modules in steps for module in modules for p in module.parameters(recurse=False)]
    assert sorted(covered) == sorted(before)
    changed: set[str] = set()
    for depth, (name, modules) in enumerate(steps):
        reinitialise(model, modules, depth)
        now = {key for key, value in model.model.named_parameters() if not torch.equal(value, before[key])}
        assert changed < now, f"{name} changed nothing"
        changed = now
    matrices = {key for key, value in before.items() if value.dim() > 1}
    assert matrices <= changed


def test_marks_of_loaded_weights_do_not_keep_them(cebab_folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from interpreto_mlops.models.text_model import TextModel

    model = TextModel(
        AutoModelForSequenceClassification.from_pretrained(cebab_folder), AutoTokenizer.from_pretrained(cebab_folder)
    )
    before = model.model.classifier.weight.clone()
    reinitialise(model, cascade(model)[0][1], 0)
    assert not torch.equal(model.model.classifier.weight, before)
    assert float(model.model.classifier.weight.detach().std()) == pytest.approx(0.02, rel=0.3)
    assert (model.model.classifier.bias == 0).all()


def test_the_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    for _ in range(50):
        first, second = rng.integers(-3, 4, (2, 1, 12)) / 1.0
        if np.unique(first).size > 1 and np.unique(second).size > 1:
            expected = spearmanr(first[0], second[0]).statistic
            assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)
    scores = rng.normal(size=(3, 7))
    assert rank_correlation(scores, scores) == pytest.approx(1, abs=1e-12)
    holes = np.where(np.arange(7) > 4, np.nan, scores)
    assert rank_correlation(holes, scores) == pytest.approx(1, abs=1e-12)
    assert rank_correlation(scores, np.zeros((3, 7))) == 0
    assert np.isnan(rank_correlation(np.zeros((3, 7)), scores))


def test_texts_that_have_no_ranking_are_skipped_and_counted(tiny_model):
    explainer = KernelShap(tiny_model())
    with pytest.warns(UserWarning, match="nothing to attribute"):
        explanations = explainer(["good food", "", "bad", "awful soup , not good"], targets=0)
    result = SanityCheck(explainer, n_random=20)(explanations)
    assert result.skipped == {"no elements": 1, "a single element": 1}
    assert np.isnan(result.values).tolist() == [False, True, True, False]


def test_the_copy_explains_the_same_targets(tiny_model):
    """The prediction of a random model is another one; the explained class stays."""
    model = tiny_model()
    explainer = IntegratedGradients(model, n_nodes=4)
    text = "awful soup , not good"
    one, two = (explainer([text], targets=target) for target in (0, 2))
    both = explainer([text], targets=[[0, 2]])
    check = SanityCheck(explainer, n_random=20)
    each = [check(explanations).signed[:, 0] for explanations in (one, two)]
    np.testing.assert_allclose(check(both).signed[:, 0], np.mean(each, axis=0), atol=1e-6)


@pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in METHODS.items()])
def test_every_method_can_explain_again(tiny_model, method):
    """With the same weights every method has the same answer; with others its correlations are numbers."""
    model = tiny_model()
    explainer = method(model)
    explanations = explainer(["awful soup , not good", "we loved the quick service"])
    programs = (
        explained_again(explainer, question, elements) for _, question, elements in recalled(model, explanations)
    )
    for item, scores in zip(explanations, model.engine.run(programs), strict=True):
        np.testing.assert_allclose(scores, item.scores, atol=1e-4, rtol=1e-3)
    result = SanityCheck(explainer, n_random=10)(explanations)
    assert np.isfinite(result.signed[:, ~np.isnan(result.values)]).all()


def test_what_is_no_explainer_is_refused(tiny_model):
    with pytest.raises(InputError, match="sanity_check needs the explainer"):
        SanityCheck(tiny_model())
    with pytest.raises(InputError, match="n_random"):
        SanityCheck(Occlusion(tiny_model()), n_random=0)
