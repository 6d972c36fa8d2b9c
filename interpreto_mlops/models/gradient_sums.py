"""Points in the embedding space, and weighted sums of gradients at them, in memory that does not grow with them."""

from __future__ import annotations

import numpy as np
import torch

from interpreto_mlops.errors import ModelOutputError
from interpreto_mlops.models.requests import EmbeddingRequest, Floats, GradientRequest, GradientResult
from interpreto_mlops.models.text_model import TextModel


class PointScores:
    """What was read at the points of one embedding request.

    Arguments:
        model: gives the embeddings that points start from.
        request: which points.
    """

    def __init__(self, model: TextModel, request: EmbeddingRequest | GradientRequest) -> None:
        self.model, self.request = model, request
        self.anchors: torch.Tensor | None = None
        self.read: dict[int, Floats] = {}

    def points(self, numbers: list[int]) -> torch.Tensor:
        """Return some points, shape (numbers, tokens, width), in the model's dtype."""
        if self.anchors is None:
            ids = torch.from_numpy(np.array(self.request.anchors)).to(self.model.device)
            self.anchors = self.request.readout.embed(self.model, ids).detach().clone()
        chosen = torch.as_tensor(numbers, device=self.anchors.device)
        return self.request.points(self.anchors, chosen).detach().to(self.anchors.dtype)

    def result(self) -> Floats:
        """Return what was read, in the order of the points, shape (points, read)."""
        return np.stack([self.read[number] for number in range(len(self.read))])


class GradientSums(PointScores):
    """The running sums of one gradient request.

    Arguments:
        model: gives the embeddings that points start from.
        request: which points, weights and powers.
    """

    request: GradientRequest

    def __init__(self, model: TextModel, request: GradientRequest) -> None:
        super().__init__(model, request)
        self.values: torch.Tensor | None = None
        self.moments: torch.Tensor | None = None
        self.spreads: list[_Spread] = []

    def add(self, numbers: list[int], gradients: list[torch.Tensor], values: torch.Tensor) -> None:
        """Add the gradients of some points.

        Arguments:
            numbers: of the points.
            gradients: one tensor a target, shape (numbers, at least tokens, width).
            values: the objective, shape (numbers, targets).
        """
        tokens, width = len(self.request.encoding), gradients[0].shape[-1]
        if self.moments is None or self.values is None:
            zeros = gradients[0].new_zeros((), dtype=torch.float64)
            self.moments = zeros.new_zeros(len(self.request.powers), len(gradients), tokens, width)
            self.values = zeros.new_zeros(len(self.request.weights), len(gradients))
            self.spreads = [_Spread(zeros.new_zeros(tokens, width)) for _ in gradients if self.request.variance]
        self.values[numbers] = values.to(torch.float64)
        # A point without weight is there for its value; its gradient may be infinite.
        places = np.flatnonzero(self.request.weights[numbers])
        weights = torch.as_tensor(self.request.weights[numbers][places], device=gradients[0].device)
        for target, each in enumerate(gradients):
            used = each[places, :tokens].to(torch.float64)
            for k, power in enumerate(self.request.powers):
                self.moments[k, target] += _weighted(weights, used if power == 1 else used**power)
            if self.spreads and len(places):
                self.spreads[target].add(weights, used)

    def result(self) -> GradientResult:  # type: ignore[override]
        """Return the finished sums.

        Raises:
            ModelOutputError: a gradient was NaN or infinite; the message names the text.
        """
        assert self.moments is not None
        assert self.values is not None
        assert self.anchors is not None
        variance = torch.stack([spread.variance for spread in self.spreads]) if self.spreads else None
        if not all(torch.isfinite(sums).all() for sums in (self.moments, variance) if sums is not None):
            text = self.request.encoding
            raise ModelOutputError(f"the gradient for text {text.index} is NaN or infinite: {text.text[:60]!r}")
        return GradientResult(
            moments=self.moments.cpu().numpy(),
            values=self.values.cpu().numpy(),
            anchors=self.anchors.to(torch.float64).cpu().numpy(),
            variance=None if variance is None else variance.cpu().numpy(),
        )


class _Spread:
    """The running variance of weighted gradients, from deviations: it never subtracts two large numbers.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", equations 2.1.
    """

    def __init__(self, zeros: torch.Tensor) -> None:
        self.weight = 0.0
        self.mean, self.deviation = zeros.clone(), zeros.clone()

    def add(self, weights: torch.Tensor, gradients: torch.Tensor) -> None:
        """Add gradients, shape (rows, tokens, width), with weights above 0, shape (rows,)."""
        new = float(weights.sum())
        # About the first of them, so that gradients which are all the same have no variance at all.
        mean = gradients[0] + _weighted(weights / new, gradients - gradients[0])
        step, total = mean - self.mean, self.weight + new
        self.deviation += _weighted(weights, (gradients - mean) ** 2) + step**2 * (self.weight * new / total)
        self.mean += step * (new / total)
        self.weight = total

    @property
    def variance(self) -> torch.Tensor:
        return self.deviation / self.weight


def _weighted(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Sum rows, shape (rows, tokens, width), with weights, shape (rows,)."""
    return torch.einsum("r,rtd->td", weights, rows)


def padded(blocks: list[torch.Tensor], tokens: int) -> torch.Tensor:
    """Stack blocks of shape (rows, tokens_i, width) with zeros on the right, shape (all rows, tokens, width)."""
    rows = sum(len(block) for block in blocks)
    out = blocks[0].new_zeros(rows, tokens, blocks[0].shape[-1])
    start = 0
    for block in blocks:
        out[start : start + len(block), : block.shape[1]] = block
        start += len(block)
    return out
