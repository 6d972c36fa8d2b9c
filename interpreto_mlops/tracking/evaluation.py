"""What the evaluator plug-in does: explains the evaluated model, scores the explanations, logs to evaluate()'s run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from mlflow.models.evaluation import EvaluationArtifact, EvaluationDataset, EvaluationResult
from mlflow.models.evaluation.artifacts import JsonEvaluationArtifact, TextEvaluationArtifact
from mlflow.pyfunc import PyFuncModel

from interpreto_mlops.attributions import METHODS, AttributionSet, Attributor
from interpreto_mlops.attributions.metrics import METRICS, Metric, MetricResult, evaluate
from interpreto_mlops.errors import InputError, ModelLoadError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.observers import unobserved
from interpreto_mlops.registry import check_options, parameters_of
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.attribution_evidence import (
    attribution_examples,
    attribution_params,
    attribution_scores,
    attribution_summary,
    keepable,
    model_tags,
    write_details,
)
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.evaluator_config import EvaluatorConfig, parse_config
from interpreto_mlops.tracking.evidence import held_kinds, opened, taken
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.resolving import ResolvedModel, resolve
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.tracking.store import Store, current_store
from interpreto_mlops.tracking.wrapped_models import network_in
from interpreto_mlops.visuals import attributions_html

_KIND = "attributions"


@dataclass(frozen=True)
class _Explained:
    """One method's explanations and their scores, by `part`: the method's name where there are several."""

    part: str | None
    explanations: AttributionSet
    scores: list[MetricResult]


def evaluate_model(
    model: PyFuncModel | None,
    dataset: EvaluationDataset,
    *,
    run_id: str,
    model_id: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Explain the model on the texts of a data set, and log to a run; arguments as for `InterpretoEvaluator.evaluate`.

    Raises:
        InputError: a key or value that the configuration cannot have, no texts, no transformers model, or a run that
            already holds attributions.
        TrackingError: the store fails.
    """
    chosen = parse_config(config)
    _check_names(chosen)
    texts = texts_of(dataset, chosen.text_column)
    store = current_store()
    if _KIND in held_kinds(RunLog(store, run_id, shared_as=_KIND)):
        raise taken(run_id, _KIND)
    explained_model = find_text_model(store, model)
    with unobserved(), explained_model.engine.shared_table():
        found = [_explain(explained_model, name, texts[: chosen.max_texts], chosen) for name in chosen.methods]
    data = _reference(dataset, texts)
    found = [replace(each, explanations=keepable(each.explanations)) for each in found]
    with opened(_KIND, "evaluation", run_id) as log:
        scores = _write(log, found, explained_model, data, chosen, linked_by_mlflow=model_id)
    return _result(scores, run_id)


def _check_names(config: EvaluatorConfig) -> None:
    """Refuse names and parameters that there are not, before anything is loaded."""
    methods = {name: METHODS.get(name) for name in config.methods}
    metrics = {name: METRICS.get(name) for name in config.metrics}
    for name, kind in metrics.items():
        if kind.needs == "rationales":
            raise InputError(f"the metric {name!r} needs rationales, which an evaluation of a model does not have")
    kinds: dict[str, Any] = {**methods, **metrics}
    for name, options in config.options.items():
        if name not in kinds:
            raise UnknownNameError("method or metric in options", name, kinds)
        check_options(kinds[name], name, options)


def texts_of(dataset: EvaluationDataset, column: str | int | None = None) -> list[str]:
    """Return the texts of a data set, a missing one as an empty string.

    Arguments:
        dataset: as MLflow gives it to an evaluator.
        column: the name of the texts' column; by default the only one of strings.

    Raises:
        InputError: no such column, none or several of strings, or no texts.
    """
    features = dataset.features_data
    frame = features if isinstance(features, pd.DataFrame) else pd.DataFrame(features, columns=dataset.feature_names)
    names = list(frame.columns)
    if column is None:
        strings = [name for name in names if _is_text(frame[name])]
        if len(strings) != 1:
            what = "no column of texts" if not strings else f"several columns of texts, {strings!r}"
            raise InputError(f"the data have {what}; name one of {names!r} as 'text_column' in the evaluator_config")
        (column,) = strings
    if column not in names:
        raise UnknownNameError("text_column", column, names)
    if not _is_text(frame[column]):
        raise InputError(f"the column {column!r} does not hold texts, or none that is not missing; there is {names!r}")
    return [value if isinstance(value, str) else "" for value in frame[column]]


def _is_text(values: pd.Series[Any]) -> bool:
    there = values[~values.isna()]
    return len(there) > 0 and all(isinstance(value, str) for value in there)


def find_text_model(store: Store, model: PyFuncModel | None) -> TextModel:
    """Return the transformers model behind a pyfunc model, pinned where it is a logged model.

    Arguments:
        store: where logged models are.
        model: as MLflow gives it to an evaluator: of the transformers flavor, or with a pipeline, or a network and its
            tokenizer, among its attributes.

    Raises:
        InputError: there is none, or there are several.
        IntegrityError: the logged model was changed.
        TrackingError: the store fails.
    """
    if model is None:
        raise InputError("the evaluator 'interpreto' explains a model, and evaluate() was given none: give its address")
    metadata: Any = getattr(model, "metadata", None)
    model_id: str | None = getattr(metadata, "model_id", None)
    found = None if model_id is None else _resolved(store, f"models:/{model_id}")
    if found is not None and "transformers" in metadata.flavors:
        return load_model(found.uri, store=store)
    try:
        network, tokenizer = network_in(model, repr("given" if found is None else found.uri))
    except ModelLoadError as error:
        raise InputError(f"the evaluator 'interpreto' cannot explain the evaluated model: {error}") from error
    if found is None:
        return TextModel(network, tokenizer)
    return TextModel(network, tokenizer, name=found.name, uri=found.uri, model_id=found.model_id)


def _resolved(store: Store, uri: str) -> ResolvedModel | None:
    """Return a logged model, or None where it is not in this store: then what is in memory came from elsewhere."""
    try:
        return resolve(store, uri)
    except ModelLoadError:
        return None


def _explain(model: TextModel, name: str, texts: Sequence[str], config: EvaluatorConfig) -> _Explained:
    common = {
        "granularity": config.granularity,
        "inference_mode": config.inference_mode,
        "replacement": config.replacement,
        "seed": config.seed,
    }
    scoring = {"replacement": config.replacement, "n_random": config.n_random, "seed": config.seed}
    method: Attributor = METHODS.get(name)(model, **_parameters(METHODS.get(name), name, common, config))
    explanations = method(texts, config.target, truncation=config.truncation)
    if not any(len(item) for item in explanations):
        raise InputError(f"none of the {len(texts)} texts has anything to attribute")
    metrics = [
        _metric(METRICS.get(each), method, _parameters(METRICS.get(each), each, scoring, config))
        for each in config.metrics
    ]
    scores = evaluate(explanations, model, metrics) if metrics else {}
    return _Explained(name if len(config.methods) > 1 else None, explanations, list(scores.values()))


def _parameters(kind: Any, name: str, common: Mapping[str, Any], config: EvaluatorConfig) -> dict[str, Any]:
    known = parameters_of(kind)
    return {**{key: value for key, value in common.items() if key in known}, **config.options.get(name, {})}


def _metric(kind: type[Metric], method: Attributor, parameters: Mapping[str, Any]) -> Metric:
    given = {"model": method.model} if "model" in kind.__dataclass_fields__ else {}
    explainer = {"explainer": method} if kind.needs == "explainer" else {}
    return kind(**given, **explainer, **parameters)


def _reference(dataset: EvaluationDataset, texts: Sequence[str]) -> DataReference:
    """Return the data set as MLflow names it in the run's inputs, so that our metrics are of the same one."""
    if dataset.digest is None:
        return DataReference.of(TextDataset(dataset.name, tuple(texts)))
    return DataReference(dataset.name, dataset.digest, rows=len(texts))


def _write(
    log: RunLog,
    found: Sequence[_Explained],
    model: TextModel,
    data: DataReference,
    config: EvaluatorConfig,
    *,
    linked_by_mlflow: str | None,
) -> dict[str, float]:
    """Write everything; return the metrics, which MLflow logs itself where it links them to a model."""
    with log.gathered():
        log.params(_params(found, model, config))
        log.tags(model_tags(model))
    if model.model_id is not None and model.model_id != linked_by_mlflow:
        log.input_model(model.model_id)
    scores, costs, summary = _scores(found)
    linked = model.model_id is not None and log.explained(summary, model.model_id, data)
    if linked_by_mlflow is None:
        log.metrics(scores, model_id=model.model_id if linked else None, dataset=data)
    log.metrics(costs, dataset=data)
    for each in found:
        place = log if each.part is None else log.part(each.part)
        write_details(place, each.explanations, each.scores, model, data)
    if len(found) > 1:
        _write_together(log, found, model, data)
    texts = [attribution_summary(each.explanations, each.scores, model, data) for each in found]
    log.summary("\n\n".join(texts))
    return scores


def _scores(found: Sequence[_Explained]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Return the metrics, the costs, and the means that are shown on the explained model's page."""
    scores: dict[str, float] = {}
    costs: dict[str, float] = {}
    summary: dict[str, float] = {}
    for each in found:
        own = attribution_scores(each.scores)
        spent = schema.costs(each.explanations.counters, each.explanations.seconds)
        scores |= {schema.metric_of_part(key, each.part): value for key, value in own.items()}
        costs |= {schema.metric_of_part(key, each.part): value for key, value in spent.items()}
        head = "" if each.part is None else f"{each.part}-"
        summary |= {head + result.name.rsplit("/", 1)[-1]: result.mean for result in each.scores}
    return scores, costs, summary


def _params(found: Sequence[_Explained], model: TextModel, config: EvaluatorConfig) -> dict[str, str]:
    cut = {} if config.max_texts is None else {"max_texts": config.max_texts}
    if len(found) == 1:
        return {**attribution_params(found[0].explanations, model), **schema.params({}, cut)}
    shared = {
        "model": model.name,
        "task": model.task,
        "method": ", ".join(config.methods),
        "granularity": config.granularity,
        "inference_mode": config.inference_mode,
        "seed": config.seed,
    }
    own = {
        f"{each.part}.{name}": value
        for each in found
        for name, value in each.explanations.parameters.items()
        if name not in shared
    }
    return schema.params(shared, {**own, **cut})


def _write_together(log: RunLog, found: Sequence[_Explained], model: TextModel, data: DataReference) -> None:
    sets = [each.explanations for each in found]
    page = attributions_html.render_page(
        sets,
        title=f"{', '.join(each.method for each in sets)} on {data.name}",
        scores=[result for each in found for result in each.scores],
        facts={"model": model.name, "data set": data.name},
    )
    log.text(schema.ATTRIBUTIONS_HTML, page)
    frames = [attribution_examples(each).assign(method=each.method) for each in sets]
    log.table(schema.ATTRIBUTIONS_EXAMPLES, pd.concat(frames, ignore_index=True))


def _result(scores: dict[str, float], run_id: str) -> EvaluationResult:
    """Return what MLflow's evaluation returns, in its own untyped classes."""
    text: Callable[..., EvaluationArtifact] = TextEvaluationArtifact
    table: Callable[..., EvaluationArtifact] = JsonEvaluationArtifact
    made: Callable[..., EvaluationResult] = EvaluationResult
    artifacts = {
        "attributions": text(uri=f"runs:/{run_id}/{schema.ATTRIBUTIONS_HTML}"),
        "examples": table(uri=f"runs:/{run_id}/{schema.ATTRIBUTIONS_EXAMPLES}"),
    }
    for artifact in artifacts.values():
        # MLflow's `EvaluationResult.save` writes only what has been read.
        _ = artifact.content
    return made(scores, artifacts, run_id)
