"""Concepts as targets of attributions: laws of the methods, brute force, and what is refused."""

from __future__ import annotations

import itertools
import math
import re
import warnings

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from interpreto_mlops.attributions import (
    METHODS,
    AttributionSet,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Occlusion,
    Saliency,
)
from interpreto_mlops.attributions.metrics import METRICS as ATTRIBUTION_METRICS
from interpreto_mlops.attributions.metrics import (
    Comprehensiveness,
    Deletion,
    MaxSensitivity,
    SanityCheck,
    evaluate,
)
from interpreto_mlops.concepts import (
    DICTIONARIES,
    PROBES,
    ConceptDictionary,
    JumpReLUSAEConcepts,
    KMeansConcepts,
    Label,
    LogisticProbe,
    ModelWithSplitPoints,
    NeuronsAsConcepts,
    PCAConcepts,
    SemiNMFConcepts,
    VanillaSAEConcepts,
    concept_targets,
    top_words,
)
from interpreto_mlops.errors import InputError, IntegrityError, NotFittedError, TextWarning, UnknownNameError
from interpreto_mlops.models.splitting import block_paths
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import TEXTS, WORDS, word_tokenizer
from tests.models.architectures import random_model

SIX = "the food was great but slow"
UNKNOWN = "xyzzy"


def learned(split, *, family=PCAConcepts, texts=TEXTS, granularity="token", aggregation="mean", **parameters):
    """A dictionary of the first split point's rows of some texts."""
    (rows,) = split.get_activations(texts, granularity=granularity, aggregation=aggregation, progress=False).values()
    return family(**({"n_concepts": 3} | parameters)).fit(rows, progress=False)


def activation(split, dictionary, concepts, text, how="max", granularity="token", aggregation="mean"):
    """A text's activations of concepts, by a harvest of its own and the dictionary's plain `encode`."""
    sets = split.get_activations([text], granularity=granularity, aggregation=aggregation, progress=False)
    codes = dictionary.encode(next(iter(sets.values())), allow_mismatch=True)[:, concepts].double()
    return {"max": codes.amax(0), "mean": codes.mean(0), "sum": codes.sum(0)}[how].numpy()


@pytest.fixture
def planted_model():
    """A factory: a model in which dimension 5 is that of the word "awful" alone, and all that attention passes on."""

    def make(kind):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if kind == "bert":
                config = BertConfig(
                    vocab_size=64,
                    hidden_size=32,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    intermediate_size=48,
                    max_position_embeddings=32,
                )
                network = BertModel(config).eval()
            else:
                special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
                config = GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32, **special)
                network = GPT2LMHeadModel(config).eval()
        model = TextModel(network, word_tokenizer(bos=kind == "bert"), name="planted")
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.weight[:, 5] = 0.0
            model.embedding.weight[model.tokenizer.convert_tokens_to_ids("awful"), 5] = 3.0
            for name, parameter in network.named_parameters():
                if name.endswith("self.value.weight"):
                    parameter[:] = 0.0
                    parameter[:, 5] = 0.1
                elif name.endswith("attn.c_attn.weight"):
                    parameter[:, 64:] = 0.0
                    parameter[5, 64:] = 0.1
        return model

    return make


# What a planted word does


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("method", [name for name, _ in METHODS.items()])
def test_every_method_finds_the_word_that_drives_a_concept(planted_model, kind, method):
    model = planted_model(kind)
    split = ModelWithSplitPoints(model, [1])
    texts = ["we loved the waiter but awful soup was cold", "it was awful again"]
    targets = concept_targets(split, learned(split, family=NeuronsAsConcepts, n_concepts=None), 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        items = METHODS.get(method)(model)(texts, targets=targets)
    for item in items:
        assert item.targets[0].title == "concept 5"
        assert item.elements[int(np.argmax(np.abs(item.scores[0])))] == "awful"
        expected = activation(split, targets.dictionary, [5], item.text)
        np.testing.assert_allclose(item.output, expected, rtol=1e-4)


# Laws


@pytest.mark.parametrize("how", ["max", "mean", "sum"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_occlusion_equals_a_harvest_of_each_text_without_the_word(tiny_model, architecture, how):
    model = tiny_model(architecture)
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split)
    items = Occlusion(model, replacement="unk")(
        [SIX, "awful soup"], targets=concept_targets(split, dictionary, [0, 2], aggregation=how)
    )
    for item in items:
        words = item.text.split()
        full = activation(split, dictionary, [0, 2], item.text, how)
        np.testing.assert_allclose(item.output, full, rtol=1e-4, atol=1e-5)
        for place in range(len(words)):
            changed = " ".join([*words[:place], UNKNOWN, *words[place + 1 :]])
            expected = full - activation(split, dictionary, [0, 2], changed, how)
            np.testing.assert_allclose(item.scores[:, place], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["max", "mean", "sum"])
@pytest.mark.parametrize("granularity", ["token", "all_tokens", "word", "sentence", "sample", "cls"])
def test_words_that_are_removed_take_their_rows_with_them(tiny_model, granularity, how):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split, granularity=granularity, aggregation="max", n_concepts=2)
    targets = concept_targets(split, dictionary, [0, 1], aggregation=how)
    (item,) = Occlusion(model, replacement="remove")(["we loved it . the soup was cold !"], targets=targets)
    words = item.text.split()
    full = activation(split, dictionary, [0, 1], item.text, how, granularity, "max")
    np.testing.assert_allclose(item.output, full, rtol=1e-4, atol=1e-5)
    for place in range(len(words)):
        # The sentences of the text that is left are those of the whole one.
        if granularity == "sentence" and words[place] in ".!":
            continue
        changed = " ".join([*words[:place], *words[place + 1 :]])
        expected = full - activation(split, dictionary, [0, 1], changed, how, granularity, "max")
        np.testing.assert_allclose(item.scores[:, place], expected, rtol=1e-3, atol=1e-4)


def test_a_first_token_that_is_removed_makes_room_for_the_next(tiny_model):
    model = tiny_model("gpt2")
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split, granularity="cls", n_concepts=2)
    model.tokenizer.bos_token = "[CLS]"
    (item,) = Occlusion(model, replacement="remove")([SIX], targets=concept_targets(split, dictionary, [0, 1]))
    full, rest = (activation(split, dictionary, [0, 1], text, granularity="cls") for text in (SIX, SIX[4:]))
    np.testing.assert_allclose(item.scores[:, 0], full - rest, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(item.scores[:, 1:], 0.0, atol=1e-5)


def test_a_text_of_which_nothing_is_left_holds_no_concept(tiny_model):
    model = tiny_model("bert")
    model.tokenizer.bos_token = "[CLS]"
    split = ModelWithSplitPoints(model, [1])
    (item,) = Occlusion(model, replacement="remove")([SIX], targets=concept_targets(split, learned(split), [0, 1]))
    np.testing.assert_array_equal(item.baseline_output, 0.0)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_kernel_shap_of_all_coalitions_gives_shapley_values_of_the_code(tiny_model, architecture):
    model = tiny_model(architecture)
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split)
    targets = concept_targets(split, dictionary, [1])
    (item,) = KernelShap(model, replacement="unk", n_perturbations=64)([SIX], targets=targets)
    words, n = SIX.split(), 6
    value = {
        kept: activation(
            split, dictionary, [1], " ".join(w if k in kept else UNKNOWN for k, w in enumerate(words))
        ).item()
        for size in range(n + 1)
        for kept in itertools.combinations(range(n), size)
    }
    for player in range(n):
        others = [k for k in range(n) if k != player]
        expected = sum(
            math.factorial(size)
            * math.factorial(n - size - 1)
            / math.factorial(n)
            * (value[tuple(sorted((*kept, player)))] - value[kept])
            for size in range(n)
            for kept in itertools.combinations(others, size)
        )
        assert item.scores[0, player] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("how", ["mean", "sum"])  # a maximum over rows jumps in its gradient, and needs more nodes
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_integrated_gradients_of_a_code_are_complete(tiny_model, texts, architecture, how):
    model = tiny_model(architecture)
    split = ModelWithSplitPoints(model, [1])
    targets = concept_targets(split, learned(split), [0, 1, 2], aggregation=how)
    for item in IntegratedGradients(model, n_nodes=200)(texts, targets=targets):
        total = item.output - item.baseline_output
        np.testing.assert_allclose(item.scores.sum(axis=1), total, rtol=2e-3, atol=2e-3)
        assert abs(total).max() > 0.05


@pytest.mark.parametrize("how", ["max", "mean", "sum"])
def test_gradients_are_those_of_autograd_through_the_layer(tiny_model, how):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split, family=VanillaSAEConcepts, n_concepts=6, sparsity_coefficient=0.01, n_epochs=2)
    concepts = [k for k in range(6) if activation(split, dictionary, [k], SIX).item() > 0.0]
    assert len(concepts) > 1
    targets = concept_targets(split, dictionary, concepts, aggregation=how)
    (product,) = InputXGradient(model, granularity="all_tokens")([SIX], targets=targets)
    (norm,) = Saliency(model, granularity="all_tokens")([SIX], targets=targets)

    encoding = next(model.encode([SIX]))
    embedded = model.embedding(torch.from_numpy(encoding.ids)[None]).detach().requires_grad_(True)
    seen = []
    handle = model.model.bert.encoder.layer[1].register_forward_hook(lambda _m, _a, output: seen.append(output))
    model.model(inputs_embeds=embedded)
    handle.remove()
    rows = (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0][torch.from_numpy(~encoding.special)]
    weights = dictionary.weights
    codes = ((rows - weights["mean"]) / weights["scale"] @ weights["encoder"].T + weights["encoder_bias"]).relu()
    totals = {"max": codes.amax(0), "mean": codes.mean(0), "sum": codes.sum(0)}[how]
    for place, concept in enumerate(concepts):
        (gradient,) = torch.autograd.grad(totals[concept], embedded, retain_graph=True)
        np.testing.assert_allclose(product.scores[place], (gradient * embedded)[0].sum(-1).detach(), atol=1e-5)
        np.testing.assert_allclose(norm.scores[place], gradient[0].norm(dim=-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "method", ["occlusion", "kernel_shap", "integrated_gradients", "attention_rollout", "attn_lrp"]
)
@pytest.mark.parametrize("replacement", ["mask", "remove"])
def test_a_text_has_the_same_scores_alone_and_in_company(tiny_model, texts, method, replacement):
    model = tiny_model("bert")
    model.tokenizer.bos_token = "[CLS]"
    split = ModelWithSplitPoints(model, [1])
    targets = concept_targets(split, learned(split, granularity="word"), [0, 1])
    explainer = METHODS.get(method)(model, replacement=replacement)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        together = explainer(texts, targets=targets)
        alone = [explainer([text], targets=targets)[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.output, other.output, rtol=1e-4, atol=1e-5)


# Places of the model, and rows


def test_nothing_behind_the_layer_runs_and_nothing_of_the_model_changes(tiny_model, texts):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [0])
    targets = concept_targets(split, learned(split), [0, 1])
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    ran = []
    bert = model.model.bert
    for module in (bert.encoder.layer[1], bert.encoder.layer[2], bert.pooler, model.model.classifier):
        module.register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
    model.model.train()
    hooks = {name: len(module._forward_hooks) for name, module in model.model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        for name in METHODS.names():
            METHODS.get(name)(model)(texts[:2], targets=targets)
    assert ran == []
    assert model.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert {name: len(module._forward_hooks) for name, module in model.model.named_modules()} == hooks
    assert targets.dictionary.weights["encoder"].grad is None


def test_a_model_split_by_traces_gives_the_same(tiny_model, texts):
    model = tiny_model("bert")
    by_hooks, by_traces = (ModelWithSplitPoints(model, [1], engine=engine) for engine in ("hooks", "nnsight"))
    dictionary = learned(by_hooks)
    first, second = (
        Occlusion(model)(texts, targets=concept_targets(split, dictionary, [0, 1])) for split in (by_hooks, by_traces)
    )
    assert first == second


@pytest.mark.parametrize("options", [{"autocast": "bfloat16"}, {"token_budget": "auto"}], ids=["autocast", "budget"])
def test_arithmetic_and_budgets_of_the_model_hold_for_concepts(tiny_model, texts, options):
    plain = tiny_model("bert")
    other = TextModel(plain.model, plain.tokenizer, name="tiny", **options)
    scores = []
    dictionary = learned(ModelWithSplitPoints(plain, [1]))
    for model in (plain, other):
        targets = concept_targets(ModelWithSplitPoints(model, [1]), dictionary, [0, 1], aggregation="mean")
        found = [*Occlusion(model)(texts, targets=targets), *InputXGradient(model)(texts, targets=targets)]
        scores.append(np.concatenate([item.scores.ravel() for item in found]))
    assert np.corrcoef(scores)[0, 1] > 0.99
    assert np.array_equal(*scores) == ("token_budget" in options)


def test_texts_share_batches_and_equal_rows_run_once(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    found = Occlusion(model)([SIX, SIX, "awful soup"], targets=concept_targets(split, learned(split), 0))
    # Two texts are the same: 6 + 2 rows, and 2 + 2 of the short one, with "full" and "empty" asked for once more each.
    assert found.counters["evaluations_asked"] == 8 + 8 + 4
    assert found.counters["evaluations_run"] == 8 + 4
    assert found.counters["batches"] < 8


@pytest.mark.parametrize("budget", [16, 64])
def test_a_token_budget_changes_batches_but_no_scores(tiny_model, texts, budget):
    scores = []
    for tokens in (budget, 4096):
        model = tiny_model("gpt2")
        model.engine.token_budget = tokens
        split = ModelWithSplitPoints(model, [1])
        found = KernelShap(model, n_perturbations=40)(texts, targets=concept_targets(split, learned(split), [0, 1]))
        scores.append(np.concatenate([item.scores.ravel() for item in found]))
    np.testing.assert_allclose(*scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", ["head", "bert.pooler", "1.mlp", "bert.encoder.layer.1.output.dense.input", 2])
def test_any_split_point_can_be_explained(tiny_model, place):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [place])
    granularity = "sample" if split.per_text else "token"
    dictionary = learned(split, granularity=granularity, n_concepts=2)
    targets = concept_targets(split, dictionary, [0, 1], aggregation="mean")
    (item,) = Occlusion(model, replacement="unk")([SIX], targets=targets)
    full, rest = (
        activation(split, dictionary, [0, 1], text, "mean", granularity) for text in (SIX, SIX.replace("food", UNKNOWN))
    )
    np.testing.assert_allclose(item.scores[:, 1], full - rest, rtol=1e-3, atol=1e-4)
    (smooth,) = IntegratedGradients(model, n_nodes=100)([SIX], targets=targets)
    np.testing.assert_allclose(smooth.scores.sum(1), smooth.output - smooth.baseline_output, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("architecture", "head", "place"),
    [
        ("t5", "seq2seq", 1),
        ("bart", "seq2seq", 1),
        ("bart", "classifier", 1),
        ("bart", "classifier", "model.decoder.layers.0"),
        ("bert", "masked", 1),
        ("bert", "token", 1),
        ("llama", "causal", 1),
        ("qwen3", "none", 1),
    ],
)
def test_models_of_every_task_can_be_explained(architecture, head, place):
    tokenizer = word_tokenizer()
    tokenizer.eos_token = "[SEP]"
    network = random_model(architecture, head)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.4)  # paths through it are then smooth enough for 200 nodes
    model = TextModel(network, tokenizer, name="tiny")
    split = ModelWithSplitPoints(model, [place])
    dictionary = learned(split, n_concepts=2)
    targets = concept_targets(split, dictionary, [0, 1], aggregation="mean")
    (item,) = Occlusion(model, replacement="unk")([SIX], targets=targets)
    full, rest = (activation(split, dictionary, [0, 1], text, "mean") for text in (SIX, SIX.replace("was", UNKNOWN)))
    np.testing.assert_allclose(item.scores[:, 2], full - rest, rtol=1e-3, atol=2e-4)
    (smooth,) = IntegratedGradients(model, n_nodes=200)([SIX], targets=targets)
    np.testing.assert_allclose(smooth.scores.sum(1), smooth.output - smooth.baseline_output, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize(
    ("element", "place"), [(1, 1), (-1, 5), ((4, 8), 1)], ids=["number", "from the end", "characters"]
)
def test_one_element_can_be_explained(tiny_model, element, place):
    model = tiny_model("gpt2")
    model.tokenizer.bos_token = "[CLS]"
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split)
    targets = concept_targets(split, dictionary, [0, 2], element=element)
    (item,) = Occlusion(model, replacement="unk")([SIX], targets=targets)
    codes = dictionary.encode(split.get_activations([SIX], progress=False)[1])[place, [0, 2]]
    np.testing.assert_allclose(item.output, codes, rtol=1e-4, atol=1e-5)
    word = SIX.split()[place]
    assert [target.name for target in item.targets] == [f"{word}: concept 0", f"{word}: concept 2"]
    assert item.targets[0].positions == (place,)
    # What stands behind it is not seen by a model that reads from left to right.
    np.testing.assert_allclose(item.scores[:, place + 1 :], 0.0, atol=1e-5)
    assert abs(item.scores[:, place]).max() > 1e-3
    with pytest.raises(InputError, match="takes out the element"):
        Occlusion(model, replacement="remove")([SIX], targets=targets)


def test_each_text_may_have_its_own_targets(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split)
    each = [concept_targets(split, dictionary, [2, 0, 1]), concept_targets(split, dictionary, 1, aggregation="sum")]
    both = Occlusion(model)([SIX, "awful soup"], targets=each)
    for text, own, item in zip([SIX, "awful soup"], each, both, strict=True):
        (alone,) = Occlusion(model)([text], targets=own)
        np.testing.assert_allclose(item.scores, alone.scores, rtol=1e-3, atol=1e-5)
        assert [target.id for target in item.targets] == list(own.concepts)
    # A part of the explanations finds its own targets again.
    for k in range(2):
        whole, part = Deletion(model, targets=each)(both), Deletion(model, targets=each)(both[k : k + 1])
        assert part.values[0] == pytest.approx(whole.values[k], abs=1e-5)


def test_gradients_of_texts_with_targets_of_their_own(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split)
    each = [concept_targets(split, dictionary, [2, 0, 1]), concept_targets(split, dictionary, 1, aggregation="sum")]
    both = InputXGradient(model)([SIX, "awful soup"], targets=each)
    for text, own, item in zip([SIX, "awful soup"], each, both, strict=True):
        (alone,) = InputXGradient(model)([text], targets=own)
        np.testing.assert_allclose(item.scores, alone.scores, rtol=1e-3, atol=1e-5)


# Families


def small(family: type[ConceptDictionary]):
    known = {"n_concepts": 4, "k": 2, "n_epochs": 1, "sparsity_coefficient": 0.01, "rectify": True}
    known |= {"alpha": 0.1, "codes": "similarity"}
    fields = {field for base in family.__mro__ for field in getattr(base, "__annotations__", {})}
    chosen = {name: value for name, value in known.items() if name in fields}
    return family(**({**chosen, "n_concepts": None} if not family.sized else chosen))


@pytest.mark.parametrize("name", [name for name, _ in DICTIONARIES.items()])
def test_gradient_methods_take_families_whose_codes_have_one_and_no_other(name):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 8, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dictionary = small(DICTIONARIES.get(name)).fit(rows, progress=False)
    point = rows[:20].clone().requires_grad_(True)
    without = {"cockatiel", "convex_nmf", "dictionary_learning", "mp_sae", "nmf", "semi_nmf"}
    assert dictionary.differentiable == (name not in without)
    if name in without:
        return
    codes = dictionary.differentiable_codes(point)
    torch.testing.assert_close(codes.detach(), dictionary.encode(rows[:20]))
    (gradient,) = torch.autograd.grad(codes.sum(), point)
    step = 1e-3 * torch.randn(20, 8, generator=generator)
    ahead, behind = (dictionary.encode(rows[:20] + sign * step) for sign in (1, -1))
    # Rows at which another concept is chosen on the way have no gradient there.
    same = ((ahead != 0) == (behind != 0)).all(dim=1)
    assert same.sum() > 10
    expected = ((ahead - behind) / 2).sum(dim=1)
    torch.testing.assert_close((gradient * step).sum(dim=1)[same], expected[same], rtol=0.02, atol=2e-5)


@pytest.mark.parametrize("normalisation", ["none", "standardise", "unit_norm"])
@pytest.mark.parametrize("name", [name for name, _ in PROBES.items()])
def test_gradient_methods_take_probes(name, normalisation):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(120, 6, generator=generator)
    probe = PROBES.get(name)(normalisation=normalisation, calibration="platt").fit(rows, (rows[:, :2] > 0).numpy())
    assert probe.differentiable
    point = rows[:20].clone().requires_grad_(True)
    codes = probe.differentiable_codes(point)
    assert torch.equal(codes.detach(), probe.encode(rows[:20]))
    for concept in range(2):
        (gradient,) = torch.autograd.grad(codes[:, concept].sum(), point, retain_graph=True)
        step = 1e-2 * torch.randn(20, 6, generator=generator)
        ahead, behind = (probe.encode(rows[:20] + sign * step)[:, concept] for sign in (1, -1))
        torch.testing.assert_close((gradient * step).sum(dim=1), (ahead - behind) / 2, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("method", [name for name, _ in METHODS.items()])
@pytest.mark.parametrize("probe", ["logistic", "svdd", "cosine"])
def test_every_method_explains_a_probe_or_says_why_not(tiny_model, probe, method):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    rows = split.get_activations([SIX, "awful soup", "a bad place", "good food"] * 5, progress=False)[1]
    labels = rows.tensor()[:, 0] > rows.tensor()[:, 0].median()
    targets = concept_targets(split, PROBES.get(probe)().fit(rows, labels.numpy(), per="row"), 0, aggregation="mean")
    if method == "attn_lrp" and probe != "logistic":
        with pytest.raises(InputError, match="has no rule for"):
            METHODS.get(method)(model)(["food"], targets=targets)
        return
    for item in METHODS.get(method)(model)(["food", SIX], targets=targets):
        assert np.isfinite(item.scores).all()


def test_integrated_gradients_of_a_linear_probe_are_complete(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    rows = split.get_activations([SIX, "awful soup", "a bad place", "good food"] * 5, progress=False)[1]
    labels = rows.tensor()[:, 0] > rows.tensor()[:, 0].median()
    targets = concept_targets(split, LogisticProbe().fit(rows, labels.numpy(), per="row"), 0, aggregation="mean")
    (item,) = IntegratedGradients(model, n_nodes=200)([SIX], targets=targets)
    total = item.output - item.baseline_output
    assert abs(total) > 0.05
    np.testing.assert_allclose(item.scores.sum(axis=1), total, rtol=2e-3, atol=2e-3)


def test_the_number_of_the_nearest_centre_has_no_gradient():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert not KMeansConcepts(n_concepts=3, codes="assignment").fit(rows, progress=False).differentiable


def test_a_family_without_gradient_is_explained_by_perturbations_alone(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    targets = concept_targets(split, learned(split, family=SemiNMFConcepts), [0, 1])
    (item,) = Occlusion(model, replacement="unk")([SIX], targets=targets)
    expected = activation(split, targets.dictionary, [0, 1], SIX)
    np.testing.assert_allclose(item.output, expected, rtol=1e-3, atol=1e-4)
    for method in (Saliency, IntegratedGradients):
        with pytest.raises(
            InputError, match=r"a semi_nmf dictionary have no gradient .* occlusion, kernel_shap or lime"
        ):
            method(model)([SIX], targets=targets)


# Names, results and files


def test_targets_have_the_labels_of_the_concepts(tiny_model, tmp_path):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    rows = split.get_activations(TEXTS, granularity="word", progress=False)[1]
    dictionary = PCAConcepts(n_concepts=3).fit(rows, progress=False)
    dictionary.descriptions = list(top_words(dictionary, rows))
    found = Occlusion(model)(TEXTS[:3], targets=concept_targets(split, dictionary, [2, 0]))
    labels = [dictionary.descriptions[k].label for k in (2, 0)]
    assert labels[0].count(",") == 2
    assert [target.name for target in found[0].targets] == labels
    assert [(target.id, target.layer) for target in found[0].targets] == [(2, split.path(1)), (0, split.path(1))]
    assert found.parameters["layer"] == split.path(1)
    assert (found.parameters["dictionary"], found.parameters["concept_rows"]) == ("pca", "word")
    assert AttributionSet.load(found.save(tmp_path)) == found
    assert set(found.to_frame()["target"]) == set(labels)
    page = found._repr_html_()
    assert labels[0] in page
    # Labels are made of words of texts.
    hidden = found.hidden()
    assert all(target.name.startswith("sha256:") for target in hidden[0].targets)
    assert not any(label in hidden._repr_html_() for label in labels)


def test_a_label_that_is_markup_is_shown_as_text(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    rows = split.get_activations(TEXTS, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=1).fit(rows, progress=False)
    hostile = "<script>window.pwned=1</script>"
    dictionary.descriptions = [top_words(dictionary, rows)[0].named(Label(hostile, "human"))]
    found = Occlusion(model)([SIX], targets=concept_targets(split, dictionary, 0))
    assert found[0].targets[0].name == hostile
    page = found._repr_html_()
    assert "<script>window.pwned" not in page
    assert "window.pwned" in page


def test_two_concepts_of_one_label_are_told_apart(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    rows = split.get_activations(TEXTS, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=2).fit(rows, progress=False)
    first, second = top_words(dictionary, rows)
    dictionary.descriptions = [first, type(second)(1, first.words, first.contexts, 0.5, 1.0)]
    names = [target.name for target in concept_targets(split, dictionary, [0, 1]).targets]
    assert names == [f"{first.label} (concept 0)", f"{first.label} (concept 1)"]


# Metrics


def explained(tiny_model, texts):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    targets = concept_targets(split, learned(split), [0, 1], aggregation="mean")
    return model, split, targets, Occlusion(model, replacement="unk")(texts, targets=targets)


def test_comprehensiveness_is_what_the_code_loses(tiny_model):
    model, split, targets, found = explained(tiny_model, [SIX, "awful soup"])
    result = Comprehensiveness(model, replacement="unk", bins=(0.34,), targets=targets)(found)
    for item, value in zip(found, result.values, strict=True):
        lost = []
        for row, concept in enumerate((0, 1)):
            words = item.text.split()
            for place in item.ranking(row)[: max(1, round(0.34 * len(words)))]:
                words[place] = UNKNOWN
            full, rest = (
                activation(split, targets.dictionary, [concept], text, "mean").item()
                for text in (item.text, " ".join(words))
            )
            lost.append(full - rest)
        assert value == pytest.approx(np.mean(lost), abs=1e-4)


def test_metrics_judge_explanations_of_concepts_or_say_why_not(tiny_model, tmp_path):
    model, _, targets, found = explained(tiny_model, list(TEXTS))
    loaded = AttributionSet.load(found.save(tmp_path))
    results = evaluate(loaded, model, targets=targets, n_random=4, replacement="unk")
    expected = {name for name, metric in ATTRIBUTION_METRICS.items() if not metric.needs and not metric.costly}
    assert set(results) == {f"concept_faithfulness/{name}" for name in expected}
    results = {name.split("/")[1]: result for name, result in results.items()}
    assert all(np.isfinite(result.mean) for result in results.values())
    assert results["insertion"].bounds == (-np.inf, np.inf)
    assert results["insertion"].mean > results["insertion"].random_mean
    assert results["deletion"].mean < results["deletion"].random_mean
    assert results["faithfulness_correlation"].mean > 0.5
    normalized = evaluate(loaded[1:2], model, ["normalized_aopc"], targets=targets, replacement="unk")
    assert normalized["concept_faithfulness/normalized_aopc"].mean == 1.0


def test_max_sensitivity_asks_for_the_gradients_of_the_code_again(tiny_model):
    model, _, targets, _ = explained(tiny_model, [SIX])
    explainer = InputXGradient(model)
    found = explainer([SIX], targets=targets)
    small_move, large_move = (
        MaxSensitivity(model, explainer=explainer, radius=radius, targets=targets)(found).mean for radius in (1e-3, 0.1)
    )
    assert 0.0 < small_move < large_move


def test_metrics_refuse_what_they_cannot_judge(tiny_model):
    model, split, targets, found = explained(tiny_model, [SIX])
    with pytest.raises(InputError, match=r"explains concepts of the layer 'bert.encoder.layer.1'; give the metric"):
        Deletion(model)(found)
    others = concept_targets(split, targets.dictionary, [0, 2], aggregation="mean")
    with pytest.raises(InputError, match="and the metric was given the targets"):
        Deletion(model, targets=others)(found)
    with pytest.raises(InputError, match="leave out targets="):
        Deletion(model, targets=targets)(Occlusion(model)([SIX]))
    with pytest.raises(InputError, match="no probabilities that joint=True"):
        Deletion(model, targets=targets, joint=True)
    with pytest.raises(InputError, match="sanity_check draws weights anew from the head"):
        SanityCheck(Occlusion(model, replacement="unk"))(found)
    more = Occlusion(model, replacement="unk")([SIX, SIX], targets=targets)
    with pytest.raises(InputError, match="there are 1 targets, one a text, and none for text 1"):
        Deletion(model, targets=[targets])(more)
    with pytest.raises(InputError, match="hidden"):
        Deletion(model, targets=targets)(found.hidden())


# What is refused


def test_what_cannot_be_a_target_is_refused(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [0, 1])
    dictionary = PCAConcepts(n_concepts=3).fit(split.get_activations(TEXTS, progress=False)[1], progress=False)
    for concepts, message in (
        ([], "at least one concept"),
        ([3], "there is no concept 3; the dictionary has 0 to 2"),
        ([-1], "there is no concept -1"),
        ([0, 0], "concept 0 is given twice"),
        (["soup"], "given by its number, not by 'soup'"),
        ("soup", "given by its number, not by 'soup'"),
        (2.0, "given by its number, not by 2.0"),
        ([True], "not by True"),
    ):
        with pytest.raises(InputError, match=message):
            concept_targets(split, dictionary, concepts)
    for concepts in (2, np.int64(2), torch.tensor(2), torch.tensor([2]), (2,), iter([2])):
        assert concept_targets(split, dictionary, concepts).concepts == (2,)
    with pytest.raises(UnknownNameError, match="unknown aggregation over rows 'median'"):
        concept_targets(split, dictionary, 0, aggregation="median")
    with pytest.raises(InputError, match="an element is given by its number"):
        concept_targets(split, dictionary, 0, element="soup")
    with pytest.raises(NotFittedError):
        concept_targets(split, PCAConcepts(n_concepts=2), 0, layer=1)
    with pytest.raises(IntegrityError, match="fitted on the layer"):
        concept_targets(split, dictionary, 0, layer=0)
    assert concept_targets(split, dictionary, 0, layer=0, allow_mismatch=True).path == split.path(0)
    with pytest.raises(InputError, match="the model is split at"):
        concept_targets(ModelWithSplitPoints(model, [0, 2]), dictionary, 0)
    other = ModelWithSplitPoints(tiny_model("bert", seed=1), [1])
    with pytest.raises(IntegrityError, match="this is another one"):
        concept_targets(other, dictionary, 0)


def test_calls_that_have_no_meaning_for_a_concept_are_refused(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split)
    targets = concept_targets(split, dictionary, [0, 1])
    for mode in ("softmax", "log_softmax"):
        with pytest.raises(InputError, match=f"inference_mode '{mode}' is for a model's outputs"):
            Occlusion(model, inference_mode=mode)([SIX], targets=targets)
    for options in ({"contrast": 1}, {"generation": {"max_new_tokens": 2}}, {"truncation": True}):
        with pytest.raises(InputError, match=f"{next(iter(options))} is for a model's outputs"):
            Occlusion(model)([SIX], targets=targets, **options)
    with pytest.raises(InputError, match="split the very model"):
        Occlusion(tiny_model("bert"))([SIX], targets=targets)
    with pytest.raises(InputError, match="2 targets at a layer were given"):
        Occlusion(model)([SIX], targets=[targets, targets])
    with pytest.raises(InputError, match="not both"):
        Occlusion(model)([SIX, SIX], targets=[targets, 1])
    with pytest.raises(InputError, match="has no token 9; it has 6"):
        Occlusion(model)([SIX], targets=concept_targets(split, dictionary, 0, element=9))
    with pytest.raises(InputError, match="no token of text 0 lies in the characters 400 to 410"):
        Occlusion(model)([SIX], targets=concept_targets(split, dictionary, 0, element=(400, 410)))


def test_methods_that_follow_attention_refuse_places_between_blocks(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, ["1.mlp"])
    targets = concept_targets(split, learned(split), 0)
    for name in ("attention_rollout", "rfem", "value_zeroing"):
        with pytest.raises(InputError, match=rf"{name} follows attention from block to block, and '[\w.]*' is not"):
            METHODS.get(name)(model)([SIX], targets=targets)


def test_attention_is_followed_to_the_layer_and_no_further(tiny_model):
    """Rollout of a shallow layer is that of a model that ends there."""
    model, shallow = tiny_model("bert"), tiny_model("bert")
    shallow.model.bert.encoder.layer = shallow.model.bert.encoder.layer[:2]
    assert len(block_paths(shallow)) == 2
    split = ModelWithSplitPoints(model, [1])
    targets = concept_targets(split, learned(split), 0, element=2)
    for name in ("attention_rollout", "rfem", "value_zeroing"):
        (item,) = METHODS.get(name)(model, granularity="all_tokens")([SIX], targets=targets)
        matrix = METHODS.get(name)(shallow).matrix(SIX)
        np.testing.assert_allclose(item.scores[0], matrix[3], atol=1e-6)


def test_an_encoder_without_head_has_concepts_and_no_other_target(planted_model):
    model = planted_model("bert")
    with pytest.raises(InputError, match=re.escape("attributions need a classifier or a language model; 'planted'")):
        Occlusion(model)([SIX])
    assert model.task == "encoder"


def test_activations_that_are_not_finite_are_refused_with_the_text(tiny_model):
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    dictionary = learned(split, family=JumpReLUSAEConcepts, sparsity_coefficient=0.01, n_epochs=1, n_concepts=4)
    targets = concept_targets(split, dictionary, 0)
    with torch.no_grad():
        model.embedding.weight[5 + WORDS.index("awful")] = torch.nan
    with pytest.raises(ArithmeticError, match="NaN or infinity for text 1"):
        Occlusion(model, replacement="unk")([SIX, "awful soup"], targets=targets)
