"""How good a sparse autoencoder is on rows that it has not seen: the same few lines for every library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

CHUNK = 8192

Apply = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From rows, shape (rows, width), to their codes, shape (rows, concepts), and reconstructions, shape (rows, width)."""


@torch.no_grad()
def scores(apply: Apply, held_out: torch.Tensor, train: torch.Tensor) -> dict[str, float]:
    """Return R² and L0 over held-out rows, and the share of concepts that no training row has.

    R² is that of the literature: 1 − Σ‖a − â‖² / Σ‖a − mean‖², with a mean for each dimension.
    """
    error = active = 0.0
    for rows in held_out.split(CHUNK):
        codes, found = apply(rows)
        error += float((rows - found).double().square().sum())
        active += float((codes != 0).sum())
    fired: Any = 0
    for rows in train.split(CHUNK):
        fired = fired + (apply(rows)[0] != 0).sum(dim=0)
    spread = float((held_out - held_out.mean(dim=0)).double().square().sum())
    return {
        "r2": 1.0 - error / spread,
        "l0": active / len(held_out),
        "dead": float((fired == 0).double().mean()),
    }
