"""Matrix factorisations with non-negative codes, rows ≈ codes · atoms, by alternating steps that never get worse."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from interpreto_mlops.concepts.nonnegative import sweep

# Inner sweeps over the codes for each step of the atoms.
_SWEEPS = 2
# Atoms start from at least this share of their largest entry: from exact zeros the solver falls into worse optima.
_FLOOR = 0.2
_RIDGE = 1e-7
# A convex combination's weights change by multiplication; a weight of 0 would stay 0 for ever.
_TINY = 1e-12
_WEIGHT_STEPS = 4


class Atoms(ABC):
    """What kind of atoms a factorisation has, and how they are improved."""

    @abstractmethod
    def improved(self, rows: torch.Tensor, codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return atoms that reconstruct no worse for the same codes.

        Arguments:
            rows: shape (rows, width).
            codes: shape (n_concepts, rows).
            atoms: so far, shape (n_concepts, width), of norm 1.
        """

    def restarted(self, place: int, row: torch.Tensor) -> torch.Tensor:
        """Return another atom for one that no row uses: the row that is reconstructed worst, shape (width,)."""
        return row


def factorise(rows: torch.Tensor, atoms: torch.Tensor, kind: Atoms, *, max_iter: int, tol: float) -> torch.Tensor:
    """Alternate codes and atoms until the squared error falls by less than a share `tol` of itself.

    Codes are improved by coordinate descent, atoms as their kind says. An atom that no row uses starts again as the row
    that is reconstructed worst.

    Arguments:
        rows: shape (rows, width), float32.
        atoms: where to start, shape (n_concepts, width).
        kind: of atoms.
        max_iter: the most rounds.
        tol: see above.

    Returns:
        The atoms, with rows of norm 1.
    """
    atoms = unit(atoms)
    codes = (atoms @ rows.T).clamp_(min=0)
    total, last = float(rows.double().square().sum()), float("inf")
    for _ in range(max_iter):
        products, gram = atoms @ rows.T, atoms @ atoms.T
        for _ in range(_SWEEPS):
            sweep(codes, products, gram)
        unused = (codes.amax(dim=1) <= 0).nonzero().flatten()
        atoms = kind.improved(rows, codes, atoms)
        error = _squared_error(rows, codes, atoms, total)
        atoms, codes = _normalised(atoms, codes)
        if len(unused):
            _start_again(rows, codes, atoms, unused, kind)
        elif last - error <= tol * error:
            break
        last = error
    return atoms


def unit(atoms: torch.Tensor) -> torch.Tensor:
    """Return the atoms with norm 1; one of zeros points the same way in every dimension."""
    norms = atoms.norm(dim=1, keepdim=True)
    flat = torch.full_like(atoms, atoms.shape[1] ** -0.5)
    return torch.where(norms > 0, atoms / torch.where(norms > 0, norms, 1.0), flat)


def _normalised(atoms: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return unit(atoms), codes * atoms.norm(dim=1, keepdim=True)


def _squared_error(rows: torch.Tensor, codes: torch.Tensor, atoms: torch.Tensor, total: float) -> float:
    """Return ‖rows − codesᵀ · atoms‖² from products that are small."""
    crossed = ((codes @ rows).double() * atoms.double()).sum()
    own = ((codes @ codes.T).double() * (atoms @ atoms.T).double()).sum()
    return max(0.0, total - 2.0 * float(crossed) + float(own))


def _start_again(
    rows: torch.Tensor, codes: torch.Tensor, atoms: torch.Tensor, unused: torch.Tensor, kind: Atoms
) -> None:
    errors = (rows - codes.T @ atoms).square().sum(dim=1)
    worst = errors.topk(min(len(unused), len(rows))).indices
    for atom, row in zip(unused.tolist(), worst.tolist(), strict=False):
        atoms[atom] = unit(kind.restarted(atom, rows[row])[None])[0]


def nonnegative_start(rows: torch.Tensor, n_concepts: int, generator: torch.Generator) -> torch.Tensor:
    """Return atoms to start a non-negative factorisation from: NNDSVD, and beyond the rank rows drawn at random.

    Source: Boutsidis and Gallopoulos 2008.
    """
    values, right = _singular(rows)
    rank = min(n_concepts, int((values > values[0] * 1e-6).sum()))
    largest = right[:rank]
    # Of each singular vector the sign whose half weighs more.
    positive, negative = largest.clamp(min=0), (-largest).clamp(min=0)
    atoms = torch.where((positive.norm(dim=1) >= negative.norm(dim=1))[:, None], positive, negative)
    if rank < n_concepts:
        drawn = torch.randperm(len(rows), generator=generator)[: n_concepts - rank]
        atoms = torch.cat([atoms, rows[drawn]])
    return unit(atoms + _FLOOR * atoms.amax(dim=1, keepdim=True))


def _singular(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return singular values and right singular vectors, the largest first, from the products of the dimensions."""
    values, vectors = torch.linalg.eigh(rows.T.double() @ rows.double())
    return values.flip(0).clamp(min=0).sqrt().float(), vectors.T.flip(0).float()


def spread_start(rows: torch.Tensor, n_concepts: int, generator: torch.Generator) -> torch.Tensor:
    """Return rows that lie far from each other, to start from.

    Source: the seeding of k-means++ (Arthur and Vassilvitskii 2007), on the directions of the rows.
    """
    norms = rows.norm(dim=1)
    kept = rows[norms > 0]
    directions = kept / kept.norm(dim=1, keepdim=True)
    chosen = [int(norms[norms > 0].square().multinomial(1, generator=generator))]
    distance = 1.0 - directions @ directions[chosen[0]]
    for _ in range(n_concepts - 1):
        weights = distance.clamp(min=0) + 1e-9
        chosen.append(int(weights.multinomial(1, generator=generator)))
        distance = torch.minimum(distance, 1.0 - directions @ directions[chosen[-1]])
    return kept[chosen]


class NonnegativeAtoms(Atoms):
    """Atoms without negative numbers, improved by one sweep of coordinate descent.

    Source: hierarchical alternating least squares (Cichocki and Phan 2009).
    """

    def improved(self, rows: torch.Tensor, codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return better atoms."""
        better = atoms.clone()
        sweep(better, codes @ rows, codes @ codes.T)
        return better


class FreeAtoms(Atoms):
    """Atoms of any sign: those that reconstruct best, by least squares.

    Source: Ding, Li and Jordan 2010, eq. 10.
    """

    def improved(self, rows: torch.Tensor, codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return the best atoms."""
        gram = (codes @ codes.T).double()
        ridge = _RIDGE * float(gram.diagonal().mean()) + torch.finfo(torch.float64).tiny
        gram.diagonal().add_(ridge)
        atoms = torch.linalg.solve(gram, (codes @ rows).double())
        return atoms.float()


class ConvexAtoms(Atoms):
    """Atoms that are combinations of anchors with non-negative weights: atoms = weights · anchors.

    Weights are improved by multiplication, which never makes the error larger.

    Arguments:
        anchors: rows, shape (anchors, width).
        weights: where to start, shape (n_concepts, anchors).

    Source: Ding, Li and Jordan 2010, eq. 21, for anchors that are some of the rows.
    """

    def __init__(self, anchors: torch.Tensor, weights: torch.Tensor) -> None:
        self.anchors, self.weights = anchors, weights.clamp(min=_TINY)
        products = anchors @ anchors.T
        self._plus, self._minus = products.clamp(min=0), (-products).clamp(min=0)

    def improved(self, rows: torch.Tensor, codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return better atoms; the weights are left as those of the atoms with norm 1."""
        pull = (codes @ rows) @ self.anchors.T
        plus, minus = pull.clamp(min=0), (-pull).clamp(min=0)
        gram = codes @ codes.T
        for _ in range(_WEIGHT_STEPS):
            mixed = gram @ self.weights
            up, down = plus + mixed @ self._minus, minus + mixed @ self._plus
            self.weights = (self.weights * (up / down.clamp(min=_TINY)).sqrt()).clamp(min=_TINY)
        better = self.weights @ self.anchors
        self.weights = self.weights / better.norm(dim=1, keepdim=True).clamp(min=_TINY)
        return better

    def restarted(self, place: int, row: torch.Tensor) -> torch.Tensor:
        """Return the anchor that is nearest in direction to the row."""
        nearest = int((self.anchors @ row / self.anchors.norm(dim=1).clamp(min=_TINY)).argmax())
        self.weights[place] = _TINY
        self.weights[place, nearest] = 1.0 / float(self.anchors[nearest].norm().clamp(min=_TINY))
        return self.anchors[nearest]
