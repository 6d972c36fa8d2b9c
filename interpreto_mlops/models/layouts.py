"""How a place's tensor is laid out: in rows of tokens, flat, or turned; and rows whose padding is moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def in_rows(tensor: torch.Tensor, layout: str, shape: Sequence[int]) -> torch.Tensor:
    """Return a site's tensor in rows of tokens, shape (rows, tokens, width); one vector a text stays as it is."""
    if layout == "flat":
        return tensor.reshape(*shape, tensor.shape[-1])
    return tensor.transpose(0, 1) if layout == "turned" else tensor


def as_laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Undo `in_rows`."""
    if layout == "flat":
        return tensor.flatten(0, 1)
    return tensor.transpose(0, 1) if layout == "turned" else tensor


def turned_right(batch: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Move padding from the left of rows to their right, where every model numbers positions as for a row alone.

    Returns:
        The batch, and by how many columns its rows were moved, shape (rows, 1); None where there was nothing to do, or
        the caller has numbered the positions.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in batch or bool(mask[:, 0].all()):
        return batch, None
    shifts = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    moved = {
        name: rolled(value, shifts) if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape else value
        for name, value in batch.items()
    }
    return moved, shifts


def rolled(tensor: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Move the columns of each row to the left, around the end."""
    columns = (torch.arange(tensor.shape[1], device=shifts.device) + shifts) % tensor.shape[1]
    return tensor.take_along_dim(columns.to(tensor.device).reshape(*columns.shape, *[1] * (tensor.dim() - 2)), dim=1)
