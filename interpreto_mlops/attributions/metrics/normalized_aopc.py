"""AOPC between the worst and the best that any ranking of the same text can reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.base import Presence, as_integer
from interpreto_mlops.attributions.coalitions import all_coalitions
from interpreto_mlops.attributions.metrics.base import METRICS, Outcome, TextMetric, text_score
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.subjects import Subject, ranks_of
from interpreto_mlops.models.requests import Program

_EXACT_PLAYERS = 8


@METRICS.register("normalized_aopc")
@dataclass(frozen=True, kw_only=True)
class NormalizedAopc(TextMetric):
    """AOPC of the ranking, 0 for the worst and 1 for the best ranking of the same text: high is good.

    AOPC of different models cannot be compared without it. The bounds are exact up to 8 elements. Above, they are the
    best that beam searches and the random rankings find, and a ranking beyond them counts as 0 or 1. Takes some
    `beam_size` · n² evaluations for n elements. Texts on which all rankings are alike are skipped.
    Source: Edin et al. 2025 (arXiv 2408.08137), section 4.

    Arguments:
        beam_size: partial rankings that a beam search keeps.
    """

    name: ClassVar[str] = "normalized_aopc"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    costly: ClassVar[bool] = True

    beam_size: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "beam_size", as_integer("beam_size", self.beam_size, 1))

    def program(self, subject: Subject) -> Program[Outcome]:
        """Score one text: its own rankings, one a target, and random ones, between the bounds."""
        random = subject.random_orders(self.n_random, self.seed)
        own, drawn = np.full(subject.n_targets, np.nan), np.full((self.n_random, subject.n_targets), np.nan)
        for targets, players in subject.groups():
            for target in targets.tolist():
                ranks = np.concatenate([subject.ranks(target, players)[None], ranks_of(random[:, players])])
                kept = ranks[:, None, :] >= np.arange(len(players) + 1)[:, None]
                game = _Losses(subject, target, players)
                losses = yield from game.of(kept.reshape(-1, len(players)))
                reached = losses.reshape(len(ranks), -1).mean(axis=1)
                search = game.exact() if len(players) <= _EXACT_PLAYERS else game.searched(self.beam_size)
                low, high = yield from search
                low, high = min(low, reached[1:].min()), max(high, reached[1:].max())
                if high - low > 1e-9:
                    shares = np.clip((reached - low) / (high - low), 0.0, 1.0)
                    own[target], drawn[:, target] = shares[0], shares[1:]
        return text_score(own, drawn) or "all rankings alike"


@dataclass(frozen=True)
class _Losses:
    """p(text) − p(coalition) of one target, and the extreme means of it along rankings."""

    subject: Subject
    target: int
    players: npt.NDArray[np.int64]

    def of(self, kept: Presence) -> Program[Floats]:
        """Return the loss of coalitions of the players, shape (rows, players) to (rows,)."""
        present = np.ones((1 + len(kept), self.subject.n_players), dtype=bool)
        present[1:, self.players] = kept
        (read,) = yield [self.subject.request(present)]
        values = self.subject.probabilities(read)[:, self.target]
        lost: Floats = values[0] - values[1:]
        return lost

    def exact(self) -> Program[tuple[float, float]]:
        """Return the least and the greatest mean loss over all rankings, from all coalitions."""
        n = len(self.players)
        present = all_coalitions(n)
        losses = yield from self.of(present)
        least, most = losses.copy(), losses.copy()
        # A coalition is reached from one with one player more, whose number is greater: go through them downwards.
        for row in range(2**n - 2, -1, -1):
            before = row + 2 ** np.flatnonzero(~present[row])
            least[row] += least[before].min()
            most[row] += most[before].max()
        return float(least[0] / (n + 1)), float(most[0] / (n + 1))

    def searched(self, beam_size: int) -> Program[tuple[float, float]]:
        """Return the least and the greatest mean loss that beam searches find."""
        n = len(self.players)
        beams = [(np.ones((1, n), dtype=bool), np.zeros(1)) for _ in range(2)]
        for _ in range(n):
            steps = [_without_one(kept, totals) for kept, totals in beams]
            losses = yield from self.of(np.concatenate([kept for kept, _ in steps]))
            found = np.split(losses, [len(steps[0][0])])
            beams = [
                _best(kept, totals + lost, sign, beam_size)
                for (kept, totals), lost, sign in zip(steps, found, (1, -1), strict=True)
            ]
        return float(beams[0][1].min() / (n + 1)), float(beams[1][1].max() / (n + 1))


def _without_one(kept: Presence, totals: Floats) -> tuple[Presence, Floats]:
    """Return every coalition with one player less, with the total of where it came from."""
    beams, players = np.nonzero(kept)
    rows = kept[beams]
    rows[np.arange(len(rows)), players] = False
    return rows, totals[beams]


def _best(kept: Presence, totals: Floats, sign: int, count: int) -> tuple[Presence, Floats]:
    """Return the different coalitions with the least sign · total, with that total."""
    order = np.argsort(sign * totals, kind="stable")
    _, first = np.unique(kept[order], axis=0, return_index=True)
    chosen = order[np.sort(first)[:count]]
    return kept[chosen], totals[chosen]
