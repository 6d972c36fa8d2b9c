"""Non-negative matrix factorisation: concepts that only add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.factorisation import Atoms, NonnegativeAtoms, factorise, nonnegative_start
from interpreto_mlops.concepts.gathering import GatheringLearner
from interpreto_mlops.concepts.linear import LinearDecoder
from interpreto_mlops.concepts.nonnegative import RIDGE, nonnegative_codes
from interpreto_mlops.concepts.training import DataFacts, State
from interpreto_mlops.errors import InputError

MOST_ROWS = 50_000


@dataclass(kw_only=True, eq=False)
class Factorisation(LinearDecoder):
    """Parameters of the factorisations rows − mean ≈ codes · directions with codes that are not negative.

    A row's codes are the non-negative ones that reconstruct it best, found exactly and for each row by itself.

    Arguments:
        n_concepts: how many concepts.
        seed: decides what of the start is drawn at random.
        max_iter: the most rounds of the solver.
        tol: it ends when a round lowers the squared error by less than this share of it.
        ridge: codes are kept small by this share of their squares; what is minimised, in learning and in encoding, is
            ‖row − mean − codes · directions‖² + ridge ‖codes‖².
        max_rows: how many rows the directions are learned from, an even sample.
    """

    max_iter: int = 200
    tol: float = 1e-4
    max_rows: int = MOST_ROWS
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("max_iter", self.max_iter, 1)
        check_number("tol", self.tol, 0.0, 1.0)
        check_number("ridge", self.ridge, RIDGE)
        check_integer("max_rows", self.max_rows, self.n_concepts)

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        centred = (rows.double() - self.mean.double()) / self.scale.double()
        return nonnegative_codes(centred, self.dictionary, self.ridge).float()

    def _solve(self, rows: torch.Tensor, start: torch.Tensor, kind: Atoms) -> torch.Tensor:
        return factorise(rows, start, kind, max_iter=self.max_iter, tol=self.tol, ridge=self.ridge)


@DICTIONARIES.register("nmf")
@dataclass(kw_only=True, eq=False)
class NMFConcepts(Factorisation):
    """Non-negative matrix factorisation: rows ≈ codes · directions, neither of which has a negative number.

    Rows must not be negative either, as behind a ReLU; they are not centred. The solver starts from NNDSVD and
    alternates sweeps of coordinate descent over codes and directions; a direction that no row uses starts again.

    Arguments:
        n_concepts: how many concepts.
        seed: decides what is drawn at random where there are more concepts than dimensions.
        rectify: set what is negative to zero instead of refusing it; what was there is lost to the reconstruction.

    The other arguments: `Factorisation`.

    Source: Lee and Seung 1999; the solver is that of Cichocki and Phan 2009, the start Boutsidis and Gallopoulos 2008.
    """

    rectify: bool = False

    def begin(self, facts: DataFacts) -> GatheringLearner:
        """Return what gathers the rows.

        Raises:
            InputError: fewer rows than concepts, all rows equal, or a mean below zero.
        """
        check_enough_rows(facts, self.n_concepts)
        scale = facts.scale

        def solve(rows: torch.Tensor) -> State:
            scaled = self._nonnegative(rows) / scale
            start = nonnegative_start(scaled, self.n_concepts, torch.Generator().manual_seed(self.seed))
            atoms = self._solve(scaled, start, NonnegativeAtoms())
            return {"mean": torch.zeros(facts.width), "scale": torch.tensor(scale), "decoder": atoms}

        return GatheringLearner(facts, solve, most_rows=self.max_rows)

    def _nonnegative(self, rows: torch.Tensor) -> torch.Tensor:
        if self.rectify:
            return rows.clamp(min=0)
        negative = (rows < 0).any(dim=1)
        if bool(negative.any()):
            least = float(rows.min())
            raise InputError(
                f"{self.name} takes no negative activations, and the least is {least:.3g}; split the model behind a "
                "ReLU, take semi_nmf, whose directions may be negative, or set rectify=True"
            )
        return rows

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        return super()._encode(self._nonnegative(rows))
