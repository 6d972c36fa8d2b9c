"""Non-negative least squares for many rows at once: how much of each atom a row holds, never less than nothing."""

from __future__ import annotations

import torch

# Coordinates that are updated one after the other between two products of matrices.
_BLOCK = 16
# Sweeps in float32 that find most of the zeros before the exact steps; each costs a product of codes and Gram.
_SWEEPS = 12
# Added to the squared norm of each atom, so that equal or dependent atoms have one solution: the shortest.
_RIDGE = 1e-8
_TOLERANCE = 1e-9
_MOST_EXCHANGES = 200
# After this many exchanges that do not lower the number of wrong signs, only one sign is changed at a time.
_PATIENCE = 3
_SHARE = 0.0
# Numbers of the systems that are solved together: 32 MiB in float64.
_SYSTEM_NUMBERS = 2**22


def sweep(codes: torch.Tensor, products: torch.Tensor, gram: torch.Tensor) -> None:
    """Minimise ½ cᵀ·gram·c − pᵀ·c over each coordinate c ≥ 0 in turn, in place; every step is exact.

    Arguments:
        codes: shape (n_concepts, rows), non-negative.
        products: the products p of atoms and rows, shape (n_concepts, rows).
        gram: the products of atoms with each other, shape (n_concepts, n_concepts); codes stay where its
            diagonal is 0.

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


def nonnegative_codes(rows: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Return the codes c ≥ 0 that minimise ‖row − c · atoms‖² for each row, exactly and each by itself.

    Sweeps of coordinate descent guess which codes are zero; then block principal pivoting solves for the others and
    corrects the guess until the conditions of optimality hold. The solution does not depend on the guess: where atoms
    depend on each other, a ridge of 1e-8 picks one.

    Arguments:
        rows: shape (rows, width).
        atoms: shape (n_concepts, width), each of norm 1.

    Returns:
        Shape (rows, n_concepts), float64.

    Source: Kim and Park 2011 (SIAM J. Sci. Comput. 33), algorithm 2; Portugal, Júdice and Vicente 1994.
    """
    atoms = atoms.double()
    products = rows.double() @ atoms.T
    gram = atoms @ atoms.T
    gram.diagonal().add_(_RIDGE)
    guess = torch.zeros(len(atoms), len(rows))
    products_f, gram_f = products.T.float().contiguous(), gram.float()
    for _ in range(_SWEEPS):
        sweep(guess, products_f, gram_f)
    return _pivot(products, gram, guess.T > 0)


def _pivot(products: torch.Tensor, gram: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Exchange free codes and zeros until the signs are right: codes ≥ 0 where they are free, slopes ≥ 0 elsewhere."""
    n_rows, n_codes = products.shape
    codes = torch.zeros_like(products)
    tolerance = _TOLERANCE * products.abs().amax(dim=1, keepdim=True)
    fewest = torch.full((n_rows,), n_codes + 1)
    patience = torch.full((n_rows,), _PATIENCE)
    open_rows = torch.arange(n_rows)
    free = free.clone()
    for _ in range(_MOST_EXCHANGES):
        mine = free[open_rows]
        codes[open_rows] = _solve(products[open_rows], gram, mine)
        found = codes[open_rows]
        slopes = found @ gram - products[open_rows]
        negative = torch.where(mine, found, slopes).clamp_(max=0)
        wrong = negative < -tolerance[open_rows]
        n_wrong = wrong.sum(dim=1)
        left = n_wrong > 0
        open_rows, wrong, n_wrong = open_rows[left], wrong[left], n_wrong[left]
        if len(open_rows) == 0:
            break
        better = n_wrong < fewest[open_rows]
        fewest[open_rows] = torch.where(better, n_wrong, fewest[open_rows])
        patience[open_rows] = torch.where(better, _PATIENCE, patience[open_rows] - 1)
        single = patience[open_rows] < 0
        last = n_codes - 1 - wrong.flip(1).to(torch.int8).argmax(dim=1)
        only = torch.zeros_like(wrong).scatter_(1, last[:, None], True)
        entering = torch.where(mine[left], 0.0, negative[left])
        wrong &= mine[left] | (entering <= _SHARE * entering.amin(dim=1, keepdim=True))
        free[open_rows] ^= torch.where(single[:, None], only, wrong)
    return codes.clamp_(min=0)


def _solve(products: torch.Tensor, gram: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """Solve gram · c = p over the free codes of each row; the others are 0."""
    codes = torch.zeros_like(products)
    sizes = free.sum(dim=1)
    order = sizes.argsort(descending=True, stable=True)
    place = 0
    while place < len(order) and sizes[order[place]] > 0:
        size = int(sizes[order[place]])
        part = order[place : place + max(1, _SYSTEM_NUMBERS // size**2)]
        # Systems of very different sizes are not solved together: the smaller ones are padded.
        part = part[sizes[part] * 4 >= size * 3]
        place += len(part)
        chosen = free[part].to(torch.int8).topk(size, dim=1)
        kept, at = chosen.values.bool(), chosen.indices
        system = gram[at[:, :, None], at[:, None, :]]
        both = kept[:, :, None] & kept[:, None, :]
        system = torch.where(both, system, torch.eye(size, dtype=gram.dtype))
        right = torch.where(kept, products[part].gather(1, at), 0.0)
        factor = torch.linalg.cholesky(system)
        codes[part] = codes[part].scatter(1, at, torch.cholesky_solve(right[:, :, None], factor)[:, :, 0])
    return codes
