"""Simulatability of a stored explanation: how much its concepts, or its words, help to say what the model says."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from interpreto_mlops.attributions import AttributionSet, simulatability
from interpreto_mlops.concepts import ConceptDictionary, consim, top_words
from interpreto_mlops.errors import DataError, InputError, LanguageModelError
from interpreto_mlops.llm import Estimate, Questioner
from interpreto_mlops.llm.simulation import SimulationResult
from interpreto_mlops.text.datasets import TextDataset, load_dataset
from interpreto_mlops.text.hiding import hiding_texts, texts_are_hidden
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.reading import read_explanations
from interpreto_mlops.tracking.runs import run
from interpreto_mlops.tracking.simulation_evidence import write_simulation
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.workflows.asking import (
    Estimating,
    question_costs,
    questioner,
    totals_line,
    trace_into,
    write_questions,
)
from interpreto_mlops.workflows.cataloguing import catalogued, take_over
from interpreto_mlops.workflows.job import DEFAULT_STORE, Console, new_suite, plain
from interpreto_mlops.workflows.meaning_recipes import ConsimRecipe
from interpreto_mlops.workflows.studied import Studied, studied

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
        ask: asks the reader about each explanation.
    """

    uri: str
    tags: dict[str, str | None]
    params: dict[str, Any]
    model_id: str | None
    ask: Any


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
        store = connect(recipe.tracking_uri, recipe.experiment, default=DEFAULT_STORE)
        texts = _texts(recipe)
        explained = (_run if _RUN.match(recipe.subject) else _dictionary)(store, recipe, texts, console)
        asker = questioner(recipe.llm, console, estimate_only=estimate_only)
        if isinstance(asker, Estimating):
            return Simulated(store, estimate=_counted(explained, asker))
        with catalogued(store, console, recipe.catalogue_uri, wanted=recipe.catalogue) as keeper:
            done = _carry_out(store, recipe, texts, explained, asker, command, console)
            take_over(keeper, console, [(done.run_id, None)])
        return done


def _counted(explained: _Explained, asker: Estimating) -> Estimate:
    with suppress(LanguageModelError):  # nothing is asked, so nothing is answered
        explained.ask(asker)
    return asker.counted()


def _texts(recipe: ConsimRecipe) -> TextDataset | None:
    if recipe.data is None:
        return None
    return load_dataset(
        recipe.data, text_column=recipe.text_column, label_column=recipe.label_column, split=recipe.split
    ).head(recipe.max_texts)


def _dictionary(store: Store, recipe: ConsimRecipe, texts: TextDataset | None, console: Console) -> _Explained:
    if texts is None:
        raise InputError("concepts are simulated on texts: say which, by 'data'")
    with console.stage("model"):
        subject = studied(store, recipe.subject, base_model=recipe.base_model)
    dictionary = _readable(subject, texts, console)

    def ask(asker: Questioner) -> dict[str, SimulationResult]:
        found = consim(subject.split, dictionary, texts, asker, method=recipe.importance, **recipe.simulation)
        return {dictionary.name: found}

    base = subject.model
    tags = {
        schema.TAG_MODEL_URI: base.uri,
        schema.TAG_MODEL_FINGERPRINT: base.fingerprint,
        schema.TAG_MODEL_ID: base.model_id,
        schema.TAG_LAYER: subject.layer,
        schema.TAG_METHOD: dictionary.name,
    }
    params = {"model": base.name, "task": base.task, "method": dictionary.name, "layer": subject.layer}
    return _Explained(subject.found.uri, tags, params, subject.found.model_id, ask)


def _readable(subject: Studied, texts: TextDataset, console: Console) -> ConceptDictionary:
    """Return the dictionary with names that can be read: of these texts where it has none."""
    found = subject.dictionary.descriptions
    if found is not None and not any(each.hidden_label is not None for each in found):
        return subject.dictionary
    dictionary = copy.copy(subject.dictionary)
    with console.stage("activations"):
        dictionary.descriptions = top_words(dictionary, subject.activations(texts, progress=console.progress))
    return dictionary


def _run(store: Store, recipe: ConsimRecipe, texts: TextDataset | None, console: Console) -> _Explained:
    match = _RUN.match(recipe.subject)
    assert match is not None
    run_id = match["run"]
    with store.guarded(f"read the run {run_id!r}"):
        source = store.client.get_run(run_id)
    parts = read_explanations(store, run_id)
    if not parts:
        raise DataError(f"the run {run_id!r} holds no attributions")
    labels = _labels_of(parts[0].explanations, texts)

    def ask(asker: Questioner) -> dict[str, SimulationResult]:
        given = {"labels": labels, "n_words": recipe.n_words, **recipe.simulation}
        return {each.label: simulatability(each.explanations, asker, **given) for each in parts}

    named = (schema.TAG_MODEL_URI, schema.TAG_MODEL_FINGERPRINT, schema.TAG_MODEL_ID)
    tags = {name: source.data.tags.get(name) for name in named}
    params = {name: source.data.params.get(name) for name in ("model", "task", "method")}
    return _Explained(recipe.subject, {**tags, schema.TAG_SOURCE_RUN: run_id}, params, None, ask)


def _labels_of(explanations: AttributionSet, texts: TextDataset | None) -> list[str] | None:
    """Return the right class of each explained text, where the texts with their labels are given.

    Raises:
        InputError: texts that are not those that were explained.
    """
    if texts is None or texts.labels is None:
        return None
    known = dict(zip(texts.texts, texts.labels, strict=True))
    missing = [item.index for item in explanations if item.text not in known]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(explanations)} explained texts are not among those of {texts.name!r}, the "
            f"first is number {missing[0]}; give the data that the run explained"
        )
    return [known[item.text] for item in explanations]


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
    with run(
        store,
        kind="simulatability",
        name=f"simulatability of {explained.uri}",
        suite=new_suite("consim"),
        cell=schema.cell_hash({**cell, "language_model": asker.model.name, "importance": recipe.importance}),
        tags={schema.TAG_COMMAND: command, **explained.tags},
        params=schema.params(fixed, {**recipe.simulation, "importance": recipe.importance}),
    ) as log:
        trace_into(log, recipe.llm, asker)
        with console.stage("simulation"):
            try:
                results = explained.ask(asker)
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
