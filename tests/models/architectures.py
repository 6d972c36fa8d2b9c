"""Tiny models of many architectures with random weights, built from configurations."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BertConfig,
    BloomConfig,
    CohereConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LongformerConfig,
    MBartConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
    XLNetConfig,
)

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
COMMON: dict[str, Any] = {"vocab_size": 64, "num_labels": 3, **SPECIAL}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32}
ENCODER_DECODER = {"d_model": 32, "vocab_size": 64, "num_labels": 3, "decoder_start_token_id": 2, **SPECIAL}
BART = {
    **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 2), ("ffn_dim", 48))},
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 32,
    **ENCODER_DECODER,
}
ENCODERS = ("bert", "roberta", "distilbert", "electra", "albert", "modernbert")
DECODERS = ("gpt2", "llama", "qwen3", "gemma", "gemma2", "gemma3")
HEADS = {
    "classifier": AutoModelForSequenceClassification,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "token": AutoModelForTokenClassification,
    "masked": AutoModelForMaskedLM,
    "none": AutoModel,
}


def configuration(name: str) -> PretrainedConfig:
    made: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
        "bert": (BertConfig, {**SMALL, "max_position_embeddings": 32}),
        "roberta": (RobertaConfig, {**SMALL, "max_position_embeddings": 40, "type_vocab_size": 1}),
        "distilbert": (DistilBertConfig, {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}),
        "electra": (ElectraConfig, {**SMALL, "embedding_size": 16, "max_position_embeddings": 32}),
        "albert": (AlbertConfig, {**SMALL, "embedding_size": 16, "max_position_embeddings": 32}),
        "modernbert": (ModernBertConfig, {**SMALL, "max_position_embeddings": 64, "local_attention": 4}),
        "deberta": (DebertaV2Config, {**SMALL, "max_position_embeddings": 32}),
        "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}),
        "llama": (LlamaConfig, {**SMALL, **GROUPED}),
        "qwen3": (Qwen3Config, {**SMALL, **GROUPED}),
        "gemma": (GemmaConfig, {**SMALL, **GROUPED}),
        "gemma2": (Gemma2Config, {**SMALL, **GROUPED, "sliding_window": 4}),
        "gemma3": (Gemma3TextConfig, {**SMALL, **GROUPED, "sliding_window": 4}),
        "cohere": (CohereConfig, {**SMALL, "num_key_value_heads": 2}),
        "t5": (T5Config, {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, **ENCODER_DECODER}),
        "bart": (BartConfig, BART),
        "mbart": (MBartConfig, BART),
        "xlm-roberta": (XLMRobertaConfig, {**SMALL, "max_position_embeddings": 40}),
        "mpnet": (MPNetConfig, {**SMALL, "max_position_embeddings": 40}),
        "longformer": (LongformerConfig, {**SMALL, "attention_window": 4, "max_position_embeddings": 40}),
        "xlnet": (XLNetConfig, {"d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 48}),
        "gpt_neo": (
            GPTNeoConfig,
            {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        ),
        "gpt_neox": (GPTNeoXConfig, SMALL),
        "opt": (
            OPTConfig,
            {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 48}
            | {"word_embed_proj_dim": 32, "max_position_embeddings": 32},
        ),
        "mistral": (MistralConfig, {**SMALL, **GROUPED}),
        "qwen2": (Qwen2Config, {**SMALL, "num_key_value_heads": 2}),
        "phi": (PhiConfig, SMALL),
        "bloom": (BloomConfig, {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
        "falcon": (FalconConfig, {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}),
        "granite": (GraniteConfig, {**SMALL, "num_key_value_heads": 2, "residual_multiplier": 0.5}),
    }
    kind, options = made[name]
    return kind(**{**COMMON, **options})


def random_model(name: str, head: str = "classifier", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model in eval mode whose weights are large enough for its attention to be uneven."""
    config = configuration(name)
    config.update(changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # Older transformers compile DeBERTa's functions when it is imported, of which newer torch warns.
            warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
            model: PreTrainedModel = HEADS[head].from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Most weights start at 0.02; those of norms and biases, all equal, could hide a mistake.
                parameter.mul_(4.0) if parameter.dim() > 1 else parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def padded_batch(name: str = "") -> dict[str, torch.Tensor]:
    """Three rows of 9, 6 and 2 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 64, (3, 9), generator=generator)
    mask = torch.arange(9)[None, :] < torch.tensor([9, 6, 2])[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}
