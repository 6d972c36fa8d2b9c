"""Evidence from Python: into the user's open MLflow run, or into one of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlflow

from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.interpretation import top_words
from interpreto_mlops.concepts.metrics import evaluate
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.attribution_evidence import check, write_attributions
from interpreto_mlops.tracking.concept_evidence import register_dictionary, training_listener, write_dictionary
from interpreto_mlops.tracking.environment import version_of
from interpreto_mlops.tracking.logged_models import check_name
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.tracking.store import current_store_for

if TYPE_CHECKING:
    from interpreto_mlops.concepts.importance import ConceptImportance


@dataclass(frozen=True)
class LoggedDictionary:
    """A dictionary in MLflow.

    Arguments:
        uri: its pinned address, for `load_dictionary`.
        model_id: of the logged model.
        run_id: of its run.
        name: it was registered by, or None.
        version: of the registered model, or None.
    """

    uri: str
    model_id: str
    run_id: str
    name: str | None = None
    version: str | None = None


def log_attributions(
    explanations: AttributionSet,
    *,
    metrics: Sequence[MetricResult] = (),
    model: TextModel | None = None,
    dataset: TextDataset | None = None,
    run_id: str | None = None,
    run_name: str | None = None,
    new_run: bool = False,
    draw: bool = True,
    shown: int | None = None,
) -> str:
    """Log one method's attributions and their scores to the open MLflow run, which stays open, or to a new run.

    Arguments:
        explanations: of one method.
        metrics: of these explanations.
        model: the explained model; the run then names its content, and its own page in MLflow shows the scores.
        dataset: whose texts they are; by default a data set of just the explained texts.
        run_id: of the run to write to, instead of the open one.
        run_name: of a new run; by default the method's name.
        new_run: whether a run of its own is opened though one is open already; `run_id` is not used then.
        draw: whether pictures are drawn, which takes half of the time.
        shown: texts on the page; by default as many as a browser shows well. The saved scores are of all.

    Returns:
        The id of the run.

    Raises:
        InputError: nothing to log, metrics of another method, or a run that already holds attributions.
        TrackingError: the store fails.
    """
    check(explanations, metrics)
    with opened("attributions", run_name or explanations.method, run_id, new_run=new_run) as log:
        write_attributions(log, explanations, metrics=metrics, model=model, dataset=dataset, draw=draw, shown=shown)
        if log.own:
            log.write_environment()
    return log.run_id


def log_dictionary(
    dictionary: ConceptDictionary,
    *,
    name: str = "dictionary",
    registered_model_name: str | None = None,
    metrics: Mapping[str, float] | None = None,
    importance: ConceptImportance | None = None,
    activations: ActivationSet | None = None,
    model: TextModel | None = None,
    dataset: TextDataset | None = None,
    run_id: str | None = None,
    run_name: str | None = None,
    new_run: bool = False,
    draw: bool = True,
) -> LoggedDictionary:
    """Log a fitted dictionary to the open MLflow run, which stays open, or to a new run; register it last.

    Arguments:
        dictionary: fitted.
        name: of the logged model.
        registered_model_name: makes it the next version of that registered model.
        metrics: by the run schema's keys, such as `reconstruction/r2`.
        importance: of the concepts for the model's classes.
        activations: rows on which metrics are computed, and labels where the dictionary has none yet.
        model: the explained model; by default what the dictionary remembers of it.
        dataset: what the metrics were computed on; by default the data that it was fitted on.
        run_id: of the run to write to, instead of the open one.
        run_name: of a new run; by default the method's name.
        new_run: whether a run of its own is opened though one is open already; `run_id` is not used then.
        draw: whether pictures are drawn, which takes half of the time.

    Raises:
        NotFittedError: the dictionary is not fitted.
        InputError: a name that MLflow cannot register, or a run that already holds a dictionary.
        TrackingError: the store fails.
    """
    dictionary.tensor(next(iter(dictionary.weights), ""))
    if registered_model_name is not None:
        check_name(registered_model_name)
    values = dict(metrics or {})
    if activations is not None:
        values = {**evaluate(dictionary, activations), **values}
        if dictionary.descriptions is None:
            # The labels go into the logged files; the user's own dictionary stays as it is.
            dictionary = copy.copy(dictionary)
            dictionary.descriptions = top_words(dictionary, activations)
    with opened("concepts", run_name or dictionary.name, run_id, new_run=new_run) as log:
        logged = write_dictionary(
            log,
            dictionary,
            name=name,
            metrics=values,
            importance=importance,
            model=model,
            dataset=dataset,
            draw=draw,
        )
        if log.own:
            log.write_environment()
        version = None
        if registered_model_name is not None:
            version = register_dictionary(log.store, logged, dictionary, name=registered_model_name, metrics=values)
    number = None if version is None else str(version.version)
    return LoggedDictionary(logged.uri, logged.model_id, log.run_id, registered_model_name, number)


def live_training(run_ids: Sequence[str] | None = None) -> Callable[[int, Mapping[str, float]], None]:
    """Return a listener for `fit(…, listener=)` and `fit_together` that logs `train/…` metrics while training goes on.

    `log_dictionary` into the same run does not repeat them.

    Arguments:
        run_ids: the run of each dictionary; by default the open MLflow run, for one dictionary.

    Raises:
        InputError: no run is open and none is given.
        TrackingError: the store fails.
    """
    logs = []
    for run_id in run_ids if run_ids is not None else [None]:
        store, found = current_store_for(run_id)
        if found is None:
            raise InputError("no MLflow run is open to log the training to; open one, or give run_ids")
        logs.append(RunLog(store, found, shared_as="concepts"))
    return training_listener(logs)


@contextmanager
def opened(kind: str, name: str, run_id: str | None, *, new_run: bool = False) -> Iterator[RunLog]:
    """Hold the run to write to: that given, else the open one, else a new one, which is closed at the end.

    Raises:
        InputError: the run already holds what is to be written.
        TrackingError: the store fails.
    """
    store, found = current_store_for(run_id)
    if found is not None and not new_run:
        log = RunLog(store, found, shared_as=kind)
        held = held_kinds(log)
        if kind not in held:
            log.tags({schema.TAG_KIND: ",".join([*held, kind]), schema.TAG_VERSION: version_of("interpreto-mlops")})
            with log.gathered():
                yield log
                log.seal()
            return
        # The run of `mlflow run` is taken once; what comes after it gets runs of its own.
        if run_id is not None or mlflow.active_run() is not None:
            raise taken(found, kind)
    with run(store, kind=kind, name=name, gathered=True) as log:
        yield log


def held_kinds(log: RunLog) -> list[str]:
    """Return the kinds of evidence that a run held when it was read."""
    return [each for each in log.found_tags.get(schema.TAG_KIND, "").split(",") if each]


def taken(run_id: str, kind: str) -> InputError:
    """Return the error for a run that already holds what is to be written."""
    return InputError(f"the run {run_id!r} already holds {kind}; one run holds one explanation: open another")
