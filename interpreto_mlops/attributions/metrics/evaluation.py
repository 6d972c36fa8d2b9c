"""Many metrics of the same explanations at the price of what they have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from interpreto_mlops.attributions.base import Attributor
from interpreto_mlops.attributions.metrics.base import METRICS, Metric, TextMetric, score_together
from interpreto_mlops.attributions.metrics.results import MetricResult, MetricSet
from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel

_NEEDED = {"explainer": "the attribution method that made them", "rationales": "one rationale for each text"}


def evaluate(
    explanations: AttributionSet,
    model: TextModel,
    metrics: str | Iterable[str | Metric] = "all",
    *,
    explainer: Attributor | None = None,
    rationales: Sequence[Any] | None = None,
    progress: bool | None = False,
    **options: Any,
) -> MetricSet:
    """Score explanations by several metrics; what they have in common is evaluated once, for any number of texts.

    Metrics of one text run together, under the same random rankings, and ask the model for a coalition once.

    Arguments:
        explanations: one method's attributions.
        model: the model that was explained.
        metrics: `all`, registry names, metrics, or both kinds mixed. `all` leaves out the costly ones (such as
            `normalized_aopc` and `sanity_check`), those that need an explainer or rationales which are not given, and
            `max_sensitivity` of a method that takes no gradients.
        explainer: the method that made the explanations, for `max_sensitivity` and `sanity_check`.
        rationales: for `plausibility`: for each text pairs (start, end) of characters.
        progress: True for progress bars, False for none, None when the output is a terminal.
        options: parameters of the metrics that are given by name, such as `n_random`, `seed`, `replacement` or `joint`;
            each goes to the metrics that have it.

    Returns:
        A result for each metric, by name. `plausibility` gives several.

    Raises:
        UnknownNameError: a metric that is not registered, or an option that none has.
        InputError: a metric lacks what it needs, or the explanations do not belong to the model.
    """
    given = {"explainer": explainer, "rationales": rationales}
    chosen = _chosen(metrics, model, given, options)
    together = [metric for metric in chosen if isinstance(metric, TextMetric) and not metric.needs]
    shared = score_together(together, explanations, progress=progress) if together else []
    by_metric = dict(zip(map(id, together), shared, strict=True))
    results: list[MetricResult] = []
    for metric in chosen:
        try:
            found = by_metric.get(id(metric)) or metric(explanations, progress=progress)
        except InputError:
            # Not every method can be judged by every metric: those that were not asked for by name are left out.
            if metrics != "all" or metric.needs != "explainer":
                raise
            continue
        results += found.values() if isinstance(found, MetricSet) else [found]
    return MetricSet(results, counters=_total(shared, results))


def _chosen(
    metrics: str | Iterable[str | Metric], model: TextModel, given: dict[str, Any], options: dict[str, Any]
) -> list[Metric]:
    if isinstance(metrics, str):
        wanted: list[str | Metric] = [metrics] if metrics != "all" else list(_all(given))
    else:
        wanted = list(metrics)
    _check_options(options)
    made = [_made(METRICS.get(m), model, given, options) if isinstance(m, str) else m for m in wanted]
    for metric in made:
        if not isinstance(metric, Metric):
            raise InputError(f"metrics must be registry names or metrics, not {metric!r}")
        if getattr(metric, "model", model) is not model:
            raise InputError(f"the metric {metric.name!r} was made for another model, {metric.model!r}")  # type: ignore[attr-defined]
    return made


def _all(given: dict[str, Any]) -> Iterable[str]:
    for name, kind in METRICS.items():
        if not kind.costly and (not kind.needs or given[kind.needs] is not None):
            yield name


def _check_options(options: dict[str, Any]) -> None:
    known = set().union(*(_fields(kind) for _, kind in METRICS.items())) - {"model", "explainer", "rationales"}
    for option in options:
        if option not in known:
            raise UnknownNameError("option of metrics", option, sorted(known))


def _made(kind: type[Metric], model: TextModel, given: dict[str, Any], options: dict[str, Any]) -> Metric:
    fields = _fields(kind)
    values = {key: value for key, value in options.items() if key in fields}
    if kind.needs:
        if given[kind.needs] is None:
            raise InputError(f"the metric {kind.name!r} needs {kind.needs}=, {_NEEDED[kind.needs]}")
        values[kind.needs] = given[kind.needs]
    return kind(**({"model": model} if "model" in fields else {}), **values)


def _fields(kind: type[Metric]) -> set[str]:
    return {f.name for f in dataclasses.fields(kind)}


def _total(shared: Sequence[MetricResult], results: Sequence[MetricResult]) -> dict[str, float]:
    """Add up what was done: once for the metrics that ran together, and for each of the others."""
    alone = [result for result in results if not any(result is one for one in shared)]
    counted = [*shared[:1], *alone]
    total: dict[str, float] = {}
    for result in counted:
        for key, value in result.counters.items():
            total[key] = total.get(key, 0.0) + value
    if total.get("seconds"):
        total["tokens_per_second"] = total["tokens"] / total["seconds"]
    return total
