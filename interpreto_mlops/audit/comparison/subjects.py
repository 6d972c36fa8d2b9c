"""What is compared: what an address or the id of a suite names, and what evidence there is of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run

from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.audit.comparison.artifacts import read_artifact, read_importance
from interpreto_mlops.concepts.metrics import METRICS as CONCEPT_METRICS
from interpreto_mlops.errors import InputError, ModelLoadError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.links import experiment_url, logged_model_url, run_url, version_url
from interpreto_mlops.tracking.reading import Explanations, kinds_of, read_explanations, runs_that_explain, search_runs
from interpreto_mlops.tracking.resolving import ResolvedModel, is_model_uri, quoted, resolve
from interpreto_mlops.tracking.store import Store

RUN, SUITE, MODEL, DICTIONARY = "run", "suite", "model", "dictionary"

_RUN = re.compile(r"^runs:/(?P<run>[0-9a-f]{32})/?$")
_TOKEN_ID = re.compile(r":\d+$")
_EXPLAINED = "explained"
_EVIDENCE = ("attributions", "concepts")
_CONTEXT = "mlflow.data.context"
_FINISHED = "FINISHED"
# How exact the arithmetic is and which numbers are drawn does not make another method.
_NOT_COMPARED = ("seed", "dtype")
_DRAWN = (*_NOT_COMPARED, "n_random")
_SHORT = 8
_CONCEPT_GROUPS = {name.split("/")[0] for name in CONCEPT_METRICS.names()}
_DICTIONARY_PARAMS = ("granularity", "aggregation", "n_concepts", "seed")


@dataclass(frozen=True)
class Subject:
    """One thing that is compared.

    Arguments:
        label: what it is called in the comparison; no other subject has it.
        given: the address or suite as it was given.
        pinned: what it means now.
        kind: `run`, `suite`, `model` or `dictionary`.
        link: its page in the UI.
        runs: the runs that hold its evidence, oldest first.
        model: the model or dictionary, where it is one.
        remarks: what to know of its runs; sentences that go on after its label.
    """

    label: str
    given: str
    pinned: str
    kind: str
    link: str
    runs: tuple[Run, ...] = field(repr=False)
    model: ResolvedModel | None = field(default=None, repr=False)
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        ids = [str(run.info.run_id) for run in self.runs]
        named = ("label", "given", "pinned", "kind", "link")
        return {**{name: getattr(self, name) for name in named}, "runs": ids}


@dataclass(frozen=True)
class AttributionEvidence:
    """The attributions of one method in one run.

    Arguments:
        subject: whose they are.
        run_id, link: of the run.
        method: registry name.
        settings: what the method was asked for, as text.
        data_name, digest: of the explained data, where exactly one data set is named.
        explanations: of all texts.
        scores: as `read_explanations` returns them.
        metric_settings: what each metric was asked for, as text; number and seed of random rankings left out.
    """

    subject: str
    run_id: str
    link: str
    method: str
    settings: Mapping[str, str]
    data_name: str | None
    digest: str | None
    explanations: AttributionSet = field(repr=False)
    scores: pd.DataFrame = field(repr=False)
    metric_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ConceptEvidence:
    """One dictionary with what its run holds of it.

    Arguments:
        subject: whose it is.
        run_id, link: of the run, where there is one.
        method: registry name of the family.
        layer: module path.
        settings: its parameters, as text.
        uri: of the dictionary.
        metrics: one number each.
        importance_method: by which the importance of its concepts was found, or None.
        digest: of the data that the metrics and importance are of.
        read_importance: fetches the importance of its concepts for classes, or None.
    """

    subject: str
    run_id: str | None
    link: str | None
    method: str
    layer: str
    settings: Mapping[str, str]
    uri: str
    metrics: Mapping[str, float]
    importance_method: str | None
    digest: str | None
    read_importance: Callable[[], pd.DataFrame | None] = field(repr=False, compare=False)

    @cached_property
    def importance(self) -> pd.DataFrame | None:
        """A frame with `class`, `concept`, `importance` and `share`, or None."""
        return self.read_importance()


def subjects_of(store: Store, uris: Sequence[str]) -> list[Subject]:
    """Return what addresses or suites name, each under a label of its own.

    Arguments:
        store: where they are.
        uris: `runs:/<run id>`, `models:/…`, `suite:<id>` or the id of a suite.

    Raises:
        InputError: fewer than two, or dictionaries beside models.
        ModelLoadError: there is no such run or model.
        TrackingError: the store fails.
    """
    if len(uris) < 2:
        given = f"only {uris[0]!r}" if uris else "nothing"
        raise InputError(f"a comparison needs at least two addresses, and {given} was given; add another one")
    found = [_subject(store, uri) for uri in uris]
    kinds = {subject.kind: subject.given for subject in found}
    if {MODEL, DICTIONARY} <= kinds.keys():
        raise InputError(
            f"{kinds[DICTIONARY]!r} is a dictionary and {kinds[MODEL]!r} is a model; compare dictionaries with "
            "dictionaries, and models with models"
        )
    return _told_apart(found)


def _subject(store: Store, uri: str) -> Subject:
    if match := _RUN.match(uri):
        return _of_run(store, uri, match["run"])
    if not is_model_uri(uri):
        return _of_suite(store, uri, uri.removeprefix("suite:"))
    found = resolve(store, uri)
    tags = _tags(store, found)
    link = _model_link(store, found)
    short = f"{found.name} v{found.version}" if found.version else f"{found.name} {(found.model_id or '')[:10]}".strip()
    if tags.get(schema.TAG_KIND) == schema.DICTIONARY_KIND:
        made = None if found.run_id is None else _run(store, found.run_id)
        return Subject(short, uri, found.uri, DICTIONARY, link, () if made is None else (made,), found)
    runs, remarks = _finished(runs_that_explain(store, found, _EVIDENCE))
    return Subject(short, uri, found.uri, MODEL, link, runs, found, remarks)


def _of_run(store: Store, uri: str, run_id: str) -> Subject:
    run = _run(store, run_id)
    if run is None:
        raise ModelLoadError(f"there is no run {run_id!r} at {store.shown!r}; `mlflow runs list` shows those there are")
    label = f"{run.info.run_name} {run_id[:_SHORT]}"
    said = f"the run is {run.info.status}, not {_FINISHED}, and may hold only a part of its evidence"
    remarks = () if run.info.status == _FINISHED else (said,)
    return Subject(label, uri, f"runs:/{run_id}", RUN, _run_link(store, run), (run,), remarks=remarks)


def _of_suite(store: Store, uri: str, suite: str) -> Subject:
    held: list[Run] = []
    # What MLflow's search cannot quote is no suite of ours.
    if suite and not ("'" in suite and '"' in suite):
        held = sorted(search_runs(store, f"tags.`{schema.TAG_SUITE}` = {quoted(suite)}"), key=_age)
    if not held:
        raise InputError(
            f"there is no suite {suite!r} at {store.shown!r}; give runs:/<run id>, the value of a run's tag "
            f"{schema.TAG_SUITE!r}, or a model such as models:/name/3"
        )
    runs, remarks = _finished(held)
    link = experiment_url(store, str(held[0].info.experiment_id))
    return Subject(suite, uri, f"suite:{suite}", SUITE, link, runs, remarks=remarks)


def _finished(runs: Iterable[Run]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """Return the runs that are complete, and say what was left out; who was killed stays RUNNING for ever."""
    every = list(runs)
    others = Counter(str(run.info.status) for run in every if run.info.status != _FINISHED)
    kept = tuple(run for run in every if run.info.status == _FINISHED)
    if not others:
        return kept, ()
    said = ", ".join(f"{count} {status}" for status, count in sorted(others.items()))
    return kept, (f"runs that are not finished were left out ({said}); name one as runs:/<run id> to compare it",)


def _told_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """Give subjects of one name numbers."""
    labels: list[str] = []
    for subject in subjects:
        again = [subject.label, *(f"{subject.label} ({number})" for number in range(2, len(subjects) + 2))]
        labels.append(next(label for label in again if label not in labels))
    return [Subject(**{**vars(each), "label": label}) for each, label in zip(subjects, labels, strict=True)]


def _run(store: Store, run_id: str) -> Run | None:
    run = store.if_there(f"read the run {run_id!r}", lambda: store.client.get_run(run_id))
    return None if run is None or run.info.lifecycle_stage == "deleted" else run


def _tags(store: Store, found: ResolvedModel) -> Mapping[str, str]:
    tags: dict[str, str] = {}
    if (model_id := found.model_id) is not None:
        logged = store.if_there("read a logged model", lambda: store.client.get_logged_model(model_id))
        tags |= {} if logged is None else dict(logged.tags)
    if (version := found.version) is not None:
        with store.guarded("read a version"):
            tags |= dict(store.client.get_model_version(found.name, version).tags)
    return tags


def _model_link(store: Store, found: ResolvedModel) -> str:
    if found.version is not None:
        return version_url(store, found.name, found.version)
    if (model_id := found.model_id) is None:
        return ""
    logged = store.if_there("read a logged model", lambda: store.client.get_logged_model(model_id))
    if logged is None:
        return ""
    return logged_model_url(replace(store, experiment_id=str(logged.experiment_id)), model_id)


def _run_link(store: Store, run: Run) -> str:
    return run_url(store, str(run.info.run_id), str(run.info.experiment_id))


def _age(run: Run) -> tuple[int, str]:
    return int(run.info.start_time), str(run.info.run_id)


def attributions_of(store: Store, subject: Subject) -> list[AttributionEvidence]:
    """Return the attributions of a subject, the newest first; of runs that are the same but for their age the newest.

    Raises:
        DataError: they cannot be read.
        TrackingError: the store fails.
    """
    found: list[AttributionEvidence] = []
    seen: set[str] = set()
    for run in reversed(subject.runs):
        if "attributions" not in kinds_of(run):
            continue
        same = json.dumps([dict(run.data.params), _data_of(run)], sort_keys=True)
        # A run without its method among the parameters holds several, or belongs to somebody else.
        if same in seen and "method" in run.data.params:
            continue
        held = list(_attributions(store, subject, run))
        if held:
            seen.add(same)
        found += held
    return found


def _attributions(store: Store, subject: Subject, run: Run) -> Iterable[AttributionEvidence]:
    name, digest = _data_of(run)
    run_id = str(run.info.run_id)
    every = read_explanations(store, run_id)
    for each in every:
        explanations = each.explanations
        if len(explanations):
            yield AttributionEvidence(
                subject.label,
                run_id,
                _run_link(store, run),
                explanations.method,
                settings_of(explanations.parameters),
                name,
                digest,
                explanations,
                each.scores,
                _metric_settings(store, run_id, each, alone=len(every) == 1) if len(each.scores) else {},
            )


def _metric_settings(store: Store, run_id: str, read: Explanations, *, alone: bool) -> dict[str, dict[str, str]]:
    places = [schema.artifact_of_part(schema.ATTRIBUTIONS_METRICS, read.label)]
    places = [schema.ATTRIBUTIONS_METRICS, *places] if alone or read.label == read.explanations.method else places
    for place in places:
        found = read_artifact(store, run_id, place, _settings_of_metrics)
        if found is not None:
            return found
    return {}


def _settings_of_metrics(file: Path) -> dict[str, dict[str, str]]:
    return {
        name: {key: schema.param_text(value) for key, value in said["parameters"].items() if key not in _DRAWN}
        for name, said in json.loads(file.read_text(encoding="utf-8")).items()
    }


def settings_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return what makes two uses of a method the same: all parameters but seed and precision.

    A replacement token counts by its name: `mask` has another id in another vocabulary.
    """
    named = {name: schema.param_text(value) for name, value in parameters.items() if name not in _NOT_COMPARED}
    if "replacement" in named:
        named["replacement"] = _TOKEN_ID.sub("", named["replacement"])
    return named


def _data_of(run: Run, context: str = _EXPLAINED) -> tuple[str | None, str | None]:
    given = run.inputs.dataset_inputs if run.inputs else []
    found = [each.dataset for each in given if any(tag.key == _CONTEXT and tag.value == context for tag in each.tags)]
    return (str(found[0].name), str(found[0].digest)) if len(found) == 1 else (None, None)


def concepts_of(store: Store, subject: Subject) -> list[ConceptEvidence]:
    """Return the dictionaries of a subject, the newest first.

    Raises:
        TrackingError: the store fails.
    """
    if subject.kind == DICTIONARY and subject.model is not None:
        run = subject.runs[0] if subject.runs else None
        found = _concepts(store, subject, run, subject.model.model_id, subject.pinned)
        return [] if found is None else [found]
    every = []
    for run in reversed(subject.runs):
        if "concepts" not in kinds_of(run):
            continue
        outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        every += [_concepts(store, subject, run, str(model_id), f"models:/{model_id}") for model_id in outputs]
    return [each for each in every if each is not None]


def _concepts(
    store: Store, subject: Subject, run: Run | None, model_id: str | None, uri: str
) -> ConceptEvidence | None:
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}
    params: dict[str, str] = {} if run is None else dict(run.data.params)
    if model_id is not None:
        logged = store.if_there("read a logged model", lambda: store.client.get_logged_model(model_id))
        if logged is not None:
            tags = dict(logged.tags)
            params = dict(logged.params) or params
            metrics = {each.key: float(each.value) for each in sorted(logged.metrics or [], key=lambda m: m.timestamp)}
    if subject.model is not None and subject.kind == DICTIONARY:
        tags = {**tags, **_tags(store, subject.model)}
    if tags.get(schema.TAG_KIND) != schema.DICTIONARY_KIND:
        return None
    if not metrics and run is not None:
        metrics = dict(run.data.metrics)
    return ConceptEvidence(
        subject.label,
        None if run is None else str(run.info.run_id),
        None if run is None else _run_link(store, run),
        tags.get(schema.TAG_METHOD, "dictionary"),
        tags.get(schema.TAG_LAYER, ""),
        _dictionary_settings(params),
        uri,
        {name: value for name, value in metrics.items() if name.split("/")[0] in _CONCEPT_GROUPS},
        None if run is None else run.data.params.get(schema.IMPORTANCE_PARAM),
        None if run is None else (_data_of(run, "evaluated")[1] or _data_of(run, "fitted")[1]),
        lambda: None if run is None else read_importance(store, str(run.info.run_id)),
    )


def _dictionary_settings(params: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in params.items()
        if (name in _DICTIONARY_PARAMS or name.startswith(schema.METHOD_PARAM)) and name != schema.IMPORTANCE_PARAM
    }
