"""How rows are made comparable before a probe looks at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]

NORMALISATIONS = ("none", "centre", "standardise", "unit_norm")
"""`none`; `centre`: the mean is subtracted; `standardise`: divided by the standard deviation, too (of
dimensions that change by more than rounding); `unit_norm`: the
centred row is divided by its own norm."""

# Of the largest number of a dimension: what the same row may differ by from batch to batch, in float32.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Normaliser:
    """u = (row − shift) / spread, and where `length` is positive u / ‖u‖.

    Arguments:
        shift: shape (width,), float64.
        spread: shape (width,), float64.
        length: the root mean square of ‖u‖ before it is divided by, in the rows it was fitted on; 0 for no division.
    """

    shift: torch.Tensor
    spread: torch.Tensor
    length: float

    @classmethod
    def fitted(cls, rows: Floats, kind: str, *, unit: bool = False) -> Normaliser:
        """Return what normalises rows, shape (rows, width).

        Arguments:
            rows: to learn the constants from.
            kind: one of `NORMALISATIONS`.
            unit: whether rows are divided by their norms at the end, whatever the kind is.
        """
        width = rows.shape[1]
        shift = np.zeros(width) if kind == "none" else rows.mean(axis=0)
        spread = np.ones(width)
        if kind == "standardise":
            deviation = rows.std(axis=0)
            # A dimension that never changes, or by no more than rounding in the model does, is left as it is.
            spread = np.where(deviation > _ROUNDING * np.abs(rows).max(axis=0), deviation, 1.0)
        # As they are kept: what a probe learns is what it will see after it was saved.
        kept, kept_spread = (torch.from_numpy(each.astype(np.float32)).double() for each in (shift, spread))
        plain = cls(kept, kept_spread, 0.0)
        if not (unit or kind == "unit_norm"):
            return plain
        length = float(plain(torch.from_numpy(rows)).square().sum(dim=1).mean().sqrt())
        return cls(kept, kept_spread, length if length > 0 else 1.0)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return float64 rows normalised, differentiably; one of zeros stays."""
        out = (rows - self.shift) / self.spread
        if self.length == 0:
            return out
        norms = torch.linalg.vector_norm(out, dim=1, keepdim=True)
        return out / torch.where(norms > 0, norms, 1.0)
