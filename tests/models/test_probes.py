"""Models that padding disturbs, and models that look ahead."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    ConvBertConfig,
    ConvBertForTokenClassification,
    FNetConfig,
    FNetForSequenceClassification,
    FunnelConfig,
    FunnelForTokenClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    NystromformerConfig,
    NystromformerForTokenClassification,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    T5Config,
    T5ForTokenClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
    XLNetLMHeadModel,
)

from interpreto_mlops.attributions import IntegratedGradients, Occlusion
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.probes import bears_padding, check_left_to_right
from interpreto_mlops.models.requests import ClassLogits
from interpreto_mlops.models.targets import questions
from interpreto_mlops.models.text_model import TextModel
from tests.attributions.language_models import DECODERS, ENCODER_DECODERS, language_model
from tests.conftest import word_tokenizer

IDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
XLNET = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
TEXTS = ["the food was great and the service", "awful soup was cold", "we loved it , but the waiter was very very slow"]


def odd_model(kind):
    torch.manual_seed(0)
    sides = {f"{side}_ffn_dim": 16 for side in ("encoder", "decoder")}
    sides |= {f"num_{side}_layers": 1 for side in ("encoder", "decoder")}
    sides |= {f"num_{side}_attention_heads": 2 for side in ("encoder", "decoder")}
    make = {
        "xlnet": lambda: XLNetLMHeadModel(XLNetConfig(**IDS, **XLNET)),
        "prophetnet": lambda: ProphetNetForConditionalGeneration(
            ProphetNetConfig(**IDS, **sides, hidden_size=16, decoder_start_token_id=2)
        ),
        "bert": lambda: BertLMHeadModel(BertConfig(**IDS, **BERT)),
        "bert decoder": lambda: BertLMHeadModel(BertConfig(**IDS, **BERT, is_decoder=True)),
        "fnet": lambda: FNetForSequenceClassification(
            FNetConfig(**IDS, hidden_size=16, num_hidden_layers=1, intermediate_size=16)
        ),
        "funnel": lambda: FunnelForTokenClassification(
            FunnelConfig(**IDS, d_model=16, block_sizes=[1, 1], n_head=2, d_head=8, d_inner=16)
        ),
        "convbert": lambda: ConvBertForTokenClassification(ConvBertConfig(**IDS, **BERT, embedding_size=16)),
        "nystromformer": lambda: NystromformerForTokenClassification(NystromformerConfig(**IDS, **BERT)),
        "xlnet classifier": lambda: XLNetForSequenceClassification(XLNetConfig(**IDS, **XLNET)),
        "longformer": lambda: LongformerForSequenceClassification(
            LongformerConfig(**IDS, **BERT, attention_window=4, max_position_embeddings=64)
        ),
        "t5 tagger": lambda: T5ForTokenClassification(T5Config(**IDS, d_model=16, d_kv=8, d_ff=16, num_layers=1)),
    }
    network = make[kind]()
    for parameter in network.parameters():
        if parameter.dim() > 1 and kind != "t5 tagger":
            parameter.data.mul_(6.0)
    tokenizer = word_tokenizer(bos=False)
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    return TextModel(network.eval(), tokenizer, name=kind)


@pytest.mark.parametrize("kind", ["xlnet", "prophetnet", "bert"])
def test_a_model_that_looks_ahead_is_refused(kind):
    model = odd_model(kind)
    for _ in range(2):
        with pytest.raises(InputError, match=f"'{kind}' scores a token otherwise when others follow it"):
            check_left_to_right(model)
    with pytest.raises(InputError, match="give a model that reads from left to right"):
        list(questions(model, ["good food"], ["was"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*DECODERS, *ENCODER_DECODERS, "bert decoder"])
def test_a_model_that_does_not_look_ahead_is_not(kind, dtype):
    model = odd_model(kind) if kind == "bert decoder" else language_model(kind)
    model.model.to(dtype)
    check_left_to_right(model)


@pytest.mark.filterwarnings("ignore:The current implementation of Nystrom")
@pytest.mark.parametrize("kind", ["fnet", "funnel", "convbert", "nystromformer", "xlnet classifier"])
def test_rows_of_different_lengths_do_not_meet_where_padding_disturbs(kind):
    model = odd_model(kind)
    together = Occlusion(model)(TEXTS)
    assert together.counters["padding"] == 0
    assert together.counters["batches"] < together.counters["evaluations_run"]
    for text, item in zip(TEXTS, together, strict=True):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        expected = [logits[(t.position, t.id) if t.positions else t.id].item() for t in item.targets]
        np.testing.assert_allclose(item.output, expected, atol=1e-4)
        np.testing.assert_allclose(item.scores, Occlusion(odd_model(kind))([text])[0].scores, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_padding_disturbs_no_other(tiny_model, texts, architecture, dtype):
    model = tiny_model(architecture)
    model.model.to(dtype)
    short, long = (next(model.encode([text])) for text in (texts[1], texts[2]))
    assert bears_padding(model, [(short, short.ids, ClassLogits()), (long, long.ids, ClassLogits())])


def test_embeddings_that_cannot_be_put_in_are_refused():
    with pytest.raises(InputError, match="'xlnet classifier' does not embed its rows one by one"):
        IntegratedGradients(odd_model("xlnet classifier"))(TEXTS)


@pytest.mark.parametrize("kind", ["longformer", "t5 tagger"])
def test_a_pad_that_stands_for_a_word_comes_in_by_the_module_that_is_used(kind):
    """Longformer lengthens rows to its window; T5's encoder alone does not use the module that the model names."""
    model = odd_model(kind)
    for item in Occlusion(model, replacement="pad")(TEXTS):
        for j in range(len(item.elements)):
            embeddings = model.embed(torch.from_numpy(item.ids)[None])
            embeddings[0, j] = model.embed(torch.tensor(0))
            with torch.no_grad():
                masks = {"attention_mask": torch.ones(1, len(item.ids), dtype=torch.long)}
                if kind == "longformer":
                    masks["global_attention_mask"] = torch.tensor([[1, *[0] * (len(item.ids) - 1)]])
                logits = model.model(inputs_embeds=embeddings, **masks).logits[0]
            expected = [logits[(t.position, t.id) if t.positions else t.id].item() for t in item.targets]
            np.testing.assert_allclose(item.output - item.scores[:, j], expected, atol=1e-4)
        assert np.abs(item.scores).max() > 1e-3
