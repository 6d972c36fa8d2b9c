"""Each token of a vocabulary, alone through the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.interpretation.base import vocabulary_ids
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel

Integers = npt.NDArray[np.int64]


def ordinary_ids(model: TextModel) -> Integers:
    """Return the ids of the tokens that are not special, in order."""
    ids = vocabulary_ids(model)
    special = model.tokens.special_places(ids) | np.isin(ids, list(model.tokenizer.all_special_ids))
    return ids[~special]


def template(model: TextModel) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before a text and behind it."""
    row = model.tokens.tokenized(["a"])
    ids, special = row["input_ids"][0], np.asarray(row["special_tokens_mask"][0], dtype=bool)
    if special.all():
        return [], []
    own = np.flatnonzero(~special)
    return ids[: own[0]], ids[own[-1] + 1 :]


def rows_of_tokens(
    split: Splitter, path: str, ids: Integers, granularity: str, token_budget: int
) -> Iterator[torch.Tensor]:
    """Yield the activations of texts of one token each, in batches, shape (tokens, width), float32.

    Arguments:
        split: the split model.
        path: the split point.
        ids: the tokens; each stands between the tokenizer's special tokens.
        granularity: what a row is: `cls` takes the first token of a text, everything else the token itself.
        token_budget: the most tokens of a batch.
    """
    before, after = template(split.model)
    place = 0 if granularity == "cls" else len(before)
    length = len(before) + 1 + len(after)
    size = max(1, token_budget // length)
    for start in range(0, len(ids), size):
        rows = [[*before, token, *after] for token in ids[start : start + size].tolist()]
        batch = torch.tensor(rows, dtype=torch.int64)
        inputs = {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
        found = split.capture(inputs)[path].float().cpu()
        yield found if found.dim() == 2 else found[:, place]
