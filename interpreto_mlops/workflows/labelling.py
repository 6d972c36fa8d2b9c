"""Names for the concepts of a stored dictionary: asked for, scored, logged, and registered as its next version."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from interpreto_mlops.concepts import (
    IMPORTANCE,
    ActivationDensity,
    ActivationSet,
    ConceptDescription,
    ConceptDictionary,
    ConceptImportance,
    Label,
    LLMLabels,
    TokenChange,
    TopKInputs,
    VocabProj,
    concept_importance,
    evaluate_effect,
    evaluate_rows,
    top_words,
)
from interpreto_mlops.concepts.interpretation.llm_labels import WORD_ROWS
from interpreto_mlops.concepts.interpretation_metrics import InterpretationScore, score_labels
from interpreto_mlops.concepts.metrics import has_predictions
from interpreto_mlops.errors import InputError, LanguageModelError
from interpreto_mlops.llm import Estimate, Questioner
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.hiding import hiding_texts, texts_are_hidden
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.concept_evidence import dictionary_summary, register_dictionary, write_dictionary
from interpreto_mlops.tracking.label_evidence import write_names
from interpreto_mlops.tracking.logged_models import LoggedFolder, check_name
from interpreto_mlops.tracking.runs import RunLog, run
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
from interpreto_mlops.workflows.concept_scores import moves_tokens
from interpreto_mlops.workflows.given_names import read_names
from interpreto_mlops.workflows.holdout import hold_out
from interpreto_mlops.workflows.job import DEFAULT_STORE, Console, Job, new_suite, plain
from interpreto_mlops.workflows.meaning_recipes import LabelRecipe
from interpreto_mlops.workflows.studied import Studied, studied, texts_of


@dataclass
class Labelled:
    """What a job of names led to.

    Arguments:
        store: where it is.
        run_id: of its run; empty where only an estimate was made.
        descriptions: the concepts with their names.
        scores: of the names.
        unlabelled: why concepts that were asked about have no new name.
        version: the registered model and its new version, or None.
        unlogged: why the log does not tell of that version, or None.
        estimate: what asking would take, where that was all that was wanted.
    """

    store: Store
    run_id: str = ""
    descriptions: Sequence[ConceptDescription] = ()
    scores: Mapping[str, InterpretationScore] = field(default_factory=dict)
    unlabelled: Mapping[int, str] = field(default_factory=dict)
    version: tuple[str, str] | None = None
    unlogged: str | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True)
class _Work:
    """A job of names: whose, on which texts, who is asked."""

    job: Job
    recipe: LabelRecipe
    subject: Studied
    named_on: ActivationSet
    scored_on: ActivationSet
    held_out: TextDataset
    asker: Questioner | None
    given: Mapping[int, Label]


def label(
    recipe: LabelRecipe, *, command: str, console: Console | None = None, estimate_only: bool = False
) -> Labelled:
    """Name the concepts of a stored dictionary, score the names and register them as its next version.

    The dictionary that is stored stays as it is: new names are a new version, whose run says what changed and by whom.

    Arguments:
        recipe: what to do.
        command: what repeats it, for the record.
        console: where to report; by default nowhere.
        estimate_only: whether questions are only counted: nothing is asked, and nothing is written.

    Raises:
        InterpretoError: whatever stops it; a run that had begun is then marked FAILED, and nothing is registered.
        LanguageModelError: not one concept has a name that could be taken.
    """
    console = console or Console(quiet=True)
    with hiding_texts(recipe.hide_texts):
        texts_are_hidden()  # What the environment says of it must be readable.
        recipe.check()
        work = _prepared(recipe, command, console, estimate_only)
        if estimate_only:
            return _estimated(work)
        with catalogued(work.job.store, console, recipe.catalogue_uri, wanted=recipe.catalogue) as keeper:
            done = _carry_out(work)
            take_over(keeper, console, [(done.run_id, None)])
        return replace(done, unlogged=keeper.missing_entries)


def _prepared(recipe: LabelRecipe, command: str, console: Console, estimate_only: bool) -> _Work:
    dataset = texts_of(recipe, recipe.data)
    store = connect(recipe.tracking_uri, recipe.experiment, default=DEFAULT_STORE)
    with console.stage("model"):
        subject = studied(store, recipe.dictionary, base_model=recipe.base_model)
    _check_names(recipe, subject)
    names = {} if recipe.labels is None else read_names(recipe.labels, subject.dictionary.n_concepts, recipe.by)
    asker = None if recipe.llm is None else questioner(recipe.llm, console, estimate_only=estimate_only)
    given, held_out = hold_out(dataset, recipe.holdout)
    with console.stage("activations"):
        named_on = subject.activations(given, progress=console.progress)
        scored_on = named_on if held_out is given else subject.activations(held_out, progress=console.progress)
    job = Job(store, subject.model, dataset, new_suite("label"), command, console)
    return _Work(job, recipe, subject, named_on, scored_on, held_out, asker, names)


def _check_names(recipe: LabelRecipe, subject: Studied) -> None:
    """Refuse concepts that there are not, and a name that cannot be registered, before anybody is asked."""
    n_concepts = subject.dictionary.n_concepts
    if wrong := [each for each in recipe.concepts or () if each >= n_concepts]:
        raise InputError(f"there is no concept {wrong[0]!r}: they are 0 to {n_concepts - 1}")
    if recipe.name is not None:
        check_name(recipe.name)


def _estimated(work: _Work) -> Labelled:
    if not isinstance(work.asker, Estimating):
        raise InputError("names from a file ask nothing; there is nothing to estimate")
    descriptions, unlabelled = _named(work, _described(work))
    _scored(work, descriptions)
    return Labelled(work.job.store, descriptions=descriptions, unlabelled=unlabelled, estimate=work.asker.counted())


def _carry_out(work: _Work) -> Labelled:
    subject, job = work.subject, work.job
    with run(
        job.store,
        kind="concepts",
        name=f"labels of {subject.found.name}",
        suite=job.suite,
        cell=job.cell(_configuration(work)),
        tags=_tags(work),
        params=_params(work),
    ) as log:
        before = _described(work)
        descriptions, unlabelled, scores = _answered(work, log, before)
        dictionary = _with_names(subject.dictionary, descriptions)
        metrics, density = _qualities(work, dictionary)
        for score in scores.values():
            metrics |= score.metrics
        logged = _written(work, log, dictionary, metrics, density)
        with job.console.stage("tracking"):
            write_names(log, before, descriptions, scores.values(), unlabelled)
    version = _registered(work, logged, dictionary, metrics)
    return Labelled(job.store, log.run_id, descriptions, scores, unlabelled, version)


def _answered(
    work: _Work, log: RunLog, before: list[ConceptDescription]
) -> tuple[list[ConceptDescription], dict[int, str], dict[str, InterpretationScore]]:
    """Ask for names and judgements, and say what that took, whatever comes of it."""
    if work.asker is None or work.recipe.llm is None:
        return *_named(work, before), {}
    trace_into(log, work.recipe.llm, work.asker)
    try:
        descriptions, unlabelled = _named(work, before)
        return descriptions, unlabelled, _scored(work, descriptions)
    finally:
        work.job.console.say(f"  {totals_line(work.asker)}")


def _written(
    work: _Work, log: RunLog, dictionary: ConceptDictionary, metrics: Mapping[str, float], density: ActivationDensity
) -> LoggedFolder:
    """Write what a run of a dictionary holds, and every question with its answer."""
    importance = _importance(work, dictionary)
    with work.job.console.stage("tracking"):
        logged = write_dictionary(
            log,
            dictionary,
            name=schema.slugify(f"{work.subject.layer}-{dictionary.name}-labels"),
            metrics=metrics,
            importance=importance,
            density=density,
            model=work.job.model,
            dataset=work.held_out,
        )
        log.summary(_summary(work, dictionary, metrics))
        if work.asker is not None:
            write_questions(log, work.asker)
            log.metrics(question_costs(work.asker))
        log.write_recipe(plain(work.recipe))
        log.write_environment()
    return logged


def _registered(
    work: _Work, logged: LoggedFolder, dictionary: ConceptDictionary, metrics: Mapping[str, float]
) -> tuple[str, str] | None:
    """Make it the next version, where that is wanted and there is a name; return both."""
    found, console = work.subject.found, work.job.console
    name = work.recipe.name or (found.name if found.version is not None else None)
    if not work.recipe.register_version:
        return None
    if name is None:
        console.say(f"  no version is registered: {found.uri!r} has no registered name; give name")
        return None
    said = _summary(work, dictionary, metrics)
    version = register_dictionary(
        work.job.store, logged, dictionary, name=name, metrics=metrics, tags=_labelled(work), description=said
    )
    return name, str(version.version)


def _described(work: _Work) -> list[ConceptDescription]:
    """Return the descriptions that the dictionary has, or those of these texts where it has none to read."""
    found = work.subject.dictionary.descriptions
    if found is None or any(each.hidden_label is not None for each in found):
        return top_words(work.subject.dictionary, work.named_on)
    return list(found)


def _named(work: _Work, before: list[ConceptDescription]) -> tuple[list[ConceptDescription], dict[int, str]]:
    """Return the descriptions with their new names, and why others have none; a file goes before the model."""
    after, unlabelled = before, {}
    recipe, console = work.recipe, work.job.console
    if work.asker is not None:
        dictionary = _with_names(work.subject.dictionary, before)
        inputs = TopKInputs(unit=_unit(work.named_on), k=recipe.n_examples)
        ask = LLMLabels(
            inputs=inputs,
            n_silent=recipe.n_silent,
            vocab_proj=VocabProj() if "vocab_proj" in recipe.evidence else None,
            token_change=TokenChange() if "token_change" in recipe.evidence else None,
            max_tokens=recipe.answer_tokens,
            seed=recipe.seed,
        )
        with console.stage("names"):
            split = work.subject.split
            found = ask(dictionary, work.named_on, split, questioner=work.asker, concepts=recipe.concepts)
        after, unlabelled = list(found.descriptions), dict(found.unlabelled)
        if not found.n_labelled and recipe.labels is None and not isinstance(work.asker, Estimating):
            why = next(iter(unlabelled.values()), "there is nothing to ask about")
            raise LanguageModelError(f"not one concept was given a label; the first: {why}")
    after = [replace(each, given=work.given.get(each.concept, each.given)) for each in after]
    return after, unlabelled


def _unit(activations: ActivationSet) -> str | None:
    return "word" if activations.granularity in WORD_ROWS else None


def _scored(work: _Work, descriptions: Sequence[ConceptDescription]) -> dict[str, InterpretationScore]:
    recipe = work.recipe
    if work.asker is None or not recipe.scored:
        return {}
    named = [each.concept for each in descriptions if each.given is not None or isinstance(work.asker, Estimating)]
    wanted = [concept for concept in named if recipe.concepts is None or concept in recipe.concepts]
    with work.job.console.stage("scores of names"):
        return score_labels(
            work.asker,
            work.subject.dictionary,
            work.scored_on,
            descriptions,
            metrics=recipe.scored,
            split=work.subject.split,
            concepts=wanted,
            options=recipe.options,
            shuffled=recipe.shuffled,
            seed=recipe.seed,
        )


def _qualities(work: _Work, dictionary: ConceptDictionary) -> tuple[dict[str, float], ActivationDensity]:
    """Return what the version that these names replace was scored by, on these texts, and how often concepts fire."""
    found = evaluate_rows(dictionary, work.scored_on)
    metrics = dict(found.metrics)
    few = work.recipe.effect_texts
    if few and has_predictions(work.job.model) and (dictionary.provenance.get("aggregation") or "mean") == "mean":
        with work.job.console.stage("effect on the model"):
            metrics |= evaluate_effect(work.subject.split, dictionary, work.held_out.head(few))
    return metrics, found.density


def _importance(work: _Work, dictionary: ConceptDictionary) -> ConceptImportance | None:
    """Return how much the concepts matter to a classifier's classes, so that the version tells it as others do."""
    said = dictionary.provenance
    movable = moves_tokens(said.get("granularity", "token"), said.get("aggregation") or "mean")
    if work.recipe.importance is None or work.job.model.task != "classification" or not movable:
        return None
    with work.job.console.stage("concept importance"):
        return concept_importance(
            work.subject.split,
            dictionary,
            work.held_out,
            method=IMPORTANCE.get(work.recipe.importance)(),
            progress=work.job.console.progress,
        )


def _with_names(dictionary: ConceptDictionary, descriptions: Sequence[ConceptDescription]) -> ConceptDictionary:
    """Return the same dictionary, weights shared, with other descriptions."""
    other = copy.copy(dictionary)
    other.descriptions = list(descriptions)
    return other


def _configuration(work: _Work) -> dict[str, Any]:
    names = (
        "concepts",
        "n_examples",
        "n_silent",
        "answer_tokens",
        "evidence",
        "metrics",
        "options",
        "shuffled",
        "holdout",
        "seed",
    )
    asked = {name: getattr(work.recipe, name) for name in names}
    model = None if work.recipe.llm is None else work.recipe.llm.model
    # What a file says, and not where it lies, is what the cell depends on.
    given = {str(concept): asdict(each) for concept, each in work.given.items()}
    return {**asked, "given": given, "dictionary": work.subject.found.uri, "language_model": model}


def _givers(work: _Work) -> str:
    """Return who gave the labels: the language model, people, or both."""
    asked = [] if work.asker is None else [work.asker.model.name]
    return ", ".join([*asked, *([work.recipe.by or "people"] if work.given else [])])


def _summary(work: _Work, dictionary: ConceptDictionary, metrics: Mapping[str, float]) -> str:
    by, source = (schema.markdown(each) for each in (_givers(work), work.subject.found.uri))
    return f"Labels by {by} for the concepts of {source}. {dictionary_summary(dictionary, metrics)}"


def _labelled(work: _Work) -> dict[str, str]:
    """Return the tags that say of which version the labels are new, and who gave them."""
    return {schema.TAG_LABELS_OF: work.subject.found.uri, schema.TAG_LABELS_BY: _givers(work)}


def _tags(work: _Work) -> dict[str, str | None]:
    return {
        **work.job.tags(),
        schema.TAG_LAYER: work.subject.layer,
        schema.TAG_METHOD: work.subject.dictionary.name,
        **_labelled(work),
    }


def _params(work: _Work) -> dict[str, str]:
    dictionary, said = work.subject.dictionary, work.subject.dictionary.provenance
    fixed = {
        "model": work.job.model.name,
        "task": work.job.model.task,
        "method": dictionary.name,
        "layer": work.subject.layer,
        "granularity": said.get("granularity"),
        "aggregation": said.get("aggregation"),
        "holdout": work.recipe.holdout,
        "subject": work.subject.found.uri,
        "language_model": None if work.asker is None else work.asker.model.name,
    }
    return schema.params(fixed, dictionary.parameters)
