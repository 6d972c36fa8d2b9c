"""Matrix factorisations with non-negative codes, rows ≈ codes · atoms, by alternating steps that never get worse."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from interpreto_mlops.concepts.nonnegative import RIDGE, sweep

# Sweeps over the codes for each step of the atoms, and before the first.
_SWEEPS, _FIRST_SWEEPS = 1, 10
# Atoms start from at least this share of their largest entry: from exact zeros the solver falls into worse optima.
_FLOOR = 0.2
# A squared error below this share of the rows' squares is rounding.
_EXACT = 1e-12
_TINY = 1e-12
_WEIGHT_STEPS = 20
_CHUNK = 4096


class Atoms(ABC):
    """What kind of atoms a factorisation has, and how they are improved."""

    @abstractmethod
    def improved(self, products: torch.Tensor, gram: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return atoms that reconstruct no worse for the same codes.

        Arguments:
            products: of codes and rows, shape (n_concepts, width).
            gram: of codes, with the penalty, shape (n_concepts, n_concepts).
            atoms: so far, shape (n_concepts, width), of norm 1.
        """

    def restarted(self, place: int, row: torch.Tensor) -> torch.Tensor:
        """Return another atom for one that no row uses: the row that is reconstructed worst, shape (width,)."""
        return row


def factorise(
    rows: torch.Tensor, atoms: torch.Tensor, kind: Atoms, *, max_iter: int, tol: float, ridge: float = RIDGE
) -> torch.Tensor:
    """Minimise ‖rows − codes · atoms‖² + ridge · Σ codes² ‖atom‖² by improving codes and atoms in turn.

    Codes are improved by coordinate descent, atoms as their kind says. An atom that no row uses starts again as the row
    that is reconstructed worst.

    Arguments:
        rows: shape (rows, width), float32.
        atoms: where to start, shape (n_concepts, width).
        kind: of atoms.
        max_iter: the most rounds.
        tol: it ends when a round lowers what is minimised by less than this share of it.
        ridge: weight of the penalty, which the norms of atoms do not change.

    Returns:
        The atoms, with rows of norm 1.
    """
    atoms = unit(atoms)
    codes = torch.zeros(len(atoms), len(rows))
    nothing, last = _EXACT * float(rows.double().square().sum()), float("inf")
    for number in range(max_iter):
        products, gram = atoms @ rows.T, _heavier(atoms @ atoms.T, ridge)
        for _ in range(_SWEEPS if number else _FIRST_SWEEPS):
            sweep(codes, products, gram)
        unused = (codes.amax(dim=1) <= 0).nonzero().flatten()
        longer = kind.improved(codes @ rows, _heavier(codes @ codes.T, ridge), atoms)
        atoms, codes = unit(longer), codes * longer.norm(dim=1, keepdim=True)
        errors = _squared_errors(rows, codes, atoms)
        loss = float(errors.sum()) + ridge * float(codes.square().sum(dim=1).double().sum())
        if loss <= nothing or (len(unused) == 0 and last - loss <= tol * loss):
            break
        worst = errors.topk(min(len(unused), len(rows))).indices
        for atom, row in zip(unused.tolist(), worst.tolist(), strict=False):
            atoms[atom] = unit(kind.restarted(atom, rows[row])[None])[0]
        last = loss
    return atoms


def _heavier(gram: torch.Tensor, ridge: float) -> torch.Tensor:
    """Add the ridge, relative to the diagonal: a penalty that the atoms' norms do not change."""
    gram.diagonal().mul_(1 + ridge)
    return gram


def unit(atoms: torch.Tensor) -> torch.Tensor:
    """Return the atoms with norm 1; one of zeros points the same way in every dimension."""
    norms = atoms.norm(dim=1, keepdim=True)
    flat = torch.full_like(atoms, atoms.shape[1] ** -0.5)
    return torch.where(norms > 0, atoms / torch.where(norms > 0, norms, 1.0), flat)


def _squared_errors(rows: torch.Tensor, codes: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Return ‖row − code · atoms‖² of each row, shape (rows,), float64; exact where the error is small, too."""
    parts = zip(rows.split(_CHUNK), codes.split(_CHUNK, dim=1), strict=True)
    return torch.cat([torch.addmm(part, code.T, atoms, alpha=-1).square().sum(dim=1) for part, code in parts]).double()


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

    def improved(self, products: torch.Tensor, gram: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return better atoms."""
        better = atoms.clone()
        sweep(better, products, gram)
        return better


class FreeAtoms(Atoms):
    """Atoms of any sign: those that reconstruct best, by least squares.

    Source: Ding, Li and Jordan 2010, eq. 10.
    """

    def improved(self, products: torch.Tensor, gram: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return the best atoms."""
        gram = gram.double()
        gram.diagonal().add_(_TINY * float(gram.diagonal().mean()) + torch.finfo(torch.float64).tiny)
        best: torch.Tensor = torch.linalg.solve(gram, products.double())
        return best.float()


class ConvexAtoms(Atoms):
    """Atoms that are combinations of anchors with non-negative weights: atoms = weights · anchors.

    Weights are improved by accelerated projected gradient steps; where these end in a larger error, by one step that
    cannot. No matrix of anchors by anchors is made.

    Arguments:
        anchors: rows, shape (anchors, width).
        weights: where to start, not negative, shape (n_concepts, anchors).

    Source: the objective of Ding, Li and Jordan 2010, eq. 18, for anchors that are some of the rows; the steps of Beck
    and Teboulle 2009.
    """

    def __init__(self, anchors: torch.Tensor, weights: torch.Tensor) -> None:
        self.anchors = anchors
        self.weights = self._normalised(weights, weights @ anchors)
        self._curvature = float(torch.linalg.eigvalsh(anchors.T.double() @ anchors.double())[-1])

    def improved(self, products: torch.Tensor, gram: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        """Return better atoms; the weights are left as those of the atoms with norm 1."""
        before = _loss_of(self.weights @ self.anchors, products, gram)
        weights = self._stepped(products, gram, _WEIGHT_STEPS)
        if _loss_of(weights @ self.anchors, products, gram) > before:
            weights = self._stepped(products, gram, 1)
        better: torch.Tensor = weights @ self.anchors
        self.weights = self._normalised(weights, better)
        return better

    @staticmethod
    def _normalised(weights: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = weights / atoms.norm(dim=1, keepdim=True).clamp(min=_TINY)
        return normalised

    def _stepped(self, products: torch.Tensor, gram: torch.Tensor, n_steps: int) -> torch.Tensor:
        # In units of the codes' sizes concepts that are rare move as fast as those that are frequent.
        sizes = gram.diagonal().clamp(min=_TINY).sqrt()[:, None]
        gram, products = gram / sizes / sizes.T, products / sizes
        step = 1.0 / (self._curvature * float(torch.linalg.eigvalsh(gram.double())[-1]))
        weights = ahead = self.weights * sizes
        momentum = 1.0
        for _ in range(n_steps):
            slope = (gram @ (ahead @ self.anchors) - products) @ self.anchors.T
            last, weights = weights, torch.add(ahead, slope, alpha=-step).clamp_(min=0)
            faster = (1.0 + math.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
            ahead = weights + (momentum - 1.0) / faster * (weights - last)
            momentum = faster
        return weights / sizes

    def restarted(self, place: int, row: torch.Tensor) -> torch.Tensor:
        """Return the anchor that is nearest in direction to the row."""
        lengths = self.anchors.norm(dim=1).clamp(min=_TINY)
        nearest = int((self.anchors @ row / lengths).argmax())
        self.weights[place] = 0.0
        self.weights[place, nearest] = 1.0 / float(lengths[nearest])
        return self.anchors[nearest]


def _loss_of(atoms: torch.Tensor, products: torch.Tensor, gram: torch.Tensor) -> float:
    """Return what is minimised over the atoms, but for a constant."""
    return float(((gram @ atoms).double() * atoms.double()).sum() - 2 * (products.double() * atoms.double()).sum())
