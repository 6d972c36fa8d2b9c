"""Scores as means over masks: of those that keep an element, against those that do not."""

from __future__ import annotations

import numpy as np

from interpreto_mlops.attributions.coalitions import Floats, Presence


def mean_difference(present: Presence, values: Floats, weights: Floats, valid: Presence) -> Floats:
    """Return the mean value with each element − the mean value without it, shape (targets, n).

    Arguments:
        present: masks, shape (rows, n).
        values: shape (rows, targets).
        weights: the probability of each row, shape (rows,); they sum to 1.
        valid: which elements each target can see, shape (targets, n); the others get exactly 0, as does an element that
            every row or no row keeps.
    """
    kept = present.astype(np.float64)
    known, inside, outside = _shares(weights @ kept)
    weighted = weights[:, None] * values
    difference = weighted.T @ kept / inside - weighted.T @ (1 - kept) / outside
    return np.where(valid & known, difference, 0.0)


def difference_error(present: Presence, values: Floats, valid: Presence) -> Floats:
    """Return the standard error of the `mean_difference` of masks in mirrored pairs, shape (targets, n).

    Row k of the first half and of the second are a pair. NaN for fewer than two pairs, and for an element that every
    row or no row keeps.
    """
    kept = present.astype(np.float64)
    known, inside, outside = _shares(kept.mean(axis=0))
    weighted = values / len(values)
    with_it, without = weighted.T @ kept / inside, weighted.T @ (1 - kept) / outside
    error = np.empty(valid.shape)
    for target, value in enumerate(values.T):
        moves = np.where(present, (value[:, None] - with_it[target]) / inside, 0.0)
        moves -= np.where(present, 0.0, (value[:, None] - without[target]) / outside)
        error[target] = _pair_error(moves)
    return np.where(known, np.where(valid, error, 0.0), np.nan)


def mean_kept(present: Presence, values: Floats, weights: Floats, p: float) -> Floats:
    """Return the mean value of the rows that keep each element, of known probability p, shape (targets, n)."""
    kept: Floats = (weights[:, None] * values).T @ present.astype(np.float64) / p
    return kept


def kept_error(present: Presence, values: Floats, p: float) -> Floats:
    """Return the standard error of the `mean_kept` of masks in mirrored pairs, shape (targets, n)."""
    return np.stack([_pair_error(np.where(present, value[:, None] / p, 0.0)) for value in values.T])


def _shares(share: Floats) -> tuple[Presence, Floats, Floats]:
    """Return where rows with and without an element exist, and their shares, shape (n,) each; 1 where they do not."""
    known = (share > 0) & (share < 1)
    return known, np.where(known, share, 1.0), np.where(known, 1 - share, 1.0)


def _pair_error(moves: Floats) -> Floats:
    """Return the standard error of the mean over pairs of what each row, shape (rows, n), adds to it."""
    first, second = np.split(moves, 2)
    if len(first) < 2:
        return np.full(moves.shape[1], np.nan)
    error: Floats = ((first + second) / 2).std(axis=0, ddof=1) / np.sqrt(len(first))
    return error
