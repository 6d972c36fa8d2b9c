"""Rollout, RFEM and value zeroing against slow explicit versions on eager attention; AttnLRP through the frame."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification

from interpreto_mlops.attributions import AttentionRollout, AttnLrp, Occlusion, Rfem, ValueZeroing
from interpreto_mlops.attributions.attention import reading_rows
from interpreto_mlops.attributions.game import Game
from interpreto_mlops.attributions.methods.attention_rollout import rollout
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.objectives import InferenceMode
from interpreto_mlops.models.questions import ClassQuestion
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.targets import questions
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer
from tests.models.architectures import DECODERS, ENCODERS, random_model

CONTRIBUTIONS = (AttentionRollout, Rfem, ValueZeroing)
METHODS = (*CONTRIBUTIONS, AttnLrp)
NAMES = ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen3", "gemma", "gemma3")


def text_model(name, **changes):
    return TextModel(random_model(name, **changes), word_tokenizer(bos=name in ENCODERS), name=name)


def eager_attention(model, text):
    """Attention of every layer, shape (layers, heads, tokens, tokens), as transformers returns it."""
    twin = copy.deepcopy(model.model)
    twin.set_attn_implementation("eager")
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        attentions = twin(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True).attentions
    return torch.stack(attentions)[:, 0].double().numpy()


def row_read(model, n_tokens):
    return n_tokens - 1 if model.model.config.model_type.split("_")[0] in DECODERS else 0


def special_tokens(model, text):
    return np.asarray(model.tokenizer(text, return_special_tokens_mask=True)["special_tokens_mask"], dtype=bool)


# Rollout


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_rollout_by_paths(alpha):
    """An entry is the sum over all paths through the layers, of the product of the steps' weights."""
    layers = np.random.default_rng(0).dirichlet(np.ones(4), size=(3, 4))
    mixed = (1 - alpha) * layers + alpha * np.eye(4)
    paths = np.einsum("kj,jm,mi->ki", mixed[2], mixed[1], mixed[0])
    ours = rollout(layers, alpha)
    np.testing.assert_allclose(ours, paths, atol=1e-12)
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-12)
    if alpha == 1:
        np.testing.assert_array_equal(ours, np.eye(4))
    batch = rollout(np.stack([layers, layers[::-1]], axis=1), alpha)
    np.testing.assert_allclose(batch[0], ours)


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_rollout_equals_rollout_of_eager_attention(name, texts):
    model = text_model(name)
    for item in AttentionRollout(model, granularity="token")(texts):
        expected = rollout(eager_attention(model, item.text).mean(1))
        np.testing.assert_allclose(AttentionRollout(model).matrix(item.text), expected, atol=1e-6)
        row = expected[row_read(model, len(expected))]
        special = special_tokens(model, item.text)
        if name in DECODERS:
            assert item.checks["sink_share"] == pytest.approx(row[0], abs=1e-6)
            row[0] = 0
        np.testing.assert_allclose(item.scores[0], row[~special], atol=1e-6)
        total = item.scores.sum() + row[special].sum() + item.checks.get("sink_share", 0)
        assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_rollout_with_alpha_one_is_the_identity(name, texts):
    matrix = AttentionRollout(text_model(name), alpha=1).matrix(texts[0])
    np.testing.assert_array_equal(matrix, np.eye(len(matrix)))


# RFEM


def rfem_by_loops(attention, excluded, k, row):
    """RFEM of one text, one head and one token at a time."""
    layers, heads, tokens, _ = attention.shape
    scores = np.zeros(tokens)
    for head in range(heads):
        product = np.eye(tokens)
        for layer in range(layers):
            step = attention[layer, head] + np.eye(tokens)
            step /= step.sum(axis=1, keepdims=True)
            product = step @ product
        entries = [product[i, j] for i in range(tokens) for j in range(tokens) if not excluded[j]]
        threshold = np.mean(entries) + k * np.std(entries)
        for j in range(tokens):
            if not excluded[j] and product[row, j] >= threshold:
                scores[j] += max(entries)
    return scores


@pytest.mark.parametrize("k", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_rfem_by_loops(name, k, texts):
    model = text_model(name)
    for item in Rfem(model, k=k, granularity="token")(texts):
        attention = eager_attention(model, item.text)
        special = special_tokens(model, item.text)
        excluded = special | ((np.arange(len(special)) == 0) & (name in DECODERS))
        expected = rfem_by_loops(attention, excluded, k, row_read(model, len(special)))
        np.testing.assert_allclose(item.scores[0], expected[~special], atol=1e-5)
    with pytest.raises(InputError, match="k must be a finite number of standard deviations, not 'one'"):
        Rfem(model, k="one")


def test_rfem_of_a_text_of_one_word_on_a_causal_model_is_nothing():
    """Its only token is the sink."""
    np.testing.assert_array_equal(Rfem(text_model("gpt2"))(["good"])[0].scores, [[0.0]])


# Value zeroing

VALUES = {
    "bert": lambda m, i: (m.bert.encoder.layer[i].attention.self.value, slice(None)),
    "roberta": lambda m, i: (m.roberta.encoder.layer[i].attention.self.value, slice(None)),
    "distilbert": lambda m, i: (m.distilbert.transformer.layer[i].attention.v_lin, slice(None)),
    "gpt2": lambda m, i: (m.transformer.h[i].attn.c_attn, slice(64, 96)),
    **dict.fromkeys(
        ("llama", "qwen3", "gemma", "gemma3"), lambda m, i: (m.model.layers[i].self_attn.v_proj, slice(None))
    ),
}
LAYERS = {
    "bert": lambda m: m.bert.encoder.layer,
    "roberta": lambda m: m.roberta.encoder.layer,
    "distilbert": lambda m: m.distilbert.transformer.layer,
    "gpt2": lambda m: m.transformer.h,
    **dict.fromkeys(("llama", "qwen3", "gemma", "gemma3"), lambda m: m.model.layers),
}


def value_zeroing_by_hooks(model, name, text):
    """Zero one token's values in one layer's own projection, run the whole model, compare that layer's output."""
    network = model.model
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    kept = {}

    def outputs(**hooks):
        handles = []
        for layer, hook in hooks.values():
            handles.append(layer.register_forward_hook(hook))
        with torch.no_grad():
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
        for handle in handles:
            handle.remove()
        return kept["output"].double()

    def keep(_, __, output):
        kept["output"] = (output[0] if isinstance(output, tuple) else output)[0]

    product = np.eye(ids.shape[1])
    for i, layer in enumerate(LAYERS[name](network)):
        projection, columns = VALUES[name](network, i)
        before = outputs(layer=(layer, keep))
        turned = np.zeros((ids.shape[1],) * 2)
        for j in range(ids.shape[1]):

            def zero(_, __, output, j=j, columns=columns):
                output = output.clone()
                output[:, j, columns] = 0
                return output

            after = outputs(layer=(layer, keep), values=(projection, zero))
            turned[:, j] = 1 - torch.cosine_similarity(before, after, dim=-1, eps=1e-12).numpy()
        product = turned / turned.sum(1, keepdims=True) @ product
    return product


@pytest.mark.parametrize("budget", [16, 1024])
@pytest.mark.parametrize("name", NAMES)
def test_value_zeroing_by_hooks(name, budget, texts):
    model = text_model(name)
    model.engine.token_budget = budget
    chosen = texts[2:]
    for item in ValueZeroing(model, granularity="token")(chosen):
        expected = value_zeroing_by_hooks(model, name, item.text)
        matrix = ValueZeroing(model).matrix(item.text)
        np.testing.assert_allclose(matrix, expected, atol=2e-5)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        row = matrix[row_read(model, len(matrix))][~special_tokens(model, item.text)]
        np.testing.assert_allclose(item.scores[0], row, atol=1e-5)
        if name in DECODERS:
            assert (np.triu(matrix, 1) == 0).all()


# AttnLRP


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma"])
def test_cp_lrp_conserves_the_logit_through_the_frame(name, texts):
    model = text_model(name)
    for item in AttnLrp(model, rule="cp_lrp")(texts, targets=[[0, 2]] * len(texts)):
        np.testing.assert_allclose(item.scores.sum(1), item.output, atol=1e-4 * max(1, abs(item.output).max()))
        assert item.checks["conservation_gap"] < 1e-4 * max(1, abs(item.output).max())
        assert item.checks["special_tokens"] == 0


def test_relevance_of_words_and_special_tokens_together_is_that_of_all_tokens(texts):
    model = text_model("bert")
    for word, token in zip(AttnLrp(model)(texts), AttnLrp(model, granularity="all_tokens")(texts), strict=True):
        total = token.scores.sum()
        assert word.scores.sum() + word.checks["special_tokens"] == pytest.approx(total, abs=1e-6)
        assert word.checks["conservation_gap"] == pytest.approx(abs(total - word.output[0]), abs=1e-5)


def test_relevance_of_a_trained_classifier_agrees_with_occlusion(cebab_model, cebab_reviews):
    reviews = [text for text in cebab_reviews["text"].tolist() if len(text.split()) > 8][:20]
    occlusion = Occlusion(cebab_model)(reviews)
    for rule in ("attn_lrp", "cp_lrp"):
        found = [
            spearmanr(a.scores[0], b.scores[0])[0]
            for a, b in zip(AttnLrp(cebab_model, rule=rule)(reviews), occlusion, strict=True)
        ]
        assert np.mean(found) > 0.3


def test_rules_do_not_mix_in_a_batch(texts):
    """Rows of plain gradients and of both rules wait side by side in one run of the engine."""
    model = text_model("llama")
    programs = [
        method._program(question, None)
        for method in (AttnLrp(model), AttnLrp(model, rule="cp_lrp"))
        for question in questions(model, texts, 0)
    ]
    together = list(model.engine.run(programs))
    alone = [*AttnLrp(model)(texts, targets=0), *AttnLrp(model, rule="cp_lrp")(texts, targets=0)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5 * max(1, abs(b.scores).max()))


def test_an_unknown_rule_is_refused():
    with pytest.raises(UnknownNameError, match="unknown relevance rule 'epsilon'; known: 'attn_lrp', 'cp_lrp'"):
        AttnLrp(text_model("bert"), rule="epsilon")


# Generation


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3"])
def test_all_targets_at_once_equal_the_growing_prefix(name, method):
    """A target's row does not see what follows it."""
    model = TextModel(random_model(name, "causal"), word_tokenizer(bos=False), name=name)
    prompt, target = "the food was very good", ["but", "not", "cold"]
    options = {"granularity": "token", **({"k": -0.5} if method is Rfem else {})}  # so that something stands out
    item = method(model, **options)([prompt], targets=[" ".join(target)])[0]
    n = len(prompt.split())
    for t, token in enumerate(target):
        prefix = " ".join([prompt, *target[:t]])
        alone = method(model, **options)([prefix], targets=[token])[0]
        assert np.isnan(item.scores[t, n + t :]).all()
        np.testing.assert_allclose(item.scores[t, : n + t], alone.scores[0, : n + t], atol=1e-5)
        assert np.abs(item.scores[t, : n + t]).max() > 1e-3


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma"])
def test_cp_lrp_conserves_the_logits_of_generated_tokens(name):
    model = TextModel(random_model(name, "causal"), word_tokenizer(bos=False), name=name)
    item = AttnLrp(model, rule="cp_lrp")(["the food was very good"], targets=["but not cold"])[0]
    np.testing.assert_allclose(np.nansum(item.scores, axis=1), item.output, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_relevance_of_an_encoder_decoder_is_the_same_in_a_batch(name, texts):
    model = TextModel(random_model(name, "seq2seq"), word_tokenizer(), name=name)
    for text, item in zip(texts, AttnLrp(model)(texts, targets=["very good"] * len(texts)), strict=True):
        alone = AttnLrp(model)([text], targets=["very good"])[0]
        np.testing.assert_allclose(item.scores, alone.scores, atol=1e-5 * max(1.0, np.nanmax(np.abs(alone.scores))))
        assert np.nanmax(np.abs(item.scores)) > 1e-3


# What they have in common


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
@pytest.mark.parametrize("method", METHODS)
def test_a_text_alone_is_a_text_in_a_batch(method, name, texts):
    model = text_model(name)
    together = method(model)(texts)
    for text, item in zip(texts, together, strict=True):
        alone = method(model)([text])[0]
        np.testing.assert_allclose(item.scores, alone.scores, atol=1e-5 * max(1.0, np.abs(alone.scores).max()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoder_classifier_without_padding_id_gives_the_same(method, name, texts):
    model, without = text_model(name), text_model(name)
    without.model.config.pad_token_id = None
    for a, b in zip(method(without)(texts), method(model)(texts), strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-5 * max(1.0, np.abs(b.scores).max()))


@pytest.mark.parametrize("method", CONTRIBUTIONS)
def test_all_classes_get_the_same_row_and_the_result_says_so(method, texts):
    item = method(text_model("bert"))(texts[:1], targets=[[0, 1, 2]])[0]
    assert item.scores.shape == (3, len(item.elements))
    np.testing.assert_array_equal(item.scores[0], item.scores[2])
    assert item.checks["class_specific"] == 0


def test_the_row_is_the_one_that_the_head_reads():
    """A decoder's head reads the last token that is not padding; changing what follows changes nothing."""
    model = text_model("llama")
    (encoding,) = model.encode(["good food soup"])
    game = Game(ClassQuestion(model, encoding, (0, 1)), encoding.elements("word"), Replacement.resolve("mask", model))
    game.settle(np.zeros((1, 3)), InferenceMode.LOGITS)
    assert reading_rows(game, model) == [(2,), (2,)]
    encoding.ids[2] = model.model.config.pad_token_id
    assert reading_rows(game, model) == [(1,), (1,)]
    with torch.no_grad():
        hidden = model.model.base_model(input_ids=torch.from_numpy(encoding.ids)[None]).last_hidden_state
        logits = model.model(input_ids=torch.from_numpy(encoding.ids)[None]).logits
        torch.testing.assert_close(model.model.score(hidden[:, 1]), logits)
    assert reading_rows(game, text_model("bert")) == [(0,), (0,)]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_restored_after_an_error(method, texts):
    model = text_model("bert")
    network = model.model.train()
    before = [dict(vars(module)) for module in network.modules()]
    config = dict(vars(network.config))
    wanted = [parameter.requires_grad for parameter in network.parameters()]
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > 1:  # the first batch is that of the scores
            raise KeyError("stop")

    handle = network.bert.encoder.layer[2].register_forward_hook(fail)
    with pytest.raises(KeyError, match="stop"):
        method(model)(texts)
    handle.remove()
    assert [parameter.requires_grad for parameter in network.parameters()] == wanted
    assert [dict(vars(module)) for module in network.modules()] == before
    assert dict(vars(network.config)) == config
    assert all(not (m._forward_hooks or m._forward_pre_hooks) and m.training for m in network.modules())


@pytest.mark.parametrize("method", [AttentionRollout, Rfem, AttnLrp])
def test_one_pass_a_text(method, texts):
    """Besides the two evaluations of every method, each text takes one row of one batch."""
    model = text_model("bert")
    method(model)(texts)  # the first time the model is also asked whether padding disturbs it
    passes = []
    model.model.bert.encoder.layer[0].register_forward_hook(lambda _, args, __: passes.append(len(args[0])))
    items = method(model)(texts)
    assert sum(passes) == items.counters["evaluations_run"]
    assert items.counters["evaluations_run"] <= 3 * len(texts)
    assert len(passes) == items.counters["batches"]


def test_value_zeroing_fills_the_token_budget(texts):
    model = text_model("bert")
    sizes = []
    model.model.bert.encoder.layer[0].register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[:2].numel()))
    ValueZeroing(model)(texts[:1])
    tokens = len(model.tokenizer(texts[0])["input_ids"])
    assert len(sizes) <= 2 + 8
    assert sum(sizes) <= tokens * (2 + tokens / 8 + 1 + tokens + 2)


@pytest.mark.parametrize("method", CONTRIBUTIONS)
def test_models_that_cannot_be_observed_are_refused_before_they_run(method):
    model = text_model("deberta")
    model.model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(InputError, match="DebertaV2ForSequenceClassification cannot be observed"):
        method(model)
    with pytest.raises(InputError, match="needs one stack of layers; T5ForSequenceClassification has an encoder"):
        method(text_model("t5"))


def test_relevance_of_a_model_with_attention_of_its_own(texts):
    """DeBERTa's products are plain ones, so the rules hold there too."""
    model = text_model("deberta")
    for text, item in zip(texts, AttnLrp(model)(texts), strict=True):
        alone = AttnLrp(model)([text])[0]
        np.testing.assert_allclose(item.scores, alone.scores, atol=1e-5 * max(1.0, np.abs(alone.scores).max()))
        assert np.abs(item.scores).max() > 0


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "half", True, float("nan")])
def test_a_wrong_alpha_is_refused(alpha):
    with pytest.raises(InputError, match="alpha must be a share from 0 to 1, not"):
        AttentionRollout(text_model("bert"), alpha=alpha)


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_classifier_that_runs_eagerly_gives_the_same(method, cebab_model, cebab_folder, cebab_reviews):
    eager = AutoModelForSequenceClassification.from_pretrained(cebab_folder, attn_implementation="eager")
    reviews = cebab_reviews["text"].tolist()[:4]
    for a, b in zip(
        method(TextModel(eager, cebab_model.tokenizer))(reviews), method(cebab_model)(reviews), strict=True
    ):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4 * max(1.0, np.abs(b.scores).max()))
    assert eager.config._attn_implementation == "eager"
