"""What a run of a concept dictionary holds, the dictionary as a logged model first, and how it is registered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlflow.entities.model_registry import ModelVersion

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.attribution_evidence import summary_table
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.dictionary_card import labels_table
from interpreto_mlops.tracking.dictionary_facts import dictionary_tags, keepable
from interpreto_mlops.tracking.dictionary_flavor import save_model
from interpreto_mlops.tracking.logged_models import LoggedFolder, log_folder, register
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.visuals import concepts_html, figures

if TYPE_CHECKING:
    from interpreto_mlops.concepts.importance import ConceptImportance
    from interpreto_mlops.concepts.metrics import ActivationDensity

_AXES = ("step", "epoch")


def write_dictionary(
    run: RunLog,
    dictionary: ConceptDictionary,
    *,
    name: str = "dictionary",
    metrics: Mapping[str, float] | None = None,
    importance: ConceptImportance | None = None,
    density: ActivationDensity | None = None,
    model: TextModel | None = None,
    dataset: TextDataset | DataReference | None = None,
    draw: bool = True,
) -> LoggedFolder:
    """Write one fitted dictionary into a run: the logged model first, then what is known about it.

    Arguments:
        run: an open run of its own cell.
        dictionary: fitted; its labels (`descriptions`) are shown when it has any.
        name: of the logged model.
        metrics: by the schema's keys, such as `reconstruction/r2`.
        importance: of the concepts for the model's classes.
        density: how often each concept is active.
        model: the explained model; by default what the dictionary's provenance says of it.
        dataset: what the metrics were computed on; by default the data that it was fitted on.
        draw: whether a picture of the training is drawn beside its curves.

    Returns:
        The logged model, to register when the whole run has gone well.

    Raises:
        NotFittedError: the dictionary is not fitted.
        TrackingError: the store fails.
    """
    dictionary = keepable(dictionary)
    fitted = DataReference.from_provenance(dictionary.provenance)
    data = DataReference.of(dataset) if dataset is not None else fitted
    with run.gathered():
        run.params(dictionary_params(dictionary, model))
        run.tags({**dictionary_tags(dictionary), schema.TAG_KIND: None})
    _write_inputs(run, dictionary, fitted, data)
    logged = log_folder(
        run.store,
        name,
        lambda path, entry: save_model(dictionary, path, mlflow_model=entry, metrics=metrics, importance=importance),
        model_type=schema.DICTIONARY_KIND,
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        params=run.logged_params,
        tags=dictionary_tags(dictionary),
    )
    values = dict(metrics or {})
    with run.gathered():
        run.metrics(values, model_id=logged.model_id, dataset=data)
        _write_training(run, dictionary.history_)
        if importance is not None:
            run.params({schema.IMPORTANCE_PARAM: importance.method})
        run.summary(dictionary_summary(dictionary, values))
    if values and (base := _base(dictionary).get("model_id")):
        run.explained(values, str(base), data)
    if draw and len(dictionary.history_) > 1 and _quantities(dictionary.history_):
        run.figure(schema.CONCEPTS_TRAINING_FIGURE, figures.training_figure(dictionary.history_))
    if density is not None:
        run.frame(schema.CONCEPTS_DENSITY, density.to_frame())
        run.figure(schema.CONCEPTS_DENSITY_FIGURE, figures.density_figure(density))
    _write_concepts(run, dictionary, values, importance)
    return logged


def register_dictionary(
    store: Store,
    logged: LoggedFolder,
    dictionary: ConceptDictionary,
    *,
    name: str | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    description: str | None = None,
) -> ModelVersion:
    """Make a logged dictionary the next version of `<base>.<layer>.<method>`: the last step, when all else is written.

    Arguments:
        store: where it was logged.
        logged: what `write_dictionary` returned.
        dictionary: the same dictionary.
        name: of the registered model, instead of the schema's.
        metrics: a few of them, kept as tags of the version.
        tags: more of them.
        description: of the version, instead of what the dictionary is and how good.

    Raises:
        InputError: a name that MLflow cannot register.
        TrackingError: the store fails.
    """
    values = dict(metrics or {})
    scores = {schema.TAG_METRIC + schema.key(key): f"{value:.6g}" for key, value in values.items()}
    return register(
        store,
        logged,
        name or dictionary_name(dictionary),
        tags={**dictionary_tags(dictionary), **scores, **(tags or {})},
        description=description or dictionary_summary(dictionary, values),
    )


def dictionary_name(dictionary: ConceptDictionary) -> str:
    """Return the name that the schema registers a dictionary by."""
    layer = dictionary.provenance.get("layer") or "activations"
    return schema.registered_name(str(_base(dictionary).get("name") or "model"), str(layer), dictionary.name)


def dictionary_params(dictionary: ConceptDictionary, model: TextModel | None = None) -> dict[str, str]:
    """Return the parameters of the run."""
    fixed = {
        "model": model.name if model else _base(dictionary).get("name"),
        "task": model.task if model else None,
        "method": dictionary.name,
        "layer": dictionary.provenance.get("layer"),
        "granularity": dictionary.provenance.get("granularity"),
    }
    return schema.params(fixed, dictionary.parameters)


def dictionary_summary(dictionary: ConceptDictionary, metrics: Mapping[str, float]) -> str:
    """Return a few lines of markdown: what the dictionary is, of what, how good."""
    said = dictionary.provenance
    data: Mapping[str, Any] = said.get("data") or {}
    parts = [f"**{dictionary.n_concepts} concepts** by {schema.markdown(dictionary.name)} (seed {dictionary.seed})"]
    if said.get("layer"):
        parts.append(f"at layer {schema.markdown(said['layer'])}")
    if _base(dictionary).get("name"):
        parts.append(
            f"of {schema.markdown(_base(dictionary)['name'])} ({schema.markdown(_base(dictionary).get('uri'))})"
        )
    if data.get("name"):
        parts.append(
            f"from {said.get('n_rows', '?')} rows of {schema.markdown(data['name'])} ({data.get('n_texts', '?')} texts)"
        )
    text = " ".join(parts) + "."
    return f"{text}\n\n{summary_table(metrics)}" if metrics else text


def _base(dictionary: ConceptDictionary) -> Mapping[str, Any]:
    base: Mapping[str, Any] = dictionary.provenance.get("model") or {}
    return base


def _write_inputs(
    run: RunLog, dictionary: ConceptDictionary, fitted: DataReference | None, data: DataReference | None
) -> None:
    given = {} if fitted is None else {"fitted": fitted}
    if data is not None and (fitted is None or data.digest != fitted.digest):
        given["evaluated"] = data
    if given:
        run.inputs(given)
    if base := _base(dictionary).get("model_id"):
        run.input_model(str(base))


def training_listener(runs: Sequence[RunLog], *, seconds: float = 0.0) -> Callable[[int, Mapping[str, float]], None]:
    """Return what `fit_together(…, listener=)` tells how training goes: each line becomes points of the run's curves.

    Arguments:
        runs: the run of each dictionary, in their order.
        seconds: at least that long after a line, others are passed over: `write_dictionary` writes them at the end.
    """
    due = [-math.inf] * len(runs)

    def tell(place: int, line: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now < due[place]:
            return
        due[place] = now + seconds
        values = {_train_key(name): value for name, value in line.items() if name not in _AXES}
        runs[place].point(values, _step(line, 0))

    return tell


def _train_key(quantity: str) -> str:
    return quantity if quantity.startswith(f"{schema.TRAIN}/") else f"{schema.TRAIN}/{quantity}"


def _write_training(run: RunLog, history: Sequence[Mapping[str, float]]) -> None:
    """Write each quantity of the training as a curve, but for the points that were written while it went on."""
    curves = {
        _train_key(quantity): [
            (_step(line, place), float(line[quantity])) for place, line in enumerate(history) if quantity in line
        ]
        for quantity in _quantities(history)
    }
    there = run.points(curves)
    for key, points in curves.items():
        if missing := [point for point in points if point not in there[key]]:
            run.curve(key, [step for step, _ in missing], [value for _, value in missing])


def _quantities(history: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for line in history for key in line if key not in _AXES))


def _step(point: Mapping[str, float], place: int) -> int:
    return int(next((point[axis] for axis in _AXES if axis in point), place))


def _write_concepts(
    run: RunLog, dictionary: ConceptDictionary, metrics: Mapping[str, float], importance: ConceptImportance | None
) -> None:
    descriptions = dictionary.descriptions or []
    if importance is not None:
        run.frame(schema.CONCEPTS_IMPORTANCE, importance.to_frame())
        run.figure(schema.CONCEPTS_IMPORTANCE_FIGURE, figures.importance_figure(importance, descriptions))
    if descriptions:
        run.table(schema.CONCEPTS_LABELS, labels_table(descriptions))
        title = f"{dictionary.name} at {dictionary.provenance.get('layer', 'a layer')}"
        page = concepts_html.render_page(
            descriptions, importance, title=title, facts=_facts(dictionary), metrics=metrics
        )
        run.text(schema.CONCEPTS_HTML, page)


def _facts(dictionary: ConceptDictionary) -> dict[str, object]:
    said = dictionary.provenance
    data: Mapping[str, Any] = said.get("data") or {}
    found = {
        "model": _base(dictionary).get("name"),
        "layer": said.get("layer"),
        "method": dictionary.name,
        "data set": data.get("name"),
        "granularity": said.get("granularity"),
        "rows": said.get("n_rows"),
        "seed": dictionary.seed,
    }
    return {name: value for name, value in found.items() if value is not None}
