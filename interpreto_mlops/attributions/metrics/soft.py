"""Soft comprehensiveness and sufficiency: embeddings fade by as much as the scores say, instead of words going."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.attributions.base import as_integer
from interpreto_mlops.attributions.metrics.base import METRICS, Outcome, TextMetric, text_score
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.subjects import Points, Subject
from interpreto_mlops.models.distances import Distances
from interpreto_mlops.models.questions import ContinuationQuestion
from interpreto_mlops.models.readouts import TokenScores
from interpreto_mlops.models.requests import Program
from interpreto_mlops.text.granularity import NO_ELEMENT


@dataclass(frozen=True, kw_only=True)
class _Soft(TextMetric):
    """The probability with each component of an element's embedding kept by chance."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    n_draws: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_draws", as_integer("n_draws", self.n_draws, 1))

    @abstractmethod
    def kept(self, shares: Floats) -> Floats:
        """Return the chance to keep a component from scores in [0, 1], shape (...) to (...)."""

    @abstractmethod
    def score(self, lost: Floats, nothing: Floats) -> Floats:
        """Return the metric.

        Arguments:
            lost: max(0, p(text) − p(faded text)), or the distance of a continuation's distributions, mean over draws,
                shape (rankings, targets).
            nothing: the same where every element's embedding is zero, shape (targets,).
        """

    def program(self, subject: Subject) -> Program[Outcome]:
        """Score one text: its own scores, then permuted ones."""
        orders = subject.random_orders(self.n_random, self.seed)
        scores = np.concatenate([subject.scores[None], subject.permuted(orders)])
        shares = unit_range(scores, subject.valid)
        if np.isnan(shares).all():
            return "constant scores"
        lost, nothing = yield from self.losses(subject, np.nan_to_num(shares))
        values = self.score(lost, nothing)
        values[:, np.isnan(shares).all(axis=(0, 2))] = np.nan
        return text_score(values[0], values[1:]) or "elements that carry nothing"

    def losses(self, subject: Subject, shares: Floats) -> Program[tuple[Floats, Floats]]:
        """Return what is lost when embeddings fade.

        Arguments:
            subject: the text.
            shares: scores in [0, 1], shape (rankings, targets, players).

        Returns:
            max(0, p(text) − p(faded text)), mean over draws, shape (rankings, targets); and the same where every
            element's embedding is zero, shape (targets,).
        """
        rankings, targets, players = shares.shape
        # A player that a target cannot see is left as it is.
        kept = np.where(subject.valid, self.kept(shares), 1.0).reshape(-1, players)
        chances = np.concatenate([np.repeat(kept, self.n_draws, axis=0), np.zeros((1, players))])
        points = _faded(subject, chances, self.n_draws, subject.game.encoding.seed(self.seed))
        measure = _moved if isinstance(subject.game.question, ContinuationQuestion) else _fallen
        fallen = yield from measure(subject, points, len(chances))
        each = fallen[:-1].reshape(rankings, targets, self.n_draws, targets).mean(axis=2)
        return each[:, np.arange(targets), np.arange(targets)], fallen[-1]


def _fallen(subject: Subject, points: Points, n_points: int) -> Program[Floats]:
    """Return max(0, p(text) − p(point)) of each target, shape (points, targets)."""
    full, read = yield [
        subject.request(np.ones((1, subject.n_players), dtype=bool)),
        subject.at_points(points, n_points),
    ]
    lost: Floats = np.maximum(0.0, subject.probabilities(full) - subject.probabilities(read))
    return lost


def _moved(subject: Subject, points: Points, n_points: int) -> Program[Floats]:
    """Return how far each target's next-token distributions move, the mean over its tokens, shape (points, targets)."""
    game = subject.game
    asked, output = game.question.readout, game.question.model.model.get_output_embeddings()
    assert isinstance(asked, TokenScores)
    lengths = [len(target.ids) for target in subject.item.targets]
    # The places of contrasts come after those of the targets' own tokens, and are the same.
    own = replace(asked, positions=asked.positions[: sum(lengths)], ids=asked.ids[: sum(lengths)])
    roots = Distances(own, output.weight.shape[0])
    (untouched,) = yield [subject.at_points(lambda anchors, numbers: anchors[:1], 1, roots)]
    known = untouched.reshape(sum(lengths), -1).astype(np.float32)
    (distances,) = yield [subject.at_points(points, n_points, replace(roots, known=known))]
    starts, counts = (np.zeros(1, dtype=np.int64), [sum(lengths)]) if subject.joint else (_starts(lengths), lengths)
    means: Floats = np.add.reduceat(distances, starts, axis=1) / np.asarray(counts)
    return means


def _starts(lengths: list[int]) -> npt.NDArray[np.int64]:
    """Return where stretches of these lengths begin, shape (stretches,)."""
    starts: npt.NDArray[np.int64] = np.cumsum(lengths) - np.asarray(lengths, dtype=np.int64)
    return starts


def _faded(subject: Subject, chances: Floats, n_draws: int, seed: int) -> Points:
    """Return what makes the points: each keeps each component of a player's embedding with that player's chance.

    Arguments:
        subject: the text.
        chances: shape (points, players).
        n_draws: point k uses the random numbers of draw k mod `n_draws`, so that rankings differ by their scores alone.
        seed: of the draws of this text.
    """
    spare = subject.player_of_token == NO_ELEMENT

    def points(anchors: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        text = anchors[0]
        masks = []
        for number in numbers.tolist():
            drawn = np.random.default_rng([seed, number % n_draws]).random(tuple(text.shape), dtype=np.float32)
            chance = np.where(spare, 1.0, chances[number][subject.player_of_token])
            masks.append(drawn < chance[:, None])
        return text * torch.from_numpy(np.stack(masks)).to(text.device)

    return points


def unit_range(scores: Floats, valid: npt.NDArray[np.bool_]) -> Floats:
    """Bring each target's valid scores to [0, 1], NaN where they are all equal, shape (..., targets, players)."""
    low = np.where(valid, scores, np.inf).min(axis=-1, keepdims=True)
    high = np.where(valid, scores, -np.inf).max(axis=-1, keepdims=True)
    spread = np.where(high > low, high - low, np.nan)
    return np.where(valid, (scores - low) / spread, np.nan)


def _share_of(part: Floats, whole: Floats) -> Floats:
    """Return part / whole in [0, 1], NaN where the whole is 0."""
    return np.where(whole > 0, np.clip(part / np.where(whole > 0, whole, 1.0), 0.0, 1.0), np.nan)


@METRICS.register("soft_sufficiency")
@dataclass(frozen=True, kw_only=True)
class SoftSufficiency(_Soft):
    """Normalised soft sufficiency: how much of the probability is kept when elements fade that have low scores: high.

    Scores are brought to [0, 1] in each text; each component of an element's embedding is kept with that chance, else
    zero. Soft-NS = max(0, S − S₀) / (1 − S₀), S = 1 − max(0, p(text) − p(faded)), S₀ with all elements zero. Texts with
    constant scores, or whose elements carry nothing (S₀ = 1), are skipped. Of a continuation, the loss is the Hellinger
    distance of the next-token distributions, the mean over a target's tokens, and what is usually reported is the
    result's `log_ratio` to permuted scores.
    Source: Zhao & Aletras 2023 (arXiv 2305.10496), section 3; continuations: Zhao & Shan 2024 (arXiv 2402.00794).

    Arguments:
        n_draws: faded texts for each ranking, over which S is averaged.
    """

    name: ClassVar[str] = "soft_sufficiency"
    higher_is_better: ClassVar[bool] = True

    def kept(self, shares: Floats) -> Floats:
        """Keep what has a high score, shape (...) to (...)."""
        return shares

    def score(self, lost: Floats, nothing: Floats) -> Floats:
        """Return Soft-NS, shape (rankings, targets)."""
        return _share_of(nothing - lost, nothing)


@METRICS.register("soft_comprehensiveness")
@dataclass(frozen=True, kw_only=True)
class SoftComprehensiveness(_Soft):
    """Normalised soft comprehensiveness: what of the probability goes when elements fade that have high scores: high.

    As `SoftSufficiency`, with the chance 1 − score to be kept. Soft-NC = max(0, p(text) − p(faded)) / (1 − S₀).
    Source: Zhao & Aletras 2023 (arXiv 2305.10496), section 3; continuations: Zhao & Shan 2024 (arXiv 2402.00794).

    Arguments:
        n_draws: faded texts for each ranking, over which the loss is averaged.
    """

    name: ClassVar[str] = "soft_comprehensiveness"
    higher_is_better: ClassVar[bool] = True

    def kept(self, shares: Floats) -> Floats:
        """Keep what has a low score, shape (...) to (...)."""
        kept: Floats = 1.0 - shares
        return kept

    def score(self, lost: Floats, nothing: Floats) -> Floats:
        """Return Soft-NC, shape (rankings, targets)."""
        return _share_of(lost, nothing)
