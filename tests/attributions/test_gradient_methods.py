"""Gradient methods against calculus, autograd point by point, captum, and the laws that tie them together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import NoiseTunnel
from captum.attr import Saliency as CaptumSaliency
from transformers import GPT2Config, GPT2LMHeadModel

from interpreto_mlops.attributions import (
    AttributionSet,
    Attributor,
    Estimate,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    Neighbourhood,
    Noise,
    Path,
    Saliency,
    SmoothGrad,
    SquareGrad,
    VarGrad,
)
from interpreto_mlops.attributions.aggregation import Aggregation, aggregate
from interpreto_mlops.attributions.baselines import Baseline
from interpreto_mlops.attributions.gradients import Reduction, reduced
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import Granularity
from tests.conftest import word_tokenizer

EIGHT = "the food was great but service very slow"
ARCHITECTURES = ["bert", "roberta", "gpt2", "llama"]
NOISY = [SmoothGrad, SquareGrad, VarGrad]


@dataclass(frozen=True, kw_only=True)
class Probe(Attributor):
    """Shows what the engine answers to one query."""

    name = "probe"
    query: object = None

    def estimate(self, game):
        result = yield self.query(game)
        seen.append((game, result))
        return Estimate(np.zeros((len(game.full), game.n_players)))


seen: list = []


def probe(model, texts, query, targets=None, **options):
    """The engine's answers to `query(game)`, one a text."""
    seen.clear()
    Probe(model, query=query, **options)(texts, targets)
    return list(seen)


def embeddings_of(model, text):
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    return ids, model.embedding(ids).detach()


def forward_of(model, ids):
    """The logits from embeddings, with the ids in sight of the head, as decoder classifiers need them."""

    def forward(embeddings):
        with model.embeddings_replaced(embeddings):
            rows = ids.expand(len(embeddings), -1)
            return model.model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits

    return forward


def gradient_at(model, ids, point, target):
    point = point.clone().requires_grad_(True)
    return torch.autograd.grad(forward_of(model, ids)(point)[:, target].sum(), point)[0]


def special_of(ids):
    return (ids == 2) | (ids == 3)


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, np.abs(expected).max()))


# Saliency and input x gradient


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saliency_and_input_x_gradient_equal_captum(tiny_model, texts, architecture):
    model = tiny_model(architecture)
    pairs = zip(Saliency(model)(texts), InputXGradient(model)(texts), strict=True)
    for plain, product in pairs:
        ids, embeddings = embeddings_of(model, plain.text)
        inner, target = ~special_of(ids)[0], plain.targets[0].id
        forward = forward_of(model, ids)
        gradient = CaptumSaliency(forward).attribute(embeddings.requires_grad_(True), target=target, abs=False)
        close(plain.scores[0], gradient[0, inner].norm(dim=-1).detach().numpy())
        expected = CaptumInputXGradient(forward).attribute(embeddings, target=target).sum(-1)[0].detach()
        close(product.scores[0], expected[inner].numpy())
        total = product.scores.sum() + product.checks["special_tokens"]
        assert total == pytest.approx(float(expected.sum()), abs=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("method", [Saliency, InputXGradient])
def test_one_pass_a_text_gives_scores_targets_and_outputs(tiny_model, texts, method):
    model = tiny_model()
    explanations = method(model)(texts)
    assert explanations.counters["evaluations_run"] == len(texts)
    for item in explanations:
        ids, _ = embeddings_of(model, item.text)
        with torch.no_grad():
            logits = model.model(input_ids=ids).logits[0]
        assert item.targets[0].id == int(logits.argmax())
        assert item.output[0] == pytest.approx(float(logits.max()), abs=1e-4)
        assert np.isnan(item.baseline_output).all()


def test_the_special_tokens_share_is_kept_for_every_target(tiny_model):
    item = InputXGradient(tiny_model())(["awful soup"], targets=[[2, 0]])[0]
    for row, name in enumerate(("special_tokens", "special_tokens_1")):
        alone = InputXGradient(tiny_model())(["awful soup"], targets=[item.targets[row].id])[0]
        assert item.checks[name] == pytest.approx(alone.checks["special_tokens"], abs=1e-4)


@pytest.mark.parametrize("reduction", [member.value for member in Reduction])
def test_reductions_are_made_once_over_the_width(tiny_model, reduction):
    model = tiny_model()
    item = Saliency(model, reduction=reduction)(["awful soup"], targets=1)[0]
    ids, embeddings = embeddings_of(model, item.text)
    rows = gradient_at(model, ids, embeddings, 1)[0, ~special_of(ids)[0]].double().numpy()
    by_hand = {
        "sum": lambda row: sum(row),
        "l2": lambda row: sum(row**2) ** 0.5,
        "l1": lambda row: sum(abs(row)),
        "absmean": lambda row: sum(abs(row)) / len(row),
    }
    close(item.scores[0], [by_hand[reduction](row) for row in rows], 1e-5)


def test_log_softmax_gradients_weighted_by_probabilities_sum_to_zero(tiny_model):
    model = tiny_model()
    model.model.double()
    item = InputXGradient(model, inference_mode="log_softmax")(["awful soup , not good"], targets=[[0, 1, 2]])[0]
    assert np.abs(item.scores).max() > 1e-3
    np.testing.assert_allclose(np.exp(item.output) @ item.scores, 0, atol=1e-10 * np.abs(item.scores).max())


def test_opposite_logits_have_opposite_scores(toy):
    """Every signed gradient method is linear in what it explains."""
    for method in (InputXGradient, IntegratedGradients, GradientShap):
        item = method(toy("tanh"))([EIGHT], targets=[[0, 1]])[0]
        np.testing.assert_allclose(item.scores[0], -item.scores[1], atol=1e-10)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (InputXGradient, {}),
        (IntegratedGradients, {"n_nodes": 4}),
        (GradientShap, {"n_draws": 5}),
        (SmoothGrad, {"n_draws": 5, "input_x_gradient": True}),
    ],
)
def test_a_contrast_is_the_difference(tiny_model, texts, method, options):
    model = tiny_model()
    model.model.double()
    apart = method(model, **options)(texts, targets=[[2, 0]] * len(texts))
    against = method(model, **options)(texts, targets=2, contrast=0)
    for item, difference in zip(apart, against, strict=True):
        expected = item.scores[0] - item.scores[1]
        np.testing.assert_allclose(difference.scores[0], expected, atol=1e-10 * np.abs(item.scores).max())


@pytest.mark.parametrize("method", [Saliency, InputXGradient, SmoothGrad])
def test_generated_tokens_have_the_gradients_of_their_own_prefix(method):
    """All rows of the matrix come from one pass; each is what a pass of its own would give."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)).eval()
    model = TextModel(network, word_tokenizer(bos=False), name="tiny")
    options = {"noise": 0} if method is SmoothGrad else {}
    item = method(model, granularity="token", **options)(["the food was"], targets=["great but slow"])[0]
    prompt, target = (model.tokenizer(part)["input_ids"] for part in ("the food was", "great but slow"))
    for row, wanted in enumerate(target):
        prefix = torch.tensor([prompt + target[:row]])
        point = model.embedding(prefix).detach().requires_grad_(True)
        score = network(inputs_embeds=point).logits[0, -1, wanted]
        gradient = torch.autograd.grad(score, point)[0][0]
        expected = (gradient * point[0].detach()).sum(-1) if method is InputXGradient else gradient.norm(dim=-1)
        close(item.scores[row, : prefix.shape[1]], expected.numpy(), 1e-5)
        assert np.isnan(item.scores[row, prefix.shape[1] :]).all()
        assert item.output[row] == pytest.approx(float(score.detach()), abs=1e-5)


# Paths


@pytest.mark.parametrize("rule", ["gauss_legendre", "left", "right", "middle", "trapezoid"])
@pytest.mark.parametrize("baseline", ["replacement", "zero", "pad"])
def test_a_linear_game_is_explained_exactly(toy, rule, baseline):
    model = toy("linear")
    values = model.embedding.weight.detach().numpy()[model.tokenizer(EIGHT)["input_ids"], 0]
    explainers = [
        InputXGradient(model),
        IntegratedGradients(model, n_nodes=3, rule=rule, baseline=baseline),
        GradientShap(model, n_draws=3, baseline=baseline),
    ]
    for explainer in explainers:
        item = explainer([EIGHT], targets=0)[0]
        np.testing.assert_allclose(item.scores[0], values, atol=1e-10)
        assert item.scores.sum() == pytest.approx(float(item.output[0]), abs=1e-10)


def baselines_of(model):
    rng = np.random.default_rng(3)
    given = rng.normal(size=32)
    return {
        "replacement": "replacement",
        "pad": "pad",
        "zero": "zero",
        "mean": "mean",
        "vector": given,
        "tensor": torch.from_numpy(given).float().requires_grad_(True),
        "matrix": rng.normal(size=(len(model.tokenizer("awful soup , not good")["input_ids"]), 32)),
    }


def start_of(model, ids, baseline):
    """The start of the path, by hand."""
    embeddings, keep = model.embedding(ids).detach(), special_of(ids)[..., None]
    weight = model.embedding.weight.detach()
    if isinstance(baseline, str):
        rows = {"replacement": weight[model.tokenizer.mask_token_id], "pad": weight[0], "mean": weight.mean(0)}
        vector = rows.get(baseline, torch.zeros(weight.shape[1]))
    else:
        vector = torch.as_tensor(baseline).detach()
    return torch.where(keep, embeddings, vector.to(embeddings.dtype))


@pytest.mark.parametrize("kind", ["replacement", "pad", "zero", "mean", "vector", "tensor", "matrix"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_integrated_gradients_of_every_baseline_equals_captum(tiny_model, architecture, kind):
    model = tiny_model(architecture)
    baseline = baselines_of(model)[kind]
    item = IntegratedGradients(model, n_nodes=12, baseline=baseline)(["awful soup , not good"], targets=1)[0]
    ids, embeddings = embeddings_of(model, item.text)
    start, forward = start_of(model, ids, baseline), forward_of(model, ids)
    expected = CaptumIntegratedGradients(forward).attribute(
        embeddings, baselines=start, target=1, n_steps=12, method="gausslegendre"
    )
    close(item.scores[0], expected.sum(-1)[~special_of(ids)].detach().numpy())
    with torch.no_grad():
        assert item.baseline_output[0] == pytest.approx(float(forward(start)[0, 1]), abs=1e-3)


@pytest.mark.parametrize("method", [IntegratedGradients, GradientShap])
def test_several_baselines_are_averaged(tiny_model, method):
    model = tiny_model()
    several = ["replacement", "zero", np.ones(32)]
    options = {"n_nodes": 16} if method is IntegratedGradients else {"n_draws": 300}
    item = method(model, baseline=several, **options)(["awful soup"], targets=0)[0]
    alone = [method(model, baseline=each, **options)(["awful soup"], targets=0)[0] for each in several]
    tolerance = 1e-4 if method is IntegratedGradients else 0.05
    close(item.scores, np.mean([each.scores for each in alone], axis=0), tolerance)
    close(item.baseline_output, np.mean([each.baseline_output for each in alone], axis=0))
    names = [each if isinstance(each, str) else each["name"] for each in item.parameters["baseline"]]
    assert names == ["replacement", "zero", "given"]


@pytest.mark.parametrize("method", [IntegratedGradients, GradientShap])
def test_the_reported_gap_is_the_gap(tiny_model, texts, method):
    options = {"n_nodes": 5} if method is IntegratedGradients else {"n_draws": 20}
    for baseline in ("replacement", "zero", "mean"):
        for item in method(tiny_model(), baseline=baseline, **options)(texts):
            gap = abs(item.scores.sum() - (item.output[0] - item.baseline_output[0]))
            assert item.checks["completeness_gap"] == pytest.approx(gap, abs=1e-4)


def test_the_gap_does_not_depend_on_reduction_and_aggregation(tiny_model):
    checks = [
        IntegratedGradients(tiny_model(), n_nodes=5, reduction=r, aggregation=a)(["awful soup"])[0].checks
        for r, a in (("sum", "sum"), ("l1", "max"))
    ]
    assert checks[0] == checks[1]


def test_gradient_shap_converges_to_integrated_gradients(toy):
    model = toy("tanh")
    exact = IntegratedGradients(model, n_nodes=64)([EIGHT])[0].scores
    errors = [
        np.abs(GradientShap(model, n_draws=draws)([EIGHT])[0].scores - exact).max() / np.abs(exact).max()
        for draws in (10, 1000)
    ]
    assert errors[1] < 1e-3
    assert errors[1] < errors[0] / 30, "stratified draws converge faster than 1 / sqrt(draws)"


def test_gradient_shap_takes_one_draw_of_each_stratum(toy):
    """The gradient of a square is its point, so the integral shows where the points were."""
    model = toy("tanh")
    rng = next(model.encode([EIGHT]))
    nodes = (np.arange(50) + np.random.default_rng(rng.seed(0)).random(50)) / 50
    item = GradientShap(model)([EIGHT], targets=0)[0]
    s = model.embedding.weight.detach().numpy()[rng.ids, 0]
    slope = np.mean([1 - np.tanh(t * s.sum()) ** 2 for t in nodes])
    np.testing.assert_allclose(item.scores[0], s * slope + 2 * s**2 * nodes.mean(), atol=1e-10)


def test_noise_of_gradient_shap_is_on_the_text(toy):
    model = toy("tanh")
    encoding = next(model.encode([EIGHT]))
    rng = np.random.default_rng(encoding.seed(5))
    nodes = (np.arange(40) + rng.random(40)) / 40
    text = torch.from_numpy(model.embedding.weight.detach().numpy()[encoding.ids])
    drawn = Noise.seeded(0.2, 40, rng).draw(text, np.ones(8, bool), torch.arange(40))
    e, points = text[:, 0].numpy(), nodes[:, None] * (text + drawn)[..., 0].numpy()
    expected = e * ((1 - np.tanh(points.sum(1, keepdims=True)) ** 2) + 2 * points).mean(0)
    item = GradientShap(model, n_draws=40, noise=0.2, seed=5)([EIGHT], targets=0)[0]
    np.testing.assert_allclose(item.scores[0], expected, atol=1e-10)


def test_remove_has_the_zero_baseline_and_says_so(tiny_model):
    for method in (IntegratedGradients, GradientShap):
        removed = method(tiny_model(), replacement="remove")(["awful soup"])[0]
        assert removed.parameters["baseline"] == "zero"
        assert np.array_equal(removed.scores, method(tiny_model(), baseline="zero")(["awful soup"])[0].scores)


def test_a_given_baseline_is_recorded_by_shape_and_digest(tiny_model, tmp_path):
    model, vector = tiny_model(), np.linspace(-1, 1, 32)
    explainer = IntegratedGradients(model, baseline=["zero", vector])
    zero, given = explainer.parameters["baseline"]
    assert (zero, given["name"], given["shape"]) == ("zero", "given", [32])
    other = IntegratedGradients(model, baseline=vector + 1e-9).parameters["baseline"]
    assert other["digest"] != given["digest"]
    assert IntegratedGradients(model, baseline=torch.from_numpy(vector)).parameters["baseline"] == given
    explanations = explainer(["awful soup"])
    assert AttributionSet.load(explanations.save(tmp_path)) == explanations


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ("noise", "unknown baseline 'noise'; known: 'replacement', 'pad', 'zero', 'mean'"),
        (["zero", "one"], "unknown baseline 'one'"),
        ([], "empty"),
        (3, "not 3"),
        ([0.1, 0.2], "not 0.1"),
        (np.zeros(7), r"shape \(32,\) or \(tokens, 32\), not \(7,\)"),
        (np.zeros((1, 2, 32)), r"not \(1, 2, 32\)"),
        (np.full(32, np.nan), "finite"),
        (np.array(["x"] * 32), "array of numbers"),
    ],
)
@pytest.mark.parametrize("method", [IntegratedGradients, GradientShap])
def test_wrong_baselines_are_refused_before_the_model_runs(tiny_model, method, baseline, words):
    with pytest.raises(InputError, match=words):
        method(tiny_model(), baseline=baseline)


def test_a_pad_baseline_needs_a_pad_token(tiny_model):
    model = tiny_model()
    model.tokenizer.pad_token = None
    with pytest.raises(InputError, match="no pad token"):
        IntegratedGradients(model, baseline="pad")


def test_a_matrix_of_another_length_than_the_text_is_refused_with_its_index(tiny_model):
    with pytest.raises(InputError, match="baseline has 4 rows, but text 1 has 5 tokens"):
        IntegratedGradients(tiny_model(), baseline=np.zeros((4, 32)))(["awful soup", "awful cold soup"])


def test_points_are_made_in_float32_for_a_model_in_half_precision(tiny_model):
    anchors = torch.randn(2, 5, 8, dtype=torch.bfloat16)
    path = Path(np.array([0.3, 0.0]), np.array([1.0, 0.0]), Baseline("replacement", token=4))
    (game, _), *_ = probe(tiny_model(), ["awful cold soup"], lambda game: Neighbourhood())
    points = path.request(game, lambda read: read).points(anchors, torch.tensor([0, 1]))
    wide = anchors.float()
    assert points.dtype == torch.float32
    torch.testing.assert_close(points[0], wide[1] + 0.3 * (wide[0] - wide[1]))
    assert torch.equal(points[1], wide[1])


# Noise


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_square_grad_is_smooth_grad_squared_plus_var_grad_in_every_component(tiny_model, texts, architecture):
    model = tiny_model(architecture)
    model.model.double()
    model.engine.token_budget = 70  # many small batches
    query = lambda game: Neighbourhood(  # noqa: E731
        20, Noise.seeded(0.1, 20, game.generator(0)), powers=(1, 2), variance=True
    )
    for _, result in probe(model, texts, query):
        mean, square = result.moments
        np.testing.assert_allclose(square, mean**2 + result.variance, rtol=1e-12, atol=1e-12 * square.max())
        assert (result.variance >= 0).all()


def test_square_grad_is_smooth_grad_squared_plus_var_grad(toy):
    smooth, square, var = (method(toy("tanh"), reduction="sum")([EIGHT])[0].scores for method in NOISY)
    np.testing.assert_allclose(square, smooth**2 + var, rtol=1e-12)


def test_without_noise_smooth_grad_is_the_gradient_and_var_grad_is_nothing(tiny_model, texts):
    smooth, square, var = (method(tiny_model(), noise=0)(texts) for method in NOISY)
    plain = Saliency(tiny_model())(texts)
    for s, q, v, g in zip(smooth, square, var, plain, strict=True):
        assert np.array_equal(s.scores, g.scores)
        np.testing.assert_allclose(q.scores, g.scores**2, rtol=1e-12)
        assert (v.scores == 0).all()


def test_one_draw_has_no_variance(tiny_model, texts):
    assert all((item.scores == 0).all() for item in VarGrad(tiny_model(), n_draws=1)(texts))


@pytest.mark.parametrize("level", [0.1, 1e-7])
def test_the_variance_is_right_however_small_it_is_beside_the_mean(toy, level):
    """Mean of squares minus square of the mean would be rounding alone at the smaller level."""
    model = toy("tanh")
    encoding = next(model.encode([EIGHT]))
    text = torch.from_numpy(model.embedding.weight.detach().numpy()[encoding.ids])
    noise = Noise.seeded(level, 50, np.random.default_rng(encoding.seed(0)))
    points = (text + noise.draw(text, np.ones(8, bool), torch.arange(50)))[..., 0].numpy()
    gradients = 1 - np.tanh(points.sum(1, keepdims=True)) ** 2 + 2 * points
    model.engine.token_budget = 30
    for method, expected in zip(NOISY, (gradients.mean(0), (gradients**2).mean(0), gradients.var(0)), strict=True):
        item = method(model, noise=level, reduction="sum")([EIGHT], targets=0)[0]
        np.testing.assert_allclose(item.scores[0], expected, rtol=1e-6)


@pytest.mark.parametrize("method", NOISY)
def test_input_x_gradient_multiplies_by_the_unperturbed_embeddings(tiny_model, method):
    model = tiny_model()
    moments = {"powers": (1, 2), "variance": True}
    query = lambda game: Neighbourhood(9, Noise.seeded(0.1, 9, game.generator(4)), **moments)  # noqa: E731
    ((game, result),) = probe(model, ["awful soup"], query, targets=0)
    item = method(model, n_draws=9, seed=4, input_x_gradient=True)(["awful soup"], targets=0)[0]
    e = result.anchors[0]
    mean, square = result.moments[:, 0]
    expected = {SmoothGrad: mean * e, SquareGrad: square * e**2, VarGrad: result.variance[0] * e**2}[method]
    close(item.scores[0], expected.sum(-1)[game.movable], 1e-6)
    assert item.parameters["reduction"] == "sum"


def test_the_default_reduction_of_smooth_grad_is_recorded(tiny_model):
    assert SmoothGrad(tiny_model())(["good"])[0].parameters["reduction"] == "l2"
    assert SmoothGrad(tiny_model(), reduction="l1", input_x_gradient=True)(["good"])[0].parameters["reduction"] == "l1"


@pytest.mark.parametrize(
    ("method", "kind"), [(SmoothGrad, "smoothgrad"), (SquareGrad, "smoothgrad_sq"), (VarGrad, "vargrad")]
)
def test_noise_methods_agree_with_captum_up_to_chance(toy, method, kind):
    model = toy("tanh")
    _, embeddings = embeddings_of(model, EIGHT)
    level = 0.2
    spread = level * float(embeddings.max() - embeddings.min())

    def forward(points):
        s = points[..., 0]
        return torch.tanh(s.sum(-1)) + (s**2).sum(-1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tunnel = NoiseTunnel(CaptumSaliency(forward))
        expected = tunnel.attribute(embeddings, nt_type=kind, nt_samples=4000, stdevs=spread, abs=False)
    item = method(model, n_draws=4000, noise=level, reduction="sum")([EIGHT], targets=0)[0]
    close(item.scores[0], expected[0, :, 0].detach().numpy(), 0.1)


def test_noise_is_on_the_elements_alone_and_has_its_level(tiny_model):
    def query(game):
        return Neighbourhood(400, Noise.seeded(0.3, 400, game.generator(0)))

    ((game, result),) = probe(tiny_model(), ["awful soup"], query)
    request = query(game).request(game, lambda read: read)
    anchors = torch.from_numpy(result.anchors)
    noise = request.points(anchors, torch.arange(400)) - anchors[0]
    assert (noise[:, ~torch.from_numpy(game.movable)] == 0).all()
    inner = noise[:, torch.from_numpy(game.movable)]
    scale = 0.3 * float(anchors[0].max() - anchors[0].min())
    assert float(inner.std()) == pytest.approx(scale, rel=0.02)
    assert float(inner.mean()) == pytest.approx(0, abs=0.02 * scale)
    assert len({float(each) for each in noise[:, 1, 0]}) == 400, "every point has its own noise"
    single = torch.cat([request.points(anchors, torch.tensor([k])) for k in (7, 3)])
    assert torch.equal(single, request.points(anchors, torch.tensor([7, 3]))), "whatever the company"


@pytest.mark.parametrize("method", NOISY)
def test_seeds_matter_and_the_place_of_the_text_does_not(tiny_model, method):
    model = tiny_model()
    first = method(model, n_draws=4)(["awful soup", "good food"], targets=0)
    turned = method(model, n_draws=4)(["good food", "awful soup"], targets=0)
    other = method(model, n_draws=4, seed=1)(["awful soup"], targets=0)
    np.testing.assert_allclose(first[0].scores, turned[1].scores, rtol=1e-4)
    assert np.abs(first[0].scores - other[0].scores).max() > 1e-3 * np.abs(first[0].scores).max()


# Words of several tokens, options, the state of the model


@pytest.mark.parametrize("method", [Saliency, InputXGradient, IntegratedGradients, SmoothGrad])
@pytest.mark.parametrize("how", [member.value for member in Aggregation])
def test_word_scores_are_aggregated_token_scores(cebab_model, method, how):
    text = "unbelievably scrumptious minestrone"
    options = {"n_nodes": 8} if method is IntegratedGradients else {"n_draws": 3} if method is SmoothGrad else {}
    words = method(cebab_model, aggregation=how, **options)([text], targets=0)[0]
    tokens = method(cebab_model, granularity="token", **options)([text], targets=0)[0]
    of_token = next(cebab_model.encode([text])).elements(Granularity.WORD).of_token
    of_token = of_token[of_token >= 0]
    assert len(of_token) > len(words.elements) == 3
    close(words.scores, aggregate(tokens.scores, of_token, 3, Aggregation.parse(how)), 1e-6)
    if how == "sum":
        close(words.scores.sum(), tokens.scores.sum(), 1e-6)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (Saliency, {"reduction": "mean"}, "unknown reduction 'mean'; known: 'sum', 'l2', 'l1', 'absmean'"),
        (InputXGradient, {"aggregation": "median"}, "unknown aggregation 'median'; known: 'sum', 'mean'"),
        (SmoothGrad, {"n_draws": 0}, "n_draws must be a whole number of at least 1, not 0"),
        (VarGrad, {"noise": -0.1}, "noise must be a finite number of at least 0, not -0.1"),
        (SquareGrad, {"noise": float("nan")}, "not nan"),
        (SquareGrad, {"noise": True}, "not True"),
        (GradientShap, {"noise": "0.1"}, "not '0.1'"),
        (SmoothGrad, {"input_x_gradient": 1}, "must be True or False, not 1"),
        (GradientShap, {"n_draws": 1, "baseline": ["zero", "mean"]}, "at least the number of baselines, 2, not 1"),
    ],
)
def test_wrong_options_are_refused(tiny_model, method, options, words):
    with pytest.raises((InputError, UnknownNameError), match=words):
        method(tiny_model(), **options)


@pytest.mark.parametrize("method", [Saliency, GradientShap, VarGrad])
def test_gradients_that_parameters_hold_are_not_touched(tiny_model, texts, method):
    model = tiny_model()
    held = {}
    for name, parameter in model.model.named_parameters():
        parameter.grad = held[name] = torch.ones_like(parameter)
    method(model)(texts)
    for name, parameter in model.model.named_parameters():
        assert parameter.grad is held[name]
        assert (parameter.grad == 1).all()


@pytest.mark.parametrize("method", [Saliency, InputXGradient, SmoothGrad])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_near_single_precision(tiny_model, method, dtype):
    model = tiny_model()
    for parameter in model.model.parameters():
        parameter.data /= 3 if parameter.dim() > 1 else 1  # so steep that half precision is far off, otherwise
    single = method(model)(["awful soup , not good"], targets=0)[0].scores[0]
    model.model.to(dtype)
    half = method(model)(["awful soup , not good"], targets=0)[0].scores[0]
    assert np.abs(half - single).max() < 0.1 * np.abs(single).max()


@pytest.mark.parametrize(
    "method", [Saliency, InputXGradient, IntegratedGradients, GradientShap, SmoothGrad, SquareGrad, VarGrad]
)
def test_a_constant_model_gives_zeros(toy, method):
    model = toy("random")
    model.model.table.fill_(1.5)
    item = method(model)([EIGHT])[0]
    assert (item.scores == 0).all()
    assert all(np.isfinite(value) for value in item.checks.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", [Saliency, InputXGradient, GradientShap, VarGrad])
def test_a_caller_without_gradients_frozen_parameters_and_train_mode_change_nothing(tiny_model, architecture, method):
    reference = method(tiny_model(architecture))(["awful soup"])
    model = tiny_model(architecture)
    model.model.train().requires_grad_(False)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = method(model)(["awful soup"])
        np.testing.assert_allclose(found[0].scores, reference[0].scores, rtol=1e-6)
    assert all(module.training for module in model.model.modules())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_reduced_keeps_leading_axes():
    assert reduced(np.ones((2, 3, 4)), Reduction.L1).tolist() == [[4.0] * 3] * 2


def test_a_parameter_that_was_loaded_under_inference_mode_is_left_alone(tiny_model):
    """Hooks that bring offloaded weights in leave such parameters behind; their flags cannot be put back."""
    model = tiny_model()
    layer = model.model.classifier
    with torch.inference_mode():
        layer.weight = torch.nn.Parameter(layer.weight.clone())
    assert layer.weight.is_inference()
    with model.frozen():
        assert not layer.bias.requires_grad
        assert layer.weight.requires_grad
    assert layer.bias.requires_grad
