"""Activation sets whose rows are written by hand, and a dictionary that shows them as codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from interpreto_mlops.concepts import ActivationSet, PCAConcepts, TopKSAEConcepts
from interpreto_mlops.concepts.activations import ActivationWriter
from interpreto_mlops.concepts.linear import linear_state

Row = tuple[int, int, int, list[float]]
"""The text, where the row begins and ends there, and its activations."""


def written_set(folder: Path, texts: Sequence[str], rows: Sequence[Row], granularity: str = "token") -> ActivationSet:
    """Write an activation set into a folder."""
    folder.mkdir(exist_ok=True)
    writer = ActivationWriter(folder / "set", "layer", granularity, len(rows[0][3]), "float32")
    columns = {
        "text_ids": np.asarray([row[0] for row in rows], dtype=np.int32),
        "positions": np.zeros(len(rows), dtype=np.int32),
        "token_ids": np.zeros(len(rows), dtype=np.int32),
        "spans": np.asarray([row[1:3] for row in rows], dtype=np.int32),
    }
    writer.add(torch.tensor([row[3] for row in rows]), columns)
    lines = folder / "texts.jsonl"
    lines.write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="ascii")
    writer.close(lines, {})
    return ActivationSet.open(folder / "set")


def identity(width: int, *, signed: bool = False) -> PCAConcepts | TopKSAEConcepts:
    """A dictionary whose codes are the activations themselves (their positive part, unless signed)."""
    dictionary = PCAConcepts(n_concepts=width) if signed else TopKSAEConcepts(n_concepts=width, k=width)
    dictionary.weights = linear_state(torch.zeros(width), 1.0, torch.eye(width), torch.zeros(width), torch.eye(width))
    return dictionary
