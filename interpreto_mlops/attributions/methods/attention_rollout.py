"""Attention rollout: attention followed through all layers and residual connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.attention import ContributionMethod
from interpreto_mlops.attributions.base import METHODS
from interpreto_mlops.attributions.sampling import as_number
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.attention_readouts import ContributionRows, RolloutRows
from interpreto_mlops.models.encoding import Encoding


def rollout(attention: npt.ArrayLike, alpha: float = 0.5) -> npt.NDArray[np.float64]:
    """Multiply the attention of all layers, the first layer on the right, each mixed with the identity.

    Rows that sum to 1 in every layer sum to 1 in the result.

    Arguments:
        attention: of each layer, averaged over heads, shape (layers, ..., tokens, tokens).
        alpha: the share of the residual connection: each layer counts as (1 - alpha) attention + alpha identity.

    Returns:
        Shape (..., tokens, tokens).
    """
    layers = np.asarray(attention, dtype=np.float64)
    identity = np.eye(layers.shape[-1])
    product = np.broadcast_to(identity, layers.shape[1:])
    for layer in layers:
        product = ((1 - alpha) * layer + alpha * identity) @ product
    return product


@METHODS.register("attention_rollout")
@dataclass(frozen=True, kw_only=True)
class AttentionRollout(ContributionMethod):
    """The row of the position that is read, in the product over layers of attention mixed with the identity.

    Unsigned, and the same for every class. The position is CLS for encoders and the last one for causal models. All
    tokens together have 1, special ones included. On causal models the first token is a sink that takes most of it:
    its score is left out (0), and `checks["sink_share"]` says what it had. Takes one forward pass.

    Source: Abnar & Zuidema 2020 (arXiv 2005.00928), section 3.

    Arguments:
        alpha: the share of the residual connection in each layer, from 0 to 1; the paper's is one half.
    """

    name: ClassVar[str] = "attention_rollout"
    signed: ClassVar[bool] = False
    ignores_sink: ClassVar[bool] = True

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= as_number(self.alpha) <= 1:
            raise InputError(f"alpha must be a share from 0 to 1, not {self.alpha!r}")

    def rows(self, encoding: Encoding, positions: tuple[int, ...]) -> ContributionRows:
        """Ask for rows of the product over layers."""
        return RolloutRows(len(encoding), positions, float(self.alpha))
