"""Prompts and continuations as token ids: how they are written, where each token lies, and what is generated."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.continuations import continuation_text, continued, generation_arguments, given_ids
from interpreto_mlops.models.text_model import TextModel
from tests.attributions.language_models import BOS, EOS, build, language_model


def byte_tokenizer():
    """One token a byte and two for whole words, as GPT-2 writes them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    vocabulary |= {"Ġgood": 256, "<|end|>": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>")


@pytest.fixture(scope="module")
def bytewise():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=258, n_embd=8, n_layer=1, n_head=1, n_positions=128, bos_token_id=257, eos_token_id=257
    )
    return TextModel(GPT2LMHeadModel(config).eval(), byte_tokenizer(), name="bytewise")


def written(model, text, prompt=""):
    ids = np.asarray(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    before = np.asarray(model.tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=np.int64)
    got, spans = continuation_text(model, before, ids)
    return got, [got[a:b] for a, b in spans]


@pytest.mark.parametrize("prompt", ["", "so ", "é", "ends with a 🥲"])
def test_the_bytes_of_a_character_lie_where_it_lies(bytewise, prompt):
    text = "a é🥲 食!"
    got, pieces = written(bytewise, text, prompt)
    assert got == text
    assert pieces == ["a", " ", "é", "é", "🥲", "🥲", "🥲", "🥲", " ", "食", "食", "食", "!"]


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_that_is_cut_off_lies_at_its_mark(bytewise, cut):
    ids = np.asarray(bytewise.tokenizer("a🥲", add_special_tokens=False)["input_ids"])[:-cut]
    got, spans = continuation_text(bytewise, np.zeros(0, dtype=np.int64), ids)
    assert got == "a\ufffd"
    assert [got[a:b] for a, b in spans] == ["a", *["\ufffd"] * (4 - cut)]


def test_special_tokens_are_nowhere(bytewise):
    ids = np.asarray([65, 257, 66, 257])
    got, spans = continuation_text(bytewise, np.zeros(0, dtype=np.int64), ids)
    assert len(got) == 2
    assert [b - a for a, b in spans] == [1, 0, 1, 0]


def test_every_continuation_of_random_bytes_has_a_place_for_each_token(bytewise):
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, 258, size=rng.integers(1, 12))
        got, spans = continuation_text(bytewise, rng.integers(0, 258, size=5), ids)
        assert spans.shape == (len(ids), 2)
        assert (spans >= 0).all()
        assert (spans <= len(got)).all()
        assert (spans[:, 0] <= spans[:, 1]).all()
        assert (np.diff(spans[:, 1]) >= 0).all()


def test_a_word_tokenizer_writes_the_space_between_prompt_and_continuation():
    model = language_model("gpt2")
    assert written(model, "was cold", "the food") == (" was cold", [" was", " cold"])
    assert written(model, "was cold") == ("was cold", ["was", " cold"])


@pytest.mark.parametrize("wanted", ["was cold", [11, 24], (11, 24), np.array([11, 24]), iter([11, 24])])
def test_given_ids(wanted):
    model = language_model("gpt2")
    expected = model.tokenizer("was cold")["input_ids"]
    wanted = expected if isinstance(wanted, list) else wanted
    ids = given_ids(model, wanted, 0)
    assert ids.dtype == np.int64
    assert len(ids) == 2
    if isinstance(wanted, (str, list)):
        assert ids.tolist() == expected


def test_a_string_target_gets_no_special_tokens_and_the_prompt_keeps_its_own():
    model = language_model("llama", bos=True)
    assert (
        given_ids(model, "was cold", 0).tolist() == model.tokenizer("was cold", add_special_tokens=False)["input_ids"]
    )
    ((encoding, target),) = continued(model, ["the food"], [given_ids(model, "was cold", 0)])
    assert encoding.ids.tolist()[:4] == [BOS, *model.tokenizer("the food", add_special_tokens=False)["input_ids"], EOS]
    assert encoding.prompt_tokens == 4
    assert encoding.special.tolist() == [True, False, False, True, False, False]
    assert len(encoding.ids) == 4 + len(target) - 1


def test_targets_and_prompts_are_paired_in_order_over_windows():
    model = language_model("gpt2")
    prompts = ["the food was", "soup", "never again we"] * 50
    given = [given_ids(model, "cold", 0) if k % 7 == 0 else None for k in range(150)]
    pairs = list(continued(model, prompts, given, generation={"max_new_tokens": 2}))
    assert [encoding.index for encoding, _ in pairs] == list(range(150))
    assert all(encoding.text.startswith(prompt) for (encoding, _), prompt in zip(pairs, prompts, strict=True))
    assert [len(ids) for _, ids in pairs] == [1 if k % 7 == 0 else 2 for k in range(150)]


def test_arguments_become_what_a_result_can_keep():
    given = {"max_new_tokens": np.int64(3), "eos_token_id": np.array([3, 4]), "do_sample": np.bool_(True), "top_p": 0.5}
    options = generation_arguments(given)
    assert options == {"max_new_tokens": 3, "eos_token_id": [3, 4], "do_sample": True, "top_p": 0.5}
    assert [type(value) for value in options.values()] == [int, list, bool, float]
    assert generation_arguments(None) == {}


def test_a_decoder_that_starts_with_nothing_is_named():
    network = build("t5")
    network.config.decoder_start_token_id = network.config.bos_token_id = None
    network.generation_config.decoder_start_token_id = network.generation_config.bos_token_id = None
    model = TextModel(network, language_model("t5").tokenizer, name="startless")
    with pytest.raises(InputError, match="configuration of 'startless' names no token that its decoder starts with"):
        list(continued(model, ["food"], [np.array([5])]))
    assert len(list(continued(model, ["food"], [np.array([5])], generation={"decoder_start_token_id": 7}))) == 1
