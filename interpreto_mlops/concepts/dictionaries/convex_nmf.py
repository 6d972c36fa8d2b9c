"""Convex non-negative matrix factorisation: concepts that are combinations of the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer
from interpreto_mlops.concepts.dictionaries.nmf import Factorisation
from interpreto_mlops.concepts.factorisation import ConvexAtoms, spread_start
from interpreto_mlops.concepts.gathering import GatheringLearner
from interpreto_mlops.concepts.training import DataFacts, State

# What the nearest anchors of a start get, and all others.
_OWN, _OTHERS = 1.0, 0.02


@DICTIONARIES.register("convex_nmf")
@dataclass(kw_only=True, eq=False)
class ConvexNMFConcepts(Factorisation):
    """Convex NMF: as semi-NMF, but each direction is a combination of centred rows with weights that are not negative.

    The rows that directions are made of are `n_anchors` of those that are fitted, an even sample, so that memory is
    bounded and new rows are encoded like any others.

    Arguments:
        n_concepts: how many concepts.
        seed: decides where the solver starts.
        n_anchors: how many rows directions are made of.

    The other arguments: `Factorisation`.

    Source: Ding, Li and Jordan 2010, section 4, with anchors instead of all rows.
    """

    ridge: float = 0.01
    n_anchors: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("n_anchors", self.n_anchors, self.n_concepts)

    def begin(self, facts: DataFacts) -> GatheringLearner:
        """Return what gathers the rows.

        Raises:
            InputError: fewer rows than concepts, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        mean, scale = torch.from_numpy(facts.mean), facts.scale

        def solve(rows: torch.Tensor) -> State:
            centred = ((rows.double() - mean) / scale).float()
            anchors = centred[: self.n_anchors]
            start = spread_start(anchors, self.n_concepts, torch.Generator().manual_seed(self.seed))
            kind = ConvexAtoms(anchors, _weights(anchors, start))
            atoms = self._solve(centred, kind.weights @ anchors, kind)
            return {"mean": mean, "scale": torch.tensor(scale), "decoder": atoms}

        return GatheringLearner(facts, solve, most_rows=self.max_rows)


def _weights(anchors: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return the weights of clusters around the rows to start from, shape (n_concepts, anchors)."""
    nearest = (anchors @ start.T / start.norm(dim=1)).argmax(dim=1)
    own = torch.zeros(len(start), len(anchors)).scatter_(0, nearest[None], _OWN)
    weights = own / own.sum(dim=1, keepdim=True).clamp(min=1.0)
    return weights + _OTHERS / len(anchors)
