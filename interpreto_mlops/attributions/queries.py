"""What a method may ask of a game besides the scores of coalitions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from interpreto_mlops.models.requests import Request

if TYPE_CHECKING:
    from interpreto_mlops.attributions.base import Game


class Query(ABC):
    """A question that a method yields; it receives the engine's answer to the request."""

    @abstractmethod
    def request(self, game: Game) -> Request:
        """Put the question for one text, whose targets are known by now."""
