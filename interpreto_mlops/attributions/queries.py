"""What a method may ask of a game besides the scores of coalitions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from interpreto_mlops.models.requests import Request

if TYPE_CHECKING:
    from interpreto_mlops.attributions.game import Game


class Query(ABC):
    """A question that a method yields, such as gradients at some points; it receives the engine's answer."""

    needs_empty: bool = False
    """Whether the score of the text with every player absent must be known, too."""

    @property
    def is_text(self) -> bool:
        """Whether only the text itself is asked about: its score and its targets then come with the answer."""
        return False

    @abstractmethod
    def request(self, game: Game, objective: Callable[[torch.Tensor], torch.Tensor]) -> Request:
        """Return what the engine is asked for; gradients are those of that objective."""
