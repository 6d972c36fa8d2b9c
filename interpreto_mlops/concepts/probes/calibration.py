"""Where a probe says yes: a bias, or a probability, chosen on rows that it was not fitted on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

CALIBRATIONS = ("none", "balanced", "platt")
"""`none`: the family's own boundary; `balanced`: the bias with the best balanced accuracy on held-out rows; `platt`:
scores become the log odds of the concept, fitted on held-out rows."""


def best_threshold(scores: Floats, holds: Bools) -> float:
    """Return the threshold above which saying yes has the best balanced accuracy.

    Candidates lie half-way between neighbouring scores; of several that are equally good the middle one is taken.

    Arguments:
        scores: shape (rows,).
        holds: whether each row holds the concept; both answers occur.
    """
    order = np.argsort(scores, kind="stable")
    ranked, truth = scores[order], holds[order]
    # With the first k rows said to be without: how many of each kind are right.
    without = np.concatenate([[0], np.cumsum(~truth)]) / (~truth).sum()
    missed = np.concatenate([[0], np.cumsum(truth)]) / truth.sum()
    balanced = (without + 1.0 - missed) / 2.0
    # Between equal scores nothing can be divided.
    possible = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])
    best = np.flatnonzero(possible & (balanced >= balanced[possible].max() - 1e-12))
    place = int(best[len(best) // 2])
    if place in (0, len(ranked)):
        edge = ranked[0] if place == 0 else ranked[-1]
        step = max(1.0, float(np.ptp(ranked))) / 2.0
        return float(edge - step if place == 0 else edge + step)
    return float((ranked[place - 1] + ranked[place]) / 2.0)


def platt(scores: Floats, holds: Bools) -> tuple[float, float]:
    """Return the gain and bias by which scores become log odds: P(concept) = 1 / (1 + exp(−gain · score − bias)).

    Arguments:
        scores: shape (rows,).
        holds: whether each row holds the concept.

    Source: Platt 1999 (probabilistic outputs for support vector machines), with the smoothed targets of section 2.2.
    """
    n_with, n_without = int(holds.sum()), int((~holds).sum())
    targets = np.where(holds, (n_with + 1.0) / (n_with + 2.0), 1.0 / (n_without + 2.0))
    middle, unit = float(scores.mean()), float(scores.std()) or 1.0
    scaled = (scores - middle) / unit

    def loss(parameters: Floats) -> tuple[float, Floats]:
        odds = parameters[0] * scaled + parameters[1]
        excess = 1.0 / (1.0 + np.exp(-np.clip(odds, -500, 500))) - targets
        value = float((np.logaddexp(0.0, odds) - targets * odds).sum())
        return value, np.asarray([excess @ scaled, excess.sum()])

    start = np.asarray([0.0, np.log((n_with + 1.0) / (n_without + 1.0))])
    gain, bias = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return float(gain / unit), float(bias - gain * middle / unit)
