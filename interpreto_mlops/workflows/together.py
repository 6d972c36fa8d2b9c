"""Several methods and metrics on the same texts, a few texts at a time, so that all share what they evaluate."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from interpreto_mlops.attributions import METHODS, Attribution, AttributionSet, Attributor
from interpreto_mlops.attributions.base import hidden
from interpreto_mlops.attributions.metrics import METRICS, FaithfulnessMetric, MetricResult
from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.engine import Engine
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.workflows.recipes import check_options, parameters_of

Metric = FaithfulnessMetric
Options = Mapping[str, Mapping[str, Any]]

# The engine's table holds the rows of some 30 texts under many methods and metrics at default settings.
_CHUNK = 32


@dataclass(frozen=True)
class Explained:
    """One method's explanations of all texts, and their scores."""

    explanations: AttributionSet
    scores: list[MetricResult]


def build_methods(
    model: TextModel, methods: Sequence[str | Attributor], common: Mapping[str, Any], options: Options
) -> dict[str, Attributor]:
    """Return the methods by a label that no other one has: the name, with what tells methods of one name apart.

    Arguments:
        model: what methods given by name explain.
        methods: registry names, or methods that are built already.
        common: parameters of methods given by name, where they have them.
        options: further parameters by method name.

    Raises:
        UnknownNameError: a name or a parameter that is not known.
        InputError: no method, the same one twice, or one of another model.
    """
    built = [_built(METHODS.get(m), model, common, options) if isinstance(m, str) else m for m in methods]
    if not built:
        raise InputError("give at least one method")
    for method in built:
        if not isinstance(method, Attributor):
            raise InputError(f"a method is a name or an attribution method, not {method!r}")
        if method.model is not model:
            raise InputError(f"the method {method!r} explains the model {method.model.name!r}, not {model.name!r}")
    return dict(zip(_labels(built), built, strict=True))


def build_metrics(
    model: TextModel, metrics: Sequence[str | Metric], common: Mapping[str, Any], options: Options
) -> list[Metric]:
    """Return the metrics; those given by name get the common parameters that they have and their own options.

    Raises:
        UnknownNameError: a name or a parameter that is not known.
        InputError: the same metric twice.
    """
    built = [_built(METRICS.get(m), model, common, options) if isinstance(m, str) else m for m in metrics]
    names = [metric.name for metric in built]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"the metric {twice[0]!r} is given twice; a comparison has each metric once")
    return built


def _built(kind: Any, model: TextModel, common: Mapping[str, Any], options: Options) -> Any:
    own = options.get(kind.name, {})
    check_options(kind, kind.name, own)
    known = parameters_of(kind)
    return kind(model, **{**{name: value for name, value in common.items() if name in known}, **own})


def _labels(methods: Sequence[Attributor]) -> list[str]:
    labels = []
    for method in methods:
        alike = [other.parameters for other in methods if other.name == method.name]
        differing = [
            f"{name}={value}"
            for name, value in method.parameters.items()
            if any(repr(other.get(name)) != repr(value) for other in alike)
        ]
        labels.append(f"{method.name} ({', '.join(differing)})" if differing else method.name)
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise InputError(f"the method {twice[0]!r} is given twice with the same parameters")
    return labels


def explain_together(
    methods: Mapping[str, Attributor],
    metrics: Sequence[Metric],
    texts: Sequence[str],
    call: Mapping[str, Any],
    *,
    progress: bool | None = False,
) -> dict[str, Explained]:
    """Explain texts by every method and score the explanations.

    All methods and metrics go through the same few texts before the next ones come, so that what they have in common is
    evaluated once however many texts there are, and the table of what is known stays small.

    Arguments:
        methods: of one model, by label.
        metrics: of the same model.
        texts: the raw texts.
        call: what the methods are called with beside the texts (targets, …).
        progress: True for a progress bar, False for none, None for one when the output is a terminal.

    Raises:
        InterpretoError: whatever stops a method or a metric.
    """
    engine = next(iter(methods.values())).model.engine
    total = len(texts) * len(methods) * (1 + len(metrics))
    with (
        engine.shared_table(),
        warnings.catch_warnings(),
        tqdm(total=total, unit="text", disable=hidden(progress), leave=False) as bar,
    ):
        # Texts that were cut or are empty are counted by whoever reports the explanations.
        warnings.simplefilter("ignore", TextWarning)
        works = [_Work(label, method, metrics, engine, texts, call, bar) for label, method in methods.items()]
        try:
            for _ in range(0, len(texts), _CHUNK):
                for work in works:
                    work.go_on()
            return {work.label: work.finish() for work in works}
        finally:
            for work in works:
                work.close()


@dataclass
class _Work:
    """One method on its way through the texts. Its stream stays open, so that texts keep their numbers."""

    label: str
    method: Attributor
    metrics: Sequence[Metric]
    engine: Engine
    texts: Sequence[str]
    call: Mapping[str, Any]
    bar: Any
    items: list[Attribution] = field(default_factory=list)
    seconds: float = 0.0
    counters: Counter[str] = field(default_factory=Counter)
    parts: dict[str, list[MetricResult]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream: Iterator[Attribution] = self.method.stream(self.texts, **self.call)

    def go_on(self) -> None:
        """Explain and score the next few texts."""
        self.bar.set_description(self.label)
        start, before, chunk = time.perf_counter(), self.engine.counters.copy(), []
        for item in islice(self.stream, _CHUNK):
            chunk.append(item)
            self.bar.update()
        self.seconds += time.perf_counter() - start
        self.counters.update(self.engine.counters.since(before).as_dict())
        self.items += chunk
        for metric in self.metrics:
            self.bar.set_description(f"{self.label}: {metric.name}")
            self.parts.setdefault(metric.name, []).append(metric(AttributionSet(chunk)))
            self.bar.update(len(chunk))

    def finish(self) -> Explained:
        """Return everything put together."""
        explanations = AttributionSet(self.items, seconds=self.seconds, counters=_rated(self.counters))
        return Explained(explanations, [joined(parts) for parts in self.parts.values()])

    def close(self) -> None:
        """End the stream, also when a method has failed half way."""
        if isinstance(self.stream, Generator):
            self.stream.close()


def joined(parts: Sequence[MetricResult]) -> MetricResult:
    """Put the results of one metric and method on successive texts together."""
    scored = np.asarray([np.isfinite(part.values).sum() for part in parts], dtype=np.float64)
    counters: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for part in parts:
        counters.update(part.counters)
        skipped.update(part.skipped)
    return dataclasses.replace(
        parts[0],
        values=np.concatenate([part.values for part in parts]),
        random_values=np.concatenate([part.random_values for part in parts]),
        better_than_random=np.concatenate([part.better_than_random for part in parts]),
        curve=_mean_curve([part.curve for part in parts], scored),
        random_curve=_mean_curve([part.random_curve for part in parts], scored),
        skipped=dict(skipped),
        counters=_rated(counters),
    )


def _mean_curve(curves: Sequence[Any], weights: Any) -> Any:
    known = [(curve, weight) for curve, weight in zip(curves, weights, strict=True) if curve is not None and weight > 0]
    if not known:
        return None
    return np.average([curve for curve, _ in known], axis=0, weights=[weight for _, weight in known])


def _rated(counters: Mapping[str, float]) -> dict[str, float]:
    """Rates do not add up as counts do."""
    total = dict(counters)
    if "tokens_per_second" in total:
        total["tokens_per_second"] = total["tokens"] / total["seconds"] if total["seconds"] else 0.0
    return total
