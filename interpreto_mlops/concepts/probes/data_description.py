"""The smallest sphere around most of some rows: support vector data description without a kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Two weights are moved at a time; what is left of the optimality conditions is this share of the mean squared distance.
_TOLERANCE = 1e-6
_MOST_STEPS = 100_000
_AFRESH = 100


def description(rows: Floats, nu: float) -> tuple[Floats, float]:
    """Return the centre and squared radius of the smallest sphere that leaves about a share of the rows outside.

    Minimises radius² + Σ max(0, ‖row − centre‖² − radius²) / (nu · rows) through its dual: the centre is Σ αᵢ rowᵢ with
    0 ≤ αᵢ ≤ 1 / (nu · rows) and Σ αᵢ = 1, where weight moves from the nearest row that has some to the farthest that
    may have more. Steps grow with the rows, so that time grows with their square: seconds for 10,000 of width 64.

    Arguments:
        rows: shape (rows, width).
        nu: above 0 and at most 1.

    Source: Tax and Duin 2004, eqs. 5 to 14; the steps are those of sequential minimal optimisation (Platt 1998).
    """
    most = 1.0 / (nu * len(rows)) if nu * len(rows) > 1 else 1.0
    weights = np.full(len(rows), 1.0 / len(rows))
    centre = rows.mean(axis=0)
    distances = ((rows - centre) ** 2).sum(axis=1)
    enough = _TOLERANCE * max(float(distances.mean()), np.finfo(float).tiny)
    for done in range(1, _MOST_STEPS + 1):
        far = int(np.where(weights < most * (1 - 1e-12), distances, -np.inf).argmax())
        near = int(np.where(weights > most * 1e-12, distances, np.inf).argmin())
        gap = distances[far] - distances[near]
        if gap <= enough:
            break
        between = rows[far] - rows[near]
        squared = float(between @ between)
        step = min(gap / (2.0 * squared), most - weights[far], weights[near])
        weights[far] += step
        weights[near] -= step
        if done % _AFRESH:
            # One product with the rows; what rounding adds up to is taken out now and then.
            distances += step * (step * squared - 2.0 * (rows @ between - centre @ between))
            centre = centre + step * between
        else:
            centre = centre + step * between
            distances = ((rows - centre) ** 2).sum(axis=1)
    distances = ((rows - centre) ** 2).sum(axis=1)
    return centre, _squared_radius(distances, weights, most)


def _squared_radius(distances: Floats, weights: Floats, most: float) -> float:
    """Return the squared distance of the rows on the sphere: those whose weight is neither nothing nor all."""
    free = (weights > most * 1e-6) & (weights < most * (1 - 1e-6))
    if free.any():
        return float(distances[free].mean())
    inside, outside = distances[weights <= most * 1e-6], distances[weights >= most * (1 - 1e-6)]
    if not len(inside):
        return float(outside.min())
    return float((inside.max() + outside.min()) / 2.0) if len(outside) else float(inside.max())
