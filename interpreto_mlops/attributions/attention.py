"""What the methods have in common that read how much each token contributes to the position a target is read at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from interpreto_mlops.attributions.base import Attributor, Estimate, Game, Steps
from interpreto_mlops.attributions.queries import Query
from interpreto_mlops.attributions.results import Floats
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.attention import check_observable
from interpreto_mlops.models.attention_readouts import ContributionRows
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.requests import Program, Request, ScoreRequest
from interpreto_mlops.models.splitting import Splitter, block_paths
from interpreto_mlops.models.text_model import TextModel


def reading_rows(game: Game, model: TextModel) -> list[tuple[int, ...]]:
    """Return the positions at which the model's head reads each target.

    Of a token's label or of generated tokens those are the target's own; of a class the first token (CLS) for encoders,
    and for causal models the last one that is not padding. Of a concept they are the tokens that it is strongest at.
    """
    position = _last_position(game.encoding, model) if model.is_causal else 0
    return [game.question.positions_of(target) or (position,) for target in game.objective.targets]


def _last_position(encoding: Encoding, model: TextModel) -> int:
    padding = getattr(model.model.config, "pad_token_id", None)
    kept = np.flatnonzero(encoding.ids != padding) if padding is not None else np.arange(len(encoding))
    return int(kept[-1]) if len(kept) else len(encoding) - 1


@dataclass(frozen=True)
class _Rows(Query):
    """The rows of a method's matrix at the positions where targets are read, each position once."""

    method: ContributionMethod

    def request(self, game: Game, objective: Callable[[torch.Tensor], torch.Tensor]) -> Request:
        positions = sorted({place for places in reading_rows(game, self.method.model) for place in places})
        rows = replace(self.method.rows(game.encoding, tuple(positions)), place=game.question.place)
        return ScoreRequest(game.encoding, [game.encoding.ids], rows)


@dataclass(frozen=True, kw_only=True)
class ContributionMethod(Attributor):
    """A method whose score is a row of a matrix of contributions between tokens.

    It does not see the class: all targets that are read at one position get the same scores, and `inference_mode` and
    `replacement` have no bearing (`checks["class_specific"]` is 0). A target of several tokens has the mean of their
    rows. An element's score is the sum over its tokens. Contributions to a concept are followed to its layer, which
    must be the output of a block.
    """

    ignores_sink: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        network = self.model.model
        if network.config.is_encoder_decoder:
            raise InputError(
                f"{self.name} needs one stack of layers; {type(network).__name__} has an encoder and a decoder"
            )
        check_observable(network)

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        self._check_place(game.question.place)
        answer = yield _Rows(self)
        wanted = reading_rows(game, self.model)
        positions = np.unique(np.concatenate(wanted))
        rows = answer.reshape(len(positions), len(game.encoding))
        tokens = np.stack([rows[np.searchsorted(positions, places)].mean(axis=0) for places in wanted])
        checks = {"class_specific": 0.0}
        if self.ignores_sink and self.model.is_causal:
            checks["sink_share"] = float(tokens[:, 0].mean())
            tokens[:, 0] = 0
        return Estimate(game.aggregate(tokens), checks=checks)

    def _check_place(self, place: tuple[Splitter, str] | None) -> None:
        if place is not None and place[1] not in block_paths(self.model):
            raise InputError(
                f"{self.name} follows attention from block to block, and {place[1]!r} is not the output of a block; "
                "split the model at a block's number, or take a method that asks for gradients or scores"
            )

    @abstractmethod
    def rows(self, encoding: Encoding, positions: tuple[int, ...]) -> ContributionRows:
        """Say which rows of the method's matrix are wanted for a text."""

    def matrix(self, text: str) -> Floats:
        """Return how much each token (column) contributes to each position (row), shape (tokens, tokens).

        Special tokens are included.
        """
        (encoding,) = self.model.encode([text])
        n_tokens = len(encoding)
        if not n_tokens:
            return np.zeros((0, 0))

        def program() -> Program[Floats]:
            readout = self.rows(encoding, tuple(range(n_tokens)))
            (answer,) = yield [ScoreRequest(encoding, [encoding.ids], readout)]
            return answer.reshape(n_tokens, n_tokens)  # type: ignore[no-any-return]

        (matrix,) = self.model.engine.run([program()])
        return matrix
