"""Sparse coding: the lasso of many rows at once, and the step that improves a dictionary for given codes.

scikit-learn has both, but its lasso draws from numpy's global generator and solves row by row.
"""

from __future__ import annotations

import torch

# Every so many steps, rows that are solved leave.
_STEPS = 10
_MOST_STEPS = 100_000
# A mean squared code below this is not used: the constant of SPAMS and scikit-learn.
_UNUSED = 1e-6


def lasso_codes(
    rows: torch.Tensor,
    dictionary: torch.Tensor,
    alpha: float,
    *,
    positive: bool = False,
    tol: float = 1e-9,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the codes that minimise ½ ‖row − code · dictionary‖² + alpha ‖code‖₁, each row's by itself.

    Arguments:
        rows: shape (rows, width), float64.
        dictionary: directions, shape (n_concepts, width), float64.
        alpha: weight of the codes' size, at least 0.
        positive: whether codes are at least 0.
        tol: a row is solved when a gradient step moves no code by more than this, relative to its largest product with
            a direction.
        start: codes to begin at, shape (rows, n_concepts); zeros by default.

    Returns:
        Codes, shape (rows, n_concepts), float64.

    Source: Beck and Teboulle 2009 (FISTA), with the restarts of O'Donoghue and Candès 2015, row by row.
    """
    codes = torch.zeros(len(rows), len(dictionary), dtype=rows.dtype)
    gram = dictionary @ dictionary.T
    step = 1.0 / float(torch.linalg.matrix_norm(gram, 2).clamp(min=torch.finfo(gram.dtype).tiny))
    products = rows @ dictionary.T
    # A row none of whose products exceeds alpha has the codes 0.
    largest = products.amax(dim=1) if positive else products.abs().amax(dim=1)
    left = (largest > alpha).nonzero().flatten()
    state = _Descent((codes if start is None else start)[left], products[left], gram, step, alpha, positive)
    for _ in range(_MOST_STEPS // _STEPS):
        if len(left) == 0:
            break
        solved = state.run() <= tol * largest[left]
        codes[left[solved]] = state.codes[solved]
        left = left[~solved]
        state.keep(~solved)
    codes[left] = state.codes
    return codes


def improve_directions(directions: torch.Tensor, squares: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """Lessen ‖rows − codes · directions‖² over one direction after the other, none longer than 1; in place.

    Arguments:
        directions: shape (n_concepts, width).
        squares: the mean over rows of codeᵀ code, shape (n_concepts, n_concepts).
        products: the mean over rows of codeᵀ row, shape (n_concepts, width).

    Returns:
        Which directions no code uses; they are left as they are. Shape (n_concepts,).

    Source: Mairal, Bach, Ponce and Sapiro 2009, algorithm 2.
    """
    unused = squares.diagonal() <= _UNUSED
    for k in (~unused).nonzero().flatten().tolist():
        directions[k] += (products[k] - squares[k] @ directions) / squares[k, k]
        directions[k] /= directions[k].norm().clamp(min=1.0)
    return unused


class _Descent:
    """Accelerated proximal gradient steps on all rows that are left."""

    def __init__(
        self,
        start: torch.Tensor,
        products: torch.Tensor,
        gram: torch.Tensor,
        step: float,
        alpha: float,
        positive: bool,
    ) -> None:
        self._products, self._gram, self._step, self._positive = products, gram, step, positive
        self._threshold = step * alpha
        self.codes = start
        self._ahead = self.codes
        self._momentum = torch.ones(len(products), 1, dtype=products.dtype)

    def run(self) -> torch.Tensor:
        """Take some steps; return the largest move of each row in the last one, in the unit of the products."""
        for _ in range(_STEPS):
            last, ahead = self.codes, self._ahead
            self.codes = self._shrunk(ahead + self._step * (self._products - ahead @ self._gram))
            # Momentum that points uphill is dropped.
            uphill = ((ahead - self.codes) * (self.codes - last)).sum(dim=1, keepdim=True) > 0.0
            momentum = torch.where(uphill, 1.0, self._momentum)
            self._momentum = (1.0 + (1.0 + 4.0 * momentum.square()).sqrt()) / 2.0
            self._ahead = self.codes + (momentum - 1.0) / self._momentum * (self.codes - last)
        moves: torch.Tensor = (self.codes - ahead).abs().amax(dim=1) / self._step
        return moves

    def _shrunk(self, codes: torch.Tensor) -> torch.Tensor:
        if self._positive:
            return (codes - self._threshold).clamp(min=0.0)
        return torch.nn.functional.softshrink(codes, self._threshold)

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows, a mask."""
        self._products, self.codes = self._products[rows], self.codes[rows]
        self._ahead, self._momentum = self._ahead[rows], self._momentum[rows]
