"""Points of the data that concepts may be mixtures of, and the training that first looks for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.cluster import KMeans, kmeans_plusplus
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
_ROWS_PER_START = 3
_ITERATIONS = 10
# Where all points are the mean.
_SHORTEST = 1e-6


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
    random_state = np.random.RandomState(np.random.MT19937(seed))
    # With several threads the order of sums, and so their last bits, would change from run to run.
    with warnings.catch_warnings(), threadpool_limits(1, "openmp"):
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows make equal points, which do no harm
        # The careful start looks at a part of the rows, once for each point: it would else take longer than the rest.
        first, _ = kmeans_plusplus(
            rows[: _ROWS_PER_START * n_points].numpy(), n_points, random_state=random_state, n_local_trials=1
        )
        solver = KMeans(n_points, init=first, n_init=1, max_iter=_ITERATIONS, random_state=random_state)
        points = torch.from_numpy(solver.fit(rows.numpy()).cluster_centers_).float()
    length = max(float(points.square().sum(dim=1).mean().sqrt()), _SHORTEST)
    return Candidates(points / length, length)


def spread(points: torch.Tensor, n: int) -> torch.Tensor:
    """Return n of the points, or all: from the longest on, each the one whose direction is farthest from those before.

    Arguments:
        points: shape (points, width).
        n: how many.

    Returns:
        Their numbers, shape (min(n, points),).
    """
    directions = torch.nn.functional.normalize(points, dim=1)
    chosen = [int(points.norm(dim=1).argmax())]
    nearest = directions @ directions[chosen[0]]
    while len(chosen) < min(n, len(points)):
        nearest[chosen[-1]] = torch.inf
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, directions @ directions[chosen[-1]])
    return torch.tensor(chosen)


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
        trained_on = ~_held_out(self._gathered, held_out_share(self._parameters, self._facts))
        rows = self._gathered[trained_on] if bool(trained_on.any()) else self._gathered
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
        weights["centre"] = self._mean
        weights["points"] = self._mean + unit * self._candidates.points
        weights["archetype_length"] = unit / weights.pop("multiplier")
        return weights
