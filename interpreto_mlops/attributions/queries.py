"""What a method may ask of a game besides the scores of coalitions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from interpreto_mlops.models.requests import Request

if TYPE_CHECKING:
    from interpreto_mlops.attributions.game import Game


class Query(ABC):
    """A question that a method yields; it receives the engine's answer to the request."""

    @property
    def needs_empty(self) -> bool:
        """Whether the score of the text with every player absent must be known, too."""
        return True

    @abstractmethod
    def request(self, game: Game) -> Request:
        """Put the question for one text, whose targets are known by now."""
