"""Several methods and metrics on the same texts, a few texts at a time, so that all share what they evaluate."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from interpreto_mlops.attributions import METHODS, Attribution, AttributionSet, Attributor
from interpreto_mlops.attributions.base import hidden
from interpreto_mlops.attributions.metrics import METRICS, Metric, MetricResult, MetricSet, TextMetric
from interpreto_mlops.attributions.metrics.base import Outcome, outcomes_together
from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.workflows.recipes import check_options, parameters_of

T = TypeVar("T")
Options = Mapping[str, Mapping[str, Any]]

# The engine's table holds the rows of some 30 texts under many methods and metrics at default settings.
_CHUNK = 32


@dataclass(frozen=True)
class Explained:
    """One method's explanations of all texts.

    Arguments:
        explanations: of all texts.
        scores: one result for each metric, or several.
        unscored: why a metric cannot judge this method, by the metric's name.
    """

    explanations: AttributionSet
    scores: list[MetricResult]
    unscored: dict[str, str] = field(default_factory=dict)


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
    methods: Mapping[str, Attributor],
    metrics: Sequence[str | Metric],
    common: Mapping[str, Any],
    options: Options,
    rationales: Sequence[Any] | None = None,
    targets: Any = None,
) -> dict[str, list[Metric]]:
    """Return the metrics of each method; those given by name get the common parameters that they have and their own.

    Metrics of explanations of concepts get the `targets` that the methods are called with.

    Raises:
        UnknownNameError: a name or a parameter that is not known.
        InputError: the same metric twice, or one that needs rationales and gets none.
    """
    kinds = [METRICS.get(metric) if isinstance(metric, str) else metric for metric in metrics]
    for kind in kinds:
        if not isinstance(kind, (type, Metric)):
            raise InputError(f"a metric is a name or a metric, not {kind!r}")
    if twice := [name for name, count in Counter(kind.name for kind in kinds).items() if count > 1]:
        raise InputError(f"the metric {twice[0]!r} is given twice; a comparison has each metric once")
    # Only what needs the method is built anew for each.
    shared = {
        kind.name: _metric(kind, next(iter(methods.values())), common, options, rationales, targets)
        for kind in kinds
        if isinstance(kind, type) and kind.needs != "explainer"
    }
    return {
        label: [
            kind
            if isinstance(kind, Metric)
            else shared.get(kind.name) or _metric(kind, method, common, options, rationales, targets)
            for kind in kinds
        ]
        for label, method in methods.items()
    }


def _metric(
    kind: type[Metric],
    method: Attributor,
    common: Mapping[str, Any],
    options: Options,
    rationales: Sequence[Any] | None,
    targets: Any,
) -> Metric:
    if kind.needs == "rationales" and rationales is None:
        raise InputError(f"the metric {kind.name!r} needs rationales, for each text pairs (start, end) of characters")
    given = {"model": method.model, "explainer": method, "rationales": rationales, "targets": targets}
    fields = {each.name for each in dataclasses.fields(kind)}
    return kind(
        **{name: value for name, value in given.items() if name in fields}, **_parameters(kind, common, options)
    )


def _built(kind: type[Attributor], model: TextModel, common: Mapping[str, Any], options: Options) -> Attributor:
    return kind(model, **_parameters(kind, common, options))


def _parameters(kind: Any, common: Mapping[str, Any], options: Options) -> dict[str, Any]:
    own = options.get(kind.name, {})
    check_options(kind, kind.name, own)
    known = parameters_of(kind)
    return {**{name: value for name, value in common.items() if name in known}, **own}


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
    metrics: Mapping[str, Sequence[Metric]],
    texts: Sequence[str],
    call: Mapping[str, Any],
    *,
    progress: bool | None = False,
) -> dict[str, Explained]:
    """Explain texts by every method and score the explanations.

    All methods and metrics go through the same few texts before the next ones come, so that what they have in common is
    found in the engine's table, whose size is bounded. (The engine works ahead in each method's stream, by up to 1,024
    texts.) Metrics that judge a whole set, or explain anew, come at the end.

    Arguments:
        methods: of one model, by label.
        metrics: of each method.
        texts: the raw texts.
        call: what the methods are called with beside the texts (targets, …).
        progress: True for a progress bar, False for none, None for one when the output is a terminal.

    Raises:
        InterpretoError: whatever stops a method or a metric; a metric that can judge none of the methods, too.
    """
    engine = next(iter(methods.values())).model.engine
    with (
        engine.shared_table(),
        warnings.catch_warnings(),
        tqdm(unit="text", disable=hidden(progress), leave=False) as bar,
    ):
        # Texts that were cut or are empty are counted by whoever reports the explanations.
        warnings.simplefilter("ignore", TextWarning)
        works = [_Work(label, method, metrics[label], texts, call, bar) for label, method in methods.items()]
        bar.total = sum(work.steps for work in works)
        try:
            for _ in range(0, len(texts), _CHUNK):
                for work in works:
                    work.go_on()
            found = {work.label: work.finish() for work in works}
        finally:
            for work in works:
                work.close()
    for name, reason in next(iter(found.values())).unscored.items():
        if all(name in each.unscored for each in found.values()):
            raise InputError(reason)
    return found


class _Work:
    """One method on its way through the texts. Its stream stays open, so that texts keep their numbers."""

    def __init__(
        self,
        label: str,
        method: Attributor,
        metrics: Sequence[Metric],
        texts: Sequence[str],
        call: Mapping[str, Any],
        bar: Any,
    ) -> None:
        self.label, self.method, self.metrics, self.bar = label, method, metrics, bar
        self.by_text = [metric for metric in metrics if isinstance(metric, TextMetric) and not metric.needs]
        self.steps = len(texts) * (2 if self.by_text else 1)
        self.stream: Iterator[Attribution] = method.stream(texts, **call)
        self.items: list[Attribution] = []
        self.outcomes: list[list[Outcome]] = []
        self.seconds = 0.0
        self.explaining: Counter[str] = Counter()
        self.scoring: Counter[str] = Counter()

    def go_on(self) -> None:
        """Explain and score the next few texts."""
        self.bar.set_description(self.label)
        start = time.perf_counter()
        chunk = self._taken(islice(self.stream, _CHUNK), self.explaining)
        self.seconds += time.perf_counter() - start
        self.items += chunk
        if self.by_text and chunk:
            self.bar.set_description(f"{self.label}, metrics")
            self.outcomes += self._taken(outcomes_together(self.by_text, AttributionSet(chunk)), self.scoring)

    def _taken(self, stream: Iterator[T], counted: Counter[str]) -> list[T]:
        engine, taken = self.method.model.engine, []
        before = engine.counters.copy()
        for item in stream:
            taken.append(item)
            self.bar.update()
        counted.update(engine.counters.since(before).as_dict())
        return taken

    def finish(self) -> Explained:
        """Return everything put together, with the metrics that judge a whole set."""
        explanations = AttributionSet(self.items, seconds=self.seconds, counters=_rated(self.explaining))
        counters = _rated(self.scoring)
        by_text = {
            metric.name: metric.result(explanations, [row[k] for row in self.outcomes], counters)
            for k, metric in enumerate(self.by_text)
        }
        found = Explained(explanations, [])
        for metric in self.metrics:
            self.bar.set_description(f"{self.label}, {metric.name}")
            try:
                result = by_text.get(metric.name) or metric(explanations)
            except InputError as error:
                # Not every method can be judged by every metric; the others are compared all the same.
                if metric.needs != "explainer":
                    raise
                found.unscored[metric.name] = str(error)
                continue
            found.scores.extend(result.values() if isinstance(result, MetricSet) else [result])
        return found

    def close(self) -> None:
        """End the stream, also when a method has failed half way."""
        if isinstance(self.stream, Generator):
            self.stream.close()


def _rated(counters: Mapping[str, float]) -> dict[str, float]:
    """Rates do not add up as counts do."""
    total = dict(counters)
    if "tokens_per_second" in total:
        total["tokens_per_second"] = total["tokens"] / total["seconds"] if total["seconds"] else 0.0
    return total
