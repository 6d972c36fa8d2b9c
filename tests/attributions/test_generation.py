"""Explanations of language models against step-by-step calls, brute force, and the traps of generation."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from interpreto_mlops.attributions import AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.methods.integrated_gradients import quadrature
from interpreto_mlops.errors import InputError, ModelOutputError, TextWarning
from tests.attributions.games import shapley, toy
from tests.attributions.language_models import (
    BOS,
    DECODERS,
    ENCODER_DECODERS,
    EOS,
    MASK,
    PAD,
    language_model,
    next_logits,
    replaced,
    step_by_step,
)
from tests.conftest import word_tokenizer

ARCHITECTURES = (*DECODERS, *ENCODER_DECODERS)
PROMPTS = ("the food was great and the service", "awful soup", "we loved it , but the waiter was very very slow")
TARGETS = ("not good .", "was cold and we hated it", "again !")
METHODS = (Occlusion, KernelShap, IntegratedGradients)
SIX = {"generation": {"max_new_tokens": 6}}


def ids_of(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, atol=tolerance * np.nanmax(np.abs(b), initial=1.0))


# Teacher forcing against the growing prefix


@pytest.mark.parametrize("mode", ["logits", "log_softmax", "softmax"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_scores_of_all_targets_are_those_of_the_growing_prefix(architecture, mode):
    model = language_model(architecture)
    for item in Occlusion(model, inference_mode=mode)(PROMPTS, targets=list(TARGETS)):
        prompt, target = ids_of(model, item.text[: item.boundary]), [t.id for t in item.targets]
        logits = torch.from_numpy(step_by_step(model, prompt, target))
        values = {"logits": logits, "log_softmax": logits.log_softmax(-1), "softmax": logits.softmax(-1)}[mode]
        close(item.output, values[range(len(target)), target].numpy())


@pytest.mark.parametrize("replacement", ["mask", "unk", "pad", 9])
@pytest.mark.parametrize("architecture", [*DECODERS, "t5", "bart"])
def test_occlusion_equals_step_by_step_calls(architecture, replacement):
    model = language_model(architecture)
    by = {"mask": MASK, "unk": 1, "pad": PAD}.get(replacement, replacement)
    item = Occlusion(model, replacement=replacement)(PROMPTS[:1], targets=[TARGETS[0]])[0]
    prompt, target = ids_of(model, PROMPTS[0]), ids_of(model, TARGETS[0])
    n, places = len(prompt), np.arange(len(target))
    assert item.scores.shape == (len(target), n + len(target))
    for j in range(n + len(target)):
        rows = step_by_step(model, replaced(prompt, {j}, by), replaced(target, {j - n}, by))
        expected = item.output - rows[places, target]
        seen = places > j - n
        assert np.isnan(item.scores[~seen, j]).all()
        close(item.scores[seen, j], expected[seen])


@pytest.mark.parametrize("architecture", ["m2m100", "marian"])
def test_a_pad_that_stands_for_a_word_leaves_positions_where_they_are(architecture):
    """M2M100 counts positions by ids that are not padding; given embeddings it counts all of them."""
    model = language_model(architecture)
    item = Occlusion(model, replacement="pad")(PROMPTS[:1], targets=[TARGETS[0]])[0]
    prompt, target = ids_of(model, PROMPTS[0]), ids_of(model, TARGETS[0])
    decoder = torch.tensor([[model.decoder_start_id, *target[:-1]]])
    for j in range(len(prompt)):
        embeddings = model.embed(torch.tensor([replaced(prompt, {j}, PAD)]))
        decoded = model.decoder_embedding.forward(decoder)
        masks = {"attention_mask": torch.ones(1, len(prompt)), "decoder_attention_mask": torch.ones(decoder.shape)}
        with torch.no_grad():
            logits = model.model(inputs_embeds=embeddings, decoder_inputs_embeds=decoded, **masks).logits[0].numpy()
        close(item.scores[:, j], item.output - logits[np.arange(len(target)), target])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_integrated_gradients_equal_an_integral_taken_target_by_target(architecture):
    model = language_model(architecture)
    model.model.double()
    item = IntegratedGradients(model, n_nodes=4, replacement="mask")(["awful soup"], targets=["was cold again"])[0]
    prompt, target = ids_of(model, "awful soup"), ids_of(model, "was cold again")
    for t in range(len(target)):
        expected = slow_integral(model, prompt, target[:t], target[t], 4)
        close(item.scores[t, : len(prompt) + t], expected, 1e-9)
        assert np.isnan(item.scores[t, len(prompt) + t :]).all()


def slow_integral(model, prompt, prefix, token, n_nodes):
    """Integrated gradients of one logit on its own prefix, with embeddings as the model's input."""
    two_sided = model.model.config.is_encoder_decoder
    start = [model.decoder_start_id] if two_sided else []
    sides = [(model.embedding, prompt, len(prompt))]
    sides += [(model.decoder_embedding if two_sided else model.embedding, [*start, *prefix], len(prefix))]
    text = [module.forward(torch.tensor([ids], dtype=torch.long)).detach() for module, ids, _ in sides]
    empty = [e.clone() for e in text]
    for (module, ids, movable), e in zip(sides, empty, strict=True):
        e[:, len(ids) - movable :] = module.forward(torch.tensor([MASK])).detach()
    total = [torch.zeros_like(e) for e in text]
    for node, weight in zip(*quadrature("gauss_legendre", n_nodes), strict=True):
        points = [(b + node * (a - b)).requires_grad_() for a, b in zip(text, empty, strict=True)]
        if two_sided:
            logits = model.model(inputs_embeds=points[0], decoder_inputs_embeds=points[1]).logits
        else:
            logits = model.model(inputs_embeds=torch.cat(points, dim=1)).logits
        used = points if points[1].shape[1] else points[:1]
        for k, gradient in enumerate(torch.autograd.grad(logits[0, -1, token], used)):
            total[k] += weight * gradient
    parts = [((a - b) * g).sum(-1)[0] for a, b, g in zip(text, empty, total, strict=True)]
    return torch.cat([parts[0], parts[1][len(start) :]]).numpy()


# Toys whose right answers come from all coalitions


@pytest.mark.parametrize("kind", ["linear", "tanh", "random"])
@pytest.mark.parametrize("task", ["causal", "encoder_decoder"])
def test_kernel_shap_equals_shapley_values_of_every_target(task, kind):
    model = toy(kind, word_tokenizer(bos=False), task=task)
    item = KernelShap(model, n_perturbations=2**6, replacement="mask")(["the food was"], targets=["very good again ."])[
        0
    ]
    prompt, target = ids_of(model, "the food was"), ids_of(model, "very good again .")
    players = len(prompt) + len(target) - 1
    for t, token in enumerate(target):

        def v(present, t=t, token=token):
            absent = set(range(players)) - present
            prefix = replaced([*prompt, *target[:t]], absent, MASK)
            start = [model.decoder_start_id] if task == "encoder_decoder" else []
            return next_logits(model, prefix[: len(prompt)], [*start, *prefix[len(prompt) :]])[token]

        expected = shapley(v, len(prompt) + t)
        np.testing.assert_allclose(item.scores[t, : len(expected)], expected, atol=1e-12)


@pytest.mark.parametrize("budget", [6, 20, 40, 64, 100, 2000])
@pytest.mark.parametrize("task", ["causal", "encoder_decoder"])
def test_every_target_is_efficient_at_any_budget(task, budget):
    model = toy("random", word_tokenizer(bos=False), task=task)
    item = KernelShap(model, n_perturbations=budget)(PROMPTS[:1], targets=["very good again ."])[0]
    np.testing.assert_allclose(np.nansum(item.scores, axis=1), item.output - item.baseline_output, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["causal", "encoder_decoder"])
def test_an_additive_game_gives_each_token_its_own_number(task, method):
    model = toy("linear", word_tokenizer(bos=False), task=task)
    item = method(model)(PROMPTS[:1], targets=["very good again ."])[0]
    row = [*ids_of(model, PROMPTS[0]), *ids_of(model, "very good again .")]
    values = model.embedding.weight.detach().numpy()[row, 0]
    for t, target in enumerate(item.targets):
        seen = len(ids_of(model, PROMPTS[0])) + t
        np.testing.assert_allclose(
            item.scores[t, :seen], values[:seen] * model.model.head[target.id].item(), atol=1e-10
        )


@pytest.mark.parametrize("task", ["causal", "encoder_decoder"])
def test_integrated_gradients_of_every_target_are_complete(task):
    model = toy("tanh", word_tokenizer(bos=False), task=task)
    item = IntegratedGradients(model, n_nodes=32)(PROMPTS[:1], targets=["very good again ."])[0]
    np.testing.assert_allclose(np.nansum(item.scores, axis=1), item.output - item.baseline_output, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["causal", "encoder_decoder"])
def test_a_contrast_is_the_difference_of_two_explanations(task, method):
    model = toy("tanh", word_tokenizer(bos=False), task=task)
    options = {"n_nodes": 16} if method is IntegratedGradients else {}
    both = method(model, **options)(["the food was"], targets=["very good"], contrast=["not bad"])[0]
    assert [t.contrast_name for t in both.targets] == ["not", "bad"]
    assert both.targets[0].title == "very rather than not"
    # The contrast is read on the target's own prefix: its second token after "very", not after "not".
    own, first = (method(model, **options)(["the food was"], targets=[x])[0] for x in ("very good", "not good"))
    second = method(model, **options)(["the food was"], targets=["very bad"])[0]
    expected = own.scores - np.stack([first.scores[0], second.scores[1]])
    np.testing.assert_allclose(both.scores, expected, atol=1e-10)
    np.testing.assert_allclose(both.output, own.output - [first.output[0], second.output[1]], atol=1e-10)


def test_one_contrast_token_serves_all_places_and_others_must_be_as_many(toy_causal):
    both = Occlusion(toy_causal)(["the food"], targets=["very good ."], contrast="bad")[0]
    assert [t.contrast_name for t in both.targets] == ["bad"] * 3
    with pytest.raises(InputError, match="contrast of text 0 has 2 tokens and its target 3"):
        Occlusion(toy_causal)(["the food"], targets=["very good ."], contrast="bad soup")


@pytest.fixture
def toy_causal():
    return toy("tanh", word_tokenizer(bos=False), task="causal")


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_over_the_whole_vocabulary_sum_to_one_so_their_scores_to_nothing(toy_causal, method):
    options = {"n_nodes": 32} if method is IntegratedGradients else {}
    explainer = method(toy_causal, inference_mode="softmax", **options)
    items = explainer(["the food was"] * 64, targets=[[i] for i in range(64)])
    np.testing.assert_allclose(sum(item.scores[:, :3] for item in items), 0, atol=1e-10)


@pytest.mark.parametrize("mode", ["logits", "log_softmax", "softmax"])
@pytest.mark.parametrize("method", METHODS)
def test_a_word_of_several_tokens_has_the_sum_or_product_of_its_tokens(toy_causal, method, mode):
    target = "good food again"
    options = {"inference_mode": mode, **({"n_nodes": 8} if method is IntegratedGradients else {})}
    item = method(toy_causal, target_granularity="sentence", **options)(["the soup was"], targets=[target])[0]
    tokens = method(toy_causal, **options)(["the soup was"], targets=[target])[0]
    assert [t.name for t in item.targets] == [target]
    total = tokens.output.prod() if mode == "softmax" else tokens.output.sum()
    assert item.output[0] == pytest.approx(total, abs=1e-12)
    assert np.isnan(item.scores[0, 3:]).all()
    if mode != "softmax":
        np.testing.assert_allclose(item.scores[0, :3], tokens.scores[:, :3].sum(axis=0), atol=1e-10)
    elif method is Occlusion:
        rows = tokens.output[:, None] - tokens.scores[:, :3]
        np.testing.assert_allclose(item.scores[0, :3], total - rows.prod(axis=0), atol=1e-12)


# Batches, shared rows, causality


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_alone_is_a_prompt_in_a_batch(architecture, method):
    options = {KernelShap: {"n_perturbations": 40}, IntegratedGradients: {"n_nodes": 3, "tolerance": 1e9}}
    model, one_a_batch = language_model(architecture), language_model(architecture)
    one_a_batch.engine.token_budget = 1
    together, singles = (
        method(each, **options.get(method, {}))(PROMPTS, targets=list(TARGETS)) for each in (model, one_a_batch)
    )
    backwards = method(model, **options.get(method, {}))(PROMPTS[::-1], targets=list(TARGETS[::-1]))
    for a, b, c in zip(together, backwards[::-1], singles, strict=True):
        close(a.scores, c.scores)
        close(b.scores, c.scores)
        close(a.output, c.output)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_what_is_generated_does_not_depend_on_company(architecture):
    prompts = [*PROMPTS, "the soup was warm and the service", "good food"]
    model = language_model(architecture)
    together = Occlusion(model)(prompts, **SIX)
    for prompt, item in zip(prompts, together, strict=True):
        alone = Occlusion(model)([prompt], **SIX)[0]
        assert [t.id for t in item.targets] == [t.id for t in alone.targets]
        close(item.scores, alone.scores)


def test_equal_rows_run_once_and_a_shared_table_changes_nothing():
    model = language_model("llama")
    first = KernelShap(model)(PROMPTS[:2], targets=list(TARGETS[:2]))
    assert first.counters["evaluations_run"] <= first.counters["evaluations_asked"]
    twice = Occlusion(model)(["awful soup", "awful soup"], targets=["was cold", "was cold"])
    assert twice[0].scores.tobytes() == twice[1].scores.tobytes()
    assert twice.counters["evaluations_run"] == twice.counters["evaluations_asked"] / 2
    with model.engine.shared_table():
        KernelShap(model)(PROMPTS[:2], targets=list(TARGETS[:2]))
        again = KernelShap(model)(PROMPTS[:2], targets=list(TARGETS[:2]))
    assert again.counters["evaluations_run"] == 0
    for a, b in zip(again, first, strict=True):
        close(a.scores, b.scores)


@pytest.mark.parametrize("method", [Occlusion, IntegratedGradients])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_what_follows_does_not_change_an_earlier_score(architecture, method):
    model = language_model(architecture)
    options = {"n_nodes": 4, "tolerance": 1e9} if method is IntegratedGradients else {}
    a, b = (method(model, **options)(["awful soup"], targets=[x])[0] for x in ("was cold again", "was cold . it !"))
    close(a.scores[:2, :3], b.scores[:2, :3])
    for item, n in ((a, 3), (b, 5)):
        expected = np.tril(np.ones((n, n), bool), -1)
        assert (item.valid == np.concatenate([np.ones((n, 2), bool), expected], axis=1)).all()


def test_the_last_generated_token_is_never_given_to_the_model():
    model = language_model("gpt2")
    item = Occlusion(model)(["awful soup"], targets=["was cold"])[0]
    assert item.ids.tolist() == ids_of(model, "awful soup was")
    assert item.of_token.tolist() == [0, 1, 2, 3]
    # The full text, the empty one, and one row for each of the three tokens that have a say.
    assert KernelShap(model)(["awful soup"], targets=["was cold"]).counters["evaluations_run"] == 8


# Removing


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "t5", "bart"])
def test_removing_moves_the_places_and_keeps_the_targets(architecture):
    model = language_model(architecture)
    prompt, target = ids_of(model, "the soup was"), ids_of(model, "very cold again")
    item = KernelShap(model, replacement="remove")(["the soup was"], targets=["very cold again"])[0]
    two_sided = model.model.config.is_encoder_decoder
    start = [model.decoder_start_id] if two_sided else []
    for t, token in enumerate(target):

        def v(present, t=t, token=token):
            kept = [i for place, i in enumerate(prompt) if place in present]
            left = [i for place, i in enumerate(target[:t], len(prompt)) if place in present]
            return next_logits(model, kept or [BOS], [*start, *left])[token].double().item()

        close(item.scores[t, : len(prompt) + t], shapley(v, len(prompt) + t))


def test_removing_everything_without_a_token_to_keep_is_refused():
    model = language_model("gpt2")
    model.tokenizer.bos_token = model.tokenizer.eos_token = None
    with pytest.raises(InputError, match="would leave an empty text"):
        KernelShap(model, replacement="remove")(["soup"], targets=["again"])


# What is generated


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", [{"max_new_tokens": 6}, {"max_new_tokens": 5, "num_beams": 3}])
def test_without_targets_the_models_own_continuation_is_explained(architecture, options):
    model = language_model(architecture)
    for prompt, item in zip(PROMPTS, Occlusion(model)(PROMPTS, generation=options), strict=True):
        ids = torch.tensor([ids_of(model, prompt)])
        with torch.no_grad():
            out = model.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0]
        expected = out[1:] if model.model.config.is_encoder_decoder else out[ids.shape[1] :]
        assert [t.id for t in item.targets] == expected.tolist()
        assert item.parameters["generation"] == options
        if "num_beams" not in options:
            best = step_by_step(model, ids[0].tolist(), [t.id for t in item.targets]).argmax(axis=1).tolist()
            # Marian's configuration forces an end on the last place.
            assert best[:-1] == [t.id for t in item.targets][:-1]


def test_twenty_tokens_unless_somebody_says_otherwise():
    model = language_model("llama")
    model.model.generation_config.eos_token_id = None
    assert len(Occlusion(model)(["soup"])[0].targets) == 20
    model.model.generation_config.max_new_tokens = 3
    assert len(Occlusion(model)(["soup"])[0].targets) == 3
    assert len(Occlusion(model)(["soup"], generation={"max_length": 5})[0].targets) == 4
    model.model.generation_config.max_new_tokens = None
    model.model.generation_config.max_length = 7
    assert len(Occlusion(model)(["soup"])[0].targets) == 6
    assert len(Occlusion(model)(["soup"], generation={"max_new_tokens": np.int64(2)})[0].targets) == 2


def test_samples_follow_their_seed_and_leave_the_callers_random_numbers_alone():
    model = language_model("gpt2")
    options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 8}
    torch.manual_seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = Occlusion(model)(PROMPTS, generation={**options, "seed": 1})
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    torch.manual_seed(6)
    again = Occlusion(model)(PROMPTS[::-1], generation={**options, "seed": 1})[::-1]
    other = Occlusion(model)(PROMPTS, generation={**options, "seed": 2})
    assert [a.text for a in first] == [a.text for a in again]
    assert [a.text for a in first] != [a.text for a in other]


def test_prompts_are_read_lazily():
    taken = []

    def endless():
        for k in itertools.count():
            taken.append(k)
            yield "awful soup" if k % 2 else "good"

    stream = Occlusion(language_model("gpt2")).stream(endless(), generation={"max_new_tokens": 2})
    assert [next(stream).text[:4] for _ in range(3)] == ["good", "awfu", "good"]
    assert len(taken) < 5000


def test_the_end_of_the_text_is_a_target_and_nothing_after_it():
    model = language_model("gpt2")
    item = Occlusion(model)(["awful soup"], targets=[[*ids_of(model, "was"), EOS]])[0]
    assert [t.name for t in item.targets] == ["was", "[SEP]"]
    assert item.elements == ("awful", "soup", "was")
    logits = next_logits(model, ids_of(model, "awful soup was"), [])
    assert item.output[1] == pytest.approx(logits[EOS].item(), abs=1e-5)
    # An end inside a target is never replaced.
    middle = Occlusion(model)(["awful soup"], targets=[[EOS, *ids_of(model, "was")]])[0]
    assert middle.elements == ("awful", "soup", "was")
    free = Occlusion(model)(PROMPTS, **SIX)
    end = free[0].targets[2].id
    stopped = Occlusion(model)(PROMPTS, generation={"max_new_tokens": 6, "eos_token_id": end})
    assert [t.id for t in stopped[0].targets] == [t.id for t in free[0].targets][: len(stopped[0].targets)]
    assert stopped[0].targets[-1].id == end
    assert all(t.id != end for item in stopped for t in item.targets[:-1])


# Ids, strings and tokenizers


def test_targets_of_all_kinds_mean_the_same():
    model = language_model("gpt2")
    ids = ids_of(model, "was cold")
    reference = Occlusion(model)(["awful soup"] * 2, targets=["was cold"] * 2)
    for targets in (
        "was cold",
        [ids, ids],
        [tuple(ids), np.array(ids)],
        torch.tensor([ids, ids]),
        np.array([ids, ids]),
    ):
        assert Occlusion(model)(["awful soup"] * 2, targets=targets) == reference
    mixed = Occlusion(model)(["awful soup"] * 2, targets=[None, "was cold"], **SIX)
    assert len(mixed[0].targets) == 6
    np.testing.assert_allclose(mixed[1].scores, reference[1].scores, atol=1e-5)


@pytest.fixture(scope="module")
def gpt2_tokenizer(shared):
    from transformers import GPT2TokenizerFast

    folder = shared / "models" / "tokenizers" / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"GPT-2's vocabulary is not there: no folder {folder}")
    return GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.fixture(scope="module")
def small_gpt2(gpt2_tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    from interpreto_mlops.models.text_model import TextModel

    torch.manual_seed(0)
    return TextModel(GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=64)).eval(), gpt2_tokenizer)


def test_generated_ids_are_never_read_from_their_text_again(small_gpt2):
    assert small_gpt2.tokenizer(small_gpt2.tokenizer.decode([15496, 30325]))["input_ids"] != [15496, 30325]
    item = Occlusion(small_gpt2, granularity="token")(["I say:"], targets=[[15496, 30325]])[0]
    assert [t.id for t in item.targets] == [15496, 30325]
    logits = step_by_step(small_gpt2, small_gpt2.tokenizer("I say:")["input_ids"], [15496, 30325])
    np.testing.assert_allclose(item.output, [logits[0, 15496], logits[1, 30325]], atol=1e-5)


def test_the_bytes_of_an_emoji_are_elements_with_its_text_and_one_word(small_gpt2):
    ids = small_gpt2.tokenizer("so good 🥲!", add_special_tokens=False)["input_ids"]
    assert len(ids) == 6
    tokens = Occlusion(small_gpt2, granularity="token")(["It was"], targets=["so good 🥲!"])[0]
    assert [t.id for t in tokens.targets] == ids
    assert tokens.elements == ("It", "was", "so", "good", "🥲", "🥲", "🥲", "!")
    assert tokens.text == "It wasso good 🥲!"
    words = Occlusion(small_gpt2)(["It was"], targets=[" so good 🥲!"])[0]
    assert words.elements == ("It", "was", "so", "good", "🥲", "!")
    granules = Occlusion(small_gpt2, target_granularity="word")(["It was"], targets=[" so good 🥲!"])[0]
    assert [t.name for t in granules.targets] == ["so", "good", "🥲", "!"]
    assert [len(t.ids) for t in granules.targets] == [1, 1, 3, 1]


def test_half_an_emoji_at_the_end_is_an_element_all_the_same(small_gpt2):
    ids = small_gpt2.tokenizer(" good 🥲", add_special_tokens=False)["input_ids"]
    for cut in (1, 2):
        item = Occlusion(small_gpt2, granularity="token")(["It was"], targets=[ids[:-cut]])[0]
        assert [t.id for t in item.targets] == ids[:-cut]
        assert item.elements == ("It", "was", "good", *["\ufffd"] * (3 - cut))
        assert np.isfinite(item.scores[:, :2]).all()


def test_a_leading_space_belongs_to_its_token_and_none_is_forced(small_gpt2):
    with_space, without = (Occlusion(small_gpt2)(["It was"], targets=[target])[0] for target in (" good", "good"))
    assert [t.id for t in with_space.targets] == small_gpt2.tokenizer(" good")["input_ids"]
    assert [t.id for t in without.targets] == small_gpt2.tokenizer("good")["input_ids"]
    assert (with_space.text, without.text) == ("It was good", "It wasgood")
    # A word is cut where the continuation starts.
    assert without.elements == ("It", "was", "good")


def test_an_empty_prompt_is_the_start_token_or_refused(small_gpt2):
    item = Occlusion(small_gpt2)([""], targets=[" so good"])[0]
    assert item.ids.tolist()[0] == small_gpt2.tokenizer.bos_token_id
    assert item.elements == ("so", "good")
    assert np.isnan(item.scores[0]).all()
    assert np.isfinite(item.scores[1, 0])
    alone = Occlusion(small_gpt2)([""], targets=[" so"])[0]
    assert np.isnan(alone.scores).all()
    assert np.isfinite(alone.output).all()
    tokenizer = copy.deepcopy(small_gpt2.tokenizer)
    tokenizer.bos_token = None
    from interpreto_mlops.models.text_model import TextModel

    with pytest.raises(InputError, match="text 1 is empty, and the tokenizer has no bos token"):
        Occlusion(TextModel(small_gpt2.model, tokenizer))(["good", ""], targets=" so")


# Real trained models


@pytest.fixture(scope="module")
def sorter(shared):
    return trained(shared, "gpt_nano_sort")


@pytest.fixture(scope="module")
def stories(shared):
    return trained(shared, "stories260K")


def trained(shared, name):
    from interpreto_mlops.models.loading import load_model

    folder = shared / "models" / name / "hf"
    if not folder.is_dir():
        pytest.skip(f"the trained model is not there: no folder {folder}")
    return load_model(folder)


def test_the_sorter_sorts_every_input_through_our_generation(sorter):
    from interpreto_mlops.models.targets import questions

    inputs = [" ".join(letters) for letters in itertools.product("ABC", repeat=6)]
    asked = questions(sorter, inputs, generation={"max_new_tokens": 6})
    for text, question in zip(inputs, asked, strict=True):
        assert [t.name for t in question.expected] == sorted(text.split())


def test_the_sorters_shapley_values_equal_brute_force_over_all_coalitions(sorter):
    text, letters = "C A B B A C", [2, 0, 1, 1, 0, 2]
    items = KernelShap(sorter, n_perturbations=2**11, replacement=0)([text], generation={"max_new_tokens": 6})
    target = [0, 0, 1, 1, 2, 2]
    assert [t.id for t in items[0].targets] == target
    v = {}
    for present in itertools.product([0, 1], repeat=6):
        ids = [letter if there else 0 for letter, there in zip(letters, present, strict=True)]
        v[frozenset(np.flatnonzero(present))] = next_logits(sorter, ids, [])[target[0]].double().item()
    expected = shapley(lambda present: v[frozenset(present)], 6)
    np.testing.assert_allclose(items[0].scores[0, :6], expected, atol=1e-5)
    np.testing.assert_allclose(
        np.nansum(items[0].scores, axis=1), items[0].output - items[0].baseline_output, atol=1e-4
    )


STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball."
)


def test_the_stories_continue_as_published_and_score_step_by_step(stories):
    """The first sentences are those of llama2.c's page of this model, at temperature 0 from the start token alone."""
    item = Occlusion(stories, granularity="token")([""], generation={"max_new_tokens": 60})[0]
    assert item.text.strip().startswith(STORY)
    prompt = stories.tokenizer("Once upon a time")["input_ids"]
    item = Occlusion(stories)(["Once upon a time"], generation={"max_new_tokens": 8})[0]
    ids = torch.tensor([prompt])
    out = stories.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, pad_token_id=2)
    target = [t.id for t in item.targets]
    assert out[0, len(prompt) :].tolist() == target
    assert prompt[0] == stories.tokenizer.bos_token_id
    assert item.text.startswith("Once upon a time, there was a")
    close(item.output, step_by_step(stories, prompt, target)[range(8), target])


def test_byte_tokens_of_a_llama_vocabulary_join_to_their_character(stories):
    tokens = Occlusion(stories, granularity="token")(["I saw"], targets=["a é🥲."])[0]
    ids = stories.tokenizer("a é🥲.", add_special_tokens=False)["input_ids"]
    assert [t.id for t in tokens.targets] == ids
    assert tokens.elements == ("I", "saw", "a", "é", "🥲", "🥲", "🥲", "🥲", ".")
    assert [t.name for t in tokens.targets][:3] == ["a", "▁", "é"]  # a space alone is a target, but no element
    words = Occlusion(stories)(["I saw"], targets=["a é🥲."])[0]
    assert words.elements == ("I", "saw", "a", "é", "🥲", ".")
    assert words.text == "I saw a é🥲."


# The user's objects


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_everything_of_the_users_is_left_as_it_was(architecture, fails):
    model = language_model(architecture)
    network, tokenizer = model.model, model.tokenizer
    tokenizer.padding_side, tokenizer.truncation_side = "left", "left"
    tokenizer.backend_tokenizer.enable_truncation(9)
    network.train()
    next(network.children()).eval()
    next(network.parameters()).requires_grad_(False)
    if fails:
        model.embedding.weight.data[ids_of(model, "soup")] = float("nan")
    before = snapshot(model)
    with torch.no_grad():
        for method in METHODS:
            if fails:
                with pytest.raises(ModelOutputError, match=r"NaN or infinity for text \d"):
                    method(model)(PROMPTS, targets=list(TARGETS))
            else:
                method(model, **({"tolerance": 1e9} if method is IntegratedGradients else {}))(PROMPTS, **SIX)
    after = snapshot(model)
    assert {name: before[name] == after[name] for name in before} == dict.fromkeys(before, True)


def snapshot(model):
    network, tokenizer = model.model, model.tokenizer
    return {
        "weights": [tensor.numpy().tobytes() for tensor in network.state_dict().values()],
        "modes": [module.training for module in network.modules()],
        "wants": [parameter.requires_grad for parameter in network.parameters()],
        "grads": [parameter.grad is None for parameter in network.parameters()],
        "config": network.config.to_dict(),
        "generation": network.generation_config.to_dict(),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules()],
        "rng": torch.get_rng_state().tolist(),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "sides": (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length, len(tokenizer)),
        "attention": network.config._attn_implementation,
    }


@pytest.mark.parametrize("method", METHODS)
def test_results_are_saved_and_loaded_with_their_holes(method, tmp_path):
    model = language_model("gpt2")
    explainer = method(model, **({"tolerance": 1e9} if method is IntegratedGradients else {}))
    explanations = explainer(PROMPTS, contrast="bad", generation={"max_new_tokens": np.int64(3), "eos_token_id": [EOS]})
    assert AttributionSet.load(explanations.save(tmp_path)) == explanations


# Prompts that do not fit, and conversations


def test_a_long_prompt_is_refused_or_cut_on_the_left_with_its_target_whole():
    model = language_model("gpt2", bos=True)
    long = " ".join(["the", *["food"] * 40, "was", "good"])
    with pytest.raises(
        InputError, match=r"text 0 has 45 tokens and with its target more than the 32 .*truncation=True"
    ):
        Occlusion(model)([long], targets=["and cold"])
    with pytest.warns(TextWarning, match="text 0 is longer than 31 tokens and was cut on the left"):
        item = Occlusion(model)([long], targets=["and cold"], truncation=True)[0]
    assert item.truncated
    assert len(item.ids) == 32
    assert item.ids[0] == BOS
    assert item.elements == (*["food"] * 27, "was", "good", "and", "cold")
    assert [t.name for t in item.targets] == ["and", "cold"]
    assert [item.text[a:b] for a, b in item.spans] == list(item.elements)
    with pytest.raises(InputError, match=r"text 0 has 4 tokens .*shorten the target"):
        Occlusion(model)(["good food"], targets=[[5] * 40], truncation=True)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_long_source_is_refused_or_cut_and_a_long_target_refused(architecture):
    model = language_model(architecture)
    with pytest.raises(InputError, match="text 0 has 40 tokens"):
        Occlusion(model)(["food " * 40], targets=["good"])
    with pytest.warns(TextWarning, match="was cut on the left"):
        assert len(Occlusion(model)(["food " * 40], targets=["good"], truncation=True)[0].elements) == 33
    with pytest.raises(InputError, match="the target of text 1 has 40 tokens, more than the 32"):
        Occlusion(model)(["food", "food"], targets=["good", [5] * 40])
    with pytest.raises(InputError, match="the target of text 0 has 99 tokens, more than the 32"):
        Occlusion(model)(["food"], generation={"max_new_tokens": 99})


def test_a_target_that_starts_with_the_prompt_warns_and_a_generated_one_does_not():
    model = language_model("gpt2")
    ids = ids_of(model, "awful soup")
    with pytest.warns(TextWarning, match="text 0: its target starts with the whole prompt"):
        Occlusion(model)(["awful soup"], targets=[[*ids, 9]])
    source = language_model("t5")
    with pytest.warns(TextWarning, match="text 0: its target starts with the token that the decoder starts with"):
        Occlusion(source)(["awful soup"], targets=[[source.decoder_start_id, 9]])
    Occlusion(source)(["awful soup"], targets=["awful soup again"])


TEMPLATE = (
    "{% for m in messages %}[CLS] {{ m['content'] }} [SEP] {% endfor %}{% if add_generation_prompt %}[CLS]{% endif %}"
)


def test_a_conversation_keeps_its_markers_which_are_never_replaced():
    model = language_model("llama")
    model.tokenizer.chat_template = TEMPLATE
    chat = [{"role": "user", "content": "was the food good ?"}, {"role": "assistant", "content": "very"}]
    item = Occlusion(model)([chat], targets=["again !"])[0]
    words = ids_of(model, "was the food good ?")
    assert item.ids.tolist() == [BOS, *words, EOS, BOS, *ids_of(model, "very"), EOS, BOS, *ids_of(model, "again")]
    assert item.elements == ("was", "the", "food", "good", "?", "very", "again", "!")
    assert item.text == "[CLS] was the food good ? [SEP] [CLS] very [SEP] [CLS] again !"
    prompt, target = item.ids.tolist()[:-1], ids_of(model, "again !")
    for j, place in enumerate([1, 2, 3, 4, 5, 8]):
        rows = step_by_step(model, replaced(prompt, {place}, MASK), target)
        close(item.scores[:, j], item.output - rows[[0, 1], target])
    model.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match=r"text 0 cannot be written by the chat template .*no system role"):
        Occlusion(model)([chat], targets=["again !"])


# Parts of the row


def test_decoder_words_of_an_encoder_decoder_have_scores_and_its_start_has_none():
    model = language_model("bart")
    item = Occlusion(model)(["awful soup"], targets=["was cold again"])[0]
    assert item.ids.tolist() == [*ids_of(model, "awful soup"), EOS, *ids_of(model, "was cold")]
    assert item.of_token.tolist() == [0, 1, -1, 2, 3, 4]
    assert item.prompt_tokens == 2
    with_start = Occlusion(model)(["awful soup"], targets=["was cold again"], generation={"decoder_start_token_id": 7})
    assert with_start[0].ids.tolist()[2] == 7
    rows = [next_logits(model, ids_of(model, "awful soup"), [7, *ids_of(model, "was cold")[:t]]) for t in range(3)]
    close(with_start[0].output, [row[i].item() for row, i in zip(rows, ids_of(model, "was cold again"), strict=True)])


def test_a_forced_first_token_is_part_of_the_target():
    model = language_model("bart")
    model.model.generation_config.forced_bos_token_id = 9
    item = Occlusion(model)(["awful soup"], **SIX)[0]
    assert item.targets[0].id == 9
    assert item.ids[2] == EOS


@pytest.mark.filterwarnings("ignore:text .*completeness gap")
@pytest.mark.parametrize("architecture", ["gpt2", "t5", "bart"])
def test_word_targets_before_an_end_token(architecture):
    """The end is no word and so no target, but its place stays in the row; gradients and pads must bear that."""
    model = language_model(architecture)
    targets = [[*ids_of(model, "was cold"), EOS], [*ids_of(model, "again"), EOS]]
    for method in METHODS:
        explainer = method(model, target_granularity="word", replacement="pad")
        items = explainer(PROMPTS[:2], targets=targets)
        assert [t.name for t in items[0].targets] == ["was", "cold"]
        for prompt, target, item in zip(PROMPTS, targets, items, strict=False):
            short = explainer([prompt], targets=[target[:-1]])[0]
            seen = short.scores.shape[1] - 1
            close(item.scores[:, :seen], short.scores[:, :seen])


def test_models_without_logits_to_keep_and_with_it_give_the_same(monkeypatch):
    reference = Occlusion(language_model("gpt2"))(PROMPTS, targets=list(TARGETS))
    import interpreto_mlops.models.text_model as text_model

    for by_row in (True, False):
        monkeypatch.setattr(text_model, "_TAKES_POSITIONS_BY_ROW", by_row)
        for a, b in zip(Occlusion(language_model("gpt2"))(PROMPTS, targets=list(TARGETS)), reference, strict=True):
            close(a.scores, b.scores)
    without = language_model("gpt2")
    without.__dict__["accepts"] = without.accepts - {"logits_to_keep"}
    for a, b in zip(Occlusion(without)(PROMPTS, targets=list(TARGETS)), reference, strict=True):
        close(a.scores, b.scores)


def test_no_padding_token_and_one_that_ends_texts():
    reference = Occlusion(language_model("gpt2"))(PROMPTS, targets=list(TARGETS))
    generated = Occlusion(language_model("gpt2"))(PROMPTS, **SIX)
    for pad in (None, "[SEP]"):
        model = language_model("gpt2")
        model.tokenizer.pad_token = pad
        model.model.config.pad_token_id = None if pad is None else EOS
        model.model.generation_config.pad_token_id = None if pad is None else EOS
        for a, b in zip(Occlusion(model)(PROMPTS, targets=list(TARGETS)), reference, strict=True):
            close(a.scores, b.scores)
        for a, b in zip(Occlusion(model)(PROMPTS, **SIX), generated, strict=True):
            assert a.text == b.text
        assert model.tokenizer.pad_token == pad


@pytest.mark.parametrize("method", [KernelShap, Occlusion])
def test_what_a_word_with_its_own_target_carries_is_said(small_gpt2, method):
    """Its first token counts for its second, which has no score for the word that it belongs to."""
    model = small_gpt2
    item = method(model)(["the food was"], ["  goood"])[0]
    tokens = method(model, granularity="token")(["the food was"], ["  goood"])[0]
    assert "not_shown" not in tokens.checks
    assert len(item.targets) > len(item) - 3
    if method is KernelShap:
        gap = np.abs(np.nansum(item.scores, axis=1) - (item.output - item.baseline_output)).max()
        assert item.checks["efficiency_gap"] < 1e-9 < gap
        assert item.checks["not_shown"] == pytest.approx(gap)
    assert item.checks["not_shown"] > 0


def test_integrated_gradients_takes_more_nodes_only_for_the_targets_that_need_them(monkeypatch):
    model = language_model("gpt2")
    given = {"texts": PROMPTS[:1], "targets": ["was cold and slow but good"]}
    few = IntegratedGradients(model, n_nodes=8)(**given)[0]
    total = few.output - few.baseline_output
    gap = np.abs(np.nansum(few.scores, axis=1) - total) / np.abs(total)
    tolerance = float(np.median(gap))
    wanting = int((gap > tolerance).sum())
    assert 0 < wanting < len(gap)
    calls, differentiate = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or differentiate(*a, **k))
    item = IntegratedGradients(model, tolerance=tolerance)(**given)[0]
    # One batch a round, and one backward pass for each target in it.
    assert item.checks["nodes"] > 8
    assert len(gap) < len(calls) <= len(gap) + wanting * 3
    close(item.scores[gap <= tolerance], few.scores[gap <= tolerance])
