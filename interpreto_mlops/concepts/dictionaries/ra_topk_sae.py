"""The relaxed archetypal sparse autoencoder: concepts that stay near what the data hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.archetypes import ArchetypalLearner, Candidates, spread
from interpreto_mlops.concepts.autoencoder import SelectingAutoencoder
from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.overcomplete_import import overcomplete_module
from interpreto_mlops.concepts.sae_architecture import Codes, SelectingEncoder
from interpreto_mlops.concepts.sparse_step import Places, largest
from interpreto_mlops.concepts.training import DataFacts, State

# A row of the mixture that has less than this left, before it is divided by its sum, starts anew.
_LEAST_MIXTURE = 1e-3


@DICTIONARIES.register("ra_topk_sae")
@dataclass(kw_only=True, eq=False)
class RATopKSAEConcepts(SelectingAutoencoder):
    """A TopK autoencoder each of whose concepts is a mixture of points of the data, give or take `delta`.

    The points are centres of k-means clusters of an even sample of the rows. A direction points from the mean of the
    data to an archetype: a convex combination of the points plus a relaxation of bounded length. Trainings of different
    seeds therefore find more alike concepts than free decoders do. Directions are not of norm 1: they are about as
    long as archetypes are far from the mean.

    Arguments:
        n_concepts: how many concepts.
        k: the most concepts that a row may hold.
        k_aux: how many dead concepts explain the residual of a row; None takes half of the width.
        n_points: how many points; None takes twice as many as concepts, as far as there are rows.
        delta: how far an archetype may be from the convex hull of the points, in the unit in which a row's distance
            from the mean is √width on average.
        multiplier: whether one factor of all directions is learned, so that codes of about 1 need not be archetypes.

    The other arguments: `SparseAutoencoder`.

    Source: Fel et al. 2025 (arXiv 2502.12892), equation 4; the decoder is overcomplete's `RelaxedArchetypalDictionary`.
    """

    n_points: int | None = None
    delta: float = 1.0
    multiplier: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_points is not None:
            check_integer("n_points", self.n_points, 1)
        check_number("delta", self.delta, 0.0)

    def begin(self, facts: DataFacts) -> ArchetypalLearner:  # type: ignore[override]
        """Return what finds the points and then trains the autoencoder.

        Raises:
            InputError: fewer rows than concepts, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        return ArchetypalLearner(self, facts, self.n_points or 2 * self.n_concepts, self.with_points)

    def architecture(self, width: int) -> SelectingEncoder:
        """Return the architecture before there are points: the mean of the data is the only one."""
        return self.with_points(Candidates(torch.zeros(1, width), 1.0))

    def with_points(self, candidates: Candidates) -> SelectingEncoder:
        """Return the architecture whose concepts are mixtures of the candidates."""
        return _Archetypal(self, candidates)

    def activate(self, codes: torch.Tensor) -> torch.Tensor:
        """Keep the k largest codes of each row that are positive."""
        best = codes.topk(self.k, dim=1)
        return torch.zeros_like(codes).scatter_(1, best.indices, best.values.relu())

    @property
    def points(self) -> torch.Tensor:
        """The points of the data that archetypes are mixtures of, shape (points, width)."""
        return self.tensor("points")

    @property
    def archetypes(self) -> torch.Tensor:
        """What each concept stands for at its purest, as activations, shape (n_concepts, width)."""
        return self.tensor("centre") + self.tensor("archetype_length") * self.dictionary


class _Archetypal(SelectingEncoder):
    """The decoder is exp(multiplier) (W · C + Λ), rows of W stochastic, ‖Λᵢ‖ ≤ δ, for points C of about norm 1."""

    def __init__(self, parameters: RATopKSAEConcepts, candidates: Candidates) -> None:
        n_concepts, width = parameters.n_concepts, candidates.points.shape[1]
        k_aux = parameters.k_aux or max(1, width // 2)
        super().__init__(n_concepts, width, parameters.seed, k_aux=k_aux, low_precision=parameters.low_precision)
        self.k = parameters.k
        del self.learned["decoder"]
        # Only ever in its training mode: what it fuses for evaluation keeps a graph, and `eval()` returns None.
        self.module = overcomplete_module("sae").RelaxedArchetypalDictionary(
            width,
            n_concepts,
            candidates.points,
            # Below this its quotient δ / ‖Λ‖ would be 0 / 0 at the start.
            delta=max(parameters.delta / candidates.length, torch.finfo(torch.float32).tiny),
            use_multiplier=parameters.multiplier,
        )
        with torch.no_grad():
            self.module.W.copy_(self._first_mixture(candidates.points))
        self.learned |= {"mixture": self.module.W, "relaxation": self.module.Relax}
        if parameters.multiplier:
            self.learned["multiplier"] = self.module.multiplier
        self.pace = {"mixture": math.sqrt(width) / 4}
        self._made: torch.Tensor | None = None
        start = self.module.get_dictionary().detach()
        squares = start.square().sum(dim=1, keepdim=True).clamp(min=0.1)
        self.learn("encoder", start / squares)

    def _first_mixture(self, points: torch.Tensor) -> torch.Tensor:
        """Give each concept a point of its own, far from the others'; what is beyond the points lies between two."""
        chosen = spread(points, self.n_concepts)
        mixture = torch.zeros(self.n_concepts, len(points))
        mixture[torch.arange(len(chosen)), chosen] = 1.0
        for row in mixture[len(chosen) :]:
            share = float(torch.rand((), generator=self.generator))
            for weight in (share, 1.0 - share):
                row[int(torch.randint(len(points), (), generator=self.generator))] += weight
        return mixture

    def select(self, before: torch.Tensor) -> Places:
        return Places.of_rows(largest(before, self.k), self.n_concepts)

    def codes(self, rows: torch.Tensor) -> Codes:  # type: ignore[override]
        self._made = None
        return super().codes(rows)

    def decoder(self) -> torch.Tensor:
        # The product with all points is made once a batch; without gradients the tensors may change in between.
        if self._made is None or not torch.is_grad_enabled():
            made: torch.Tensor = self.module.get_dictionary()
            self._made = made if made.requires_grad else None
            return made
        return self._made

    def project(self) -> None:
        """Change nothing: the decoder has no norm to keep."""

    @torch.no_grad()
    def settle(self) -> None:
        """Make the mixtures convex and bound the relaxation right after an update."""
        mixture = self.learned["mixture"]
        # A row without anything positive would be 0 for ever: it becomes the point that it has left the least.
        for row in (mixture.clamp(min=0.0).sum(dim=1) < _LEAST_MIXTURE).nonzero().flatten():
            mixture[row, mixture[row].argmax()] = 1.0
        mixture.clamp_(min=0.0)
        mixture /= mixture.sum(dim=1, keepdim=True)
        relaxation = self.learned["relaxation"]
        relaxation *= (self.module.delta / relaxation.norm(dim=1, keepdim=True)).clamp(max=1.0)
        self._made = None

    def weights(self) -> State:
        return {**super().weights(), "multiplier": self.module.multiplier.detach().exp()}
