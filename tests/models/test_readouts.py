"""What is read from taggers and language models, against the model's own full output."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import interpreto_mlops.models.readouts as readouts_module
from interpreto_mlops.attributions import IntegratedGradients, Occlusion
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.readouts import LabelLogits, SourceTokenScores, TokenScores
from interpreto_mlops.models.text_model import TextModel
from tests.attributions.games import toy
from tests.attributions.language_models import DECODERS, ENCODER_DECODERS, language_model, step_by_step
from tests.conftest import word_tokenizer

ROWS = [[5, 9, 13, 22, 7], [6, 8], [30, 31, 32]]


def encodings(model, rows):
    return [next(model.encode([model.tokenizer.decode(row)])) for row in rows]


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("architecture", DECODERS)
def test_token_scores_are_the_logit_and_the_log_sum_exp_of_all(architecture, keeps, by_row, monkeypatch):
    monkeypatch.setattr("interpreto_mlops.models.text_model._TAKES_POSITIONS_BY_ROW", by_row)
    model = language_model(architecture)
    if not keeps:
        model.__dict__["accepts"] = model.accepts - {"logits_to_keep"}
    # Positions out of order, twice, and of different numbers.
    asked = [TokenScores((3, 1, 1), (7, 8, 9), 2), TokenScores((0,), (5,), 1), TokenScores((2, 2), (63, 0), 2)]
    inputs = TokenScores.inputs(model, encodings(model, ROWS), [np.array(row) for row in ROWS], asked)
    with torch.no_grad():
        read = TokenScores.read(model, inputs, asked)
        for row, readout, got in zip(ROWS, asked, read, strict=True):
            logits = model.model(input_ids=torch.tensor([row])).logits[0]
            expected = [
                value
                for position, token in zip(readout.positions, readout.ids, strict=True)
                for value in (logits[position, token], logits[position].logsumexp(-1))
            ]
            np.testing.assert_allclose(got[: readout.width], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_source_token_scores_are_those_of_source_and_decoder(architecture):
    model = language_model(architecture)
    asked = [SourceTokenScores((3, 4), (7, 8), 3), SourceTokenScores((1,), (5,), 1), SourceTokenScores((2,), (9,), 1)]
    inputs = SourceTokenScores.inputs(model, encodings(model, ROWS), [np.array(row) for row in ROWS], asked)
    with torch.no_grad():
        read = SourceTokenScores.read(model, inputs, asked)
        for row, readout, got in zip(ROWS, asked, read, strict=True):
            cut = readout.prompt_tokens
            source, decoder = torch.tensor([row[:cut]]), torch.tensor([row[cut:]])
            logits = model.model(input_ids=source, decoder_input_ids=decoder).logits[0].log_softmax(-1)
            own = got[: readout.width].reshape(-1, 2)
            expected = [logits[p - cut, i] for p, i in zip(readout.positions, readout.ids, strict=True)]
            np.testing.assert_allclose(own[:, 0] - own[:, 1], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("architecture", [*ENCODER_DECODERS, "toy"])
def test_the_models_own_embeddings_through_the_hooks_change_nothing(architecture):
    """Also where encoder and decoder embed with one module, and where no target stands at the end of a row."""
    if architecture == "toy":
        model = toy("tanh", word_tokenizer(bos=False), task="encoder_decoder")
        assert model.embedding is model.decoder_embedding
    else:
        model = language_model(architecture)
    asked = [SourceTokenScores((2, 3), (7, 8), 2), SourceTokenScores((1,), (5,), 1), SourceTokenScores((1,), (9,), 1)]
    rows = [np.array(row) for row in ROWS]
    inputs = SourceTokenScores.inputs(model, encodings(model, ROWS), rows, asked)
    embedded = [r.embed(model, torch.tensor([row]))[0] for r, row in zip(asked, ROWS, strict=True)]
    embedded = torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True)
    with torch.no_grad():
        plain = SourceTokenScores.read(model, inputs, asked)
        with SourceTokenScores.embeddings_replaced(model, embedded, asked):
            hooked = SourceTokenScores.read(model, inputs, asked)
        with SourceTokenScores.embeddings_replaced(model, embedded * 1.5, asked):
            other = SourceTokenScores.read(model, inputs, asked)
    np.testing.assert_allclose(hooked, plain, atol=1e-5)
    assert not np.allclose(other, plain, atol=1e-3)
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_sum_over_the_vocabulary_is_taken_in_parts(monkeypatch):
    model = language_model("gpt2")
    asked = [TokenScores((1, 0), (7, 8), 1)] * 3
    rows = [np.array([5, 9]), np.array([6, 8]), np.array([7, 7])]
    inputs = TokenScores.inputs(model, encodings(model, rows), rows, asked)
    with torch.no_grad():
        whole = TokenScores.read(model, inputs, asked)
        monkeypatch.setattr(readouts_module, "_LOGITS_AT_ONCE", 1)
        np.testing.assert_array_equal(TokenScores.read(model, inputs, asked), whole)


def test_half_precision_logits_are_summed_in_single():
    model = language_model("gpt2")
    model.model.to(torch.bfloat16)
    asked = [TokenScores((1,), (7,), 1)]
    inputs = TokenScores.inputs(model, encodings(model, ROWS[:1]), [np.array([5, 9])], asked)
    with torch.no_grad():
        read = TokenScores.read(model, inputs, asked)
        logits = model.model(**inputs).logits[0, 1].float()
    assert read.dtype == torch.float32
    assert read[0, 1].item() == pytest.approx(logits.logsumexp(-1).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("kept", "positions", "prompt_tokens"),
    [
        ([1, 1, 1, 1], (1, 2, 3), 2),
        ([0, 1, 1, 1], (0, 1, 2), 1),
        ([1, 0, 1, 1], (0, 1, 2), 1),
        ([1, 1, 0, 1], (1, 1, 2), 2),
        ([1, 0, 0, 0], (0, 0, 0), 1),
        ([0, 0, 1, 1], (0, 1, 2), 1),  # one token stands for the prompt
        ([0, 0, 0, 0], (0, 0, 0), 1),
    ],
)
def test_places_move_with_what_is_taken_out(kept, positions, prompt_tokens):
    left = TokenScores((1, 2, 3), (7, 8, 9), 2).without(np.array(kept, dtype=bool))
    assert (left.positions, left.ids, left.prompt_tokens) == (positions, (7, 8, 9), prompt_tokens)


def test_labels_are_read_at_their_places_and_bear_no_removal():
    model = toy("tanh", word_tokenizer(bos=False), task="token_classification")
    asked = [LabelLogits((3, 0), 3), LabelLogits((1,), 3), LabelLogits((2, 1), 3)]
    inputs = LabelLogits.inputs(model, encodings(model, ROWS), [np.array(row) for row in ROWS], asked)
    with torch.no_grad():
        read = LabelLogits.read(model, inputs, asked)
        for row, readout, got in zip(ROWS, asked, read, strict=True):
            ids = torch.tensor([row])
            logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            np.testing.assert_allclose(got[: readout.width], logits[list(readout.positions)].flatten(), atol=1e-12)
    assert asked[0].without(np.ones(4, dtype=bool)) is asked[0]
    with pytest.raises(InputError, match="'remove' leaves tokens without a place"):
        asked[0].without(np.array([True, True, False, True]))


@pytest.mark.parametrize("kind", ["ctrl", "led", "fsmt"])
def test_models_that_treat_their_embeddings_in_their_own_way(kind):
    """CTRL changes them in place, LED lengthens the row to its window, FSMT has no function that returns the module."""
    from transformers import (
        CTRLConfig,
        CTRLLMHeadModel,
        FSMTConfig,
        FSMTForConditionalGeneration,
        LEDConfig,
        LEDForConditionalGeneration,
    )

    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    sides = {"d_model": 16, "decoder_start_token_id": 3}
    for side in ("encoder", "decoder"):
        sides |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 16}
    torch.manual_seed(0)
    if kind == "ctrl":
        network = CTRLLMHeadModel(CTRLConfig(**ids, vocab_size=64, n_embd=16, n_layer=1, n_head=2, dff=16))
    elif kind == "led":
        network = LEDForConditionalGeneration(LEDConfig(**ids, **sides, vocab_size=64, attention_window=4))
    else:
        config = FSMTConfig(**ids, **sides, langs=["en", "de"], src_vocab_size=64, tgt_vocab_size=64)
        network = FSMTForConditionalGeneration(config)
    model = TextModel(network.eval(), language_model("gpt2").tokenizer, name=kind)
    texts, targets = ["good food again we loved it", "soup"], ["was", "very cold"]
    for method in (partial(IntegratedGradients, n_nodes=3, tolerance=1e9), partial(Occlusion, replacement="pad")):
        together = method(model)(texts, targets=targets)
        for text, target, item in zip(texts, targets, together, strict=True):
            alone = method(model)([text], targets=[target])[0]
            np.testing.assert_allclose(item.scores, alone.scores, atol=1e-5)
            logits = step_by_step(model, model.tokenizer(text)["input_ids"], [t.id for t in item.targets])
            np.testing.assert_allclose(
                item.output, [row[t.id] for row, t in zip(logits, item.targets, strict=True)], atol=1e-5
            )
