"""Metrics of rankings: what the order of the elements does to the probability of what is explained."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.base import Presence
from interpreto_mlops.attributions.metrics.base import Outcome, TextMetric, TextScore
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.subjects import Ranks, Subject, ranks_of
from interpreto_mlops.models.requests import Program


@dataclass(frozen=True, kw_only=True)
class FaithfulnessMetric(TextMetric):
    """Scores rankings by the probability of what is explained, with some of the first or last elements absent.

    Elements are ranked by signed score, highest first, ties by position. Each text is also scored under random
    rankings, the same ones for every method and metric.

    Arguments:
        model: the model that was explained, or another one of the same classes.
        replacement: what stands for an absent element, as for the methods.
        n_random: random rankings of each text.
        seed: of the random rankings.
        joint: whether a text's targets share one ranking, by the sum of their scores, and are scored by the geometric
            mean of their probabilities.

    Raises:
        InputError: a parameter that cannot be used.
    """

    @abstractmethod
    def coalitions(self, ranks: Ranks) -> Presence:
        """Return the coalitions to look at for rankings, shape (rankings, n) to (rankings, rows, n)."""

    @abstractmethod
    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return the metric from the probabilities of the coalitions, shape (..., rows) to (...), for n elements."""

    def curve(self, probabilities: Floats, n: int) -> Floats | None:
        """Return the curve at the shares of `grid`, shape (rows,) to (points,), for a metric that has one."""
        return None

    def program(self, subject: Subject) -> Program[Outcome]:
        """Score one text: its own rankings, one a target, and random ones."""
        random = subject.random_orders(self.n_random, self.seed)
        blocks = [_Block.of(self, subject, targets, players, random) for targets, players in subject.groups()]
        (read,) = yield [subject.request(np.concatenate([block.present for block in blocks]))]
        probabilities = subject.probabilities(read)
        scores, curves, start = [], [], 0
        for block in blocks:
            found = block.pick(probabilities[start : start + len(block.present)])
            start += len(block.present)
            n = len(block.players)
            scores.append(self.score(found, n))
            curves.append([self.curve(row, n) for row in found.reshape(-1, found.shape[-1])])
        every = np.concatenate(scores).mean(axis=0)
        lines = [curve for block in curves for curve in block if curve is not None]
        drawn = np.stack(lines).reshape(-1, 1 + self.n_random, len(lines[0])).mean(axis=0) if lines else None
        return TextScore(float(every[0]), every[1:], drawn)


@dataclass(frozen=True)
class _Block:
    """The coalitions of the targets that see the same players: each target's own ranking, then the random ones."""

    targets: npt.NDArray[np.int64]
    players: npt.NDArray[np.int64]
    present: Presence  # (rankings * rows, all players)
    n_rankings: int

    @classmethod
    def of(
        cls,
        metric: FaithfulnessMetric,
        subject: Subject,
        targets: npt.NDArray[np.int64],
        players: npt.NDArray[np.int64],
        random: Ranks,
    ) -> _Block:
        own = np.stack([subject.ranks(target, players) for target in targets])
        ranks = np.concatenate([own, ranks_of(random[:, players])])
        seen = metric.coalitions(ranks)
        present = np.ones((len(ranks) * seen.shape[1], subject.n_players), dtype=bool)
        present[:, players] = seen.reshape(-1, len(players))
        return cls(targets, players, present, len(ranks))

    def pick(self, probabilities: Floats) -> Floats:
        """Return what each target is scored by, shape (targets, 1 + random, rows)."""
        values = probabilities.reshape(self.n_rankings, -1, probabilities.shape[1])
        own = values[np.arange(len(self.targets)), :, self.targets]
        random = values[len(self.targets) :, :, self.targets].transpose(2, 0, 1)
        return np.concatenate([own[:, None], random], axis=1)
