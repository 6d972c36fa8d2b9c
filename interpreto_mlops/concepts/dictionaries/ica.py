"""Independent components as concepts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.decomposition import fastica

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.gathering import GatheringLearner
from interpreto_mlops.concepts.linear import LinearDictionary, linear_state
from interpreto_mlops.concepts.moments import Moments, check_within_width, leading_directions
from interpreto_mlops.concepts.scikit import MOST_ROWS, noting_convergence
from interpreto_mlops.concepts.training import DataFacts, Learner, State
from interpreto_mlops.errors import InputError


@DICTIONARIES.register("ica")
@dataclass(kw_only=True, eq=False)
class ICAConcepts(LinearDictionary):
    """Directions whose codes are as independent as a linear map can make them: FastICA of the whitened rows.

    The first pass whitens: the moments of all rows, in float64, give their leading `n_concepts` principal components.
    The second gathers whitened rows, and scikit-learn's FastICA rotates them. What is decoded is therefore the
    projection on those components, as with PCA.

    scikit-learn's sources have variance 1; here the unit goes from the mixing matrix into the codes, so that
    directions have norm 1 and a code is in the activations' unit. Concepts come in the order of their variance, the
    long tail of each (its skewness) on the positive side. Codes are signed.

    Arguments:
        n_concepts: how many components, at most the rank of the centred rows.
        seed: decides the rotation that FastICA starts from.
        max_iter: the most iterations; when they do not suffice, a warning says so.
        tol: the largest change of a direction, 1 − |cosine|, that ends the iteration.
        max_rows: how many rows the rotation is learned from, an even sample.

    Source: Hyvärinen and Oja 2000, sections 5 and 6: the parallel algorithm with g = tanh.
    """

    signed: ClassVar[bool] = True

    max_iter: int = 500
    tol: float = 1e-4
    max_rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("max_iter", self.max_iter, 1)
        check_number("tol", self.tol, 0.0)
        check_integer("max_rows", self.max_rows, self.n_concepts)

    def begin(self, facts: DataFacts) -> _Unmixing:
        """Return what whitens and then unmixes.

        Raises:
            InputError: more components than dimensions or than rows.
        """
        check_within_width("ICA", self.n_concepts, facts)
        check_enough_rows(facts, self.n_concepts)
        return _Unmixing(self, facts)

    def rotation(self, whitened: torch.Tensor) -> torch.Tensor:
        """Return the rotation to independent sources, shape (n_concepts, n_concepts), of rows of that width."""
        start = np.random.default_rng(self.seed).standard_normal((self.n_concepts, self.n_concepts))
        with noting_convergence() as warned:
            _, rotation, _ = fastica(
                whitened.double().numpy(),
                whiten=False,
                w_init=start,
                max_iter=self.max_iter,
                tol=self.tol,
                compute_sources=False,
            )
        if warned:
            warnings.warn(
                f"ICA stopped after {self.max_iter} iterations before it converged; raise max_iter or tol", stacklevel=2
            )
        return torch.from_numpy(rotation)


class _Unmixing(Learner):
    """Two passes: moments, then whitened rows."""

    n_passes = 2

    def __init__(self, parameters: ICAConcepts, facts: DataFacts) -> None:
        self._parameters = parameters
        self._moments = Moments(facts)
        n = parameters.n_concepts
        whitened = DataFacts(facts.n_rows, np.zeros(n), np.ones(n))
        self._sample = GatheringLearner(whitened, self._unmix, most_rows=parameters.max_rows)
        self._spreads = self._directions = torch.empty(0)

    def observe(self, block: torch.Tensor) -> None:
        if len(self._directions) == 0:
            self._moments.add(block)
        else:
            centred = block.double() - self._moments.mean
            self._sample.observe((centred @ self._directions.T / self._spreads).float())

    def end_pass(self) -> None:
        if len(self._directions):
            return
        variances, directions = leading_directions(self._moments.covariance, self._parameters.n_concepts)
        rank = int((variances > self._moments.noise).sum())
        if rank < len(variances):
            raise InputError(
                f"the activations vary in {rank} directions, so ICA finds no more components than that, not "
                f"{len(variances)}"
            )
        # FastICA's own convention, so that the same start gives the same rotation.
        self._directions = directions * directions[:, :1].sign()
        self._spreads = variances.sqrt()

    def state(self) -> State:
        whitened = {f"whitened.{name}": tensor for name, tensor in self._sample.state().items()}
        return {**self._moments.state(), **whitened, "directions": self._directions, "spreads": self._spreads}

    def restore(self, state: State) -> None:
        self._moments.restore(state)
        self._sample.restore({"rows": state["whitened.rows"]})
        self._directions, self._spreads = state["directions"].clone(), state["spreads"].clone()

    def finish(self) -> State:
        return self._sample.finish()

    def _unmix(self, whitened: torch.Tensor) -> State:
        rotation = self._parameters.rotation(whitened)
        tails = (whitened.double() @ rotation.T).pow(3).mean(dim=0)
        rotation = torch.where(tails < 0.0, -1.0, 1.0)[:, None] * rotation
        mixing = rotation * self._spreads @ self._directions
        norms = mixing.norm(dim=1, keepdim=True)
        order = norms.flatten().argsort(descending=True, stable=True)
        unmixing = norms * (rotation / self._spreads @ self._directions)
        decoder = mixing / norms
        return linear_state(self._moments.mean, 1.0, unmixing[order], torch.zeros(len(order)), decoder[order])
