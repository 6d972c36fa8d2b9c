"""Points of the data that concepts may be mixtures of, and the training that first looks for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from interpreto_mlops.concepts.gathering import MOST_NUMBERS
from interpreto_mlops.concepts.learner import History, Learner, State
from interpreto_mlops.concepts.rows import DataFacts
from interpreto_mlops.concepts.sae_architecture import Architecture
from interpreto_mlops.concepts.sae_learner import AutoencoderLearner, _held_out, held_out_share, n_passes

if TYPE_CHECKING:
    from interpreto_mlops.concepts.autoencoder import SparseAutoencoder

_ROWS_PER_POINT = 10
_ITERATIONS = 20


@dataclass(frozen=True)
class Candidates:
    """Points for mixtures.

    Arguments:
        points: shape (points, width), divided by `length`.
        length: the root mean square of the points' norms, in the unit of normalised rows.
    """

    points: torch.Tensor
    length: float


def find_candidates(rows: torch.Tensor, n_points: int, seed: int) -> Candidates:
    """Return the centres of clusters of normalised rows, shape (rows, width); at most as many as there are rows."""
    n_points = min(n_points, len(rows))
    # From random rows: for candidates in the thousands the careful start would take longer than all iterations.
    random_state = np.random.RandomState(np.random.MT19937(seed))
    solver = KMeans(n_points, init="random", n_init=1, max_iter=_ITERATIONS, random_state=random_state)
    # With several threads the order of sums, and so their last bits, would change from run to run.
    with warnings.catch_warnings(), threadpool_limits(1, "openmp"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows make equal points, which do no harm
        points = torch.from_numpy(solver.fit(rows.numpy()).cluster_centers_).float()
    length = float(points.square().sum(dim=1).mean().sqrt())
    return Candidates(points / length, length)


class ArchetypalLearner(Learner):
    """Gathers rows until there are enough to find points, then trains on these rows and all that follow.

    Arguments:
        parameters: the dictionary that asks for it.
        facts: the data's size, mean and variance.
        n_points: how many points are wanted.
        architecture: from the points to what is trained.
    """

    def __init__(
        self,
        parameters: SparseAutoencoder,
        facts: DataFacts,
        n_points: int,
        architecture: Callable[[Candidates], Architecture],
    ) -> None:
        self.n_passes = n_passes(parameters, facts)
        self._parameters, self._facts, self._architecture = parameters, facts, architecture
        self._scale, self._mean = facts.scale, torch.from_numpy(facts.mean).float()
        self._n_points = n_points
        self._enough = max(n_points, min(_ROWS_PER_POINT * n_points, MOST_NUMBERS // facts.width))
        self._gathered = torch.empty(0, facts.width)
        self._candidates = Candidates(torch.zeros(0, facts.width), 1.0)
        self._trained: AutoencoderLearner | None = None

    @property
    def stopped(self) -> bool:
        """Whether the training wants no further pass."""
        return self._trained is not None and self._trained.stopped

    def observe(self, block: torch.Tensor) -> None:
        """Keep the rows until there are enough of them, and then train."""
        if self._trained is not None:
            self._trained.observe(block)
            return
        self._gathered = torch.cat([self._gathered, block])
        if len(self._gathered) >= self._enough:
            self._begin()

    def end_pass(self) -> None:
        """Close a pass."""
        if self._trained is None:
            self._begin()
        assert self._trained is not None
        self._trained.end_pass()

    def _begin(self) -> None:
        """Find the points, and show the training what has been gathered."""
        rows = self._gathered[~_held_out(self._gathered, held_out_share(self._parameters, self._facts))]
        self._candidates = find_candidates((rows - self._mean) / self._scale, self._n_points, self._parameters.seed)
        self._trained = self._learner()
        self._trained.observe(self._gathered)
        self._gathered = self._gathered[:0].clone()

    def _learner(self) -> AutoencoderLearner:
        return AutoencoderLearner(self._parameters, self._architecture(self._candidates), self._facts)

    def news(self) -> History:
        """Return the lines of the training curve since the last call."""
        return [] if self._trained is None else self._trained.news()

    def state(self) -> State:
        """Return the rows that are gathered, or the points and the training's own state."""
        if self._trained is None:
            return {"gathered": self._gathered}
        candidates = {"points": self._candidates.points, "length": torch.tensor(self._candidates.length).double()}
        return {**candidates, **{f"trained.{name}": tensor for name, tensor in self._trained.state().items()}}

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        if "gathered" in state:
            self._gathered = state["gathered"].clone()
            return
        self._candidates = Candidates(state["points"].clone(), float(state["length"]))
        self._trained = self._learner()
        inner = {name.removeprefix("trained."): tensor for name, tensor in state.items() if name.startswith("trained.")}
        self._trained.restore(inner)

    def finish(self) -> State:
        """Return the autoencoder's tensors, the points, and the length of an archetype of norm 1, as activations."""
        assert self._trained is not None
        weights = self._trained.finish()
        unit = self._scale * self._candidates.length
        weights["points"] = self._mean + unit * self._candidates.points
        weights["archetype_length"] = unit / weights.pop("multiplier")
        return weights
