"""A tiny language model, and how a user has one: a folder, and a file of prompts beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer


def build_writer() -> TextModel:
    """A language model with random weights large enough for its words to differ; some of its ids are no tokens."""
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(6.0 if parameter.dim() > 1 else 1.0)
    return TextModel(network, word_tokenizer(bos=False), name="writer")


def save_writer(folder: Path, prompts: Sequence[str]) -> None:
    """Write the folder `writer` and the file `prompts.csv`."""
    writer = build_writer()
    writer.model.save_pretrained(folder / "writer")
    writer.tokenizer.save_pretrained(folder / "writer")
    pd.DataFrame({"prompt": list(prompts)}).to_csv(folder / "prompts.csv", index=False)
