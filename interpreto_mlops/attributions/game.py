"""One text as a game: its elements are the players, the model's score of each target is the value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.aggregation import Aggregation, aggregate
from interpreto_mlops.attributions.results import Floats
from interpreto_mlops.models.objectives import InferenceMode, Objective
from interpreto_mlops.models.questions import Question
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import ScoreRequest
from interpreto_mlops.text.granularity import NO_ELEMENT, Elements

Presence = npt.NDArray[np.bool_]
"""Coalitions of a text's players, shape (rows, players): True where a player stays."""


class Game:
    """One text as a game.

    `full` and `empty`, shape (targets,), are the scores with every and with no player; `objective` knows the targets.

    Arguments:
        question: what is asked about the text.
        elements: its scored pieces.
        replacement: what stands for an absent one.
        players: the elements that may be absent, by number; by default those on which some target can depend.
    """

    full: Floats
    empty: Floats
    objective: Objective

    def __init__(
        self,
        question: Question,
        elements: Elements,
        replacement: Replacement,
        players: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.question = question
        self.encoding = question.encoding
        self.elements = elements
        self.replacement = replacement
        self._visible, self._reaching = question.visible(elements), question.reaching(elements)
        self.players = np.flatnonzero(self._reaching.any(axis=0)) if players is None else players
        number = np.full(len(elements) + 1, NO_ELEMENT)  # the last place is that of tokens of no element
        number[self.players] = np.arange(len(self.players))
        self.of_token: npt.NDArray[np.int64] = number[elements.of_token[: len(self.encoding)]]
        """The player of each token that the model is given, shape (tokens,), or `NO_ELEMENT`."""
        self.movable: npt.NDArray[np.bool_] = self.of_token != NO_ELEMENT
        """Which tokens belong to a player, shape (tokens,)."""

    @property
    def n_players(self) -> int:
        """How many elements may be absent."""
        return len(self.players)

    @property
    def valid(self) -> Presence:
        """Which players each target's score can depend on, shape (targets, players); the others' scores are 0."""
        shape = (len(self.objective.targets), self.n_players)
        return np.broadcast_to(self._reaching[:, self.players], shape)

    def request(self, present: Presence, exact: int = 0) -> ScoreRequest:
        """Ask for the scores of coalitions, shape (rows, players). Tokens of no player always stay.

        The first `exact` rows run in the model's own dtype even under autocast.
        """
        always = np.ones((len(present), 1), dtype=bool)  # the last column, which NO_ELEMENT picks
        tokens = np.concatenate([present, always], axis=1)[:, self.of_token]
        rows = self.replacement.rows(self.encoding, tokens)
        if self.replacement.id is not None:
            return ScoreRequest(self.encoding, rows, self.question.readout, exact)
        # Where tokens are taken out, the places that are read move.
        return ScoreRequest(self.encoding, rows, [self.question.readout.without(kept) for kept in tokens], exact)

    def settle(self, read: Floats, mode: InferenceMode) -> None:
        """Take what was read for the full text, and for the empty one if it was asked for, shape (1 or 2, width)."""
        self.objective = self.question.settle(read[0], mode)
        ends = self.objective.score(read)
        self.full = ends[0]
        self.empty = ends[1] if len(ends) > 1 else np.full_like(ends[0], np.nan)

    def generator(self, seed: int) -> np.random.Generator:
        """Return random numbers that depend on the seed and this text alone."""
        return np.random.default_rng(self.encoding.seed(seed))

    def aggregate(self, token_scores: Floats, how: Aggregation = Aggregation.SUM) -> Floats:
        """Aggregate token scores, shape (..., tokens), over the tokens of each player, shape (..., players)."""
        return aggregate(token_scores, self.of_token, self.n_players, how)

    def not_shown(self, scores: Floats) -> dict[str, float]:
        """Return what the largest sum of scores is that `matrix` leaves out of a target's row, where there are some.

        A word that holds a target and tokens before it is such an element: the tokens before count, and are not shown.
        """
        left_out = self.valid & ~np.broadcast_to(self._visible[:, self.players], self.valid.shape)
        sums = np.where(left_out, scores, 0.0).sum(axis=1)
        return {"not_shown": float(np.abs(sums).max())} if left_out.any() else {}

    def matrix(self, scores: Floats) -> Floats:
        """Put the players' scores, shape (targets, players), into the matrix of all elements.

        NaN where an element holds a target itself or anything after it, shape (targets, elements).
        """
        full = np.full((len(scores), len(self.elements)), np.nan)
        full[:, self.players] = np.where(self._visible[:, self.players], scores, np.nan)
        return full
