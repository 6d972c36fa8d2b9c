"""Wrapping, tokenising and loading models; nothing of the user's changes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from interpreto_mlops.errors import InputError, ModelLoadError, TextWarning
from interpreto_mlops.models.loading import load_model
from interpreto_mlops.models.text_model import TextModel


@pytest.fixture
def folder(tiny_model, tmp_path):
    model = tiny_model()
    model.model.save_pretrained(tmp_path / "tiny")
    model.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_folder_gives_the_same_model_again(tiny_model, folder):
    loaded = load_model(folder)
    assert loaded.fingerprint == tiny_model().fingerprint
    assert (loaded.name, loaded.uri, loaded.task) == ("tiny", str(folder), "classification")
    assert not loaded.model.training


@pytest.mark.parametrize("change", ["weight", "config", "tokenizer"])
def test_the_fingerprint_sees_every_change(tiny_model, change):
    model, other = tiny_model(), tiny_model()
    assert model.fingerprint == other.fingerprint
    third = tiny_model()
    if change == "weight":
        with torch.no_grad():
            third.model.classifier.bias[0] += 1e-6
    elif change == "config":
        third.model.config.id2label = {0: "a", 1: "b", 2: "c"}
    else:
        third.tokenizer.add_tokens(["scrumptious"])
    assert third.fingerprint != model.fingerprint


def test_the_fingerprint_forgets_where_the_model_came_from(tiny_model):
    model = tiny_model()
    model.model.config._name_or_path = "/somewhere/else"
    assert model.fingerprint == tiny_model().fingerprint


@pytest.mark.parametrize(
    ("source", "words"),
    [("./none", "no model folder './none'"), ("/none/at/all", "no model folder"), ("nobody/nothing", "HF_HUB_OFFLINE")],
)
def test_what_cannot_be_loaded_is_named(source, words):
    with pytest.raises(ModelLoadError, match=words):
        load_model(source)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelLoadError, match="cannot load a model from the folder"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 10}))
    with pytest.raises(ModelLoadError):
        load_model(tmp_path)


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError):
        load_model(folder)


def test_a_tokenizer_of_another_model_is_refused(tiny_model):
    model = tiny_model()
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens([f"new{i}" for i in range(100)])
    with pytest.raises(InputError, match="do not belong together"):
        TextModel(model.model, tokenizer)


def test_unknown_words_are_elements_and_control_tokens_are_not(tiny_model):
    (encoding,) = tiny_model().encode(["good zzz [MASK] food"])
    assert [t for t, s in zip(encoding.tokens, encoding.special, strict=True) if s] == ["[CLS]", "[MASK]", "[SEP]"]
    assert "[UNK]" in encoding.tokens


def test_the_tokenizers_own_truncation_is_put_back(tiny_model):
    model = tiny_model()
    model.tokenizer.backend_tokenizer.enable_truncation(7)
    model.tokenizer.backend_tokenizer.enable_padding(length=9)
    before = model.tokenizer.backend_tokenizer.to_str()
    with pytest.warns(TextWarning, match="text 0 is longer than 32"):
        (encoding,) = model.encode(["good food " * 30])
    assert len(encoding) == 32
    assert model.tokenizer.backend_tokenizer.to_str() == before


def test_the_limit_is_the_smallest_of_tokenizer_and_positions(tiny_model):
    assert tiny_model("bert").max_length == 32
    roberta = tiny_model("roberta")
    roberta.tokenizer.model_max_length = 10**30
    assert roberta.max_length == 39  # 40 rows of positions, the first of them for padding
    llama = tiny_model("llama")
    llama.tokenizer.model_max_length = 17
    assert llama.max_length == 17


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_position_ids_are_right_under_left_padding(tiny_model, architecture):
    model = tiny_model(architecture)
    ids = torch.tensor([[0, 0, 7, 8, 9]])
    batch = model.with_positions({"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])})
    with torch.no_grad():
        padded = model.model.base_model(**batch).last_hidden_state[0, 2:]
        alone = model.model.base_model(input_ids=ids[:, 2:]).last_hidden_state[0]
    np.testing.assert_allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_encoders_count_positions_themselves(tiny_model, architecture):
    batch = {"input_ids": torch.tensor([[0, 7]]), "attention_mask": torch.tensor([[0, 1]])}
    assert "position_ids" not in tiny_model(architecture).with_positions(batch)


def test_half_a_character_is_named(tiny_model):
    with pytest.raises(InputError, match="text 1 holds half a character"):
        list(tiny_model().encode(["good", "fo\ud800od"]))


def test_weights_that_are_cut_off_are_named(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelLoadError, match="cannot load a model from the folder"):
        load_model(folder)


def test_something_else_than_texts_is_refused(tiny_model):
    with pytest.raises(InputError, match="text 1 is not a string but 3"):
        list(tiny_model().encode(["good", 3]))
