"""Activation sets on disk from tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interpreto_mlops.concepts.activations import ActivationSet, ActivationWriter


def store(
    folder: Path,
    rows: torch.Tensor,
    *,
    rows_per_text: int = 100,
    shard_rows: int = 10**6,
    provenance: dict[str, Any] | None = None,
) -> ActivationSet:
    """Write rows, so many from each text, and open them."""
    width = rows.shape[1]
    writer = ActivationWriter(folder, "layer.1", "token", width, "float32", shard_bytes=shard_rows * 4 * width)
    texts = np.arange(len(rows), dtype=np.int32) // rows_per_text
    column = np.zeros(len(rows), dtype=np.int32)
    spans = np.zeros((len(rows), 2), dtype=np.int32)
    # What is not finite makes numpy warn on the way to the statistics.
    with np.errstate(all="ignore"):
        writer.add(rows, {"text_ids": texts, "positions": column, "token_ids": column, "spans": spans})
    lines = folder.with_suffix(".texts")
    lines.write_text("".join(json.dumps(f"this is text {i}") + "\n" for i in range(int(texts.max()) + 1)))
    writer.close(lines, provenance or {})
    return ActivationSet(folder)
