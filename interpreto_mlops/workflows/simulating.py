"""Simulatability of a stored explanation: how much its concepts, or its words, help to say what the model says."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Run

from interpreto_mlops.attributions import AttributionSet, attribution_study
from interpreto_mlops.attributions.simulation import NAME as ATTRIBUTIONS
from interpreto_mlops.concepts import ConceptDictionary, TopKInputs, concept_study, top_words
from interpreto_mlops.concepts.interpretation.llm_labels import WORD_ROWS
from interpreto_mlops.concepts.simulation import NAME as CONSIM
from interpreto_mlops.errors import DataError, InputError, ModelLoadError
from interpreto_mlops.llm import Estimate, Questioner
from interpreto_mlops.llm.simulation import Simulation, SimulationResult, Study
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.hiding import hiding_texts, texts_are_hidden
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.reading import read_explanations
from interpreto_mlops.tracking.runs import run
from interpreto_mlops.tracking.simulation_evidence import write_simulation
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.workflows.asking import (
    question_costs,
    questioner,
    totals_line,
    trace_into,
    write_questions,
)
from interpreto_mlops.workflows.cataloguing import catalogued, take_over
from interpreto_mlops.workflows.job import DEFAULT_STORE, Console, new_suite, plain
from interpreto_mlops.workflows.meaning_recipes import ConsimRecipe
from interpreto_mlops.workflows.studied import Studied, studied, texts_of

_RUN = re.compile(r"^runs:/(?P<run>[0-9a-f]{32})/?$")


@dataclass
class Simulated:
    """What a simulation led to.

    Arguments:
        store: where it is.
        run_id: of its run; empty where only an estimate was made.
        results: by what explained.
        estimate: what asking would take, where that was all that was wanted.
    """

    store: Store
    run_id: str = ""
    results: Mapping[str, SimulationResult] = field(default_factory=dict)
    estimate: Estimate | None = None


@dataclass(frozen=True)
class _Explained:
    """What is simulated, and where it is from.

    Arguments:
        uri: of the dictionary or of the run, pinned.
        tags, params: of the run that is written.
        model_id: of the logged dictionary, or None.
        studies: what the reader is asked about, by what explained.
        score: the name of the score.
    """

    uri: str
    tags: dict[str, str | None]
    params: dict[str, Any]
    model_id: str | None
    studies: Mapping[str, Study]
    score: str


def simulate(
    recipe: ConsimRecipe, *, command: str, console: Console | None = None, estimate_only: bool = False
) -> Simulated:
    """Ask a reader what a classifier says of texts, without and with its stored explanation, and log the scores.

    Arguments:
        recipe: what to do.
        command: what repeats it, for the record.
        console: where to report; by default nowhere.
        estimate_only: whether questions are only counted: nothing is asked, and nothing is written.

    Raises:
        InterpretoError: whatever stops it; a run that had begun is then marked FAILED.
        LanguageModelError: none of the questions has an answer.
    """
    console = console or Console(quiet=True)
    with hiding_texts(recipe.hide_texts):
        texts_are_hidden()  # What the environment says of it must be readable.
        recipe.check()
        simulation = Simulation(**recipe.simulation)
        store = connect(recipe.tracking_uri, recipe.experiment, default=DEFAULT_STORE)
        texts = None if recipe.data is None else texts_of(recipe, recipe.data)
        asker = questioner(recipe.llm, console, estimate_only=estimate_only)
        explained = (_run if _RUN.match(recipe.subject) else _dictionary)(store, recipe, texts, console)
        # What cannot be asked is refused here, before a run begins.
        prompts = [each for study in explained.studies.values() for each in simulation.prompts(study)]
        if estimate_only:
            return Simulated(store, estimate=asker.estimate(prompts))
        with catalogued(store, console, recipe.catalogue_uri, wanted=recipe.catalogue) as keeper:
            done = _carry_out(store, recipe, texts, explained, asker, command, console)
            take_over(keeper, console, [(done.run_id, None)])
        return done


def _dictionary(store: Store, recipe: ConsimRecipe, texts: TextDataset | None, console: Console) -> _Explained:
    if texts is None:
        raise InputError("concepts are simulated on texts: say which, by 'data'")
    with console.stage("model"):
        subject = studied(store, recipe.subject, base_model=recipe.base_model)
    dictionary, opposed = _readable(subject, texts, console)
    with console.stage("explanation"):
        study = concept_study(subject.split, dictionary, texts, opposed=opposed, method=recipe.importance)
    base = subject.model
    tags = {
        schema.TAG_MODEL_URI: base.uri,
        schema.TAG_MODEL_FINGERPRINT: base.fingerprint,
        schema.TAG_MODEL_ID: base.model_id,
        schema.TAG_LAYER: subject.layer,
        schema.TAG_METHOD: dictionary.name,
    }
    params = {"model": base.name, "task": base.task, "method": dictionary.name, "layer": subject.layer}
    return _Explained(subject.found.uri, tags, params, subject.found.model_id, {dictionary.name: study}, CONSIM)


def _readable(subject: Studied, texts: TextDataset, console: Console) -> tuple[ConceptDictionary, dict[int, list[str]]]:
    """Return the dictionary with names that can be read, and the words at the other end of signed concepts.

    Both are of these texts where the dictionary has none. A concept that was given a name has no other end to show.
    """
    dictionary, told = copy.copy(subject.dictionary), subject.dictionary.descriptions
    if told is not None and any(each.hidden_label is not None for each in told):
        told = None
    has_ends = dictionary.signed and dictionary.provenance.get("granularity", "token") in WORD_ROWS
    if told is not None and not has_ends:
        return dictionary, {}
    with console.stage("activations"):
        activations = subject.activations(texts, progress=console.progress)
        dictionary.descriptions = top_words(dictionary, activations) if told is None else told
        unnamed = [each.concept for each in dictionary.descriptions if each.given is None] if has_ends else []
        ends = TopKInputs(k=5, unit="word", bottom=True)(dictionary, activations, concepts=unnamed) if unnamed else ()
    return dictionary, {each.concept: [example.word.lower() for example in each.examples] for each in ends}


def _run(store: Store, recipe: ConsimRecipe, texts: TextDataset | None, console: Console) -> _Explained:
    match = _RUN.match(recipe.subject)
    assert match is not None
    run_id = match["run"]
    with store.guarded(f"read the run {run_id!r}"):
        source = store.client.get_run(run_id)
    parts = read_explanations(store, run_id)
    if not parts:
        raise DataError(f"the run {run_id!r} holds no attributions")
    studies, classes = {}, _classes_of(store, source, recipe)
    for each in parts:
        labels = _labels_of(each.explanations, texts)
        studies[each.label] = attribution_study(
            each.explanations, classes=classes, labels=labels, n_words=recipe.n_words
        )
    named = (schema.TAG_MODEL_URI, schema.TAG_MODEL_FINGERPRINT, schema.TAG_MODEL_ID)
    tags = {name: source.data.tags.get(name) for name in named}
    params = {name: source.data.params.get(name) for name in ("model", "task", "method")}
    return _Explained(recipe.subject, {**tags, schema.TAG_SOURCE_RUN: run_id}, params, None, studies, ATTRIBUTIONS)


def _classes_of(store: Store, source: Run, recipe: ConsimRecipe) -> tuple[str, ...] | None:
    """Return all classes of the explained model, or None where it is gone: then those that it says are all known."""
    uri = recipe.base_model or source.data.tags.get(schema.TAG_MODEL_URI)
    if uri is None:
        return None
    try:
        return tuple(load_model(uri, store=store).labels) or None
    except ModelLoadError:
        if recipe.base_model is not None:
            raise
        return None


def _labels_of(explanations: AttributionSet, texts: TextDataset | None) -> list[str] | None:
    """Return the right class of each explained text, where the texts are given with labels.

    Raises:
        InputError: texts that are not those that were explained.
    """
    if texts is None or any(item.is_hidden for item in explanations):
        return None
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts.texts):
        places.setdefault(text, []).append(place)
    missing = [item.index for item in explanations if item.text not in places]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(explanations)} explained texts are not among those of {texts.name!r}, the "
            f"first is number {missing[0]}; give the data that the run explained"
        )
    if texts.labels is None:
        return None
    # A text that is there several times may have several labels: its own is that of its place.
    own = [item.index if item.index in places[item.text] else places[item.text][0] for item in explanations]
    return [texts.labels[place] for place in own]


def _carry_out(
    store: Store,
    recipe: ConsimRecipe,
    texts: TextDataset | None,
    explained: _Explained,
    asker: Questioner,
    command: str,
    console: Console,
) -> Simulated:
    fixed = {**explained.params, "subject": explained.uri, "language_model": asker.model.name}
    cell = {"subject": explained.uri, "data": None if texts is None else texts.digest, **recipe.simulation}
    cell |= {"importance": recipe.importance, "n_words": recipe.n_words}
    with run(
        store,
        kind="simulatability",
        name=f"simulatability of {explained.uri}",
        suite=new_suite("consim"),
        cell=schema.cell_hash({**cell, "language_model": asker.model.name}),
        tags={schema.TAG_COMMAND: command, **explained.tags},
        params=schema.params(fixed, {**recipe.simulation, "importance": recipe.importance}),
    ) as log:
        trace_into(log, recipe.llm, asker)
        with console.stage("simulation"):
            try:
                simulation = Simulation(**recipe.simulation)
                results = {
                    name: simulation.run(study, asker, name=explained.score)
                    for name, study in explained.studies.items()
                }
            finally:
                console.say(f"  {totals_line(asker)}")
        if texts is not None:
            log.input(texts, "simulated")
        facts = {"explanation": explained.uri, "reader": asker.model.name}
        facts |= {} if texts is None else {"data set": f"{texts.name} ({len(texts)} texts)"}
        write_simulation(
            log,
            results,
            facts=facts,
            title=f"Simulatability of {explained.uri}",
            model_id=explained.model_id,
            dataset=texts,
        )
        write_questions(log, asker)
        log.metrics(question_costs(asker))
        log.write_recipe(plain(recipe))
        log.write_environment()
    return Simulated(store, log.run_id, results)
