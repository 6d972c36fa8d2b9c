"""Semi-non-negative matrix factorisation: concepts of any sign that only add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows
from interpreto_mlops.concepts.dictionaries.nmf import Factorisation
from interpreto_mlops.concepts.factorisation import FreeAtoms, spread_start
from interpreto_mlops.concepts.gathering import GatheringLearner
from interpreto_mlops.concepts.training import DataFacts, State


@DICTIONARIES.register("semi_nmf")
@dataclass(kw_only=True, eq=False)
class SemiNMFConcepts(Factorisation):
    """Semi-NMF: rows − mean ≈ codes · directions with codes that are not negative and directions of any sign.

    The solver starts from rows that lie far from each other, and alternates sweeps of coordinate descent over the codes
    with the best directions by least squares; no round makes the error larger.

    Arguments:
        n_concepts: how many concepts.
        seed: decides the rows to start from.

    The other arguments: `Factorisation`.

    Source: Ding, Li and Jordan 2010, section 3.
    """

    ridge: float = 0.01

    def begin(self, facts: DataFacts) -> GatheringLearner:
        """Return what gathers the rows.

        Raises:
            InputError: fewer rows than concepts, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        mean, scale = torch.from_numpy(facts.mean), facts.scale

        def solve(rows: torch.Tensor) -> State:
            centred = ((rows.double() - mean) / scale).float()
            start = spread_start(centred, self.n_concepts, torch.Generator().manual_seed(self.seed))
            atoms = self._solve(centred, start, FreeAtoms())
            return {"mean": mean, "scale": torch.tensor(scale), "decoder": atoms}

        return GatheringLearner(facts, solve, most_rows=self.max_rows)
