"""Relevance propagation: conservation, propagation by hand, and a model that is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.relevance import RULES, proportional, relevance_rules
from tests.models.architectures import DECODERS, ENCODERS, padded_batch, random_model


def relevance(model, batch, rule, target=lambda logits: logits[:, 0].sum(), **options):
    """Input times gradient for each token, and the score, by one forward and one backward pass."""
    embedding = model.get_input_embeddings()
    kept = []

    def replace(_, __, output):
        kept.append(output.detach().requires_grad_(True))
        return kept[0]

    handle = embedding.register_forward_hook(replace)
    try:
        with relevance_rules(model, rule):
            logits = model(**batch, **options).logits
    finally:
        handle.remove()
    score = target(logits)
    (gradient,) = torch.autograd.grad(score, kept[0])
    return (kept[0] * gradient).sum(-1).detach(), score.detach()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("name", "head"),
    [
        *((name, "classifier") for name in (*ENCODERS, *DECODERS, "deberta", "t5", "bart")),
        *((name, "causal") for name in DECODERS),
        *((name, "seq2seq") for name in ("t5", "bart")),
    ],
)
def test_the_forward_pass_is_unchanged_and_the_model_restored(name, head, rule):
    model = random_model(name, head)
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    batch = padded_batch()
    if name in {"t5", "bart"}:
        batch["input_ids"][:, 1] = 3
        if head == "seq2seq":
            batch["decoder_input_ids"] = torch.tensor([[2, 9, 8]] * 3)
    before = [dict(vars(module)) for module in model.modules()]
    hooks = [[len(m._forward_hooks), len(m._forward_pre_hooks)] for m in model.modules()]
    config = dict(vars(model.config))
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        expected = model(**batch).logits
    with relevance_rules(model, rule):
        changed = model(**batch).logits
        assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(changed, expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(KeyError, match="stop"), relevance_rules(model, rule):
        raise KeyError("stop")
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert [[len(m._forward_hooks), len(m._forward_pre_hooks)] for m in model.modules()] == hooks
    assert [dict(vars(module)) for module in model.modules()] == before
    assert dict(vars(model.config)) == config
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS, "deberta", "t5", "bart"])
def test_values_are_unchanged_while_gradients_flow(name, rule):
    model = random_model(name)
    batch = padded_batch()
    batch["input_ids"][:, 1] = 3 if name in {"t5", "bart"} else 9
    target = lambda logits: logits[:, 0].sum()  # noqa: E731
    with torch.no_grad():
        expected = target(model(**batch).logits)
    if name in {"t5", "bart"}:
        model.get_input_embeddings = model.get_encoder().get_input_embeddings
    scores, score = relevance(model, batch, rule)
    torch.testing.assert_close(score, expected, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(scores).all()
    assert (scores[~batch["attention_mask"].bool()] == 0).all()
    assert scores.abs().max() > 1e-4


@pytest.mark.parametrize("head", ["classifier", "causal"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma"])
def test_cp_lrp_conserves_the_score_of_a_decoder_without_biases(name, head):
    """Sum of relevance = logit, and the plain gradient and AttnLRP's softmax do not conserve it."""
    model = random_model(name, head)
    batch = {"input_ids": padded_batch()["input_ids"][:1]}
    target = (lambda logits: logits[0, 1]) if head == "classifier" else (lambda logits: logits[0, -1, 17])
    scores, score = relevance(model, batch, "cp_lrp", target)
    assert abs(float(score)) > 1e-2
    assert float(scores.sum()) == pytest.approx(float(score), abs=1e-4 * max(1.0, abs(float(score))))
    other, _ = relevance(model, batch, "attn_lrp", target)
    assert abs(float(other.sum() - score)) > 1e-3


def test_cp_lrp_conserves_the_score_of_a_trained_model(shared):
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260K" / "hf").eval()
    batch = {"input_ids": torch.tensor([[1, 403, 407, 261, 378, 432, 316]])}
    scores, score = relevance(model, batch, "cp_lrp", lambda logits: logits[0, -1].max())
    assert float(scores.sum()) == pytest.approx(float(score), abs=1e-4 * abs(float(score)))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("rule", RULES)
def test_eager_attention_gives_the_same_relevance(name, rule):
    """There every product and the softmax is a function of its own, so the quarters come about by two halves."""
    model = random_model(name)
    batch = {"input_ids": padded_batch()["input_ids"][:1]}
    fused, _ = relevance(model, batch, rule)
    model.set_attn_implementation("eager")
    single, _ = relevance(model, batch, rule)
    torch.testing.assert_close(fused, single, atol=1e-5 * float(fused.abs().max()), rtol=0)


class Small(torch.nn.Module):
    """Something to run under the rules, that looks like a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.config = type("Config", (), {"_attn_implementation": "sdpa"})()

    def forward(self, *inputs):
        return self.function(*inputs)


def small_relevance(function, rule, *inputs):
    leaves = [each.detach().requires_grad_(True) for each in inputs]
    with relevance_rules(Small(function), rule):
        output = function(*leaves)
    gradients = torch.autograd.grad(output.sum(), leaves)
    return [(leaf * gradient).detach().numpy() for leaf, gradient in zip(leaves, gradients, strict=True)]


def linear_backwards(inputs, weights, outputs_relevance):
    """R_i = sum_j x_i w_ji / z_j R_j, with z = W x: the rule of linear layers, one number at a time."""
    z = weights @ inputs
    result = np.zeros_like(inputs)
    for i in range(len(inputs)):
        for j in range(len(z)):
            result[i] += inputs[i] * weights[j, i] / z[j] * outputs_relevance[j]
    return result


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "silu", "relu", "tanh", "quick_gelu", "gelu_pytorch_tanh"])
def test_a_perceptron_by_hand(activation):
    """An activation hands relevance through unchanged."""
    rng = np.random.default_rng(0)
    first, last, x = rng.normal(size=(5, 4)), rng.normal(size=(1, 5)), rng.normal(size=4)
    module = ACT2FN[activation]
    hidden = module(torch.from_numpy(first @ x)).numpy()
    by_hand = linear_backwards(x, first, linear_backwards(hidden, last, last @ hidden))

    class Perceptron(Small):
        def __init__(self):
            super().__init__(None)
            self.act = ACT2FN[activation]

        def forward(self, inputs):
            return functional.linear(
                self.act(functional.linear(inputs, torch.from_numpy(first))), torch.from_numpy(last)
            )

    leaf = torch.from_numpy(x).requires_grad_(True)
    network = Perceptron()
    with relevance_rules(network, "attn_lrp"):
        (output,) = network(leaf)
    (gradient,) = torch.autograd.grad(output, leaf)
    np.testing.assert_allclose((leaf * gradient).detach().numpy(), by_hand, rtol=1e-9)
    assert by_hand.sum() == pytest.approx(output.item(), rel=1e-9)


def attention_by_hand(query, key, value, relevance_out):
    """One head of attention by the rules of AttnLRP's paper, one number at a time, without epsilon.

    Products (their equation 12): each factor gets half of R · its share; softmax (equation 10): x_i (R_i - s_i sum R).
    """
    tokens, width = query.shape
    scores = query @ key.T / np.sqrt(width)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    outputs = weights @ value
    of_weights, of_value = np.zeros_like(weights), np.zeros_like(value)
    for j in range(tokens):
        for i in range(tokens):
            for p in range(width):
                part = weights[j, i] * value[i, p] * relevance_out[j, p] / (2 * outputs[j, p])
                of_weights[j, i] += part
                of_value[i, p] += part
    of_scores = scores * (of_weights - weights * of_weights.sum(-1, keepdims=True))
    of_query, of_key = np.zeros_like(query), np.zeros_like(key)
    for j in range(tokens):
        for i in range(tokens):
            for p in range(width):
                part = query[j, p] * key[i, p] / np.sqrt(width) * of_scores[j, i] / (2 * scores[j, i])
                of_query[j, p] += part
                of_key[i, p] += part
    return of_query, of_key, of_value


def test_attention_by_hand():
    rng = np.random.default_rng(1)
    query, key, value = rng.normal(size=(3, 4, 5))
    tensors = [torch.from_numpy(each)[None, None] for each in (query, key, value)]
    outputs = functional.scaled_dot_product_attention(*tensors)[0, 0].numpy()
    by_hand = attention_by_hand(query, key, value, outputs)
    ours = small_relevance(functional.scaled_dot_product_attention, "attn_lrp", *tensors)
    for mine, theirs in zip(ours, by_hand, strict=True):
        np.testing.assert_allclose(mine[0, 0], theirs, rtol=1e-9)


def test_attention_weights_are_constants_in_cp_lrp():
    rng = np.random.default_rng(2)
    query, key, value = (torch.from_numpy(each)[None, None] for each in rng.normal(size=(3, 4, 5)))
    plain = functional.scaled_dot_product_attention(query, key, value)

    def with_sum(q, k, v):
        return functional.scaled_dot_product_attention(q, k, v) + 0 * (q.sum() + k.sum())

    of_query, of_key, of_value = small_relevance(with_sum, "cp_lrp", query, key, value)
    assert not of_query.any()
    assert not of_key.any()
    assert of_value.sum() == pytest.approx(float(plain.sum()), rel=1e-9)


def test_a_gate_and_what_it_gates_get_half_each():
    gate, up = torch.tensor([1.5, -0.3]), torch.tensor([2.0, 0.7])
    product = (functional.silu(gate) * up).numpy()
    of_gate, of_up = small_relevance(lambda g, u: functional.silu(g) * u, "attn_lrp", gate, up)
    np.testing.assert_allclose(of_gate, product / 2, rtol=1e-6)
    np.testing.assert_allclose(of_up, product / 2, rtol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_norm_by_hand(bias):
    """Linear in what it centres: R_i = x_i sum_j w_j (d_ij - 1/n) / deviation · (R_j / y_j)."""
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(6, bias=bias, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(6, dtype=torch.float64)
    (ours,) = small_relevance(norm, "attn_lrp", x)
    deviation = np.sqrt(float(x.var(correction=0)) + norm.eps)
    jacobian = (norm.weight.detach().numpy()[:, None] * (np.eye(6) - 1 / 6)) / deviation
    np.testing.assert_allclose(ours, x.numpy() * jacobian.sum(0), rtol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gemma", "t5"])
def test_an_rms_norm_by_hand(name):
    """R = x w / deviation · gradient, where Gemma's w is 1 + weight; also at x = 0."""
    model = random_model(name)
    norm = next(m for m in model.modules() if type(m).__name__ in {"LlamaRMSNorm", "GemmaRMSNorm", "T5LayerNorm"})
    weight = norm.weight.detach() + (1 if name == "gemma" else 0)
    x = torch.randn(32)
    x[3] = 0.0

    class Normed(Small):
        def __init__(self):
            super().__init__(None)
            self.norm = norm

    leaf = x.clone().requires_grad_(True)
    with relevance_rules(Normed(), "attn_lrp"):
        output = norm(leaf)
    (gradient,) = torch.autograd.grad(output.sum(), leaf)
    torch.testing.assert_close(gradient, weight / (x.square().mean() + 1e-6).sqrt(), rtol=1e-4, atol=1e-5)


def test_an_input_of_zero_keeps_the_slope_of_the_function():
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(proportional(x, functional.gelu(x)).sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([0.5, float(functional.gelu(torch.tensor(1.0)))]))


def test_a_product_with_a_parameter_is_no_product_of_two_inputs():
    scale = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    module = Small(lambda x: x * scale.exp())
    module.scale = scale
    leaf = torch.tensor([1.0, -1.0], requires_grad=True)
    with relevance_rules(module, "attn_lrp"):
        output = module(leaf)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), leaf)[0], scale.detach().exp())


def test_what_has_no_rule_is_refused():
    with pytest.raises(UnknownNameError, match="unknown relevance rule 'lrp'; known: 'attn_lrp', 'cp_lrp'"):
        relevance(random_model("bert"), padded_batch(), "lrp")
    with pytest.raises(InputError, match="no rule for the norm 'CohereLayerNorm'"):
        relevance(random_model("cohere", "causal"), padded_batch(), "attn_lrp")
    for function, name in ((lambda x: x**2, "pow"), (lambda x: 1 / x, "div|reciprocal"), (torch.exp, "exp")):
        with pytest.raises(InputError, match=f"no rule for '.*({name})"):
            small_relevance(function, "attn_lrp", torch.tensor([2.0]))
    with pytest.raises(InputError, match=r"no rule for .*div"):
        small_relevance(lambda x, y: x / y, "attn_lrp", torch.tensor([2.0]), torch.tensor([3.0]))
    np.testing.assert_allclose(small_relevance(lambda x: x / torch.tensor([2.0]), "attn_lrp", torch.ones(1)), [[0.5]])
