"""Toy classifiers in float64 whose right explanations are known by calculus or by enumeration."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

from interpreto_mlops.models.text_model import TextModel


class ToyConfig(PretrainedConfig):
    model_type = "toy"


class ToyForSequenceClassification(PreTrainedModel):
    """Logits (y, -y), y a function of one number a token; the numbers of pad, unk and mask are 0."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig, kind: str, seed: int = 0) -> None:
        super().__init__(config)
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(64, 1))
        values[[0, 1, 4]] = 0
        self.embedding = torch.nn.Embedding(64, 1, dtype=torch.float64)
        self.embedding.weight.data = torch.from_numpy(values)
        self.kind = kind
        self.table = torch.from_numpy(rng.normal(size=2**12))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        s = self.embedding(input_ids)[..., 0] * attention_mask
        if self.kind == "linear":
            y = s.sum(-1)
        elif self.kind == "tanh":
            y = torch.tanh(s.sum(-1)) + (s**2).sum(-1)
        elif self.kind == "quad":
            y = s.sum(-1) + s[:, 0] * s[:, 1] + s[:, 1] * s[:, 2] * s[:, 3] / 2
        else:
            bits = (s != 0).long() * 2 ** torch.arange(s.shape[1])
            y = self.table[bits.sum(-1)] + 0 * s.sum(-1)
        return SequenceClassifierOutput(logits=torch.stack([y, -y], dim=-1))


def toy(kind: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> TextModel:
    return TextModel(ToyForSequenceClassification(ToyConfig(num_labels=2), kind, seed), tokenizer, name=f"toy-{kind}")
