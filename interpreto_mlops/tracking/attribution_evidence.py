"""What a run of an attribution method holds: parameters, scores beside a random ranking, curves, the texts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interpreto_mlops.attributions.metrics.results import Floats, MetricResult
from interpreto_mlops.attributions.results import Attribution, AttributionSet
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.hiding import texts_are_hidden
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.visuals import attributions_html, figures

_TABLE_ROWS = 100
_TABLE_ELEMENTS = 5
_TABLE_CHARACTERS = 300


def write_attributions(
    run: RunLog,
    explanations: AttributionSet,
    *,
    metrics: Sequence[MetricResult] = (),
    model: TextModel | None = None,
    dataset: TextDataset | DataReference | None = None,
    draw: bool = True,
    shown: int | None = None,
) -> None:
    """Write one method's attributions of one data set into a run.

    Arguments:
        run: an open run of its own cell.
        explanations: of one method, at least one text.
        metrics: of these explanations.
        model: the explained model.
        dataset: whose texts they are; by default the texts of the explanations.
        draw: whether pictures are drawn beside the page, which shows the same.
        shown: texts on the page, which says how many are left out; by default as many as a browser shows well.

    Where texts are hidden (`text.hiding.texts_are_hidden`), `explanations.hidden()` is what is written.

    Raises:
        InputError: nothing to write, or metrics of another method.
        TrackingError: the store fails.
    """
    check(explanations, metrics)
    # The digest is that of the texts themselves, whether they are kept or not.
    data = DataReference.of(dataset or TextDataset("texts", tuple(item.text for item in explanations)))
    explanations = keepable(explanations)
    scores = attribution_scores(metrics)
    with run.gathered():
        run.params(attribution_params(explanations, model))
        run.tags({**model_tags(model), schema.TAG_LAYER: explanations.layer})
        run.metrics({**scores, **schema.costs(explanations.counters, explanations.seconds)}, dataset=data)
        _write_curves(run, metrics)
        run.summary(attribution_summary(explanations, metrics, model, data))
    run.input(data, "explained")
    if model is not None and model.model_id is not None:
        run.input_model(model.model_id)
        # Scores of concepts say nothing of what the model puts out.
        if scores and explanations.layer is None:
            run.explained({result.name: result.mean for result in metrics}, model.model_id, data)
    _write_details(run, explanations, metrics, model, data, draw, shown)


def write_details(
    run: RunLog,
    explanations: AttributionSet,
    metrics: Sequence[MetricResult],
    model: TextModel | None,
    data: DataReference,
    *,
    draw: bool = True,
) -> None:
    """Write what is looked at rather than compared: the curves, the page, tables, and figures if they are drawn."""
    with run.gathered():
        _write_curves(run, metrics)
    _write_details(run, explanations, metrics, model, data, draw)


def _write_details(
    run: RunLog,
    explanations: AttributionSet,
    metrics: Sequence[MetricResult],
    model: TextModel | None,
    data: DataReference,
    draw: bool,
    shown: int | None = None,
) -> None:
    _write_artifacts(run, explanations, metrics, model, data, shown)
    if draw:
        _write_figures(run, explanations, metrics)


def keepable(explanations: AttributionSet) -> AttributionSet:
    """Return what may be kept of explanations: all, or no texts where those are hidden."""
    return explanations.hidden() if texts_are_hidden() else explanations


def check(explanations: AttributionSet, metrics: Sequence[MetricResult]) -> None:
    """Refuse what cannot be one run.

    Raises:
        InputError: no explanations, or metrics of another method.
    """
    if not len(explanations):
        raise InputError("there are no explanations to log")
    for result in metrics:
        if result.method != explanations.method:
            other = f"but the explanations are by {explanations.method!r}"
            raise InputError(f"the metric {result.name!r} is of {result.method!r}, {other}")


def attribution_params(explanations: AttributionSet, model: TextModel | None) -> dict[str, str]:
    """Return the parameters of the run."""
    named = {} if model is None else {"model": model.name, "task": model.task}
    return schema.params({**named, "method": explanations.method}, {**explanations.parameters, **_asked(explanations)})


def _asked(explanations: AttributionSet) -> dict[str, str]:
    """Return what was explained, where it was given, and against what: the name, or that there are several."""
    targets = [target for item in explanations for target in item.targets]
    names = {"contrast": {target.contrast_name for target in targets if target.contrast_name is not None}}
    if "targets" in explanations.parameters:
        names["targets"] = {target.name for target in targets}
    return {name: next(iter(found)) if len(found) == 1 else "several" for name, found in names.items() if found}


def attribution_scores(metrics: Iterable[MetricResult]) -> dict[str, float]:
    """Return each metric's mean beside that of random rankings, by the schema's keys."""
    scores: dict[str, float] = {}
    for result in metrics:
        name = schema.metric_key(result.name)
        scores |= {name: result.mean, name + schema.RANDOM: result.random_mean}
    return scores


def model_tags(model: TextModel | None) -> dict[str, str | None]:
    """Return the tags that name the explained model and its content."""
    if model is None:
        return {}
    return {
        schema.TAG_MODEL_URI: model.uri,
        schema.TAG_MODEL_FINGERPRINT: model.fingerprint,
        schema.TAG_MODEL_ID: model.model_id,
    }


def _write_curves(run: RunLog, metrics: Iterable[MetricResult]) -> None:
    for result in metrics:
        name = f"{schema.CURVE}/{result.name.rsplit('/', 1)[-1]}"
        for key, curve in ((name, result.curve), (name + schema.RANDOM, result.random_curve)):
            if curve is not None and len(curve):
                run.curve(key, *_by_percent(curve))


def _by_percent(curve: Floats) -> tuple[list[int], list[float]]:
    """Return whole per cents and values; points of the same per cent become their mean."""
    percent = np.rint(100 * curve[:, 0]).astype(np.int64)
    steps, place = np.unique(percent, return_inverse=True)
    values = np.bincount(place, weights=curve[:, 1]) / np.bincount(place)
    return steps.tolist(), values.tolist()


def _write_artifacts(
    run: RunLog,
    explanations: AttributionSet,
    metrics: Sequence[MetricResult],
    model: TextModel | None,
    data: DataReference,
    shown: int | None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        run.folder(explanations.save(scratch), schema.ATTRIBUTIONS)
    facts = {"data set": data.name} if model is None else {"model": model.name, "data set": data.name}
    if explanations[0].is_hidden:
        facts["texts"] = "hidden; hashes stand for words"
    title = f"{explanations.method} on {data.name}"
    run.text(
        schema.ATTRIBUTIONS_HTML,
        attributions_html.render_page([explanations], title=title, scores=metrics, facts=facts, max_texts=shown),
    )
    run.table(schema.ATTRIBUTIONS_EXAMPLES, attribution_examples(explanations))
    if metrics:
        run.frame(schema.ATTRIBUTIONS_SCORES, _score_frame(explanations, metrics))
        run.dict(schema.ATTRIBUTIONS_METRICS, {result.name: _details(result) for result in metrics})


def _write_figures(run: RunLog, explanations: AttributionSet, metrics: Sequence[MetricResult]) -> None:
    example = _readable(explanations)
    if example.targets:
        run.figure(schema.ATTRIBUTIONS_EXAMPLE, figures.attribution_figure(example))
    if len(example.targets) > 1:
        run.figure(schema.ATTRIBUTIONS_MATRIX, figures.matrix_figure(example))
    if any(result.curve is not None for result in metrics):
        run.figure(schema.ATTRIBUTIONS_CURVES, figures.curves_figure(metrics))


def _readable(explanations: AttributionSet) -> Attribution:
    """Return the text whose number of elements is nearest to what one figure shows well."""
    return min(explanations, key=lambda item: abs(len(item) - 15))


def attribution_examples(explanations: AttributionSet) -> pd.DataFrame:
    """Return the first texts as a table that the UI opens: what speaks most for and against each target."""
    # A text without elements has nothing to rank; the page shows it.
    rows = [_example(item, target) for item in explanations if len(item) for target in range(len(item.targets))]
    return pd.DataFrame(rows[:_TABLE_ROWS])


def _example(item: Attribution, target: int) -> dict[str, Any]:
    order = [place for place in item.ranking(target).tolist() if np.isfinite(item.scores[target, place])]
    first, last = order[:_TABLE_ELEMENTS], order[::-1][:_TABLE_ELEMENTS]
    scores = item.scores[target]
    return {
        "text_index": item.index,
        "text": item.text[:_TABLE_CHARACTERS] + ("…" if len(item.text) > _TABLE_CHARACTERS else ""),
        "target": item.targets[target].name,
        "output": float(item.output[target]),
        "baseline": float(item.baseline_output[target]),
        "speaks for": ", ".join(_scored(item, target, place) for place in first if scores[place] > 0),
        "speaks against": ", ".join(_scored(item, target, place) for place in last if scores[place] < 0),
        "truncated": item.truncated,
    }


def _scored(item: Attribution, target: int, place: int) -> str:
    return f"{item.elements[place]} {item.scores[target, place]:+.3f}"


def _score_frame(explanations: AttributionSet, metrics: Iterable[MetricResult]) -> pd.DataFrame:
    """Return one row a text and metric, by which methods are compared text by text."""
    index = [item.index for item in explanations]
    frames = [
        pd.DataFrame(
            {
                "text_index": index[: len(result.values)],
                "metric": result.name,
                "value": result.values,
                "random": result.random_values,
                "better_than_random": result.better_than_random,
            }
        )
        for result in metrics
    ]
    return pd.concat(frames, ignore_index=True)


def _details(result: MetricResult) -> dict[str, Any]:
    low, high = result.interval()
    return {
        "mean": result.mean,
        "interval_95": [low, high],
        "random_mean": result.random_mean,
        "gain": result.gain,
        "diagnosticity": result.diagnosticity,
        "higher_is_better": result.higher_is_better,
        "texts": len(result.values),
        "skipped": result.skipped,
        "parameters": result.parameters,
        "counters": result.counters,
    }


def attribution_summary(
    explanations: AttributionSet, metrics: Iterable[MetricResult], model: TextModel | None, data: DataReference
) -> str:
    """Return a few lines of markdown: what was explained, and how faithful it is."""
    of = "" if model is None else f" of {schema.markdown(model.name)}"
    cut = f", {explanations.n_truncated} of them cut to the model's length" if explanations.n_truncated else ""
    texts = f"{len(explanations)} texts from {schema.markdown(data.name)}{cut}"
    head = f"**{schema.markdown(explanations.method)}**{of} on {texts}."
    rows = [
        f"| {schema.markdown(result.name)} | {result.mean:.4f} | {result.random_mean:.4f} "
        f"| {'higher' if result.higher_is_better else 'lower'} | {result.n_skipped} |"
        for result in metrics
    ]
    table = ["| metric | value | random ranking | better | texts skipped |", "| --- | --- | --- | --- | --- |", *rows]
    where = "The scored texts are in `attributions/attributions.html`."
    return "\n".join([head, "", *(table if rows else []), "", where])


def summary_table(values: Mapping[str, float]) -> str:
    """Return metrics as a markdown table."""
    rows = [f"| {schema.markdown(name)} | {value:.4f} |" for name, value in values.items()]
    return "\n".join(["| metric | value |", "| --- | --- |", *rows])
