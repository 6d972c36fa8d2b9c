"""How importances are told to a reader: as shares, those that matter, by one of four marks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WEAK, STRONG = 0.05, 0.3
"""The shares from which an importance is told, and from which it is told to be strong."""

_ROUNDING = 1e-9


def normalised(values: npt.ArrayLike) -> Floats:
    """Return importances as shares, Σ |share| = 1 over the last axis; 0 where all are 0, NaN where any is NaN."""
    values = np.asarray(values, dtype=np.float64)
    totals = np.abs(values).sum(axis=-1, keepdims=True)
    return np.asarray(values / np.where(totals == 0, 1.0, totals))


def threshold(shares: Floats) -> float:
    """Return what a share must exceed to be told: 0.05, halved until one does; infinity where all shares are 0.

    Source: Poché et al. 2025 (ConSim).
    """
    largest = float(np.nanmax(np.abs(shares), initial=0.0)) if shares.size else 0.0
    if largest <= 0.0:
        return float("inf")
    limit = WEAK
    while largest <= limit:
        limit /= 2
    return limit


def kept(importance: Floats) -> tuple[npt.NDArray[np.int64], float]:
    """Return the places of the features whose share exceeds the threshold for some class, and the threshold.

    Arguments:
        importance: shares, shape (classes, features).
    """
    known = np.nan_to_num(importance, nan=0.0)
    limit = threshold(known)
    return np.flatnonzero((np.abs(known) > limit).any(axis=0)), limit


def mark(share: float, weak: float = WEAK) -> str:
    """Return `++` or `--` from a share of 0.3, `+` or `-` from `weak`, else nothing.

    Source: Poché et al. 2025 (ConSim).
    """
    size = abs(share) + _ROUNDING
    if not size >= weak:
        return ""
    sign = "+" if share > 0 else "-"
    return sign * 2 if size >= STRONG else sign
