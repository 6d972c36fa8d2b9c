"""The JumpReLU sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from interpreto_mlops.concepts.autoencoder import PenalisedAutoencoder
from interpreto_mlops.concepts.base import DICTIONARIES, check_number
from interpreto_mlops.concepts.sae_architecture import DenseCodes, PenalisedEncoder
from interpreto_mlops.concepts.training import State


@DICTIONARIES.register("jumprelu_sae")
@dataclass(kw_only=True, eq=False)
class JumpReLUSAEConcepts(PenalisedAutoencoder):
    """A sparse autoencoder whose concepts each have a learned threshold, and whose rows are to hold few concepts.

    A code is the encoder's output where that exceeds the concept's threshold, else 0. The loss of a row scaled to a
    mean squared norm of 1 is |row − codes · decoder|² + coefficient · L0; thresholds learn by pseudo-derivatives, which
    see the outputs within half a bandwidth of them.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        sparsity_coefficient: weight of the number of concepts of a row; more gives fewer.
        sparsity_warmup: share of the training over which that weight rises from 0.
        initial_threshold: of every concept at first, for rows scaled to a mean squared norm of 1.
        bandwidth: of the pseudo-derivatives, in the same unit; wider than the paper's 0.001, since these trainings
            show hundreds of thousands of rows rather than billions.
        threshold_pace: learning rate of the logarithms of the thresholds, as a multiple of `learning_rate`.
        learning_rate: as in `SparseAutoencoder`; twice as high, since codes are dense at first.

    The other arguments: `SparseAutoencoder`.

    Source: Rajamanoharan et al. 2024 (arXiv 2407.14435), equations 3, 9, 11 and 12; dead concepts come back by the
    pre-activation loss of Conerly et al. 2025, "Dictionary Learning Optimization Techniques" (Anthropic, January 2025).
    """

    sparsity_coefficient: float = 0.004
    sparsity_warmup: float = 0.2
    initial_threshold: float = 0.05
    bandwidth: float = 0.05
    threshold_pace: float = 0.1
    learning_rate: float = 0.12

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("initial_threshold", "bandwidth", "threshold_pace"):
            check_number(name, getattr(self, name), 1e-9)

    def architecture(self, width: int) -> PenalisedEncoder:
        """Return the architecture with an L0 penalty."""
        return _JumpReLU(self, width)

    @property
    def thresholds(self) -> torch.Tensor:
        """What the encoder's outputs must exceed, shape (n_concepts,), in the unit of the codes.

        Raises:
            NotFittedError: the dictionary is not fitted.
        """
        return self.tensor("thresholds")

    def activate(self, codes: torch.Tensor) -> torch.Tensor:
        """Keep the codes above their concepts' thresholds."""
        return torch.where(codes > self.thresholds, codes, 0.0)


class _JumpReLU(PenalisedEncoder):
    def __init__(self, parameters: JumpReLUSAEConcepts, width: int) -> None:
        super().__init__(
            parameters.n_concepts,
            width,
            parameters.seed,
            coefficient=parameters.sparsity_coefficient,
            ramp=parameters.sparsity_warmup,
            low_precision=parameters.low_precision,
        )
        # Rows have a mean square of 1, not a mean squared norm of 1.
        self.bandwidth = parameters.bandwidth * width**0.5
        start = torch.tensor(parameters.initial_threshold * width**0.5)
        self.learn("log_thresholds", start.log().expand(self.n_concepts))
        self.pace = {"log_thresholds": parameters.threshold_pace * width**0.5}

    def threshold(self) -> torch.Tensor:
        return self.learned["log_thresholds"].exp()

    def codes(self, rows: torch.Tensor) -> DenseCodes:
        before = self.before(rows)
        values: torch.Tensor = _Jump.apply(before, self.threshold(), self.bandwidth)  # type: ignore[no-untyped-call]
        return DenseCodes(values, before)

    def penalty(self, codes: DenseCodes) -> torch.Tensor:
        counted: torch.Tensor = _Count.apply(  # type: ignore[no-untyped-call]
            codes.before.detach(), self.threshold(), self.bandwidth
        )
        return counted

    def weights(self) -> State:
        return {**super().weights(), "thresholds": self.threshold()}


class _Jump(torch.autograd.Function):
    """z · H(z − θ), shape (rows, n_concepts); its pseudo-derivative by θ is −(θ / ε) · K((z − θ) / ε)."""

    @staticmethod
    def forward(ctx: Any, before: torch.Tensor, threshold: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(before, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(before > threshold, before, 0.0)

    @staticmethod
    def backward(ctx: Any, *of_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        before, threshold = ctx.saved_tensors
        near = _near(before, threshold, ctx.bandwidth)
        of_threshold = -(threshold / ctx.bandwidth) * torch.where(near, of_values[0], 0.0).sum(dim=0)
        return torch.where(before > threshold, of_values[0], 0.0), of_threshold, None


class _Count(torch.autograd.Function):
    """Σ H(z − θ), one number; its pseudo-derivative by θ is −(1 / ε) · Σ K((z − θ) / ε), and by z there is none."""

    @staticmethod
    def forward(ctx: Any, before: torch.Tensor, threshold: torch.Tensor, bandwidth: float) -> torch.Tensor:
        ctx.save_for_backward(before, threshold)
        ctx.bandwidth = bandwidth
        return (before > threshold).sum().to(before.dtype)

    @staticmethod
    def backward(ctx: Any, *of_count: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        before, threshold = ctx.saved_tensors
        near = _near(before, threshold, ctx.bandwidth).sum(dim=0)
        return None, near * (-of_count[0] / ctx.bandwidth), None


def _near(before: torch.Tensor, threshold: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Where the rectangle K, 1 from −1/2 to 1/2, is not 0."""
    return (before - threshold).abs() < bandwidth / 2
