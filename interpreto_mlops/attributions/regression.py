"""Scores by weighted least squares over coalitions, each target on the elements that it can see."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from interpreto_mlops.attributions.coalitions import Floats, Integers, Plan, Presence

# Directions below this share of the largest singular value are taken as not determined by the rows.
_CUTOFF = 1e-10


def by_view(valid: Presence) -> Iterator[tuple[Integers, Integers]]:
    """Group targets that see the same elements.

    Arguments:
        valid: which elements each target can see, shape (targets, n).

    Yields:
        The numbers of some targets, and of the elements that each of them sees (at least one).
    """
    views, which = np.unique(valid, axis=0, return_inverse=True)
    for number, view in enumerate(views):
        if view.any():
            yield np.flatnonzero(which.ravel() == number), np.flatnonzero(view)


def determines(plan: Plan) -> bool:
    """Return whether the regression on these coalitions has one solution."""
    columns, _ = _without_constraint(plan.present, np.zeros((len(plan.present), 1)), np.zeros(1))
    return bool(np.linalg.matrix_rank(columns.T @ columns, hermitian=True) == columns.shape[1] - 1)


def solve_shapley(present: Presence, weights: Floats, gains: Floats, total: Floats, valid: Presence) -> Floats:
    """Solve the weighted least squares with the constraint that the values sum to `total`.

    Where the rows do not determine the values, those nearest to equal shares are taken.

    Arguments:
        present: coalitions, shape (rows, n).
        weights: shape (rows,).
        gains: v(C) − v(empty) of each row, shape (rows, targets).
        total: v(full) − v(empty), shape (targets,).
        valid: which elements each target can see, shape (targets, n); the others get exactly 0.

    Returns:
        The values, shape (targets, n); those of a target sum to its total whatever the rows.

    Source: Covert & Lee 2021 (arXiv 2012.01536), section 2; the form without constraint is that of Musco & Witter 2025
    (arXiv 2410.01917).
    """
    scores = np.zeros(valid.shape)
    root = np.sqrt(weights)[:, None]
    for targets, seen in by_view(valid):
        columns, right = _without_constraint(present[:, seen], gains[:, targets], total[targets])
        others: Floats = np.linalg.lstsq(columns * root, right * root, rcond=_CUTOFF)[0].astype(np.float64)
        scores[np.ix_(targets, seen)] = _with_total(others.T, total[targets])
    return scores


def jackknife_error(plan: Plan, gains: Floats, total: Floats, valid: Presence, *, groups: int = 10) -> Floats:
    """Return the standard error of `solve_shapley` by leaving out groups of sampled pairs, shape (targets, n).

    NaN when fewer than two pairs were sampled; zeros when none had to be.
    """
    n_pairs = int(plan.pair.max(initial=-1)) + 1
    if n_pairs < 2:
        every = len(plan.present) == 2 ** plan.present.shape[1] - 2
        return np.full(valid.shape, 0.0 if every else np.nan)
    groups = min(groups, n_pairs)
    error = np.zeros(valid.shape)
    for targets, seen in by_view(valid):
        columns, right = _without_constraint(plan.present[:, seen], gains[:, targets], total[targets])
        both = _left_out(plan, groups, columns, np.concatenate([columns, right], axis=1))
        others = _solve_normal(both[..., : len(seen)], both[..., len(seen) :])
        spread = _with_total(others.transpose(0, 2, 1), total[targets])
        square = ((spread - spread.mean(axis=0)) ** 2).sum(axis=0)
        error[np.ix_(targets, seen)] = np.sqrt((groups - 1) / groups * square)
    return error


def _left_out(plan: Plan, groups: int, columns: Floats, right: Floats) -> Floats:
    """Return columnsᵀ · weights · right without each group of sampled pairs, shape (groups, ...), the weight kept."""
    group = np.where(plan.pair >= 0, plan.pair % groups, groups)
    weighted = plan.weights[:, None] * columns
    parts = np.stack([weighted[group == g].T @ right[group == g] for g in range(groups + 1)])
    mass = np.bincount(group, plan.weights, minlength=groups + 1)[:groups]
    more = mass.sum() / (mass.sum() - mass)
    sampled, whole = parts[:groups], parts[groups]
    left: Floats = whole + more[:, None, None] * (sampled.sum(axis=0) - sampled)
    return left


def _solve_normal(squares: Floats, right: Floats) -> Floats:
    """Solve normal equations of columns that sum to 0 by row, shape (..., n, n) and (..., n, targets).

    The direction that such columns leave open gets a weight, any other so little that it is 0 but for rounding: much
    faster than a pseudo-inverse, and good enough for standard errors.
    """
    n = squares.shape[-1]
    scale = np.trace(squares, axis1=-2, axis2=-1)[..., None, None] / n
    scale = np.where(scale > 0, scale, 1.0)
    return np.linalg.solve(squares + scale * (1 / n + _CUTOFF * np.eye(n)), right)


def _without_constraint(present: Presence, gains: Floats, total: Floats) -> tuple[Floats, Floats]:
    """Subtract equal shares of the total: what is left to explain sums to 0, on columns that are centred by row."""
    share = present.mean(axis=1, keepdims=True)
    return present - share, gains - share * total


def _with_total(others: Floats, total: Floats) -> Floats:
    """Add the equal shares again, shape (..., targets, n)."""
    shares = total[:, None] / others.shape[-1]
    scores: Floats = others - others.mean(axis=-1, keepdims=True) + shares
    return scores


def solve_linear(
    present: Presence, weights: Floats, values: Floats, valid: Presence, *, alpha: float = 0.0
) -> tuple[Floats, Floats]:
    """Fit values by a weighted linear model with an intercept: the weighted mean of squares + alpha · |slopes|².

    Arguments:
        present: coalitions, shape (rows, n).
        weights: shape (rows,).
        values: shape (rows, targets).
        valid: which elements each target can see, shape (targets, n); the others get exactly 0.
        alpha: the ridge penalty; the intercept has none.

    Returns:
        The slopes, shape (targets, n), of the smallest norm where the rows do not determine them; and the weighted R²
        of each target, shape (targets,), which is 1 where the values do not vary.
    """
    weights = weights / weights.sum()
    root = np.sqrt(weights)[:, None]
    right = (values - weights @ values) * root
    scores, r2 = np.zeros(valid.shape), np.ones(len(valid))
    for targets, seen in by_view(valid):
        columns = (present[:, seen] - weights @ present[:, seen]) * root
        penalty = np.sqrt(alpha) * np.eye(len(seen) if alpha else 0, len(seen))
        padded = np.concatenate([right[:, targets], np.zeros((len(penalty), len(targets)))])
        slopes, *_ = np.linalg.lstsq(np.concatenate([columns, penalty]), padded, rcond=_CUTOFF)
        scores[np.ix_(targets, seen)] = slopes.T
        rest = ((right[:, targets] - columns @ slopes) ** 2).sum(axis=0)
        around = (right[:, targets] ** 2).sum(axis=0)
        r2[targets] = 1 - np.divide(rest, around, out=np.zeros_like(rest), where=around > 0)
    return scores, r2


def solve_pairs(signs: Floats, differences: Floats, valid: Presence) -> tuple[Floats, Floats]:
    """Fit differences between coalitions and their complements by a linear model, with standard errors.

    Arguments:
        signs: 1 where a pair's first coalition has the element, else -1, shape (pairs, n).
        differences: value of the first − value of the second, shape (pairs, targets).
        valid: which elements each target can see, shape (targets, n); the others get exactly 0.

    Returns:
        Slopes and their standard errors by the jackknife over pairs, shape (targets, n) each.
    """
    scores, error = np.zeros(valid.shape), np.zeros(valid.shape)
    for targets, seen in by_view(valid):
        inverse = np.linalg.pinv(signs[:, seen], rcond=_CUTOFF)
        slopes = inverse @ differences[:, targets]
        leverage = np.einsum("ki,ik->k", signs[:, seen], inverse)
        rest = (differences[:, targets] - signs[:, seen] @ slopes) / np.maximum(1 - leverage, _CUTOFF)[:, None]
        # Leaving out pair k moves slope i by inverse[i, k] · rest[k].
        square = np.maximum(inverse**2 @ rest**2 - (inverse @ rest) ** 2 / len(signs), 0.0)
        scores[np.ix_(targets, seen)] = slopes.T
        error[np.ix_(targets, seen)] = np.sqrt((len(signs) - 1) / len(signs) * square).T
    return scores, error
