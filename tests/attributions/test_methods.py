"""Each method against its law, brute force or an independent library; and what all methods have in common."""

from __future__ import annotations

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients

from interpreto_mlops.attributions import METHODS, AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.coalitions import plan_coalitions
from interpreto_mlops.attributions.methods.integrated_gradients import quadrature
from interpreto_mlops.errors import InputError, InterpretoError, ModelOutputError, TextWarning, UnknownNameError

EIGHT = "the food was great but service very slow"


def value(model, text_ids, present, mask_id, target):
    """The score of one coalition, straight from the model."""
    ids = torch.tensor([[i if keep else mask_id for i, keep in zip(text_ids, present, strict=True)]])
    with torch.no_grad():
        return float(model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, target])


def word_values(model, text, target):
    """The value function over words, by one model call for each coalition. One token a word in these tokenizers."""
    ids = model.tokenizer(text)["input_ids"]
    special = [i in (2, 3) for i in ids]
    n = len(ids) - sum(special)

    def v(coalition):
        places = iter(range(n))
        present = [True if s else next(places) in coalition for s in special]
        return value(model, ids, present, model.tokenizer.mask_token_id, target)

    return v, n


def shapley(v, n):
    """Shapley values by their definition."""
    phi = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
            for coalition in itertools.combinations(others, size):
                phi[i] += weight * (v({*coalition, i}) - v(set(coalition)))
    return phi


def test_occlusion_equals_brute_force(tiny_model, texts):
    model = tiny_model("bert")
    for item in Occlusion(model)(texts):
        v, n = word_values(model, item.text, item.targets[0].id)
        everyone = set(range(n))
        expected = [v(everyone) - v(everyone - {i}) for i in range(n)]
        np.testing.assert_allclose(item.scores[0], expected, rtol=1e-4, atol=1e-5)


def test_occlusion_of_words_of_several_tokens_replaces_them_together(cebab_model):
    item = Occlusion(cebab_model)(["unbelievably scrumptious minestrone"])[0]
    encoding = next(cebab_model.encode([item.text]))
    assert len(encoding) - 2 > len(item.elements) == 3
    first = encoding.elements(granularity_word()).of_token == 0
    ids = torch.tensor(np.where(first, cebab_model.tokenizer.mask_token_id, encoding.ids))[None]
    with torch.no_grad():
        without = cebab_model.model(input_ids=ids).logits[0, item.targets[0].id]
    assert item.scores[0, 0] == pytest.approx(item.output[0] - float(without), abs=1e-5)


def granularity_word():
    from interpreto_mlops.text.granularity import Granularity

    return Granularity.WORD


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_integrated_gradients_is_complete(tiny_model, texts, architecture):
    explanations = IntegratedGradients(tiny_model(architecture), n_nodes=200, rule="gauss_legendre")(texts)
    for item in explanations:
        total = item.output - item.baseline_output
        np.testing.assert_allclose(item.scores.sum(axis=1), total, rtol=1e-3, atol=1e-3)
        assert item.checks["completeness_gap"] == pytest.approx(abs(item.scores.sum(axis=1) - total).max(), abs=1e-6)


def test_integrated_gradients_adapts_its_nodes_until_it_is_complete(cebab_model, cebab_reviews):
    explanations = IntegratedGradients(cebab_model)(cebab_reviews["text"].tolist()[:40])
    nodes = {item.checks["nodes"] for item in explanations}
    assert min(nodes) == 8
    for item in explanations:
        total = abs(item.output[0] - item.baseline_output[0])
        assert item.checks["completeness_gap"] <= 0.01 * total or item.checks["nodes"] == 64


def test_integrated_gradients_is_complete_in_float64(toy):
    item = IntegratedGradients(toy("tanh"), n_nodes=32)([EIGHT])[0]
    assert item.scores.sum() == pytest.approx(float(item.output[0] - item.baseline_output[0]), abs=1e-8)


@pytest.mark.parametrize("baseline", ["replacement", "zero"])
def test_integrated_gradients_equals_captum(tiny_model, texts, baseline):
    model = tiny_model("bert")
    ours = IntegratedGradients(model, n_nodes=24, baseline=baseline)(texts)
    layer = model.model.bert.embeddings.word_embeddings

    def forward(ids, mask):
        return model.model(input_ids=ids, attention_mask=mask).logits

    for item in ours:
        ids = torch.tensor([model.tokenizer(item.text)["input_ids"]])
        special = (ids == 2) | (ids == 3)
        captum = LayerIntegratedGradients(forward, layer)
        if baseline == "zero":
            start = torch.where(special[..., None], layer(ids), 0.0).detach()
            attributions = _captum_with_embeddings(model, layer, ids, start, item.targets[0].id)
        else:
            replaced = torch.where(special, ids, model.tokenizer.mask_token_id)
            attributions = captum.attribute(
                ids,
                baselines=replaced,
                target=item.targets[0].id,
                additional_forward_args=torch.ones_like(ids),
                n_steps=24,
                method="gausslegendre",
            )
        expected = attributions.sum(-1)[~special].detach().numpy()
        np.testing.assert_allclose(item.scores[0], expected, atol=1e-4 * max(1.0, abs(expected).max()))


def _captum_with_embeddings(model, layer, ids, start, target):
    from captum.attr import IntegratedGradients as CaptumIntegratedGradients

    def forward(embeddings, mask):
        return model.model(inputs_embeds=embeddings, attention_mask=mask).logits

    return CaptumIntegratedGradients(forward).attribute(
        layer(ids).detach(),
        baselines=start,
        target=target,
        additional_forward_args=torch.ones_like(ids),
        n_steps=24,
        method="gausslegendre",
    )


@pytest.mark.parametrize("rule", ["gauss_legendre", "left", "middle", "right", "trapezoid"])
def test_quadrature_weights_sum_to_one_and_have_their_degree(rule):
    for n in (2, 8, 50):
        nodes, weights = quadrature(rule, n)
        degree = {"left": 0, "right": 0, "middle": 1, "trapezoid": 1, "gauss_legendre": 2 * n - 1}[rule]
        for power in range(min(degree, 15) + 1):
            assert (weights * nodes**power).sum() == pytest.approx(1 / (power + 1), abs=1e-12)


@pytest.mark.parametrize("n_nodes", [1, 3, 8])
@pytest.mark.parametrize("rule", ["gauss_legendre", "middle"])
def test_integrated_gradients_of_a_linear_model_does_not_depend_on_the_nodes(toy, n_nodes, rule):
    model = toy("linear")
    item = IntegratedGradients(model, n_nodes=n_nodes, rule=rule)([EIGHT])[0]
    ids = model.tokenizer(EIGHT)["input_ids"]
    sign = 1 if item.targets[0].id == 0 else -1
    expected = sign * model.embedding.weight.detach().numpy()[ids, 0]
    np.testing.assert_allclose(item.scores[0], expected, atol=1e-10)


@pytest.mark.parametrize("n", range(1, 9))
def test_kernel_shap_equals_exact_shapley_values(toy, n):
    model = toy("random", seed=n)
    text = " ".join(EIGHT.split()[:n])
    item = KernelShap(model, n_perturbations=2**n)([text])[0]
    v, players = word_values(model, text, item.targets[0].id)
    np.testing.assert_allclose(item.scores[0], shapley(v, players), atol=1e-12)
    assert item.checks["exact"] == 1 or n == 1


def test_kernel_shap_equals_exact_shapley_values_on_a_real_architecture(tiny_model):
    model = tiny_model("bert")
    for text in ("awful soup", "the food was very good , not bad"):
        item = KernelShap(model)([text])[0]
        v, n = word_values(model, text, item.targets[0].id)
        assert n <= 8
        np.testing.assert_allclose(item.scores[0], shapley(v, n), atol=1e-5 * max(1, abs(item.output[0])))


@pytest.mark.parametrize("budget", [2, 5, 12, 20, 40, 64, 100, 200, 256, 1000])
def test_kernel_shap_is_efficient_at_any_budget(toy, budget):
    item = KernelShap(toy("random"), n_perturbations=budget)([EIGHT])[0]
    assert item.scores.sum() == pytest.approx(float(item.output[0] - item.baseline_output[0]), abs=1e-10)
    assert item.checks["efficiency_gap"] < 1e-10


@pytest.mark.parametrize("budget", [30, 60, 120])
def test_kernel_shap_of_an_additive_game_is_exact_at_any_regression_budget(toy, budget):
    model = toy("linear")
    item = KernelShap(model, n_perturbations=budget)([EIGHT])[0]
    np.testing.assert_allclose(item.scores, Occlusion(model)([EIGHT])[0].scores, atol=1e-10)


def test_kernel_shap_comes_closer_with_its_budget_and_knows_its_error(toy):
    text = "the food was great but service very slow and place cold"  # 11 words
    relative, calibration = {}, []
    for budget in (50, 400):
        errors = []
        for seed in range(8):
            model = toy("random", seed=100 + seed)
            exact = KernelShap(model, n_perturbations=2**11)([text])[0].scores
            item = KernelShap(model, n_perturbations=budget, seed=seed)([text])[0]
            errors.append(np.linalg.norm(item.scores - exact) / np.linalg.norm(exact))
            if budget == 400:
                calibration.append(((item.scores - exact) ** 2).mean() / (item.standard_error**2).mean())
        relative[budget] = np.mean(errors)
    assert relative[400] < 0.5 * relative[50]
    assert 0.2 < np.mean(calibration) < 2


def test_plan_enumerates_from_the_outside_and_keeps_the_kernels_mass():
    n, budget = 11, 398
    plan = plan_coalitions(n, budget, np.random.default_rng(0))
    sizes = plan.present.sum(axis=1)
    assert len(plan.present) <= budget
    assert len({row.tobytes() for row in plan.present}) == len(plan.present), "a coalition stands twice"
    assert (plan.pair[(sizes == 1) | (sizes == n - 1)] == -1).all()
    total = sum((n - 1) / (s * (n - s)) for s in range(1, n))
    assert plan.weights.sum() == pytest.approx(total)
    for row in np.flatnonzero(plan.pair >= 0):
        mate = [j for j in np.flatnonzero(plan.pair == plan.pair[row]) if j != row]
        assert (plan.present[mate[0]] == ~plan.present[row]).all()


def test_permutations_are_used_and_recorded_below_three_evaluations_an_element(toy):
    item = KernelShap(toy("random"), n_perturbations=20)([EIGHT])[0]
    assert item.checks["permutations"] >= 2


# What all methods have in common


def all_methods():
    return [pytest.param(method, id=name) for name, method in METHODS.items()]


def signed_methods():
    return [pytest.param(method, id=name) for name, method in METHODS.items() if method.signed]


@pytest.mark.parametrize("method", all_methods())
def test_shape_and_names(tiny_model, texts, method):
    explanations = method(tiny_model())(texts)
    assert [item.text for item in explanations] == texts
    for item in explanations:
        assert item.scores.shape == (1, len(item.elements))
        assert [item.text[a:b] for a, b in item.spans] == list(item.elements)
        assert item.method == method.name
        assert np.isfinite(item.scores).all()
        assert item.targets[0].id == int(item.targets[0].name.split("_")[1])


@pytest.mark.filterwarnings("ignore:text .*completeness gap")
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("method", all_methods())
def test_a_text_alone_is_a_text_in_a_batch(tiny_model, texts, method, architecture):
    model = tiny_model(architecture)
    together = method(model)(texts)
    backwards = list(method(model)(texts[::-1]))[::-1]
    for text, a, b in zip(texts, together, backwards, strict=True):
        alone = method(model)([text])[0]
        scale = max(1.0, np.abs(alone.scores).max())
        np.testing.assert_allclose(a.scores, alone.scores, atol=1e-5 * scale)
        np.testing.assert_allclose(b.scores, alone.scores, atol=1e-5 * scale)


@pytest.mark.parametrize("budget", [1, 17, 100000])
@pytest.mark.parametrize("method", all_methods())
def test_the_token_budget_changes_nothing(tiny_model, texts, method, budget):
    reference = method(tiny_model())(texts)
    model = tiny_model()
    model.engine.token_budget = budget
    for a, b in zip(method(model)(texts), reference, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5 * max(1.0, np.abs(b.scores).max()))


@pytest.mark.parametrize("method", all_methods())
def test_same_seed_same_bytes(tiny_model, texts, method, tmp_path):
    first = method(tiny_model())(texts)
    second = method(tiny_model())(texts)
    assert first == second
    a, b = (items.save(tmp_path / str(i)) for i, items in enumerate((first, second)))
    assert (a / "attributions.parquet").read_bytes() == (b / "attributions.parquet").read_bytes()


@pytest.mark.parametrize("method", all_methods())
def test_save_and_load_are_the_identity(tiny_model, texts, method, tmp_path):
    with pytest.warns(UserWarning, match="nothing to attribute"):
        explanations = method(tiny_model())([*texts, ""], targets=[[0, 2], "LABEL_1", 0, [1], 2, 0])
    assert AttributionSet.load(explanations.save(tmp_path)) == explanations


@pytest.mark.parametrize("method", all_methods())
def test_several_targets_at_once_equal_one_by_one(tiny_model, texts, method):
    model = tiny_model()
    both = method(model)(texts, targets=[[2, 0]] * len(texts))
    for row, target in enumerate((2, 0)):
        alone = method(model)(texts, targets=target)
        for a, b in zip(both, alone, strict=True):
            # Adaptive methods may stop at another number of steps for another target.
            tolerance = 0.05 if "nodes" in a.checks else 1e-5
            np.testing.assert_allclose(a.scores[row], b.scores[0], atol=tolerance * max(1.0, np.abs(b.scores).max()))


@pytest.mark.parametrize("method", signed_methods())
def test_softmax_scores_over_all_classes_sum_to_zero(tiny_model, method):
    model = tiny_model()
    extra = {"n_nodes": 64} if method is IntegratedGradients else {}
    item = method(model, inference_mode="softmax", **extra)(["awful soup , not good"], targets=[[0, 1, 2]])[0]
    np.testing.assert_allclose(item.scores.sum(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize("method", all_methods())
def test_words_of_one_token_score_like_tokens(tiny_model, texts, method):
    model = tiny_model()
    for word, token in zip(method(model)(texts), method(model, granularity="token")(texts), strict=True):
        assert word.elements == token.elements
        np.testing.assert_allclose(word.scores, token.scores, atol=1e-9)


@pytest.mark.parametrize("method", all_methods())
def test_the_users_objects_are_left_as_they_were(tiny_model, texts, method):
    model = tiny_model("bert")
    network, tokenizer = model.model, model.tokenizer
    network.train()
    network.bert.embeddings.eval()
    for parameter in itertools.islice(network.parameters(), 3):
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    wants = [parameter.requires_grad for parameter in network.parameters()]
    config, vocabulary, backend = network.config.to_dict(), len(tokenizer), tokenizer.backend_tokenizer.to_str()
    rng = torch.get_rng_state()

    with torch.no_grad():
        in_train_mode = method(model)(texts)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == wants
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.config.to_dict() == config
    assert (len(tokenizer), tokenizer.backend_tokenizer.to_str()) == (vocabulary, backend)
    assert not any(module._forward_hooks for module in network.modules())
    reference = method(tiny_model("bert"))(texts)
    for a, b in zip(in_train_mode, reference, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6 * max(1.0, np.abs(b.scores).max()))


@pytest.mark.parametrize("method", all_methods())
def test_inference_mode_of_the_caller_does_not_matter(tiny_model, texts, method):
    model = tiny_model()
    with torch.inference_mode():
        inside = method(model)(texts)
    assert inside == method(tiny_model())(texts)


@pytest.mark.parametrize("method", all_methods())
def test_an_unknown_parameter_is_refused(tiny_model, method):
    with pytest.raises(TypeError, match="granularty"):
        method(tiny_model(), granularty="word")


@pytest.mark.parametrize("method", all_methods())
def test_every_parameter_is_documented_and_kept(tiny_model, method):
    explainer = method(tiny_model())
    names = set(inspect.signature(method).parameters) - {"model"}
    assert set(explainer.parameters) == names
    text = "".join(base.__doc__ or "" for base in method.__mro__)
    assert all(f"{name}:" in text for name in names)


@pytest.mark.parametrize("method", signed_methods())
def test_one_element_gets_everything(toy, method):
    item, removed = (each(toy("linear"))(["good"])[0] for each in (method, Occlusion))
    np.testing.assert_allclose(item.scores[0], removed.output - removed.baseline_output, atol=1e-10)


@pytest.mark.parametrize("method", all_methods())
@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_text_gives_an_empty_result_and_a_warning(tiny_model, method, text):
    for architecture in ("bert", "gpt2"):
        with pytest.warns(UserWarning, match="text 1 has nothing to attribute"):
            explanations = method(tiny_model(architecture))(["good food", text], targets=[0, 1])
        assert explanations[1].scores.shape == (1, 0)
        assert len(explanations[0]) == 2


@pytest.mark.parametrize("method", all_methods())
def test_no_texts_give_an_empty_set(tiny_model, method):
    assert len(method(tiny_model())([])) == 0


@pytest.mark.parametrize("method", all_methods())
def test_a_model_that_returns_nan_is_named_with_the_text(tiny_model, method):
    model = tiny_model()
    word = model.tokenizer.convert_tokens_to_ids("soup")
    with torch.no_grad():
        model.model.bert.embeddings.word_embeddings.weight[word] = float("nan")
    with pytest.raises(ModelOutputError, match=r"text 1 .*awful soup"):
        method(model)(["good food", "awful soup"])


@pytest.mark.parametrize("method", all_methods())
def test_a_text_that_is_too_long_is_cut_with_a_warning(tiny_model, method):
    long = "good food . " * 30
    with pytest.warns(UserWarning, match="text 0 is longer than 32 tokens"):
        item = method(tiny_model())([long], targets=0)[0]
    assert item.truncated
    assert len(item.elements) == 30
    assert item.spans.max() < len(long)


@pytest.mark.parametrize("replacement", ["mask", "pad", "unk", "remove", 7])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama"])
def test_replacements_are_the_same_alone_and_in_a_batch(tiny_model, texts, replacement, architecture):
    model = tiny_model(architecture)
    if architecture in {"gpt2", "llama"} and replacement == "remove":
        with pytest.raises(InputError, match="no bos or eos"):
            Occlusion(model, replacement=replacement)(texts)
        return
    together = Occlusion(model, replacement=replacement)(texts)
    for text, item in zip(texts, together, strict=True):
        alone = Occlusion(model, replacement=replacement)([text])[0]
        np.testing.assert_allclose(item.scores, alone.scores, atol=1e-5 * max(1.0, np.abs(alone.scores).max()))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_padding_token_as_replacement_does_not_move_the_pooled_position(tiny_model, architecture):
    """The last word replaced by the padding token: the head still reads the last position."""
    model = tiny_model(architecture)
    item = Occlusion(model, replacement="pad")(["good food soup"], targets=0)[0]
    ids = torch.tensor([model.tokenizer("good food")["input_ids"] + [0]])
    with torch.no_grad():
        hidden = model.model.base_model(input_ids=ids).last_hidden_state
        expected = float(model.model.score(hidden[0, -1])[0])
    assert item.output[0] - item.scores[0, 2] == pytest.approx(expected, abs=1e-4)


def test_a_decoder_classifier_without_padding_id_gives_the_same_as_one_by_one(tiny_model, texts):
    with_padding, without = tiny_model("gpt2"), tiny_model("gpt2")
    without.model.config.pad_token_id = None
    without.tokenizer.pad_token = None
    for method in (Occlusion, IntegratedGradients):
        for a, b in zip(method(with_padding)(texts), method(without)(texts), strict=True):
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-4 * max(1.0, np.abs(b.scores).max()))
    assert without.model.config.pad_token_id is None
    assert without.tokenizer.pad_token is None


@pytest.mark.filterwarnings("ignore:text .*completeness gap")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", all_methods())
def test_other_dtypes_work_and_are_recorded(tiny_model, method, dtype):
    model = tiny_model()
    model.model.to(dtype)
    item = method(model)(["awful soup"])[0]
    assert item.parameters["dtype"] == str(dtype).split(".")[-1]
    assert item.scores.dtype == np.float64
    assert np.isfinite(item.scores).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"granularity": "letter"}, UnknownNameError, "unknown granularity 'letter'; known: 'all_tokens', 'token'"),
        ({"inference_mode": "odds"}, UnknownNameError, "unknown inference mode 'odds'; known: 'logits'"),
        ({"replacement": "blank"}, InputError, "'auto', 'mask', 'pad', 'unk', 'remove' or a token id, not 'blank'"),
        ({"replacement": 10**6}, InputError, "not 1000000"),
    ],
)
def test_wrong_options_are_refused_before_the_model_runs(tiny_model, options, error, words):
    with pytest.raises(error, match=words):
        Occlusion(tiny_model(), **options)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (3, "there is no class 3; the model 'tiny' has 0"),
        (-1, "there is no class -1"),
        (True, "not True"),
        (0.5, "not 0.5"),
        ("nice", "unknown class 'nice'; known: 'LABEL_0'"),
        ([0, 1], "2 targets were given for 1 texts"),
        ([[]], "empty list of targets"),
    ],
)
def test_wrong_targets_are_refused(tiny_model, targets, words):
    with pytest.raises(InterpretoError, match=words):
        Occlusion(tiny_model())(["good food"], targets=targets)


def test_targets_of_all_kinds_mean_the_same(tiny_model):
    model, texts = tiny_model(), ["good food", "awful soup"]
    reference = Occlusion(model)(texts, targets=[1, 1])
    for targets in (1, "LABEL_1", np.int64(1), torch.tensor(1), [1, "LABEL_1"], np.array([1, 1]), torch.tensor([1, 1])):
        assert Occlusion(model)(texts, targets=targets) == reference


def test_one_string_instead_of_texts_is_refused(tiny_model):
    with pytest.raises(InputError, match="list of texts, not one string"):
        Occlusion(tiny_model())("good food")


def test_texts_are_read_lazily(tiny_model):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield "good food"

    stream = Occlusion(tiny_model()).stream(endless())
    for _ in range(3):
        next(stream)
    assert len(taken) < 5000


@pytest.mark.parametrize("nonsense", [{"n_nodes": 0}, {"rule": "simpson"}, {"tolerance": 0}, {"baseline": "noise"}])
def test_integrated_gradients_refuses_nonsense(tiny_model, nonsense):
    with pytest.raises(InputError):
        IntegratedGradients(tiny_model(), **nonsense)


def test_kernel_shap_refuses_a_budget_below_two(tiny_model):
    with pytest.raises(InputError, match="at least 2, not 1"):
        KernelShap(tiny_model(), n_perturbations=1)


def test_a_gap_that_stays_is_a_warning_with_the_text(tiny_model):
    model = tiny_model()
    with pytest.warns(TextWarning, match=r"text 0: completeness gap"):
        explanations = IntegratedGradients(model, tolerance=1e-12)(["awful soup , not good"], targets=0)
    assert explanations[0].checks["complete"] == 0


def test_the_baseline_that_was_used_is_recorded(tiny_model):
    model = tiny_model()
    assert IntegratedGradients(model)(["good food"])[0].parameters["baseline"] == "replacement"
    assert IntegratedGradients(model, replacement="remove")(["good food"])[0].parameters["baseline"] == "zero"
    decoder = tiny_model("gpt2")  # nothing could stand for an empty text, and the path needs none
    assert IntegratedGradients(decoder, replacement="remove")(["good food"])[0].parameters["baseline"] == "zero"


def test_a_gradient_that_is_nan_is_named_with_the_text(toy):
    model = toy("linear")

    def root(_module, _args, output):
        # The value is finite, and its slope at the baseline is not.
        output.logits = output.logits + (output.logits[:, :1] * 0).abs().sqrt()
        return output

    handle = model.model.register_forward_hook(root)
    with pytest.raises(ModelOutputError, match="the gradient for text 0 is NaN or infinite"):
        IntegratedGradients(model)(["good food"])
    handle.remove()


def test_a_row_is_shared_only_with_rows_that_the_model_sees_alike(tiny_model):
    """RoBERTa counts positions by ids: a padding token of the text's own is not one that stands for an absent word."""
    model = tiny_model("roberta")
    alone = Occlusion(model, replacement="pad")(["good food soup"], targets=0)[0]
    behind = Occlusion(model, replacement="pad")(["good [PAD] soup", "good food soup"], targets=[0, 0])[1]
    np.testing.assert_allclose(behind.scores, alone.scores, atol=1e-6)


def test_texts_are_cut_on_the_right_whatever_the_tokenizer_prefers(tiny_model):
    model = tiny_model()
    model.tokenizer.truncation_side = "left"
    with pytest.warns(TextWarning, match="was cut"):
        item = Occlusion(model)(["awful soup " + "good food " * 30], targets=0)[0]
    assert item.elements[:2] == ("awful", "soup")
    assert model.tokenizer.truncation_side == "left"


@pytest.mark.parametrize("problem", ["regression", "multi_label"])
def test_heads_of_other_kinds(tiny_model, problem):
    from interpreto_mlops.attributions.metrics import Deletion

    model = tiny_model()
    config = model.model.config
    if problem == "regression":
        config.num_labels = 1
        model.model.num_labels = 1
        model.model.classifier = torch.nn.Linear(32, 1)
        with pytest.raises(InputError, match="'softmax' is constant for the one output"):
            Occlusion(model, inference_mode="softmax")
    else:
        config.problem_type = "multi_label_classification"
    item = KernelShap(model)(["awful soup , not good"])[0]
    assert item.checks["efficiency_gap"] < 1e-5
    curve = Deletion(model)(AttributionSet([item])).curve[:, 1]
    logit = item.output[item.targets[0].id if problem == "regression" else 0]
    assert curve[0] == pytest.approx(logit if problem == "regression" else 1 / (1 + np.exp(-logit)), abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"n_perturbations": "100"}, {"n_perturbations": 2.5}, {"seed": "x"}, {"seed": True}]
)
def test_what_is_no_whole_number_is_refused(tiny_model, options):
    with pytest.raises(InputError, match="must be a whole number"):
        KernelShap(tiny_model(), **options)


def test_numpy_numbers_are_numbers(tiny_model, tmp_path):
    explanations = KernelShap(tiny_model(), n_perturbations=np.int64(64), seed=np.int32(3))(["good food"])
    assert AttributionSet.load(explanations.save(tmp_path)).parameters["seed"] == 3


def test_ngrams_are_players_of_several_words(tiny_model):
    model = tiny_model()
    item = Occlusion(model, granularity="2-grams")(["the food was great but service very slow again"])[0]
    assert item.elements == ("the food", "was great", "but service", "very slow", "again")
    v, n = word_values(model, item.text, item.targets[0].id)
    everyone = set(range(n))
    expected = [v(everyone) - v(everyone - {2 * k, 2 * k + 1}) for k in range(5)]
    np.testing.assert_allclose(item.scores[0], expected, atol=1e-5)
