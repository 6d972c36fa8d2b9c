"""Points in the embedding space of a text at which methods want gradients: on a path, around the text, with noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.attributions.baselines import Baseline
from interpreto_mlops.attributions.game import Game
from interpreto_mlops.attributions.queries import Query
from interpreto_mlops.attributions.results import Floats
from interpreto_mlops.models.requests import GradientRequest, GradientResult


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on the embeddings of the elements' tokens; other tokens get none.

    A point's noise depends on its seed, the length of the text and the kind of device alone, whatever the batch.

    Arguments:
        level: the standard deviation, as a share of the range (largest minus smallest) of the text's embeddings.
        seeds: one for each point, shape (points,).
    """

    level: float
    seeds: npt.NDArray[np.int64]

    @classmethod
    def seeded(cls, level: float, n_points: int, rng: np.random.Generator) -> Noise:
        """Return noise whose seeds are drawn from `rng`."""
        return cls(level, rng.integers(2**63 - 1, size=n_points))

    def draw(self, text: torch.Tensor, movable: npt.NDArray[np.bool_], numbers: torch.Tensor) -> torch.Tensor:
        """Return the noise at some points, shape (numbers, tokens, width), for the text's embeddings."""
        generator = torch.Generator(text.device)
        out = text.new_empty(len(numbers), *text.shape)
        for place, number in enumerate(numbers.tolist()):
            generator.manual_seed(int(self.seeds[number]))
            torch.randn(text.shape, generator=generator, out=out[place])
        inside = torch.from_numpy(movable).to(text)[:, None]
        return out * (self.level * (text.max() - text.min()) * inside)


@dataclass(frozen=True)
class Neighbourhood(Query):
    """The text itself, or points around it.

    Arguments:
        n_points: how many, of equal weight.
        noise: what is added to the text at each point; None only for the text itself.
        powers: of the gradients, whose means are wanted.
        variance: whether the population variance of the gradients is wanted.
    """

    n_points: int = 1
    noise: Noise | None = None
    powers: tuple[int, ...] = (1,)
    variance: bool = False

    @property
    def is_text(self) -> bool:
        """Whether the only point is the text itself."""
        return self.noise is None

    def request(self, game: Game, objective: Callable[[torch.Tensor], torch.Tensor]) -> GradientRequest:
        """Return what the engine is asked for; the anchor is the text."""
        movable = game.movable

        def points(anchors: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            text = _precise(anchors)[0]
            if self.noise is None:
                return text.expand(len(numbers), -1, -1)
            return text + self.noise.draw(text, movable, numbers)

        return GradientRequest(
            encoding=game.encoding,
            anchors=game.encoding.ids[None],
            points=points,
            weights=np.full(self.n_points, 1 / self.n_points),
            objective=objective,
            readout=game.question.readout,
            powers=self.powers,
            variance=self.variance,
        )


@dataclass(frozen=True)
class Path(Query):
    """Points between a baseline and the text, at which gradients are summed.

    Arguments:
        nodes: the share of the text at each point: 0 is the baseline, 1 the text; shape (points,).
        weights: the weight of each point's gradient, shape (points,).
        baseline: where the path starts.
        noise: what is added to the text, the end of the path, at each point.
        needs_empty: whether the score of the text with every element replaced must be known, too.
        targets: the numbers of the targets whose gradients are wanted; None for all.
    """

    nodes: Floats
    weights: Floats
    baseline: Baseline
    noise: Noise | None = None
    needs_empty: bool = False
    targets: tuple[int, ...] | None = None

    def request(self, game: Game, objective: Callable[[torch.Tensor], torch.Tensor]) -> GradientRequest:
        """Return what the engine is asked for; the first anchor is the text, a second the replaced text."""
        movable = game.movable

        def points(anchors: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            # Nodes in half precision would be other nodes; the engine rounds the points, once.
            anchors = _precise(anchors)
            share = torch.as_tensor(self.nodes).to(anchors)[numbers][:, None, None]
            start, end = self.baseline.start(anchors, movable), anchors[0]
            if self.noise is not None:
                return start + share * (end - start + self.noise.draw(end, movable, numbers))
            return start + share * (end - start)

        return GradientRequest(
            encoding=game.encoding,
            anchors=self.baseline.anchors(game.encoding, movable),
            points=points,
            weights=self.weights,
            objective=objective if self.targets is None else lambda read: objective(read)[:, list(self.targets or ())],
            readout=game.question.readout,
        )

    def with_start(self) -> Path:
        """Return the path with a last node at the baseline, without weight: it is there for its value."""
        noise = self.noise and replace(self.noise, seeds=np.append(self.noise.seeds, 0))
        return replace(self, nodes=np.append(self.nodes, 0.0), weights=np.append(self.weights, 0.0), noise=noise)

    def difference(self, game: Game, result: GradientResult) -> Floats:
        """Return text minus baseline in the embedding space, shape (tokens, width)."""
        anchors = torch.from_numpy(result.anchors)
        difference: Floats = (anchors[0] - self.baseline.start(anchors, game.movable)).numpy()
        return difference


def _precise(anchors: torch.Tensor) -> torch.Tensor:
    """Return embeddings in float32 or wider."""
    return anchors.to(torch.promote_types(anchors.dtype, torch.float32))
