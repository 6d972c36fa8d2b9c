"""One explained text as every metric sees it: who may be perturbed, who is ranked, and what the model is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.attributions.game import Game, Presence
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.recall import recalled
from interpreto_mlops.attributions.results import Attribution, AttributionSet
from interpreto_mlops.models.layer_targets import LayerTargets
from interpreto_mlops.models.objectives import InferenceMode, Objective
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import EmbeddingRequest, Readout, ScoreRequest
from interpreto_mlops.models.text_model import TextModel

Ranks = npt.NDArray[np.int64]
"""The place of each element in a ranking, 0 for the highest score, shape (..., elements)."""


Points = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps a text's embeddings, shape (1, tokens, width), and the numbers of points to those points."""


@dataclass(frozen=True)
class Subject:
    """One explained text: its players, how each target scores them, and how the model's answers are read.

    Arguments:
        game: the players, and the rows in which some of them are absent.
        item: the explanation.
        scores: of each target's players, 0 where a target cannot see one, shape (targets, players).
        valid: which players a target can see, shape (targets, players).
        joint: whether all targets make one: scores summed, probabilities averaged geometrically.
    """

    game: Game
    item: Attribution
    scores: Floats
    valid: npt.NDArray[np.bool_]
    joint: bool = False

    @classmethod
    def of(cls, item: Attribution, game: Game, *, joint: bool) -> Subject:
        """Return an explanation's scores of a game's players."""
        return cls(game, item, *_visible(item.scores[:, game.players], joint), joint)

    def scored(self, scores: Floats) -> Subject:
        """Return the text with other scores of its elements, shape (targets, elements)."""
        return replace(self, scores=_visible(scores[:, self.game.players], self.joint)[0])

    @property
    def n_targets(self) -> int:
        """How many targets there are."""
        return len(self.scores)

    @property
    def n_players(self) -> int:
        """How many elements may be perturbed."""
        return self.game.n_players

    @property
    def skip(self) -> str | None:
        """Why this text cannot be scored, or None."""
        return None if self.n_targets and self.valid.any() else "no elements"

    @property
    def player_of_token(self) -> npt.NDArray[np.int64]:
        """The player of each token, `NO_ELEMENT` for tokens that are never perturbed, shape (tokens,)."""
        return self.game.of_token

    def request(self, present: Presence) -> ScoreRequest:
        """Ask for coalitions, shape (rows, players)."""
        return self.game.request(present)

    def at_points(self, points: Points, n_points: int, readout: Readout | None = None) -> EmbeddingRequest:
        """Ask for points in the embedding space that are made from the text's own embeddings."""
        encoding, asked = self.game.encoding, readout or self.game.question.readout
        return EmbeddingRequest(encoding, encoding.ids[None], points, n_points, asked)

    def probabilities(self, read: Floats) -> Floats:
        """Return each target's probability in each row that was read, shape (rows, targets)."""
        values = self._objective(read, InferenceMode.SOFTMAX).probability.score(read)
        # The mean of one is itself, also of a regression's output, which may be below 0.
        if not self.joint or values.shape[1] == 1:
            return values
        tiny = np.finfo(np.float64).tiny
        joined: Floats = np.exp(np.log(np.maximum(values, tiny)).mean(axis=1, keepdims=True))
        return joined

    def values(self, read: Floats) -> Floats:
        """Return the explained score of each target in each row that was read, shape (rows, targets)."""
        mode = InferenceMode.parse(self.item.parameters.get("inference_mode", "logits"))
        values = self._objective(read, mode).score(read)
        return values.sum(axis=1, keepdims=True) if self.joint else values

    def _objective(self, read: Floats, mode: InferenceMode) -> Objective:
        return self.game.question.settle(read[0], mode)

    def groups(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Yield the targets that see the same players, and those players; targets that see none are left out."""
        patterns, place = np.unique(self.valid, axis=0, return_inverse=True)
        for k, pattern in enumerate(patterns):
            if pattern.any():
                yield np.flatnonzero(place.ravel() == k), np.flatnonzero(pattern)

    def ranks(self, target: int, players: npt.NDArray[np.int64]) -> Ranks:
        """Return the rank of each of these players for a target, ties by position, shape (players,)."""
        return ranks_of(-self.scores[target, players])

    def random_orders(self, n_random: int, seed: int) -> Ranks:
        """Return random ranks of the players, each followed by its reverse, shape (n_random, players).

        They depend on the seed and the text alone. Deleting along an order visits the coalitions of inserting along its
        reverse: so one set of rows serves every metric.
        """
        rng = self.game.generator(seed)
        drawn = np.stack([rng.permutation(self.n_players) for _ in range((n_random + 1) // 2)])
        pairs = np.stack([drawn, self.n_players - 1 - drawn], axis=1)
        return pairs.reshape(-1, self.n_players)[:n_random]

    def permuted(self, orders: Ranks) -> Floats:
        """Return the scores permuted among the players that each target sees, shape (orders, targets, players)."""
        shuffled = np.zeros((len(orders), *self.scores.shape))
        for targets, players in self.groups():
            places = players[ranks_of(orders[:, players])]
            for k, row in enumerate(places):
                shuffled[k][np.ix_(targets, players)] = self.scores[np.ix_(targets, row)]
        return shuffled


def ranks_of(keys: npt.NDArray[np.generic]) -> Ranks:
    """Return the place of each key in ascending order, ties by position, shape (..., n)."""
    order = np.argsort(keys, axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable")


def subjects_of(
    explanations: AttributionSet,
    model: TextModel,
    replacement: str | int,
    *,
    joint: bool = False,
    targets: LayerTargets | Sequence[LayerTargets] | None = None,
) -> Iterator[Subject]:
    """Tie explanations to the model that is to judge them.

    Of a continuation the prompt alone is perturbed: its own token ids stay.

    Raises:
        InputError: explanations whose elements or classes are not those of this model, or of a layer without their
            targets.
    """
    resolved = Replacement.resolve(replacement, model)
    for item, question, elements in recalled(model, explanations, targets):
        players = np.arange(len(elements))
        if item.prompt_tokens is not None:
            players = players[elements.ends()[1] < item.prompt_tokens]
        yield Subject.of(item, Game(question, elements, resolved, players), joint=joint)


def _visible(scores: Floats, joint: bool) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return scores with 0 for NaN, and where there was none, shape (targets, players) each; as one row if joint."""
    valid = ~np.isnan(scores)
    known = np.where(valid, scores, 0.0)
    if joint and len(scores):
        return known.sum(axis=0)[None], np.atleast_2d(valid.any(axis=0))
    return known, valid
