"""Attention recorded beside the model's own implementation, against what eager attention returns."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.attention import IMPLEMENTATION, attention_weights, check_observable, observed_attention
from tests.models.architectures import DECODERS, ENCODERS, padded_batch, random_model


def recorded(model, batch, **options):
    maps = []
    with torch.no_grad(), observed_attention(model, maps.append):
        output = model(**batch, **options)
    return maps, output


def eager(model, batch, **options):
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    with torch.no_grad():
        return twin(**batch, output_attentions=True, **options)


def rows(batch):
    return [
        {name: tensor[i : i + 1, : int(n)] for name, tensor in batch.items()}
        for i, n in enumerate(batch["attention_mask"].sum(-1))
    ]


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_recorded_attention_equals_eager_attention(name):
    model = random_model(name)
    for batch in (padded_batch(), *rows(padded_batch())):
        maps, output = recorded(model, batch)
        expected = eager(model, batch)
        assert len(maps) == len(expected.attentions) == 3
        real = batch["attention_mask"].bool()
        for seen, weights in zip(maps, expected.attentions, strict=True):
            assert seen.kind == "encoder"
            of_tokens = real[:, None, :, None].expand_as(weights)
            assert weights[of_tokens].std() > 2e-3, "an even map would prove nothing"
            torch.testing.assert_close(seen.weights[of_tokens], weights[of_tokens], atol=1e-6, rtol=0)
        torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_maps_of_an_encoder_decoder_are_told_apart(name):
    model = random_model(name, "seq2seq")
    batch = {**padded_batch(), "decoder_input_ids": torch.tensor([[2, 9, 8, 7], [2, 5, 6, 7], [2, 30, 31, 32]])}
    maps, _ = recorded(model, batch)
    expected = eager(model, batch)
    for kind, oracle in (
        ("encoder", expected.encoder_attentions),
        ("decoder", expected.decoder_attentions),
        ("cross", expected.cross_attentions),
    ):
        ours = [seen.weights for seen in maps if seen.kind == kind]
        assert len(ours) == len(oracle) == 2
        for seen, weights in zip(ours, oracle, strict=True):
            if kind == "encoder":
                seen, weights = (each * batch["attention_mask"][:, None, :, None] for each in (seen, weights))
            torch.testing.assert_close(seen, weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_nothing_is_seen_of_padding_and_rows_sum_to_one(name):
    batch = padded_batch()
    maps, _ = recorded(random_model(name), batch)
    real = batch["attention_mask"].bool()
    for seen in maps:
        assert (seen.weights.permute(0, 3, 1, 2)[~real] == 0).all()
        sums = seen.weights.sum(-1).permute(0, 2, 1)[real]
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-6, rtol=0)
        if name in DECODERS:
            assert (seen.weights.triu(1) == 0).all()


def test_a_missing_mask_is_the_triangle_for_causal_modules_only():
    class Module(torch.nn.Module):
        is_causal = True

    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    repeated = torch.stack([key[:, 0], key[:, 0], key[:, 1], key[:, 1]], 1)
    scores = query @ repeated.transpose(2, 3) / 8**0.5
    torch.testing.assert_close(attention_weights(Module(), query, key, None, is_causal=False), scores.softmax(-1))
    future = torch.tensor([[False, True, True], [False, False, True], [False, False, False]])
    expected = scores.masked_fill(future, float("-inf")).softmax(-1)
    torch.testing.assert_close(attention_weights(Module(), query, key, None), expected)
    torch.testing.assert_close(attention_weights(Module(), query, key, ~future), expected)
    torch.testing.assert_close(attention_weights(Module(), query, key, future * -1e38), expected)


@pytest.mark.parametrize("own", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "gemma3", "t5"])
def test_the_implementation_is_put_back(name, own):
    model = random_model(name, "seq2seq" if name == "t5" else "classifier")
    model.set_attn_implementation(own)
    parts = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [dict(vars(part)) for part in parts]
    with observed_attention(model):
        assert model.config._attn_implementation == IMPLEMENTATION
        batch = padded_batch()
        model(**batch, **({"decoder_input_ids": batch["input_ids"]} if name == "t5" else {}))
    assert [dict(vars(part)) for part in parts] == before
    with pytest.raises(KeyError, match="stop"), observed_attention(model):
        raise KeyError("stop")
    assert [dict(vars(part)) for part in parts] == before
    assert model.config._attn_implementation == own


def test_parts_with_another_implementation_each_get_their_own_back():
    model = random_model("bart", "seq2seq")
    # A part with a configuration of its own, as in models of several modalities.
    model.model.encoder.config = copy.deepcopy(model.config)
    model.model.encoder.config._attn_implementation = "eager"
    with observed_attention(model):
        model(**padded_batch(), decoder_input_ids=padded_batch()["input_ids"])
    assert model.model.encoder.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_attention_of_its_own_is_refused():
    model = random_model("deberta")
    with pytest.raises(InputError, match=r"DebertaV2ForSequenceClassification cannot be observed"):
        check_observable(model)
    before = dict(vars(model.config))
    with pytest.raises(InputError, match="does not go through"), observed_attention(model):
        pass
    assert dict(vars(model.config)) == before


def test_a_model_without_attention_is_refused_once_it_has_run(toy):
    model = toy("linear").model
    with pytest.raises(InputError, match="cannot be observed"), observed_attention(model):
        model(**padded_batch())


def test_value_vectors_of_one_token_are_zeroed():
    """Zero values of a token are a zero bias and a zero output of the value projection there."""
    model = random_model("llama")
    batch = padded_batch()
    places = torch.tensor([4, 0, 1])

    def zero(module, args, output):
        return output.masked_fill(torch.arange(9)[None, :, None] == places[:, None, None], 0.0)

    with torch.no_grad():
        plain = model(**batch).logits
        with observed_attention(model) as observation:
            observation.zeroed = places
            ours = model(**batch).logits
        for layer in model.model.layers:
            layer.self_attn.v_proj.register_forward_hook(zero)
        expected = model(**batch).logits
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)
    assert (plain - expected).abs().max() > 1e-3


def test_attention_of_a_trained_language_model(shared):
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260K" / "hf").eval()
    batch = {"input_ids": torch.tensor([[1, 403, 407, 261, 378, 432, 316]])}
    maps, output = recorded(model, batch)
    expected = eager(model, batch)
    for seen, weights in zip(maps, expected.attentions, strict=True):
        torch.testing.assert_close(seen.weights, weights, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(output.logits, model(**batch).logits, atol=1e-4, rtol=1e-5)
