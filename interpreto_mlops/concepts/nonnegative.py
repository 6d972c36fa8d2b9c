"""Non-negative least squares for many rows at once: how much of each atom a row holds, never less than nothing."""

from __future__ import annotations

import torch
from scipy.optimize import nnls

# Coordinates that are updated one after the other between two products of matrices.
_BLOCK = 16
# Sweeps in float32 that find most of the zeros before the exact steps.
_SWEEPS = 6
RIDGE = 1e-6
"""The least share of the squared norm of each atom that is added to it, so that dependent atoms have one solution."""

_TOLERANCE = 1e-10
_MOST_EXCHANGES = 40
# After this many exchanges that do not lower the number of wrong signs, only one sign is changed at a time.
_PATIENCE = 3
# Numbers of the systems that are solved together: 32 MiB in float64.
_SYSTEM_NUMBERS = 2**22


def sweep(codes: torch.Tensor, products: torch.Tensor, gram: torch.Tensor) -> None:
    """Minimise ½ cᵀ·gram·c − pᵀ·c over each coordinate c ≥ 0 in turn, in place; every step is exact.

    Arguments:
        codes: shape (n_concepts, rows), non-negative.
        products: the products p of atoms and rows, shape (n_concepts, rows).
        gram: the products of atoms with each other, shape (n_concepts, n_concepts); codes stay where
            its diagonal is 0.

    Source: Cichocki and Phan 2009, HALS; Hsieh and Dhillon 2011 without their choice of the coordinate.
    """
    curvature = gram.diagonal()
    steps = torch.where(curvature > 0, 1 / curvature, 0.0).tolist()
    for first in range(0, len(codes), _BLOCK):
        block = slice(first, first + _BLOCK)
        pull = torch.addmm(products[block], gram[block], codes, alpha=-1)
        within = gram[block, block]
        for i, code in enumerate(codes[block]):
            change = torch.add(code, pull[i], alpha=steps[first + i]).clamp_(min=0).sub_(code)
            code += change
            pull[i + 1 :].addr_(within[i + 1 :, i], change, alpha=-1)


def nonnegative_codes(rows: torch.Tensor, atoms: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Return the codes c ≥ 0 that minimise ‖row − c · atoms‖² + ridge ‖c‖² for each row, exactly and each by itself.

    Sweeps of coordinate descent guess which codes are zero; then block principal pivoting solves for the others and
    corrects the guess until the conditions of optimality hold. The problem is strictly convex, so that its one solution
    depends neither on the guess nor on the company of a row.

    Arguments:
        rows: shape (rows, width).
        atoms: shape (n_concepts, width), each of norm 1.
        ridge: above 0.

    Returns:
        Shape (rows, n_concepts), float64.

    Source: Kim and Park 2011 (SIAM J. Sci. Comput. 33), algorithm 2; Portugal, Júdice and Vicente 1994.
    """
    atoms = atoms.double()
    products = rows.double() @ atoms.T
    gram = atoms @ atoms.T
    gram.diagonal().add_(ridge)
    guess = torch.zeros(len(atoms), len(rows))
    coarse_products, coarse_gram = products.T.float().contiguous(), gram.float()
    for _ in range(_SWEEPS):
        sweep(guess, coarse_products, coarse_gram)
    codes, unsolved = _pivot(products, gram, guess.T > 0)
    for place in unsolved.tolist():
        codes[place] = _active_set(products[place], gram)
    return codes.clamp_(min=0)


def _pivot(products: torch.Tensor, gram: torch.Tensor, free: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exchange free codes and zeros until free codes and the slopes at zeros are not negative.

    Returns:
        The codes, and the places of the rows for which that did not come to an end.
    """
    n_rows, n_codes = products.shape
    codes = torch.zeros_like(products)
    tolerance = _TOLERANCE * products.abs().amax(dim=1, keepdim=True)
    fewest = torch.full((n_rows,), n_codes + 1)
    patience = torch.full((n_rows,), _PATIENCE)
    places, free = torch.arange(n_rows), free.clone()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    for _ in range(_MOST_EXCHANGES):
        mine = free[places]
        found = _solve(products[places], gram, inverse, mine)
        codes[places] = found
        wrong = torch.where(mine, found, found @ gram - products[places]) < -tolerance[places]
        n_wrong = wrong.sum(dim=1)
        left = n_wrong > 0
        places, wrong, n_wrong = places[left], wrong[left], n_wrong[left]
        if len(places) == 0:
            break
        better = n_wrong < fewest[places]
        fewest[places] = torch.minimum(n_wrong, fewest[places])
        patience[places] = torch.where(better, _PATIENCE, patience[places] - 1)
        last = n_codes - 1 - wrong.flip(1).to(torch.int8).argmax(dim=1, keepdim=True)
        single = torch.zeros_like(wrong).scatter_(1, last, True)
        free[places] ^= torch.where(patience[places, None] < 0, single, wrong)
    return codes, places


def _solve(products: torch.Tensor, gram: torch.Tensor, inverse: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Solve gram · c = p over the free codes of each row; the others are 0.

    Rows with more free codes than zeros are solved for what holds the zeros down: the same solution from a smaller
    system, for c = inverse · (p − λ) where λ is 0 at the free codes and makes the others 0.
    """
    codes = torch.zeros_like(products)
    dense = 2 * free.sum(dim=1) > free.shape[1]
    codes[~dense] = _within(gram, products[~dense], free[~dense])
    unbound = products[dense] @ inverse
    codes[dense] = unbound - _within(inverse, unbound, ~free[dense]) @ inverse
    return codes.mul_(free)


def _within(matrix: torch.Tensor, right: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Solve matrix · x = right in the chosen rows and columns, for each row of `right` its own; elsewhere x is 0."""
    solutions = torch.zeros_like(right)
    sizes = chosen.sum(dim=1)
    order = sizes.argsort(descending=True, stable=True)
    order = order[: int((sizes > 0).sum())]
    while len(order):
        size = int(sizes[order[0]])
        part = order[: max(1, _SYSTEM_NUMBERS // size**2)]
        # Smaller systems are padded, so those of very different sizes are not solved together.
        part = part[sizes[part] * 4 >= size * 3]
        order = order[len(part) :]
        most = chosen[part].to(torch.int8).topk(size, dim=1)
        kept, at = most.values.bool(), most.indices
        system = matrix[at[:, :, None], at[:, None, :]]
        system = torch.where(kept[:, :, None] & kept[:, None, :], system, torch.eye(size, dtype=matrix.dtype))
        known = torch.where(kept, right[part].gather(1, at), 0.0)
        solution = torch.cholesky_solve(known[:, :, None], torch.linalg.cholesky(system))[:, :, 0]
        solutions[part] = solutions[part].scatter(1, at, solution)
    return solutions


def _active_set(products: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Solve one row by Lawson and Hanson's method, which always comes to an end."""
    factor = torch.linalg.cholesky(gram)
    right = torch.linalg.solve_triangular(factor, products[:, None], upper=False)[:, 0]
    solution, _ = nnls(factor.T.numpy(), right.numpy(), maxiter=30 * len(products))
    return torch.from_numpy(solution)
