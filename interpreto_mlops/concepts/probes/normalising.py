"""How rows are made comparable before a probe looks at them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
        shift: shape (width,).
        spread: shape (width,).
        length: the root mean square of ‖u‖ before it is divided by, in the rows it was fitted on; 0 for no division.
    """

    shift: Floats
    spread: Floats
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
        shift, spread = (each.astype(np.float32).astype(np.float64) for each in (shift, spread))
        plain = cls(shift, spread, 0.0)
        if not (unit or kind == "unit_norm"):
            return plain
        length = float(np.sqrt((plain(rows) ** 2).sum(axis=1).mean()))
        return cls(shift, spread, length if length > 0 else 1.0)

    def __call__(self, rows: Floats) -> Floats:
        """Return the rows normalised; one of zeros stays."""
        out: Floats = (rows - self.shift) / self.spread
        if self.length > 0:
            norms = np.linalg.norm(out, axis=1, keepdims=True)
            out /= np.where(norms > 0, norms, 1.0)
        return out
