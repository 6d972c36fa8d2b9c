"""Sparse coding by a dictionary that is learned online."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.gathering import GatheringLearner
from interpreto_mlops.concepts.lasso import lasso_codes
from interpreto_mlops.concepts.linear import LinearDecoder
from interpreto_mlops.concepts.scikit import MOST_ROWS, noting_convergence, random_state
from interpreto_mlops.concepts.training import DataFacts, State
from interpreto_mlops.errors import InputError


@DICTIONARIES.register("dictionary_learning")
@dataclass(kw_only=True, eq=False)
class DictionaryLearningConcepts(LinearDecoder):
    """Directions of which few make up each row: online dictionary learning, with lasso codes.

    Rows are centred and divided by the root mean square of their norms, so that `alpha` means the same for every
    layer. scikit-learn's `MiniBatchDictionaryLearning` learns the directions from an even sample; a row is then encoded
    by a lasso of our own, the same alone and in any batch. Codes are not negative unless `positive` is False.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        seed: decides the rows that directions start from, and what replaces an unused one.
        alpha: weight of ‖code‖₁ beside ½ ‖error‖²: a row whose product with every direction is below this share of the
            usual norm has no concept at all.
        positive: whether codes must not be negative.
        n_epochs: passes over the sample.
        batch_size: rows of one update.
        max_rows: how many rows directions are learned from, an even sample.

    Source: Mairal, Bach, Ponce and Sapiro 2009 (Online dictionary learning for sparse coding), algorithm 1.
    """

    alpha: float = 0.1
    positive: bool = True
    n_epochs: int = 5
    batch_size: int = 256
    max_rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0.0)
        if not isinstance(self.positive, bool):
            raise InputError(f"positive must be True or False, not {self.positive!r}")
        check_integer("n_epochs", self.n_epochs, 1)
        check_integer("batch_size", self.batch_size, 1)
        check_integer("max_rows", self.max_rows, self.n_concepts)

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """Whether codes can be negative."""
        return not self.positive

    def begin(self, facts: DataFacts) -> GatheringLearner:
        """Return what gathers the rows.

        Raises:
            InputError: fewer rows than concepts, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        mean, scale = torch.from_numpy(facts.mean), facts.scale * math.sqrt(facts.width)

        def solve(rows: torch.Tensor) -> State:
            decoder = self._learned((rows.double() - mean) / scale)
            return {"mean": mean, "scale": torch.tensor(scale), "decoder": decoder}

        return GatheringLearner(facts, solve, most_rows=self.max_rows)

    def _learned(self, rows: torch.Tensor) -> torch.Tensor:
        """Return directions, shape (n_concepts, width), from rows that are centred and scaled."""
        solver = MiniBatchDictionaryLearning(
            self.n_concepts,
            alpha=self.alpha,
            max_iter=self.n_epochs,
            batch_size=self.batch_size,
            fit_algorithm="cd",
            positive_code=self.positive,
            dict_init=self._start(rows.numpy()),
            random_state=random_state(self.seed),
            shuffle=False,
            tol=0.0,
            max_no_improvement=None,
        )
        # A lasso of one update need not converge: the next updates go on from what it has reached.
        with noting_convergence():
            directions = torch.from_numpy(solver.fit(rows.numpy()).components_)
        return directions / directions.norm(dim=1, keepdim=True)

    def _start(self, rows: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(rows, axis=1)
        usable = np.flatnonzero(norms > 0.0)
        generator = np.random.default_rng(self.seed)
        chosen = generator.choice(usable, self.n_concepts, replace=len(usable) < self.n_concepts)
        return rows[chosen] / norms[chosen, None]

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        mean, scale, decoder = (self.tensor(name).double() for name in ("mean", "scale", "decoder"))
        return lasso_codes((rows.double() - mean) / scale, decoder, self.alpha, positive=self.positive).float()
