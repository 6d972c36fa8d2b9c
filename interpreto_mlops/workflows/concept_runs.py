"""The runs of a concepts job: opened before anything is fitted, written when all is known, registered at the end."""

from __future__ import annotations

from contextlib import ExitStack

from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.concept_evidence import (
    dictionary_name,
    register_dictionary,
    write_dictionary,
)
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.workflows.concept_cells import ConceptCell
from interpreto_mlops.workflows.job import Job, plain
from interpreto_mlops.workflows.recipes import ConceptsRecipe


def open_run(
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


def write(job: Job, recipe: ConceptsRecipe, cell: ConceptCell, log: RunLog, held_out: TextDataset) -> None:
    """Write all that is known of a dictionary into its run, and the recipe that repeats it."""
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


def register_best(job: Job, recipe: ConceptsRecipe, cells: list[ConceptCell]) -> None:
    """Register the dictionary of each layer whose metric is the best."""
    metric = CONCEPT_METRICS.get(recipe.select_by)
    with job.console.stage("tracking"):
        for layer in recipe.layers:
            ours = [cell for cell in cells if cell.layer == layer]
            # The layer's own neurons reconstruct it without an error, and are what the others are compared with.
            learned = [cell for cell in ours if cell.dictionary.sized] or ours
            best = max(learned, key=lambda cell: metric.goodness(cell.metrics[metric.name]))
            assert best.logged is not None
            version = register_dictionary(job.store, best.logged, best.dictionary, metrics=best.metrics)
            best.registered = (dictionary_name(best.dictionary), str(version.version))
