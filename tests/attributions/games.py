"""Toy models in float64 whose right explanations are known by calculus or by enumeration, one for each task."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import (
    CausalLMOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from interpreto_mlops.attributions import Attributor, Estimate
from interpreto_mlops.models.text_model import TextModel

VOCABULARY = 64


class ToyConfig(PretrainedConfig):
    model_type = "toy"


class _Toy(PreTrainedModel):
    """One number a token, its value; those of pad, unk and mask are 0.

    `random`, `dummy` and `symmetric` read a table by which tokens are there: those numbers are not 0. `head` and `bend`
    map a number to logits of the labels or the vocabulary, `table` one for each set of tokens.
    """

    config_class = ToyConfig

    def __init__(self, config: ToyConfig, kind: str, seed: int = 0, outputs: int = 2) -> None:
        super().__init__(config)
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(VOCABULARY, 1))
        values[[0, 1, 4]] = 0
        self.embedding = torch.nn.Embedding(VOCABULARY, 1, dtype=torch.float64)
        self.embedding.weight.data = torch.from_numpy(values)
        self.kind = kind
        self.table = torch.from_numpy(rng.normal(size=2**12))
        self.head, self.bend = (torch.from_numpy(rng.normal(size=outputs)) for _ in range(2))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def running(self, s: torch.Tensor) -> torch.Tensor:
        """Map values, shape (rows, tokens), to logits that see what stands before, (rows, tokens, outputs)."""
        total = s.cumsum(-1)
        logits = total[..., None] * self.head
        if self.kind == "tanh":
            logits = logits + torch.tanh(total)[..., None] * self.bend + (s**2).cumsum(-1)[..., None] / 3
        if self.kind == "random":
            bits = ((s != 0).long() * 2 ** torch.arange(s.shape[1])).cumsum(-1) % len(self.table)
            logits = self.table[bits][..., None] * self.bend + 0 * logits
        return logits


class ToyForSequenceClassification(_Toy):
    """Logits (y, -y), y a function of the values."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        s = self.embedding(input_ids)[..., 0] * attention_mask
        if self.kind == "linear":
            y = s.sum(-1)
        elif self.kind == "tanh":
            y = torch.tanh(s.sum(-1)) + (s**2).sum(-1)
        elif self.kind == "quad":
            y = s.sum(-1) + s[:, 0] * s[:, 1] + s[:, 1] * s[:, 2] * s[:, 3] / 2
        else:
            present = (s != 0).long()
            if self.kind == "dummy":  # the third token changes nothing
                present[:, 2] = 0
            elif self.kind == "symmetric":  # only how many of the first two tokens are there matters
                present[:, :2] = present[:, :2].sort(dim=1).values
            bits = present * 2 ** torch.arange(s.shape[1])
            y = self.table[bits.sum(-1)] + 0 * s.sum(-1)
        return SequenceClassifierOutput(logits=torch.stack([y, -y], dim=-1))


class TableGame:
    """A game of n players given by its values: what a method's `estimate` needs of a text, without a model.

    Arguments:
        values: of every coalition, in the order of `all_coalitions`, shape (2 ** n, targets).
        valid: which players each target can see, shape (targets, n): its values are made to depend on those alone.
    """

    def __init__(self, values: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.n_players = len(values).bit_length() - 1
        self.valid = np.ones((values.shape[1], self.n_players), dtype=bool) if valid is None else valid
        self.values = np.stack([values[np.arange(len(values)) & bits(see), t] for t, see in enumerate(self.valid)], 1)
        self.empty, self.full = self.values[[0, -1]]
        self.asked: list[np.ndarray] = []

    def generator(self, seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def play(self, explainer: Attributor) -> Estimate:
        steps = explainer.estimate(self)
        try:
            present = next(steps)
            while True:
                self.asked.append(present)
                present = steps.send(self.values[bits(present)])
        except StopIteration as stop:
            return stop.value


def bits(present: np.ndarray) -> np.ndarray:
    return present @ (1 << np.arange(present.shape[-1]))


def smooth(n: int, targets: int = 1, seed: int = 0) -> np.ndarray:
    """Values of a game with interactions of two and three players, shape (2 ** n, targets)."""
    rng = np.random.default_rng(seed)
    present = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float64)
    values = present @ rng.normal(size=(n, targets))
    for _ in range(3 * n):
        for size in (2, 3):
            values += (
                present[:, rng.choice(n, size, replace=False)].prod(1, keepdims=True) * rng.normal(size=targets) / 3
            )
    return values


class ToyForTokenClassification(_Toy):
    """The labels of a token depend on the running sum and, three times as much, on the token itself."""

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        s = self.embedding(input_ids)[..., 0] * attention_mask
        return TokenClassifierOutput(logits=self.running(s) + 3 * s[..., None] * self.head)


class ToyForCausalLM(_Toy):
    """The next token depends on the running sum."""

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        return CausalLMOutput(logits=self.running(self.embedding(input_ids)[..., 0] * attention_mask))


class ToyForConditionalGeneration(_Toy):
    """The next token depends on the source's sum and the decoder's running sum; the two embed with the same module."""

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def get_encoder(self, *_, **__):
        return self

    def get_decoder(self, *_, **__):
        return self

    def forward(
        self, input_ids=None, attention_mask=None, decoder_input_ids=None, decoder_attention_mask=None, use_cache=None
    ):
        source = self.embedding(input_ids)[..., 0] * attention_mask
        s = self.embedding(decoder_input_ids)[..., 0] * decoder_attention_mask
        s = torch.cat([s[:, :1] + source.sum(-1, keepdim=True), s[:, 1:]], dim=1)
        return Seq2SeqLMOutput(logits=self.running(s))


def toy(kind: str, tokenizer: PreTrainedTokenizerFast, seed: int = 0, task: str = "classification") -> TextModel:
    """A toy: `kind` is linear, tanh, random or (classification) quad; `task` one of TASKS."""
    kinds = {
        "classification": (ToyForSequenceClassification, {"num_labels": 2}, 2),
        "token_classification": (ToyForTokenClassification, {"num_labels": 3}, 3),
        "causal": (ToyForCausalLM, {}, VOCABULARY),
        "encoder_decoder": (
            ToyForConditionalGeneration,
            {"is_encoder_decoder": True, "decoder_start_token_id": 0},
            VOCABULARY,
        ),
    }
    network, options, outputs = kinds[task]
    return TextModel(network(ToyConfig(**options), kind, seed, outputs).eval(), tokenizer, name=f"toy-{kind}")


def shapley(v, n: int) -> np.ndarray:
    """Shapley values by their definition, of a function of sets of players, for each number that it returns."""
    value = {
        subset: np.asarray(v(set(subset))) for size in range(n + 1) for subset in itertools.combinations(range(n), size)
    }
    phi = np.zeros((n, *value[()].shape))
    for i in range(n):
        for subset in value:
            if i not in subset:
                weight = math.factorial(len(subset)) * math.factorial(n - len(subset) - 1) / math.factorial(n)
                phi[i] += weight * (value[tuple(sorted((*subset, i)))] - value[subset])
    return phi
