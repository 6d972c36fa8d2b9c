"""Tiny language models with random weights, and a slow reference that calls them one token and one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer

DECODERS = ("gpt2", "llama")
ENCODER_DECODERS = ("t5", "bart", "m2m100", "marian")
PAD, UNK, BOS, EOS, MASK = 0, 1, 2, 3, 4

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_IDS = {"vocab_size": 64, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_BART = {
    **_IDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 32,
    "decoder_start_token_id": EOS,
}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD}


def build(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A tiny language model whose random weights are large enough for its outputs to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any
        if architecture == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(**_IDS, n_embd=32, n_layer=2, n_head=4, n_positions=32))
        elif architecture == "llama":
            config = LlamaConfig(**_IDS, **_SMALL, num_key_value_heads=2, max_position_embeddings=32)
            model = LlamaForCausalLM(config)
        elif architecture == "t5":
            model = T5ForConditionalGeneration(T5Config(**_IDS, **_T5))
        elif architecture == "bart":
            model = BartForConditionalGeneration(BartConfig(**_BART))
        elif architecture == "m2m100":
            model = M2M100ForConditionalGeneration(M2M100Config(**_BART))
        else:
            model = MarianMTModel(MarianConfig(**{**_BART, "decoder_start_token_id": PAD}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(1.0 if architecture == "t5" else 6.0)
    return model.eval()


def language_model(architecture: str, *, bos: bool = False, seed: int = 0) -> TextModel:
    """A tiny language model with the word tokenizer; `bos`: its template puts special tokens around a text."""
    tokenizer = word_tokenizer(bos=bos)
    tokenizer.bos_token, tokenizer.eos_token = "[CLS]", "[SEP]"
    return TextModel(build(architecture, seed), tokenizer, name=architecture)


def next_logits(model: TextModel, prompt: Sequence[int], decoder: Sequence[int]) -> torch.Tensor:
    """The logits of the next token, by one plain call: after prompt and decoder ids, or of the decoder."""
    network: Any = model.model
    with torch.no_grad():
        if network.config.is_encoder_decoder:
            both = torch.tensor([list(prompt)]), torch.tensor([list(decoder)])
            masks = {"attention_mask": torch.ones_like(both[0]), "decoder_attention_mask": torch.ones_like(both[1])}
            # FSMT's decoder is causal only without a cache.
            return network(input_ids=both[0], decoder_input_ids=both[1], use_cache=False, **masks).logits[0, -1]
        ids = torch.tensor([[*prompt, *decoder]])
        return network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]


def step_by_step(model: TextModel, prompt: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """The logits at each place of a target on its growing prefix, shape (tokens, vocabulary), one call a token.

    The last token of `target` is predicted, never given.
    """
    start = [model.decoder_start_id] if model.model.config.is_encoder_decoder else []
    rows = [next_logits(model, prompt, [*start, *target[:t]]) for t in range(len(target))]
    return torch.stack(rows).double().numpy()


def replaced(ids: Sequence[int], absent: set[int], by: int) -> list[int]:
    """Put a token in some places."""
    return [by if place in absent else token for place, token in enumerate(ids)]
