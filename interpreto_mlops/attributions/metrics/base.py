"""The frame of every metric of explanations that asks the model: texts, random baselines and results are here, once."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
from tqdm import tqdm

from interpreto_mlops.attributions.base import as_integer, hidden
from interpreto_mlops.attributions.metrics.results import Floats, MetricResult, MetricSet
from interpreto_mlops.attributions.metrics.subjects import Subject, subjects_of
from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.attributions.sampling import as_number
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.layer_targets import LayerTargets
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import Program
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.observers import one_event
from interpreto_mlops.registry import Registry

METRICS: Registry[type[Metric]] = Registry("attribution metric")
"""Every metric of attributions by its registry name."""

CONCEPT_FAITHFULNESS = "concept_faithfulness"
"""The group of results about explanations of concepts: they are in the codes' unit, not in probabilities."""

_GRID = np.linspace(0.0, 1.0, 101)

R = TypeVar("R")


@dataclass(frozen=True)
class TextScore:
    """One text's results: of its own scores, and of each random ranking.

    Arguments:
        own: the metric.
        random: the metric of each random ranking, shape (n_random,).
        curves: of its own ranking first, then of the random ones, shape (1 + n_random, points), or None.
    """

    own: float
    random: Floats
    curves: Floats | None = None


Outcome = TextScore | str
"""A text's results, or why it was skipped."""


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Judges explanations: call it with an `AttributionSet`.

    A class says its `name`, its direction, the `bounds` of its values, whether it is `costly` (many times the
    evaluations of the others), and what it `needs` beside the model: nothing, the `explainer`, or human `rationales`.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    bounds: ClassVar[tuple[float, float]]
    costly: ClassVar[bool] = False
    needs: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        """Let what a metric explains or fits for itself be a part of it, of which no observer is told."""
        super().__init_subclass__(**options)
        if "__call__" in cls.__dict__:
            cls.__call__ = one_event(cls.__call__)  # type: ignore[method-assign]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as runs log them."""
        hidden = ("model", "explainer", "rationales", "targets")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in hidden}

    @abstractmethod
    def __call__(self, explanations: AttributionSet, *, progress: bool | None = False) -> MetricResult | MetricSet:
        """Judge the explanations."""


@dataclass(frozen=True, kw_only=True)
class TextMetric(Metric):
    """Scores explanations text by text, by what the model does: call it with an `AttributionSet`.

    Each text is also scored under random rankings (for metrics of scores: with its scores permuted among its elements),
    the same ones for every method and metric.

    Arguments:
        model: the model that was explained, or another one of the same classes.
        replacement: what stands for an absent element, as for the methods.
        n_random: random rankings of each text.
        seed: of the random rankings, and of what else the metric draws.
        joint: whether a text's targets are scored as one: by the sum of their scores, and the geometric mean of their
            probabilities. By default each target is scored on its own, and a text has the mean over its targets.
        targets: those that the method was called with, where it explained concepts. Codes then stand for probabilities,
            in their own unit, which no bounds hold for, and the result is named `concept_faithfulness/…`.

    Raises:
        InputError: a parameter that cannot be used.
    """

    model: TextModel = field(kw_only=False, repr=False)
    replacement: str | int = "auto"
    n_random: int = 20
    seed: int = 0
    joint: bool = False
    targets: LayerTargets | Sequence[LayerTargets] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, TextModel) or (self.model.task == "encoder" and self.targets is None):
            raise InputError(f"{self.name} needs a TextModel with a classifier or a language model, not {self.model!r}")
        if self.targets is not None and self.joint:
            raise InputError(f"{self.name} of concepts has no probabilities that joint=True could average")
        object.__setattr__(self, "n_random", as_integer("n_random", self.n_random, 1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))
        Replacement.resolve(self.replacement, self.model)

    @property
    def grid(self) -> Floats:
        """The shares of elements at which the metric's curve is kept, for a metric that has one, shape (points,)."""
        return _GRID

    def __call__(self, explanations: AttributionSet, *, progress: bool | None = False) -> MetricResult:
        """Score the explanations.

        Arguments:
            explanations: one method's attributions. Texts that cannot be scored are skipped and counted.
            progress: True for a progress bar, False for none, None for one when the output is a terminal.

        Returns:
            One value a text, the mean over its targets.

        Raises:
            InputError: explanations whose elements or classes are not those that this model has.
        """
        (result,) = score_together([self], explanations, progress=progress)
        return result

    @abstractmethod
    def program(self, subject: Subject) -> Program[Outcome]:
        """Score one text that has elements and targets, or return why it is skipped."""

    def checked_program(self, subject: Subject) -> Program[Outcome]:
        """Score one text, or return why it is skipped."""
        if subject.skip is not None:
            return subject.skip
        return (yield from self.program(subject))

    def result(
        self, explanations: AttributionSet, outcomes: Sequence[Outcome], counters: dict[str, float]
    ) -> MetricResult:
        """Put the texts' results together."""
        sign = 1 if self.higher_is_better else -1
        own, better = np.full(len(outcomes), np.nan), np.full(len(outcomes), np.nan)
        random = np.full((len(outcomes), self.n_random), np.nan)
        for i, item in enumerate(outcomes):
            if isinstance(item, TextScore):
                own[i], random[i] = item.own, item.random
                better[i] = share_beaten(sign * item.own, sign * item.random)
        curves = [item.curves for item in outcomes if isinstance(item, TextScore) and item.curves is not None]
        return MetricResult(
            name=self.name if self.targets is None else f"{CONCEPT_FAITHFULNESS}/{self.name}",
            method=explanations.method,
            values=own,
            random_values=nan_mean(random, axis=1),
            better_than_random=better,
            higher_is_better=self.higher_is_better,
            curve=self._mean_curve([c[:1] for c in curves]),
            random_curve=self._mean_curve([c[1:] for c in curves]),
            skipped=dict(Counter(item for item in outcomes if isinstance(item, str))),
            parameters=self.parameters,
            counters=counters,
            bounds=self.bounds if self.targets is None else (-np.inf, np.inf),
            random_draws=nan_mean(random, axis=0),
        )

    def _mean_curve(self, curves: list[Floats]) -> Floats | None:
        if not curves:
            return None
        return np.stack([self.grid, np.mean([curve.mean(axis=0) for curve in curves], axis=0)], axis=1)


def score_together(
    metrics: Sequence[TextMetric], explanations: AttributionSet, *, progress: bool | None = False
) -> list[MetricResult]:
    """Score explanations by several metrics of one model in one pass; what they have in common is evaluated once.

    All metrics of a text run as one program: so they share their rows however many texts there are.

    Arguments:
        metrics: at least one, all of the same model.
        explanations: one method's attributions.
        progress: as for a metric.

    Raises:
        InputError: the explanations do not belong to the model.
    """
    engine = metrics[0].model.engine
    before = engine.counters.copy()
    title = metrics[0].name if len(metrics) == 1 else f"{len(metrics)} metrics"
    found = outcomes_together(metrics, explanations)
    outcomes = list(
        tqdm(found, total=len(explanations), desc=title, unit="text", disable=hidden(progress), leave=False)
    )
    counters = engine.counters.since(before).as_dict()
    return [metric.result(explanations, [row[k] for row in outcomes], counters) for k, metric in enumerate(metrics)]


def outcomes_together(metrics: Sequence[TextMetric], explanations: AttributionSet) -> Iterator[list[Outcome]]:
    """Yield for each text what each metric finds, the rows that they share evaluated once."""
    programs = (
        side_by_side([metric.checked_program(view) for metric, view in zip(metrics, row, strict=True)])
        for row in _views(metrics, explanations)
    )
    yield from metrics[0].model.engine.run(programs)


def _views(metrics: Sequence[TextMetric], explanations: AttributionSet) -> Iterator[list[Subject]]:
    """Yield each text as each metric sees it; metrics that see it alike share one view."""
    kinds = [(metric.replacement, metric.joint, id(metric.targets)) for metric in metrics]
    streams = {
        kind: subjects_of(explanations, metric.model, metric.replacement, joint=metric.joint, targets=metric.targets)
        for kind, metric in dict(zip(kinds, metrics, strict=True)).items()
    }
    for row in zip(*streams.values(), strict=True):
        seen = dict(zip(streams, row, strict=True))
        yield [seen[kind] for kind in kinds]


def side_by_side(programs: Sequence[Program[R]]) -> Program[list[R]]:
    """Run programs of one text as one, so that the engine sees their requests together and runs a shared row once."""
    results: dict[int, R] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(programs)))
    try:
        while True:
            asked = {}
            for k, answer in answers.items():
                try:
                    asked[k] = programs[k].send(answer)
                except StopIteration as stop:
                    results[k] = stop.value
            if not asked:
                return [results[k] for k in range(len(programs))]
            received = iter((yield [request for requests in asked.values() for request in requests]))
            answers = {k: [next(received) for _ in requests] for k, requests in asked.items()}
    finally:
        for program in programs:
            program.close()


def text_score(own: Floats, random: Floats) -> TextScore | None:
    """Return a text's score as the mean over its targets, NaN left out; None when every target's is NaN.

    Arguments:
        own: shape (targets,).
        random: shape (n_random, targets).
    """
    if np.isnan(own).all():
        return None
    return TextScore(float(own[~np.isnan(own)].mean()), nan_mean(random, axis=1))


def share_beaten(own: float, random: Floats) -> float:
    """Return the share of random values that a value exceeds; ties count half."""
    known = random[~np.isnan(random)]
    return float(((own > known) + 0.5 * (own == known)).mean()) if known.size else float("nan")


def nan_mean(values: Floats, axis: int) -> Floats:
    """Return the mean without NaN, and NaN where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def as_share(name: str, value: Any) -> float:
    """Return a share above 0 and up to 1.

    Raises:
        InputError: it is none.
    """
    if not 0 < as_number(value) <= 1:
        raise InputError(f"{name} must be a share above 0 and up to 1, not {value!r}")
    return float(value)
