"""Soft metrics against one model call a faded text, max-sensitivity, and the points that the engine scores for them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from interpreto_mlops.attributions import METHODS, AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.metrics import MaxSensitivity, SoftComprehensiveness, SoftSufficiency
from interpreto_mlops.attributions.metrics.subjects import subjects_of
from interpreto_mlops.errors import InputError, ModelOutputError
from interpreto_mlops.models.engine import Engine
from interpreto_mlops.models.requests import EmbeddingRequest, GradientRequest, ScoreRequest
from tests.conftest import ARCHITECTURES

SOFT = [SoftComprehensiveness, SoftSufficiency]
FIVE = "awful soup , not good"


def at_embeddings(model, encoding, embeddings, mode="softmax"):
    """The model's output at given embeddings of the tokens, by one call."""
    ids = torch.from_numpy(encoding.ids.copy())[None]
    handle = model.model.get_input_embeddings().register_forward_hook(lambda *_: embeddings[None])
    with torch.no_grad():
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    handle.remove()
    return logits.softmax(-1) if mode == "softmax" else logits


def embeddings_of(model, encoding):
    return model.model.get_input_embeddings().weight[torch.from_numpy(encoding.ids.copy())].detach()


def soft_reference(metric, model, item, seed=0, n_draws=10):
    """Soft-NS or Soft-NC of one text by its definition, one call a draw, for words of one token between specials."""
    encoding = next(model.encode([item.text]))
    text, target = embeddings_of(model, encoding), item.targets[0].id
    places = np.flatnonzero(~encoding.special)
    scores = item.scores[0]
    share = (scores - scores.min()) / (scores.max() - scores.min())
    chance = np.ones(len(encoding))
    chance[places] = share if metric is SoftSufficiency else 1 - share
    whole = float(at_embeddings(model, encoding, text)[target])
    losses = []
    for draw in range(n_draws):
        drawn = np.random.default_rng([encoding.seed(seed), draw]).random(text.shape, dtype=np.float32)
        faded = text * torch.from_numpy(drawn < chance[:, None])
        losses.append(max(0.0, whole - float(at_embeddings(model, encoding, faded)[target])))
    empty = text.clone()
    empty[places] = 0
    nothing = max(0.0, whole - float(at_embeddings(model, encoding, empty)[target]))  # 1 - S_0
    soft_s, s_0 = 1 - np.mean(losses), 1 - nothing
    if nothing == 0:
        return np.nan
    value = max(0.0, soft_s - s_0) / (1 - s_0) if metric is SoftSufficiency else np.mean(losses) / (1 - s_0)
    return min(1.0, value)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("metric", SOFT)
def test_equals_the_slow_reference(tiny_model, texts, metric, architecture):
    model = tiny_model(architecture)
    # Where a text's class is one that its words speak against, nothing is lost, and the metric is not defined.
    explanations = AttributionSet(item for target in range(3) for item in Occlusion(model)(texts, targets=target))
    result = metric(model, n_random=2)(explanations)
    expected = [soft_reference(metric, model, item) for item in explanations]
    assert np.isfinite(expected).sum() >= 3
    np.testing.assert_allclose(result.values, expected, atol=2e-4)
    assert result.n_skipped == np.isnan(expected).sum()


@pytest.mark.parametrize("metric", SOFT)
def test_all_kept_loses_nothing_and_all_gone_is_the_end_of_the_scale(tiny_model, texts, metric):
    """Shares given directly: 1 keeps the text whole (for sufficiency), 0 leaves only the special tokens."""
    model = tiny_model()
    judge = metric(model)
    explanations = Occlusion(model)(texts)

    def losses(subject):
        n = subject.n_players
        shares = np.stack([np.ones((1, n)), np.zeros((1, n))])
        return (yield from judge.losses(subject, shares))

    found = list(model.engine.run(losses(subject) for subject in subjects_of(explanations, model, "auto")))
    kept, gone = (0, 1) if metric is SoftSufficiency else (1, 0)
    for lost, nothing in found:
        assert 1 - lost[kept, 0] == pytest.approx(1, abs=1e-6)
        assert lost[gone, 0] == pytest.approx(nothing[0], abs=1e-6)
    assert max(float(nothing[0]) for _, nothing in found) > 0.01


def test_soft_scores_at_the_ends(tiny_model):
    """Soft-S 1 gives Soft-NS 1; everything gone gives Soft-NS 0 and Soft-NC 1."""
    nothing = np.array([0.4])
    sufficiency, comprehensiveness = (metric(tiny_model()) for metric in (SoftSufficiency, SoftComprehensiveness))
    lost = np.array([[0.0], [0.1], [0.4], [0.7]])
    np.testing.assert_allclose(sufficiency.score(lost, nothing)[:, 0], [1, 0.75, 0, 0])
    np.testing.assert_allclose(comprehensiveness.score(lost, nothing)[:, 0], [0, 0.25, 1, 1])
    assert np.isnan(sufficiency.score(lost, np.zeros(1))).all()


@pytest.mark.parametrize("metric", SOFT)
def test_what_cannot_be_scaled_is_skipped_and_counted(tiny_model, toy, metric):
    model = tiny_model()
    item = Occlusion(model)([FIVE])[0]
    flat = dataclasses.replace(item, scores=np.full_like(item.scores, 0.3))
    one = Occlusion(model)(["good"])[0]
    assert metric(model)(AttributionSet([flat, one])).skipped == {"constant scores": 2}
    constant = toy("linear")
    constant.model.embedding.weight.data.zero_()
    item = dataclasses.replace(Occlusion(constant)(["good food"], targets=0)[0], scores=np.array([[1.0, 2.0]]))
    assert metric(constant)(AttributionSet([item])).skipped == {"elements that carry nothing": 1}


@pytest.mark.parametrize("metric", SOFT)
def test_several_targets_fade_by_their_own_scores(tiny_model, metric):
    model = tiny_model()
    both = metric(model)(Occlusion(model)([FIVE], targets=[[0, 2]])).values[0]
    each = [metric(model)(Occlusion(model)([FIVE], targets=target)).values[0] for target in (0, 2)]
    assert both == pytest.approx(np.nanmean(each), abs=1e-6)


@pytest.mark.parametrize("metric", SOFT)
def test_the_result_depends_on_the_text_alone(tiny_model, texts, metric):
    model = tiny_model()
    together = metric(model)(Occlusion(model)(texts))
    for i, text in enumerate(texts):
        alone = metric(model)(Occlusion(model)([text]))
        np.testing.assert_allclose(together.values[i], alone.values[0], atol=1e-5)
        np.testing.assert_allclose(together.random_values[i], alone.random_values[0], atol=1e-5)


def moved_embeddings(model, encoding, draw, radius=0.02, seed=0):
    text = embeddings_of(model, encoding)
    drawn = np.random.default_rng((encoding.seed(seed), draw)).uniform(-radius, radius, tuple(text.shape))
    return text + torch.from_numpy(np.where(encoding.special[:, None], 0, drawn)).to(text.dtype)


def integrated_by_hand(model, encoding, start, target):
    """IG of the logits with 8 Gauss-Legendre nodes from masked embeddings to `start`, one backward pass a node."""
    masked = np.where(encoding.special, encoding.ids, model.tokenizer.mask_token_id)
    baseline = model.model.get_input_embeddings().weight[torch.from_numpy(masked)].detach()
    nodes, weights = np.polynomial.legendre.leggauss(8)
    total = torch.zeros_like(start)
    ids = torch.from_numpy(encoding.ids.copy())[None]
    for node, weight in zip((1 + nodes) / 2, weights / 2, strict=True):
        point = (baseline + node * (start - baseline)).requires_grad_(True)
        handle = model.model.get_input_embeddings().register_forward_hook(lambda *_, point=point: point[None])
        logit = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, target]
        handle.remove()
        total += weight * torch.autograd.grad(logit, point)[0]
    return ((start - baseline) * total).sum(-1).numpy()[~encoding.special]


def test_max_sensitivity_equals_its_definition(tiny_model):
    model = tiny_model()
    explainer = IntegratedGradients(model, n_nodes=8)
    explanations = explainer([FIVE, "good food"])
    result = MaxSensitivity(model, explainer=explainer, n_draws=3)(explanations)
    for item, found in zip(explanations, result.values, strict=True):
        encoding = next(model.encode([item.text]))
        scores = [
            integrated_by_hand(model, encoding, moved_embeddings(model, encoding, draw), item.targets[0].id)
            for draw in range(3)
        ]
        first = item.scores[0]
        expected = max(np.linalg.norm(moved - first) / np.linalg.norm(first) for moved in scores)
        assert found == pytest.approx(expected, rel=2e-3)


def test_the_paths_of_moved_texts_are_still_complete(tiny_model):
    """The adaptive rule compares with the score of the moved text, so that it needs no more nodes than for the text."""
    model = tiny_model()
    explainer = IntegratedGradients(model)
    explanations = explainer([FIVE])
    MaxSensitivity(model, explainer=explainer, radius=0.2)(explanations)  # a gap would be a warning, thus an error


def test_a_smaller_radius_moves_explanations_less(tiny_model, texts):
    model = tiny_model()
    explainer = IntegratedGradients(model, n_nodes=8)
    explanations = explainer(texts)
    near, far = (
        MaxSensitivity(model, explainer=explainer, radius=radius, n_draws=4)(explanations) for radius in (1e-3, 0.05)
    )
    assert (near.values < far.values).all()
    assert near.gain > 0
    assert near.diagnosticity > 0.8


GRADIENTS = {"attn_lrp", "gradient_shap", "input_x_gradient", "integrated_gradients", "saliency"}
GRADIENTS |= {"smooth_grad", "square_grad", "var_grad"}


@pytest.mark.parametrize("method", [pytest.param(method, id=name) for name, method in METHODS.items()])
def test_only_methods_that_take_gradients_have_a_small_change(tiny_model, method):
    model = tiny_model()
    explainer = method(model)
    explanations = explainer([FIVE])
    metric = MaxSensitivity(model, explainer=explainer, n_draws=2, radius=1e-5)
    if method.name in GRADIENTS:
        assert 0 < metric(explanations).values[0] < 1e-3
        return
    words = f"needs a method that takes gradients, which '{method.name}' does not: token ids have no small change"
    with pytest.raises(InputError, match=words):
        metric(explanations)


def test_explanations_of_another_method_are_refused(tiny_model):
    model = tiny_model()
    explainer = IntegratedGradients(model)
    metric = MaxSensitivity(model, explainer=explainer)
    with pytest.raises(InputError, match="explanations with method 'kernel_shap', but an explainer with 'integrated"):
        metric(KernelShap(model)([FIVE]))
    with pytest.raises(InputError, match="explanations with inference_mode 'softmax'"):
        metric(IntegratedGradients(model, inference_mode="softmax")([FIVE]))
    with pytest.raises(InputError, match="the explainer, an attribution method of the model, not 'occlusion'"):
        MaxSensitivity(model, explainer="occlusion")
    with pytest.raises(InputError, match="explainer's own model"):
        MaxSensitivity(tiny_model(), explainer=explainer)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_points_are_scored_in_any_company(tiny_model, texts, architecture):
    """Points of texts of different lengths, beside rows of ids and gradients, equal one call each."""
    model = tiny_model(architecture)
    encodings = list(model.encode(texts))

    def points(anchors, numbers):
        return anchors[0] * (1 + numbers[:, None, None].to(anchors.dtype) / 4)

    def program(encoding):
        results = yield [
            EmbeddingRequest(encoding, encoding.ids[None], points, 3),
            ScoreRequest(encoding, encoding.ids[None]),
            GradientRequest(encoding, encoding.ids[None], points, np.ones(2), lambda read: read[:, :1]),
        ]
        return results

    for budget in (16, 1024):
        engine = Engine(model, token_budget=budget)
        for encoding, (read, plain, gradients) in zip(encodings, engine.run(map(program, encodings)), strict=True):
            text = embeddings_of(model, encoding)
            for k in range(3):
                expected = at_embeddings(model, encoding, text * (1 + k / 4), mode="logits")
                np.testing.assert_allclose(read[k], expected.numpy(), atol=1e-4)
            np.testing.assert_allclose(read[0], plain[0], atol=1e-4)
            np.testing.assert_allclose(gradients.values[:, 0], read[:2, 0], atol=1e-4)
        assert engine.counters.evaluations_asked == engine.counters.evaluations_run == 6 * len(texts)


def test_a_point_without_an_answer_names_its_text(tiny_model):
    model = tiny_model()
    encoding = next(model.encode([FIVE]))

    def program():
        (read,) = yield [EmbeddingRequest(encoding, encoding.ids[None], lambda a, n: a[:1] * np.nan, 1)]
        return read

    with pytest.raises(ModelOutputError, match="text 0"):
        list(model.engine.run([program()]))
