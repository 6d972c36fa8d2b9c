"""AttnLRP and CP-LRP: relevance propagated from a score back to the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from interpreto_mlops.attributions.base import METHODS, Attributor, Estimate, Game, Steps
from interpreto_mlops.attributions.queries import Query
from interpreto_mlops.models.relevance import check_rule
from interpreto_mlops.models.requests import GradientRequest


@dataclass(frozen=True)
class _Relevance(Query):
    """The gradient of every target at the text itself, by the rules of relevance propagation."""

    rule: str

    @property
    def is_text(self) -> bool:
        """Its score and its targets come with the gradient, for the rules leave the forward pass as it is."""
        return True

    def request(self, game: Game, objective: Callable[[torch.Tensor], torch.Tensor]) -> GradientRequest:
        def text_itself(anchors: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            return anchors[:1].expand(len(numbers), -1, -1)

        return GradientRequest(
            encoding=game.encoding,
            anchors=game.encoding.ids[None],
            points=text_itself,
            weights=np.ones(1),
            objective=objective,
            readout=game.question.readout,
            rules=self.rule,
        )


@METHODS.register("attn_lrp")
@dataclass(frozen=True, kw_only=True)
class AttnLrp(Attributor):
    """Input times gradient, where the gradient follows the rules of relevance propagation: signed.

    Norms have their standard deviation held constant, an activation f the slope f(x) / x, and of every product each
    factor half the gradient. A token's score is the sum over its embedding; `checks` give what special tokens have
    together (`special_tokens`, of the first target) and how far all relevance is from the score that is explained
    (`conservation_gap`: what biases, and with `attn_lrp` the softmax, take). `replacement` has no bearing.
    Takes one forward and one backward pass.

    Source: Achtibat et al. 2024 (arXiv 2402.05602); CP-LRP: Ali et al. 2022 (arXiv 2202.07304).

    Arguments:
        rule: `attn_lrp`, or `cp_lrp`, which holds attention weights constant and conserves the score in models without
            biases.
    """

    name: ClassVar[str] = "attn_lrp"

    rule: str = "attn_lrp"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule(self.rule)

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        result = yield _Relevance(self.rule)
        tokens = (result.moments[0] * result.anchors[0]).sum(-1)
        checks = {
            "special_tokens": float(tokens[0, game.encoding.special[: len(game.encoding)]].sum()),
            "conservation_gap": float(np.abs(tokens.sum(-1) - game.full).max()),
        }
        return Estimate(game.aggregate(tokens), checks=checks)
