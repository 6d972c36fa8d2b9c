"""Concept dictionaries of layers: one pass of the texts through the model, one run for each dictionary."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interpreto_mlops.concepts import (
    DICTIONARIES,
    IMPORTANCE,
    ActivationDensity,
    ActivationSet,
    ConceptDictionary,
    ConceptImportance,
    ModelWithSplitPoints,
    concept_importance,
    evaluate_effect,
    evaluate_rows,
    fit_together,
    probe_texts,
    stability,
    stability_random,
    top_words,
)
from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
from interpreto_mlops.concepts.belonging import check_belongs
from interpreto_mlops.concepts.metrics import has_predictions, shared_fraction
from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.objectives import InferenceMode, check_mode
from interpreto_mlops.models.targets import questions
from interpreto_mlops.observers import unobserved
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.concept_evidence import (
    dictionary_name,
    register_dictionary,
    training_listener,
    write_dictionary,
)
from interpreto_mlops.tracking.logged_models import LoggedFolder
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.workflows.job import Job, plain
from interpreto_mlops.workflows.recipes import ConceptsRecipe
from interpreto_mlops.workflows.workspace import Workspace

_FEW_TEXTS = 10
# Seconds between two looks at a training that goes on; all of it is written at its end.
_BETWEEN_LINES = 2.0
# Rows of these aggregations, or of one token each, say which tokens a concept moves.
_MOVABLE = {"mean", "sum", "first", "last"}
_SINGLE = {"token", "all_tokens", "cls"}


@dataclass
class ConceptCell:
    """One dictionary on its way to a finished run.

    Arguments:
        layer: as the recipe calls it.
        path: the layer's module path.
        dictionary: fitted.
        metrics: by the run schema's names.
        importance: of the concepts for the classes, or for what a language model writes.
        density: how often each concept is active in the rows that it was scored on.
        run_id: of its run, once there is one.
        hash: of its full configuration, once its run is open.
        logged: the logged model, once there is one.
        registered: its registered name and version, for the best of a layer.
        held_out: whether its metrics are of texts that it was not fitted on.
        selected_by: the metric that decides which one is registered.
    """

    layer: int | str
    path: str
    dictionary: ConceptDictionary
    metrics: dict[str, float] = field(default_factory=dict)
    importance: ConceptImportance | None = None
    density: ActivationDensity | None = None
    run_id: str = ""
    hash: str = ""
    logged: LoggedFolder | None = None
    registered: tuple[str, str] | None = None
    held_out: bool = True
    selected_by: str = ""


def learn(job: Job, recipe: ConceptsRecipe, fit_on: TextDataset | None = None) -> list[ConceptCell]:
    """Learn every dictionary of the recipe, score, label and log it, and register the best of each layer at the end.

    Arguments:
        job: its data set gives the texts that metrics and importance are computed on.
        recipe: which dictionaries.
        fit_on: the texts that dictionaries are fitted on; by default the recipe's holdout splits the job's own texts.

    Raises:
        InterpretoError: whatever stops a dictionary; its run is then marked FAILED, and nothing is registered.
    """
    recipe.check()
    split = ModelWithSplitPoints(job.model, split_points=recipe.layers)
    explain = _explainer(job, recipe, split)
    workspace = Workspace(recipe.workspace)
    fit_texts, held_out = (fit_on, job.dataset) if fit_on is not None else hold_out(job.dataset, recipe.holdout)
    if recipe.holdout and held_out is fit_texts:
        job.console.say(f"  {len(held_out)} texts are too few to hold some out: scores are of the texts fitted on")
    cells = [
        ConceptCell(
            layer, split.path(layer), dictionary, held_out=held_out is not fit_texts, selected_by=recipe.select_by
        )
        for layer in recipe.layers
        for dictionary in _dictionaries(recipe)
    ]
    with warnings.catch_warnings():
        # What is cut or empty is counted below, once for all.
        warnings.simplefilter("ignore", TextWarning)
        with job.console.stage("activations"):
            fitting = _activations(job, recipe, split, fit_texts, workspace.place("activations", "fitted"))
            scoring = fitting
            if held_out is not fit_texts:
                scoring = _activations(job, recipe, split, held_out, workspace.place("activations", "scored"))
        _report_texts(job, [fitting[recipe.layers[0]], scoring[recipe.layers[0]]])
        for layer in recipe.layers:
            ours = [cell for cell in cells if cell.layer == layer]
            with ExitStack() as stack:
                runs = [_open(job, recipe, cell, fit_texts, held_out, stack) for cell in ours]
                logs = [log for log, _ in runs]
                workspace.opened(job.store, [log.run_id for log in logs])
                _fit(job, ours, fitting[layer], logs, workspace)
                _score(job, recipe, split, ours, scoring[layer], held_out)
                if explain is not None:
                    with job.console.stage("concept importance"):
                        for cell in ours:
                            cell.importance = explain(cell, held_out)
                for cell, (log, opened) in zip(ours, runs, strict=True):
                    _write(job, recipe, cell, log, held_out)
                    opened.close()
    if recipe.register_best:
        _register(job, recipe, cells)
    return cells


Explainer = Callable[[ConceptCell, TextDataset], ConceptImportance]


def _explainer(job: Job, recipe: ConceptsRecipe, split: ModelWithSplitPoints) -> Explainer | None:
    """Return what finds the importance of a dictionary's concepts, or None, with a word on why, where there is none.

    What the recipe asks for is checked here, before anything runs.

    Raises:
        InputError: a target, contrast, mode or parameter that the model or the method does not take, or a target where
            rows do not say which token a concept moves.
    """
    method = IMPORTANCE.get(recipe.importance)(**recipe.options_of(recipe.importance))
    asked = recipe.target is not None or recipe.contrast is not None or bool(recipe.generate)
    if missing := _why_no_importance(job, recipe):
        if asked:
            raise InputError(f"concepts get no importance: {missing}")
        job.console.say(f"  concepts get no importance: {missing}")
        return None
    check_mode(job.model, InferenceMode.parse(recipe.inference_mode))
    questions(
        job.model, job.dataset.texts, recipe.target, contrast=recipe.contrast, generation=recipe.generate or {}
    )  # fmt: skip

    def explain(cell: ConceptCell, texts: TextDataset) -> ConceptImportance:
        return concept_importance(
            split,
            cell.dictionary,
            texts,
            method=method,
            targets=recipe.target,
            contrast=recipe.contrast,
            generation=recipe.generate,
            inference_mode=recipe.inference_mode,
            layer=cell.layer,
            progress=job.console.progress,
        )

    return explain


def _why_no_importance(job: Job, recipe: ConceptsRecipe) -> str | None:
    """Return why nothing can be said about importance, or None where it can."""
    if job.model.task == "encoder":
        return f"the model {job.model.name!r} is neither a classifier nor a language model"
    if job.model.task == "generation" and not recipe.generate and recipe.target is None:
        return "a language model needs a target, or generation arguments, to say what its concepts matter to"
    if recipe.aggregation not in _MOVABLE and recipe.granularity not in _SINGLE:
        return f"rows that are the {recipe.aggregation!r} of their tokens do not say which token a concept moves"
    return None


def hold_out(dataset: TextDataset, share: float) -> tuple[TextDataset, TextDataset]:
    """Split texts by their hash, so that the same text is always on the same side.

    Returns:
        The texts to fit on and those to score on; both are the whole data set when it has under ten texts, when the
        share is 0, or when a side would be empty.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for place, text in enumerate(dataset.texts):
        # With a prefix of its own: a data set may have been split by the hash of its texts already.
        digest = hashlib.sha256(b"holdout:" + text.encode("utf-8", "surrogatepass")).digest()
        number = int.from_bytes(digest[:8], "big")
        sides[number < share * 2**64].append(place)
    if len(dataset) < _FEW_TEXTS or not all(sides):
        return dataset, dataset
    fit, score = (_subset(dataset, places) for places in sides)
    return fit, score


def _subset(dataset: TextDataset, places: list[int]) -> TextDataset:
    labels = None if dataset.labels is None else tuple(dataset.labels[i] for i in places)
    return TextDataset(dataset.name, tuple(dataset.texts[i] for i in places), labels, dataset.source)


def _dictionaries(recipe: ConceptsRecipe) -> Iterator[ConceptDictionary]:
    for method in recipe.methods:
        options = recipe.options_of(method)
        # A method's own option goes before the sizes of all.
        sizes: list[int | None] = list(recipe.n_concepts)
        if "n_concepts" in options:
            sizes = [options.pop("n_concepts")]
        if not DICTIONARIES.get(method).sized:
            sizes = [None]  # found in the data
        for size, seed in product(sizes, range(recipe.first_seed, recipe.first_seed + recipe.seeds)):
            yield _dictionary(method, {"n_concepts": size, "seed": seed, **options})


def _dictionary(method: str, parameters: dict[str, Any]) -> ConceptDictionary:
    return DICTIONARIES.get(method)(**parameters)


def _activations(
    job: Job, recipe: ConceptsRecipe, split: ModelWithSplitPoints, texts: TextDataset, folder: Path | None
) -> dict[int | str, ActivationSet]:
    return split.get_activations(
        texts,
        granularity=recipe.granularity,
        aggregation=recipe.aggregation,
        dtype=recipe.activation_dtype,
        directory=folder,
        progress=job.console.progress,
    )


def _fit(
    job: Job, cells: list[ConceptCell], activations: ActivationSet, logs: list[RunLog], workspace: Workspace
) -> None:
    """Fit the dictionaries of a layer, but for those that the workspace holds already, and label their concepts."""
    for cell in cells:
        if (found := workspace.fitted(cell.hash)) is not None:
            check_belongs(found, activations)
            cell.dictionary = found
    new = [place for place, cell in enumerate(cells) if not cell.dictionary.is_fitted]
    with job.console.stage("dictionaries"):
        start = time.perf_counter()
        if new:
            with unobserved():
                fit_together(
                    [cells[place].dictionary for place in new],
                    activations,
                    progress=job.console.progress,
                    checkpoint=workspace.place("training", cells[0].path),
                    listener=training_listener([logs[place] for place in new], seconds=_BETWEEN_LINES),
                )
        for place in new:
            # They share one pass, so each bears an equal part of its time.
            cells[place].metrics["cost/seconds"] = (time.perf_counter() - start) / len(new)
            workspace.keep(cells[place].hash, cells[place].dictionary)
        for cell in cells:
            cell.dictionary.descriptions = top_words(cell.dictionary, activations)


def _score(
    job: Job,
    recipe: ConceptsRecipe,
    split: ModelWithSplitPoints,
    cells: list[ConceptCell],
    activations: ActivationSet,
    held_out: TextDataset,
) -> None:
    with job.console.stage("concept metrics"):
        for cell in cells:
            found = evaluate_rows(cell.dictionary, activations)
            cell.metrics |= found.metrics
            cell.density = found.density
            cell.metrics |= _probes(cell.dictionary, activations, held_out)
        for alike in _by_seed(cells):
            if len(alike) > 1:
                fits = [cell.dictionary for cell in alike]
                shared = {metric.name: metric(fits) for metric in (stability, stability_random, shared_fraction)}
                for cell in alike:
                    cell.metrics |= shared
    if recipe.effect_texts and has_predictions(job.model):
        if recipe.aggregation != "mean":
            job.console.say("  no effect on the model: it needs rows that are means of their tokens")
            return
        with job.console.stage("effect on the model"):
            few = held_out.head(recipe.effect_texts)
            for cell in cells:
                cell.metrics |= evaluate_effect(split, cell.dictionary, few, layer=cell.layer)


def _probes(dictionary: ConceptDictionary, activations: ActivationSet, held_out: TextDataset) -> dict[str, float]:
    """Probe the labels of the texts, where there are enough of each."""
    if held_out.labels is None:
        return {}
    counts = Counter(held_out.labels)
    kept = [label if counts[label] >= _FEW_TEXTS else None for label in held_out.labels]
    if len({label for label in kept if label is not None}) < 2:
        return {}
    return probe_texts(dictionary, activations, kept)


def _by_seed(cells: list[ConceptCell]) -> list[list[ConceptCell]]:
    """Group dictionaries that differ in nothing but the seed."""
    groups: dict[tuple[str, int], list[ConceptCell]] = {}
    for cell in cells:
        groups.setdefault((cell.dictionary.name, cell.dictionary.n_concepts), []).append(cell)
    return list(groups.values())


def _report_texts(job: Job, sets: list[ActivationSet]) -> None:
    """Say how many texts are cut, and how many leave no row."""
    sets = list({each.provenance["data"]["digest"]: each for each in sets}.values())
    texts = sum(each.provenance["data"]["n_texts"] for each in sets)
    cut = sum(each.provenance["n_truncated"] for each in sets)
    empty = texts - sum(len(np.unique(each.text_ids)) for each in sets)
    parts = []
    if cut:
        parts.append(f"{cut} of {texts} texts cut at {job.model.max_length} tokens")
    if empty:
        parts.append(f"{empty} of {texts} texts have no rows and are skipped")
    if parts:
        job.console.say(f"  concepts: {'; '.join(parts)}")


def _open(
    job: Job, recipe: ConceptsRecipe, cell: ConceptCell, fit_texts: TextDataset, held_out: TextDataset, stack: ExitStack
) -> tuple[RunLog, ExitStack]:
    """Open the run of a dictionary before it is fitted, so that its training can be watched; the outer stack fails it.

    Returns:
        The run, and what closes it when all is written.
    """
    dictionary = cell.dictionary
    config = {**dictionary.parameters, "method": dictionary.name, "layer": cell.path, "granularity": recipe.granularity}
    config |= {"fitted": fit_texts.digest, "scored": held_out.digest, "aggregation": recipe.aggregation}
    config |= {"importance": recipe.importance, "importance_options": recipe.options_of(recipe.importance)}
    config |= {name: getattr(recipe, name) for name in ("target", "contrast", "inference_mode", "generate", "autocast")}
    config |= {"activation_dtype": recipe.activation_dtype}
    cell.hash = job.cell(config)
    size = "" if dictionary.n_concepts is None else f" {dictionary.n_concepts}"
    opened = stack.enter_context(ExitStack())
    log = opened.enter_context(
        run(
            job.store,
            kind="concepts",
            name=f"{dictionary.name}{size} at {cell.path} seed {dictionary.seed}",
            suite=job.suite,
            cell=cell.hash,
            tags={**job.tags(), schema.TAG_LAYER: cell.path, schema.TAG_METHOD: dictionary.name},
            params=_params(job, recipe, cell),
        )
    )
    cell.run_id = log.run_id
    return log, opened


def _params(job: Job, recipe: ConceptsRecipe, cell: ConceptCell) -> dict[str, str]:
    """Return what is known of a run before anything is fitted, so that one that fails says what it was."""
    fixed = {
        "model": job.model.name,
        "task": job.model.task,
        "method": cell.dictionary.name,
        "layer": cell.path,
        "granularity": recipe.granularity,
        "aggregation": recipe.aggregation,
        "holdout": recipe.holdout if recipe.fit_split is None else None,
        "fit_split": recipe.fit_split,
    }
    asked = {"targets": recipe.target, "contrast": recipe.contrast, "generation": recipe.generate or None}
    return schema.params(fixed, {**cell.dictionary.parameters, **asked})


def _write(job: Job, recipe: ConceptsRecipe, cell: ConceptCell, log: RunLog, held_out: TextDataset) -> None:
    dictionary = cell.dictionary
    one = plain(
        recipe,
        layers=[cell.layer],
        methods=[dictionary.name],
        n_concepts=[dictionary.n_concepts],
        options={name: recipe.options_of(name) for name in (dictionary.name, recipe.importance)},
        seeds=1,
        first_seed=dictionary.seed,
        register_best=False,
    )
    with job.console.stage("tracking"):
        cell.logged = write_dictionary(
            log,
            dictionary,
            name=schema.slugify(f"{cell.path}-{dictionary.name}-{dictionary.n_concepts}-seed-{dictionary.seed}"),
            metrics=cell.metrics,
            importance=cell.importance,
            density=cell.density,
            model=job.model,
            dataset=held_out,
        )
        log.write_recipe(one)
        log.write_environment()


def _register(job: Job, recipe: ConceptsRecipe, cells: list[ConceptCell]) -> None:
    sign = 1 if CONCEPT_METRICS.get(recipe.select_by).higher_is_better else -1
    with job.console.stage("tracking"):
        for layer in recipe.layers:
            ours = [cell for cell in cells if cell.layer == layer]
            # The layer's own neurons reconstruct it without an error, and are what the others are compared with.
            learned = [cell for cell in ours if cell.dictionary.sized] or ours
            best = max(learned, key=lambda cell: sign * cell.metrics[recipe.select_by])
            assert best.logged is not None
            version = register_dictionary(job.store, best.logged, best.dictionary, metrics=best.metrics)
            best.registered = (dictionary_name(best.dictionary), str(version.version))


_SHOWN = {
    "R² ↑": "reconstruction/r2",
    "L0": "complexity/l0",
    "dead ↓": "complexity/dead",
    "stability ↑": "stability/stability",
    "stab. random": "stability/stability_random",
}


def concept_table(cells: list[ConceptCell]) -> pd.DataFrame:
    """Return the results as a table: a row for each dictionary."""
    return pd.DataFrame(
        [
            {
                "layer": cell.path,
                "method": cell.dictionary.name,
                "concepts": cell.dictionary.n_concepts,
                "seed": cell.dictionary.seed,
                **{title: cell.metrics.get(name, float("nan")) for title, name in _SHOWN.items()},
                "registered as": "" if cell.registered is None else "{} v{}".format(*cell.registered),
            }
            for cell in cells
        ]
    )
