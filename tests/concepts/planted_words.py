"""A language model whose concepts are known, and judges that decide by the words that they see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import regex
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interpreto_mlops.concepts import ActivationSet, ConceptDictionary, ModelWithSplitPoints, NeuronsAsConcepts
from interpreto_mlops.llm import Answer, LanguageModel, Prompt
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import WORDS, word_tokenizer

FIRST = 5
"""The token id of the first word: concept `FIRST + i` is active on the i-th word, and nowhere else."""

NAMES = {FIRST + i: word for i, word in enumerate(WORDS) if word.isalpha()}
COMMON = ["the", "a", "was", "and", "it", "is"]
RARE = [word for word in NAMES.values() if word not in COMMON]


def planted_model() -> TextModel:
    """A GPT-2 whose block puts out which word a token is, and which says again what it reads."""
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=4, n_positions=64, pad_token_id=0)
    config.bos_token_id = config.eos_token_id = None
    network = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        network.transformer.ln_f.weight.fill_(1.0)
        network.transformer.wte.weight.copy_(torch.eye(64))
    return TextModel(network, word_tokenizer(bos=False), name="planted")


def planted_texts(n: int, seed: int = 0) -> list[str]:
    """Texts of common words, in most of which one to three rare ones stand."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(n):
        words = rng.choice(COMMON, 8).tolist()
        for word in rng.choice(RARE, rng.integers(0, 4), replace=False):
            words[int(rng.integers(len(words)))] = str(word)
        texts.append(" ".join(words))
    return texts


def planted(
    n_texts: int = 300, granularity: str = "token"
) -> tuple[ModelWithSplitPoints, ConceptDictionary, ActivationSet]:
    """The model split after its block, a dictionary whose concepts are words, and activations."""
    split = ModelWithSplitPoints(planted_model(), [0])
    rows = split.get_activations(planted_texts(n_texts), granularity=granularity, aggregation="max", progress=False)[0]
    return split, NeuronsAsConcepts().fit(rows, progress=False), rows


def labels(words: list[str]) -> dict[int, str]:
    """The perfect label of the concept of each word."""
    number = {word: concept for concept, word in NAMES.items()}
    return {number[word]: f"the word {word}" for word in words}


Blocks = list[list[str]]

_BLOCK = regex.compile(r"^<(texts-\w+)>\n(.*?)\n</\1>$", regex.MULTILINE | regex.DOTALL)


def blocks(user: str) -> Blocks:
    """The lines of each fenced block of a question: the description, and the texts where there are any."""
    return [found[2].split("\n") for found in _BLOCK.finditer(user)]


def label_of(prompt: Prompt) -> str:
    return str(json.loads(blocks(prompt.user)[0][0]))


def texts_of(prompt: Prompt) -> list[str]:
    return [str(json.loads(line)) for line in blocks(prompt.user)[1]]


class WordJudge(LanguageModel):
    """Answers by whether the word that a label names stands in a text, or among the marked words where some are."""

    def __init__(self) -> None:
        self.name = "word judge"
        self.prompts: list[Prompt] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": type(self).__name__}

    def answer(self, prompt: Prompt) -> Answer:
        self.prompts.append(prompt)
        text = json.dumps(self.said(prompt))
        return Answer(text, prompt_tokens=self.count_tokens(prompt.user), answer_tokens=self.count_tokens(text))

    def said(self, prompt: Prompt) -> Mapping[str, Any]:
        word = label_of(prompt).removeprefix("the word ")
        if wanted := regex.search(r"How many texts to write: (\d+)$", prompt.user):
            return {"texts": [f"it was the {word} and a {word} {i * 'the '}" for i in range(int(wanted[1]))]}
        assert prompt.schema is not None
        highest = prompt.schema["properties"]["answers"]["items"]["enum"][-1]
        return {"answers": [highest * self.holds(word, line) for line in blocks(prompt.user)[1]]}

    def holds(self, word: str, line: str) -> bool:
        """Whether the word is marked in a line of a question, or stands there, if nothing is marked."""
        marked = regex.findall("«(.*?)»", line)
        return word in (marked if marked else json.loads(line).lower().split())
