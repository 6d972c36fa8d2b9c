"""Codes of some of the rows, or of texts by their rows, in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

POOLINGS = ("max", "mean")
"""How the codes of several rows become one."""


def pooled_codes(
    dictionary: ConceptDictionary,
    activations: ActivationSet,
    unit_of_row: npt.NDArray[np.int64],
    n_units: int,
    concepts: Sequence[int],
    *,
    pooling: str = "max",
    allow_mismatch: bool = False,
) -> npt.NDArray[np.float32]:
    """Return the codes of units that are made of rows, shape (units, concepts).

    Arguments:
        dictionary: fitted.
        activations: the rows.
        unit_of_row: the unit of each row, shape (rows,), or -1; every unit has a row.
        n_units: how many units.
        concepts: the wanted columns.
        pooling: one of `POOLINGS`.
        allow_mismatch: as for `ConceptDictionary.encode`.
    """
    columns = list(concepts)
    found = torch.full((n_units, len(columns)), float("-inf") if pooling == "max" else 0.0)
    units, start = torch.from_numpy(unit_of_row), 0
    for _, codes in dictionary.encode_chunks(activations, allow_mismatch=allow_mismatch):
        part = units[start : start + len(codes)]
        start += len(codes)
        kept = part >= 0
        if not bool(kept.any()):
            continue
        index, values = part[kept], codes[kept][:, columns]
        if pooling == "max":
            found.scatter_reduce_(0, index[:, None].expand(-1, len(columns)), values, "amax")
        else:
            found.index_add_(0, index, values)
    if pooling == "mean":
        counts = np.bincount(unit_of_row[unit_of_row >= 0], minlength=n_units)
        found /= torch.from_numpy(np.maximum(counts, 1)).unsqueeze(1)
    return found.numpy()
