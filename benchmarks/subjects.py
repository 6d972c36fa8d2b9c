"""The models and texts of the benchmark: shapes that people use, random weights, random words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
END = "<|endoftext|>"
GPT2_VOCABULARY = 50257
# At the usual 0.02 a model with random weights is all but linear and every estimate exact; at 0.08 a line explains
# 55 % of the variance of the 11-word game.
CURVED = 0.08


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    layers: int = 6
    width: int = 384
    vocabulary: int = 2005
    positions: int = 128

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)


def bert(shape: Shape) -> PreTrainedModel:
    """A classifier of two classes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.positions,
        initializer_range=CURVED,
    )
    return BertForSequenceClassification(config).eval()


def gpt2(shape: Shape) -> PreTrainedModel:
    """A causal language model."""
    torch.manual_seed(0)
    end = shape.vocabulary - 1
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=256,
        bos_token_id=end,
        eos_token_id=end,
    )
    return GPT2LMHeadModel(config).eval()


def bert_tokenizer(vocabulary: int, positions: int = 128) -> PreTrainedTokenizerFast:
    """One token a word, [CLS] and [SEP] around the text."""
    words = [f"word{number}" for number in range(vocabulary - len(SPECIALS))]
    tokenizer = _word_level([*SPECIALS, *words], "[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=positions, **names)


def gpt2_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token a word, and GPT-2's only special token."""
    words = [f"word{number}" for number in range(vocabulary - 1)]
    tokenizer = _word_level([*words, END], END)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=256, bos_token=END, eos_token=END, unk_token=END
    )


def _word_level(entries: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({token: number for number, token in enumerate(entries)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def sentences(count: int, least: int, most: int, vocabulary: int, seed: int = 0) -> list[str]:
    """Texts of `least` to `most` random words."""
    rng = random.Random(seed)
    return [" ".join(f"word{rng.randrange(vocabulary)}" for _ in range(rng.randint(least, most))) for _ in range(count)]


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Save both for the other environments and return the folder's path."""
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
