"""Bad input: one clear sentence before the model runs, and one bad text never spoils the others. For every task."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interpreto_mlops.attributions import (
    AttentionRollout,
    AttnLrp,
    AttributionSet,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    Lime,
    Occlusion,
    Rfem,
    Saliency,
    SmoothGrad,
)
from interpreto_mlops.attributions.metrics import Comprehensiveness, Deletion, Insertion, Sufficiency
from interpreto_mlops.errors import InputError, InterpretoError, ModelOutputError, TextWarning, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.attributions.games import toy
from tests.attributions.language_models import EOS, language_model
from tests.attributions.test_token_classification import build as build_tagger
from tests.conftest import build as build_classifier
from tests.conftest import word_tokenizer

METHODS = (Occlusion, KernelShap, IntegratedGradients)
KINDS = ("classifier", "tagger", "gpt2", "t5")
TEXTS = ["the food was great", "awful soup", "we loved it , but the place was cold and the service very slow ."]
QUICK = {KernelShap: {"n_perturbations": 40}, IntegratedGradients: {"n_nodes": 4, "tolerance": 1e9}}
RANKING_METRICS = (Insertion, Deletion, Comprehensiveness, Sufficiency)
TWO = {"max_new_tokens": 2}


def make(kind):
    if kind == "classifier":
        return TextModel(build_classifier("bert"), word_tokenizer(), name="tiny")
    if kind == "tagger":
        return TextModel(build_tagger("bert"), word_tokenizer(), name="tiny")
    return language_model(kind)


def target_of(kind):
    return "was cold" if kind in {"gpt2", "t5"} else 1


def explain(model, kind, texts=None, method=Occlusion, **options):
    return method(model, **QUICK.get(method, {}), **options)(TEXTS if texts is None else texts, targets=target_of(kind))


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, atol=tolerance * np.nanmax(np.abs(b), initial=1.0))


@pytest.fixture
def calls():
    """Counts the forward passes of models that it is given."""
    counted = []

    def watch(model):
        model.model.register_forward_pre_hook(lambda *_: counted.append(1))
        return counted

    return watch


# What is no list of texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("good food", r"give a list of texts, not one string \('good food'\)"),
        ({"input_ids": [[5, 6]], "attention_mask": [[1, 1]]}, "not a mapping of 'input_ids', 'attention_mask'"),
        (word_tokenizer()(["good food", "awful soup"]), "raw texts, .* not a mapping of 'input_ids'"),
        ({}, "not a mapping of nothing"),
        (pd.DataFrame({"text": ["good"]}), "give a list of texts, not a DataFrame"),
        (np.array([["good"]]), "not a ndarray"),
        (np.array("good"), "not a ndarray"),
        (None, "not a NoneType"),
        (3, "not a int"),
        (["good food", None], "text 1 is not a string but None"),
        (["good food", "awful", 3.5, "soup"], "text 2 is not a string but 3.5"),
        (["good food", b"awful"], "text 1 is not a string but b'awful'"),
        (pd.Series(["good food", np.nan]), "text 1 is not a string but nan"),
        (torch.tensor([5, 6]), r"text 0 is not a string but tensor\(5\)"),
        (["good food", "fo\ud800od"], "text 1 holds half a character"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_before_the_model_runs(kind, texts, words, calls):
    model = make(kind)
    counted = calls(model)
    for targets in (None, target_of(kind)):
        with pytest.raises(InputError, match=words):
            Occlusion(model)(texts, targets=targets)
    assert not counted


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_all_kinds_are_texts(kind):
    model = make(kind)
    reference = explain(model, kind)
    for texts in (tuple(TEXTS), np.array(TEXTS), pd.Series(TEXTS, index=[7, 8, 9]), (text for text in TEXTS)):
        assert explain(model, kind, texts) == reference
    assert len(explain(model, kind, [])) == len(explain(model, kind, iter([]))) == 0


@pytest.mark.parametrize("wrong", [["good", "food"], [{"text": "good"}, 3], ("a", "b")])
def test_a_prompt_is_a_string_or_a_conversation(wrong):
    with pytest.raises(InputError, match="text 1 must be a string, or a list of messages with 'role' and 'content'"):
        Occlusion(language_model("gpt2"))(["good", wrong], targets="was")


def test_a_conversation_needs_a_template():
    chat = [{"role": "user", "content": "good food"}]
    with pytest.raises(InputError, match="text 0 is a conversation, but the tokenizer of 'gpt2' has no chat template"):
        Occlusion(language_model("gpt2"))([chat], targets="was")
    with pytest.raises(InputError, match="text 0 must be a string"):
        Occlusion(language_model("gpt2"))([[]], targets="was")


# Wrong targets, contrasts and arguments


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("", "a target or contrast of text 0 has no tokens"),
        ([[]], "a target or contrast of text 0 has no tokens"),
        ([[5, -1]], "a target or contrast of text 0 holds -1, which is no token id below 64"),
        ([[5, 64]], "holds 64, which is no token id below 64"),
        ([[5, 6.0]], "holds 6.0"),
        ([[True]], "holds True"),
        ([["was"]], "holds 'was'"),
        ([[[5]]], r"holds \[5\]"),
        ([torch.tensor([5.0])], "holds 5.0"),
        (5, "a target or contrast of text 0 must be a string or a list of token ids, not 5"),
        ([5], "must be a string or a list of token ids, not 5"),
        (["was", "cold"], "2 targets were given for 1 texts"),
        ([torch.tensor(5)], "must be a string or a list of token ids, not 5"),
    ],
)
def test_wrong_continuations_are_refused_before_the_model_runs(kind, targets, words, calls):
    model = make(kind)
    counted = calls(model)
    with pytest.raises(InputError, match=words):
        Occlusion(model)(["good food"], targets=targets)
    if "must be a string" not in words:  # a contrast may be one bare id, which stands for all places
        with pytest.raises(InputError, match=words.replace("targets were", "contrasts were")):
            Occlusion(model)(["good food"], contrast=targets)
    assert not counted


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_contrast_may_be_one_token_by_its_bare_id(kind):
    model = make(kind)
    given = {"texts": ["good food"], "targets": ["was cold"]}
    whole = Occlusion(model)(**given, contrast=[[7, 7]])[0]
    for bare in (7, np.int64(7), [7]):
        close(Occlusion(model)(**given, contrast=bare)[0].scores, whole.scores)


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        (5, "generation must be a mapping of generate's arguments, not 5"),
        ({"max_new_tokens": 0}, "generation's max_new_tokens must be a whole number of at least 1, not 0"),
        ({"max_new_tokens": "5"}, "must be a whole number of at least 1, not '5'"),
        ({"max_new_tokens": None}, "must be a whole number of at least 1, not None"),
        ({"seed": "x"}, "generation's seed must be a whole number"),
        ({"seed": -1}, "generation's seed must be a whole number of at least 0, not -1"),
        ({"num_return_sequences": 3}, "one continuation is explained, not 3: num_return_sequences"),
        ({"streamer": object()}, "generation's streamer must be a number, a string or a list of them, not a object"),
        ({"input_ids": [[5]]}, "generation must not hold 'input_ids'"),
        ({"max_new_token": 5}, "the model cannot generate with .*max_new_token"),
        ({"do_sample": True, "temperature": -1.0}, "the model cannot generate with .*temperature"),
        ({"max_length": 2}, "a prompt of 2 tokens leaves no room in generation's max_length 2"),
    ],
)
def test_wrong_arguments_of_generate_are_refused_before_the_model_runs(generation, words, calls):
    model = language_model("gpt2")
    counted = calls(model)
    with pytest.raises(InputError, match=words):
        Occlusion(model)(["good food"], generation=generation)
    assert not counted


def test_a_configuration_that_asks_for_several_continuations_gives_the_first():
    model = language_model("gpt2")
    reference = Occlusion(model)(TEXTS, generation={**TWO, "num_beams": 3})
    model.model.generation_config.num_return_sequences = 3
    model.model.generation_config.num_beams = 3
    assert [a.text for a in Occlusion(model)(TEXTS, generation=TWO)] == [a.text for a in reference]
    assert model.model.generation_config.num_return_sequences == 3


@pytest.mark.parametrize("options", [{"generation": {"max_new_tokens": 3}}, {"truncation": True}])
@pytest.mark.parametrize("kind", ["classifier", "tagger"])
def test_classifiers_generate_nothing(kind, options):
    with pytest.raises(InputError, match="generation and truncation are for language models, and 'tiny' is a class"):
        Occlusion(make(kind))(TEXTS, **options)


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        (3, "there is no class 3; the model 'tiny' has 0"),
        ("nice", "unknown class 'nice'"),
        (True, "not True"),
        ([1, 2], "2 contrasts were given for 1 texts"),
        ([[0, 1]], "text 0 has 1 targets and 2 contrasts; give one for each"),
        ([[]], "empty list of targets"),
    ],
)
def test_wrong_contrasts_of_classes_are_refused_before_the_model_runs(contrast, words, calls):
    for targets in (None, 0):
        model = make("classifier")
        counted = calls(model)
        with pytest.raises(InterpretoError, match=words):
            Occlusion(model)(["good food"], targets=targets, contrast=contrast)
        assert not counted


@pytest.mark.parametrize("method", METHODS)
def test_a_contrast_of_classes_is_the_difference_of_two_explanations(method):
    model = toy("tanh", word_tokenizer(bos=False))
    options = {"n_nodes": 8} if method is IntegratedGradients else {}
    a, b = (method(model, **options)(["the food was"], targets=k)[0] for k in (0, 1))
    both = method(model, **options)(["the food was"], targets=0, contrast=1)[0]
    np.testing.assert_allclose(both.scores, a.scores - b.scores, atol=1e-10)
    several = method(model, **options)(["the food was"], targets=[["LABEL_0", 1]], contrast=[[1, "LABEL_0"]])[0]
    np.testing.assert_allclose(several.scores, [both.scores[0], -both.scores[0]], atol=1e-10)
    assert both.targets[0].title == "LABEL_0 rather than LABEL_1"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"granularity": "letter"}, "unknown granularity 'letter'"),
        ({"target_granularity": "letter"}, "unknown granularity 'letter'"),
        ({"inference_mode": "odds"}, "unknown inference mode 'odds'"),
        ({"replacement": "blank"}, "not 'blank'"),
        ({"replacement": -1}, "not -1"),
        ({"replacement": 64}, "not 64"),
        ({"replacement": True}, "not True"),
        ({"replacement": 1.5}, "not 1.5"),
    ],
)
def test_wrong_options_are_refused_for_every_task(kind, options, words):
    with pytest.raises((InputError, UnknownNameError), match=words):
        Occlusion(make(kind), **options)


# One bad text among good ones


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_text_without_elements_does_not_spoil_the_others(kind, method, tmp_path):
    model = make(kind)
    texts = [TEXTS[0], "", " \n", TEXTS[1]]
    language = kind in {"gpt2", "t5"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        items = explain(model, kind, texts, method)
    expected = [] if language else ["text 1 has nothing to attribute: ''", "text 2 has nothing to attribute: ' \\n'"]
    assert [str(warning.message) for warning in caught] == expected
    good = explain(model, kind, [TEXTS[0], TEXTS[1]], method)
    close(items[0].scores, good[0].scores)
    close(items[3].scores, good[1].scores)
    if language:
        # The prompt is the start token alone; the first generated word has a say in the second.
        assert items[1].elements == items[2].elements == ("was", "cold")
        assert items[1].valid.tolist() == [[False, False], [True, False]]
    else:
        assert items[1].scores.shape == items[2].scores.shape == ((0, 0) if kind == "tagger" else (1, 0))
    assert AttributionSet.load(items.save(tmp_path)) == items
    for metric in RANKING_METRICS:
        result = metric(model)(items)
        assert np.isfinite(result.values[[0, 3]]).all()


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_continuation_without_elements(kind):
    model = make(kind)
    with pytest.warns(TextWarning, match="text 0 has nothing to attribute"):
        item = Occlusion(model)([""], targets=[[EOS]])[0]
    assert item.scores.shape == (1, 0)
    with pytest.raises(InputError, match="the continuation of text 0 has no word to explain"):
        Occlusion(model, target_granularity="word")(["good"], targets=[[EOS]])


@pytest.mark.parametrize("kind", KINDS)
def test_one_element_gets_everything(kind):
    for method in (Occlusion, KernelShap):
        item = explain(make(kind), kind, ["good"], method)[0]
        # Of a language model's second target the first generated word is an element, too.
        assert len(item.elements) == (3 if kind in {"gpt2", "t5"} else 1)
        close(item.scores[0, 0], item.output[0] - item.baseline_output[0])


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_words_and_emoji_are_slices_of_the_text_with_a_score(kind):
    item = explain(make(kind), kind, ["Scrumptious food 🥲 naïve 食物"])[0]
    # One token covers both ideographs and joins them.
    assert item.elements[:5] == ("Scrumptious", "food", "🥲", "naïve", "食物")
    assert np.isfinite(item.scores[:, :5]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_texts_of_very_different_lengths(kind, method):
    texts = ["soup", "the food was great and " * 5 + "good", "never again"]
    together = explain(make(kind), kind, texts, method)
    for text, item in zip(texts, together, strict=True):
        close(item.scores, explain(make(kind), kind, [text], method)[0].scores)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_infinity_is_named_with_the_text(kind, method):
    model = make(kind)
    head = {"classifier": "classifier", "tagger": "classifier"}.get(kind, "lm_head")
    handle = model.model.get_submodule(head).register_forward_hook(lambda _m, _a, out: out * float("inf"))
    with pytest.raises(ModelOutputError, match=r"NaN or infinity for text \d \(\d+ of \d+ tokens replaced\)"):
        explain(model, kind, method=method)
    handle.remove()


# How the model stands


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_train_mode_no_grad_inference_mode_and_frozen_weights_change_nothing(kind, method):
    reference = explain(make(kind), kind, method=method)
    for context in (contextlib.nullcontext, torch.no_grad, torch.inference_mode):
        model = make(kind)
        model.model.train()
        model.model.requires_grad_(False)
        with context():
            items = explain(model, kind, method=method)
        for a, b in zip(items, reference, strict=True):
            close(a.scores, b.scores, 1e-6)
        assert all(module.training for module in model.model.modules())
        assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_generating_in_train_mode_is_generating_in_eval_mode(kind):
    reference = Occlusion(make(kind))(TEXTS, generation=TWO)
    model = make(kind)
    model.model.train()
    with torch.inference_mode():
        assert Occlusion(model)(TEXTS, generation=TWO) == reference
    assert all(module.training for module in model.model.modules())
    # Tensors that were made for generating do not stand in the way of gradients later.
    explain(model, kind, method=IntegratedGradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_other_dtypes_give_nearly_the_same(kind, method, dtype):
    reference = explain(make(kind), kind, method=method)
    model = make(kind)
    model.model.to(dtype)
    items = explain(model, kind, method=method)
    tolerance = {torch.bfloat16: 0.15, torch.float16: 0.03, torch.float64: 1e-4}[dtype]
    for a, b in zip(items, reference, strict=True):
        assert a.parameters["dtype"] == str(dtype).split(".")[-1]
        assert (a.valid == b.valid).all()
        assert a.scores.dtype == np.float64
        scale = max(1.0, np.nanmax(np.abs(b.output)))
        assert np.nanmax(np.abs(a.output - b.output)) < tolerance * scale
        if method is not IntegratedGradients or dtype is torch.float64:
            assert np.nanmax(np.abs(a.scores - b.scores)) < tolerance * scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_model_gives_zeros(kind, method):
    model = make(kind)
    head = model.model.get_submodule({"classifier": "classifier", "tagger": "classifier"}.get(kind, "lm_head"))
    handle = head.register_forward_hook(lambda _m, _a, out: out * 0 + 1.5)
    options = {"tolerance": 0.01} if method is IntegratedGradients else {}
    items = method(model, **options)(TEXTS, targets=target_of(kind))
    for item in items:
        np.testing.assert_allclose(item.scores[item.valid], 0, atol=1e-15)
        assert all(np.isfinite(value) for value in item.checks.values())
    for metric in RANKING_METRICS:
        assert np.isfinite(metric(model)(items).values).all()
    handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_no_part_of_the_model_is_moved_or_cast(kind):
    model = make(kind)
    moved = []
    for module in model.model.modules():
        module._apply = lambda *_, **__: moved.append(1)  # what `to`, `cuda`, `half` and so on go through
    for method in METHODS:
        explain(model, kind, method=method)
    assert not moved
    model.model.to("cpu")
    assert moved


def test_a_length_that_the_model_does_not_take_is_refused_before_it_generates(calls):
    model = language_model("gpt2")
    check, watched = Occlusion(model), calls(model)
    with pytest.raises(InputError, match="max_length 34 is more than the 32"):
        check(["the food"], generation={"max_length": 34})
    assert not watched
    assert len(check(["the food"], generation={"max_length": 33, "eos_token_id": 63})[0].ids) <= 32


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_decoder_keeps_the_token_that_it_starts_with(kind):
    explain_all = Occlusion(language_model(kind), granularity="all_tokens", replacement="remove")
    with pytest.raises(InputError, match="nothing to start with"):
        explain_all(["the food was good"], ["it was"])


@pytest.mark.parametrize("option", ["targets", "contrast"])
def test_a_model_without_the_explained_tokens_is_refused(option):
    model = language_model("gpt2")
    given = {"targets": [[5, 6]], "contrast": [[5, 7]], option: [[5, 60]]}
    explanations = Occlusion(model)(["the food"], **given)
    config = GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=4, n_positions=32, bos_token_id=2, eos_token_id=3)
    with pytest.raises(InputError, match="token ids that 'small' does not have"):
        Deletion(TextModel(GPT2LMHeadModel(config).eval(), word_tokenizer(bos=False), name="small"))(explanations)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (SmoothGrad, {"noise": np.float32(0.1), "n_draws": 2}),
        (IntegratedGradients, {"tolerance": np.float32(9)}),
        (AttentionRollout, {"alpha": np.float32(0.5)}),
    ],
)
def test_numbers_of_numpy_are_kept_as_numbers(method, options, tmp_path):
    explanations = method(make("classifier"), **options)(TEXTS)
    assert AttributionSet.load(explanations.save(tmp_path)) == explanations


def test_infinite_widths_and_tolerances_are_refused():
    model = make("classifier")
    for method, options in ((Lime, {"kernel_width": np.inf}), (IntegratedGradients, {"tolerance": np.inf})):
        with pytest.raises(InputError, match="not inf"):
            method(model, **options)


@pytest.mark.parametrize("method", [AttnLrp, InputXGradient, Saliency])
def test_under_autocast_the_output_is_that_of_the_models_own_dtype(method):
    model = make("classifier")
    half = TextModel(model.model, model.tokenizer, autocast="bfloat16")
    for item, other in zip(method(half)(TEXTS), Occlusion(model)(TEXTS), strict=True):
        np.testing.assert_allclose(item.output, other.output, atol=1e-6)


@pytest.mark.parametrize("wrong", [None, "x", True, np.inf])
@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (IntegratedGradients, "tolerance"),
        (AttentionRollout, "alpha"),
        (Rfem, "k"),
        (Deletion, "max_fraction"),
        (Comprehensiveness, "bins"),
    ],
)
def test_what_is_no_number_is_refused_by_one_sentence(kind, option, wrong):
    value = (0.5, wrong) if option == "bins" else wrong
    with pytest.raises(InputError, match="not "):
        kind(make("classifier"), **{option: value})


def test_bins_are_a_list_of_shares():
    for wrong in (0.5, "0.5", (), None):
        with pytest.raises(InputError, match="the bins must be shares"):
            Comprehensiveness(make("classifier"), bins=wrong)
    assert Comprehensiveness(make("classifier"), bins=[np.float32(0.5), 1]).bins == (0.5, 1.0)
