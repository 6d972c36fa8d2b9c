"""Scores as means over masks: of those that keep an element, against those that do not."""

from __future__ import annotations

import numpy as np

from interpreto_mlops.attributions.coalitions import Floats, Presence


def mean_difference(present: Presence, values: Floats, weights: Floats, valid: Presence) -> tuple[Floats, Floats]:
    """Return the mean value with each element − the mean value without it.

    Arguments:
        present: masks, shape (rows, n).
        values: shape (rows, targets).
        weights: the probability of each row, shape (rows,); they sum to 1.
        valid: which elements each target can see, shape (targets, n); the others get exactly 0.

    Returns:
        The differences, shape (targets, n), 0 for an element that no row or every row keeps; and by how much each row
        moves them, shape (rows, targets, n), for `pair_error`.
    """
    kept = present.astype(np.float64)
    share = weights @ kept
    known = (share > 0) & (share < 1)
    inside, outside = np.where(known, share, 1.0), np.where(known, 1 - share, 1.0)
    weighted = weights[:, None] * values
    with_it, without = weighted.T @ kept / inside, weighted.T @ (1 - kept) / outside
    moves = kept[:, None] * (values[:, :, None] - with_it) / inside
    moves -= (1 - kept)[:, None] * (values[:, :, None] - without) / outside
    return np.where(valid & known, with_it - without, 0.0), np.where(known, np.where(valid, moves, 0.0), np.nan)


def mean_kept(present: Presence, values: Floats, weights: Floats, p: float) -> tuple[Floats, Floats]:
    """Return the mean value of the rows that keep each element, with its known probability p; as `mean_difference`."""
    moves = present[:, None] * values[:, :, None] / p
    scores: Floats = np.tensordot(weights, moves, axes=1)
    return scores, moves - scores


def pair_error(moves: Floats) -> Floats:
    """Return the standard error of a mean over pairs of rows, shape (targets, n); NaN for fewer than two pairs.

    Arguments:
        moves: by how much each row moves the mean, shape (rows, targets, n); row k of the first half and of the second
            are a pair.
    """
    first, second = np.split(moves, 2)
    if len(first) < 2:
        return np.full(moves.shape[1:], np.nan)
    error: Floats = ((first + second) / 2).std(axis=0, ddof=1) / np.sqrt(len(first))
    return error
