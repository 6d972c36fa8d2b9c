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
        self.moments: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def add(self, numbers: list[int], target: int, gradients: torch.Tensor, values: torch.Tensor) -> None:
        """Add the gradients of some points, shape (numbers, at least tokens, width), to one target's sums."""
        tokens = len(self.request.encoding)
        gradients = gradients[:, :tokens].to(torch.float64)
        weights = torch.as_tensor(self.request.weights[numbers], device=gradients.device)
        if self.moments is None or self.values is None:
            width, targets = gradients.shape[-1], self.request.n_targets
            self.moments = gradients.new_zeros(len(self.request.powers), targets, tokens, width)
            self.values = gradients.new_zeros(len(self.request.weights), targets)
        # A point without weight is there for its value; its gradient may be infinite.
        used = weights != 0
        for k, power in enumerate(self.request.powers):
            self.moments[k, target] += torch.einsum("r,rtd->td", weights[used], gradients[used] ** power)
        self.values[numbers, target] = values.to(torch.float64)

    def result(self) -> GradientResult:  # type: ignore[override]
        """Return the finished sums.

        Raises:
            ModelOutputError: a gradient was NaN or infinite; the message names the text.
        """
        assert self.moments is not None
        assert self.values is not None
        assert self.anchors is not None
        if not torch.isfinite(self.moments).all():
            text = self.request.encoding
            raise ModelOutputError(f"the gradient for text {text.index} is NaN or infinite: {text.text[:60]!r}")
        anchors = self.anchors.to(torch.float64)
        return GradientResult(*(tensor.cpu().numpy() for tensor in (self.moments, self.values, anchors)))


def padded(blocks: list[torch.Tensor], tokens: int) -> torch.Tensor:
    """Stack blocks of shape (rows, tokens_i, width) with zeros on the right, shape (all rows, tokens, width)."""
    rows = sum(len(block) for block in blocks)
    out = blocks[0].new_zeros(rows, tokens, blocks[0].shape[-1])
    start = 0
    for block in blocks:
        out[start : start + len(block), : block.shape[1]] = block
        start += len(block)
    return out
