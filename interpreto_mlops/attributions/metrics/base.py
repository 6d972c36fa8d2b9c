"""The frame of every faithfulness metric: what a ranking of elements does to the probability of the explained class."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from interpreto_mlops.attributions.base import Game, Presence, as_integer, hidden
from interpreto_mlops.attributions.metrics.results import Floats, MetricResult
from interpreto_mlops.attributions.recall import recalled
from interpreto_mlops.attributions.results import Attribution, AttributionSet
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.objectives import InferenceMode
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import Program
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.registry import Registry

METRICS: Registry[type[FaithfulnessMetric]] = Registry("attribution metric")
"""Every metric of attributions by its registry name."""

Order = npt.NDArray[np.int64]

_GRID = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class _Scored:
    """One text's results: of its own ranking first, then of each random one."""

    scores: Floats  # (1 + random,)
    curves: Floats | None  # (1 + random, 101)


@dataclass(frozen=True, kw_only=True)
class FaithfulnessMetric(ABC):
    """Scores rankings by the probability of the explained class: call it with an `AttributionSet`.

    Each text is also scored under random rankings, the same ones for every method and metric.

    Arguments:
        model: the classifier that was explained, or another one of the same classes.
        replacement: what stands for an absent element, as for the methods.
        n_random: random rankings of each text.
        seed: of the random rankings.

    Raises:
        InputError: a parameter that cannot be used.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    bounds: ClassVar[tuple[float, float]]
    # Deleting along an order visits the coalitions of inserting along its reverse: one set of orders serves both.
    reverse_random: ClassVar[bool] = False

    model: TextModel = field(kw_only=False, repr=False)
    replacement: str | int = "auto"
    n_random: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.model, TextModel) or self.model.task == "encoder":
            raise InputError(f"{self.name} needs a TextModel with a classifier or a language model, not {self.model!r}")
        object.__setattr__(self, "n_random", as_integer("n_random", self.n_random, 1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))
        Replacement.resolve(self.replacement, self.model)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as runs log them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "model"}

    @abstractmethod
    def coalitions(self, order: Order) -> Presence:
        """Return the coalitions to look at for a ranking, shape (rows, elements)."""

    @abstractmethod
    def score(self, probabilities: Floats, n: int) -> Floats:
        """Return the metric from the probabilities of the coalitions, shape (..., rows) to (...), for n elements."""

    def curve(self, probabilities: Floats, n: int) -> Floats | None:
        """Return the curve on 0, 1, …, 100 % of the elements, shape (101,), for a metric that has one."""
        return None

    def __call__(self, explanations: AttributionSet, *, progress: bool | None = False) -> MetricResult:
        """Score the explanations.

        Arguments:
            explanations: one method's attributions. Texts without elements are skipped and counted.
            progress: True for a progress bar, False for none, None for one when the output is a terminal.

        Returns:
            One value a text, the mean over its targets.

        Raises:
            InputError: explanations whose elements are not those that this model's tokenizer gives.
        """
        before = self.model.engine.counters.copy()
        programs = (self._program(*pair) for pair in self._games(explanations))
        bar = tqdm(total=len(explanations), desc=self.name, unit="text", disable=hidden(progress), leave=False)
        with bar:
            scored = []
            for item in self.model.engine.run(programs):
                scored.append(item)
                bar.update()
        return self._result(explanations, scored, self.model.engine.counters.since(before).as_dict())

    def _games(self, explanations: AttributionSet) -> Iterator[tuple[Game, Attribution]]:
        for item, question, elements in recalled(self.model, explanations):
            # Of a continuation the prompt alone is perturbed; the target's ids stay.
            whole = np.arange(len(elements))
            players = whole if item.prompt_tokens is None else whole[elements.ends()[1] < item.prompt_tokens]
            yield Game(question, elements, Replacement.resolve(self.replacement, self.model), players), item

    def _program(self, game: Game, item: Attribution) -> Program[_Scored | None]:
        """Score one text: the mean over its targets, for its own ranking and for random ones."""
        if game.n_players == 0 or not item.targets:
            return None
        own = [np.argsort(-item.scores[target][game.players], kind="stable") for target in range(len(item.targets))]
        orders = own + self._random_orders(game)
        blocks = [self.coalitions(order) for order in orders]
        (read,) = yield [game.request(np.concatenate(blocks))]
        objective = game.question.settle(read[0], InferenceMode.SOFTMAX).probability
        values = objective.score(read).reshape(len(orders), -1, len(item.targets))
        n = game.n_players
        rankings = [np.stack([values[t, :, t] for t in range(len(own))])]  # each target's own ranking
        rankings += [values[k].T for k in range(len(own), len(orders))]
        scores = np.asarray([self.score(block, n).mean() for block in rankings])
        curves = [self.curve(block.mean(axis=0), n) for block in rankings]
        return _Scored(scores, None if curves[0] is None else np.stack([c for c in curves if c is not None]))

    def _random_orders(self, game: Game) -> list[Order]:
        rng = game.generator(self.seed)
        orders = [rng.permutation(game.n_players) for _ in range(self.n_random)]
        return [order[::-1] for order in orders] if self.reverse_random else orders

    def _result(
        self, explanations: AttributionSet, scored: list[_Scored | None], counters: dict[str, float]
    ) -> MetricResult:
        sign = 1 if self.higher_is_better else -1
        own, random, better = (np.full(len(scored), np.nan) for _ in range(3))
        for i, item in enumerate(scored):
            if item is not None:
                own[i], random[i] = item.scores[0], item.scores[1:].mean()
                lead = sign * (item.scores[0] - item.scores[1:])
                better[i] = ((lead > 0) + 0.5 * (lead == 0)).mean()
        curves = [item.curves for item in scored if item is not None and item.curves is not None]
        skipped = sum(item is None for item in scored)
        return MetricResult(
            name=self.name,
            method=explanations.method,
            values=own,
            random_values=random,
            better_than_random=better,
            higher_is_better=self.higher_is_better,
            curve=_mean_curve([c[:1] for c in curves]),
            random_curve=_mean_curve([c[1:] for c in curves]),
            skipped={"no elements": skipped} if skipped else {},
            parameters=self.parameters,
            counters=counters,
        )


def _mean_curve(curves: list[Floats]) -> Floats | None:
    if not curves:
        return None
    return np.stack([_GRID, np.mean([curve.mean(axis=0) for curve in curves], axis=0)], axis=1)


def on_grid(shares: Floats, values: Floats) -> Floats:
    """Interpolate a curve to 0, 1, …, 100 per cent, shape (101,)."""
    return np.interp(_GRID, shares, values)
