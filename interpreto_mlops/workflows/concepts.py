"""Concept dictionaries of layers: one pass of the texts through the model, one run for each dictionary."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from interpreto_mlops.concepts import (
    DICTIONARIES,
    ActivationSet,
    ConceptDictionary,
    ModelWithSplitPoints,
    fit_together,
    top_words,
)
from interpreto_mlops.concepts.belonging import check_belongs
from interpreto_mlops.errors import TextWarning
from interpreto_mlops.observers import unobserved
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking.concept_evidence import (
    training_listener,
)
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.workflows.concept_cells import ConceptCell
from interpreto_mlops.workflows.concept_runs import open_run, register_best, write
from interpreto_mlops.workflows.concept_scores import check_selectable, explainer, score
from interpreto_mlops.workflows.holdout import hold_out
from interpreto_mlops.workflows.job import Job
from interpreto_mlops.workflows.recipes import ConceptsRecipe
from interpreto_mlops.workflows.workspace import Workspace

# Seconds between two looks at a training that goes on; all of it is written at its end.
_BETWEEN_LINES = 2.0


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
    explain = explainer(job, recipe, split)
    workspace = Workspace(recipe.workspace)
    fit_texts, held_out = (fit_on, job.dataset) if fit_on is not None else hold_out(job.dataset, recipe.holdout)
    if recipe.holdout and held_out is fit_texts:
        job.console.say(f"  {len(held_out)} texts are too few to hold some out: scores are of the texts fitted on")
    check_selectable(job, recipe, held_out)
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
                runs = [open_run(job, recipe, cell, fit_texts, held_out, stack) for cell in ours]
                logs = [log for log, _ in runs]
                workspace.opened(job.store, [log.run_id for log in logs])
                _fit(job, ours, fitting[layer], logs, workspace)
                score(job, recipe, split, ours, scoring[layer], held_out)
                if explain is not None:
                    with job.console.stage("concept importance"):
                        for cell in ours:
                            cell.importance = explain(cell, held_out)
                for cell, (log, opened) in zip(ours, runs, strict=True):
                    write(job, recipe, cell, log, held_out)
                    opened.close()
    if recipe.register_best:
        register_best(job, recipe, cells)
    return cells


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
