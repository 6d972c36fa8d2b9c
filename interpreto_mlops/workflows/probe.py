"""Which layer knows what: one pass of the texts through the model, one probe for each layer, method and label."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np

from interpreto_mlops.concepts import PROBES, ActivationSet, ModelWithSplitPoints, Probe, cross_validate, label_concepts
from interpreto_mlops.concepts.belonging import check_belongs
from interpreto_mlops.concepts.probes.labels import Floats
from interpreto_mlops.errors import DataError, InputError, TextWarning
from interpreto_mlops.observers import unobserved
from interpreto_mlops.text.datasets import DATASETS, TextDataset, load_dataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.concept_evidence import register_dictionary, write_dictionary
from interpreto_mlops.tracking.dictionary_facts import keepable
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.workflows.job import Console, Job, plain
from interpreto_mlops.workflows.probe_cells import ProbeCell, best_of
from interpreto_mlops.workflows.recipes import ProbeRecipe
from interpreto_mlops.workflows.workspace import Workspace


@dataclass(frozen=True)
class Column:
    """A column of labels as concepts.

    Arguments:
        dataset: the texts with these labels.
        names: of the concepts.
        labels: shape (texts, concepts): 1, 0 or NaN.
    """

    dataset: TextDataset
    names: tuple[str, ...]
    labels: Floats


Columns = dict[str, Column]


def columns_of(recipe: ProbeRecipe, dataset: TextDataset, console: Console) -> Columns:
    """Read the columns of labels; values that too few texts have are left out, with a word on it.

    Raises:
        DataError: a column that is not there, or that has no two values with enough texts.
        InputError: a named data set without labels.
    """
    found = {}
    for name in recipe.label_columns:
        labelled = _labelled(recipe, dataset, name)
        assert labelled.labels is not None
        names, labels = label_concepts(labelled.labels, name)
        # A text of nothing leaves no row to probe.
        written = labels[[bool(text.strip()) for text in labelled.texts]]
        n_with, n_without = ((written == value).sum(axis=0) for value in (1, 0))
        needed = _texts_needed(recipe)
        enough = np.minimum(n_with, n_without) >= needed
        if not enough.any():
            raise DataError(
                f"no value of the labels {name!r} has {needed} texts with it and {needed} without, which "
                f"{recipe.folds} folds need; give more texts, or other folds"
            )
        if not enough.all():
            console.say(f"  {(~enough).sum()} of {len(names)} values of {name!r} have too few texts for a probe")
        kept = tuple(each for each, wanted in zip(names, enough.tolist(), strict=True) if wanted)
        found[name] = Column(labelled, kept, labels[:, enough])
    return found


def _texts_needed(recipe: ProbeRecipe) -> int:
    """Return how many texts of each kind every fold, and a calibration outside of it, need at least."""
    calibrated = any(_made(recipe, method).calibration != "none" for method in recipe.methods)
    # Two that are left when one fold is taken out: one to learn from and one to calibrate with.
    return 4 if calibrated and recipe.folds == 2 else recipe.folds


def _labelled(recipe: ProbeRecipe, dataset: TextDataset, name: str) -> TextDataset:
    if recipe.data not in DATASETS:
        return load_dataset(recipe.data, text_column=recipe.text_column, label_column=name).head(recipe.max_texts)
    if dataset.labels is None:
        raise InputError(f"the data set {recipe.data!r} has no labels")
    return dataset


def probe_layers(job: Job, recipe: ProbeRecipe, columns: Columns) -> list[ProbeCell]:
    """Fit, score and log every probe of the recipe, and register the best of each column at the end.

    Arguments:
        job: its data set gives the texts.
        recipe: which probes.
        columns: the labels, as `columns_of` reads them.

    Raises:
        InterpretoError: whatever stops a probe; its run is then marked FAILED, and nothing is registered.
    """
    split = ModelWithSplitPoints(job.model, split_points=recipe.layers)
    workspace = Workspace(recipe.workspace)
    with warnings.catch_warnings(), job.console.stage("activations"):
        # What is cut or empty is counted below, once for all.
        warnings.simplefilter("ignore", TextWarning)
        activations = split.get_activations(
            job.dataset,
            granularity=recipe.granularity,
            aggregation=recipe.aggregation,
            dtype=recipe.activation_dtype,
            directory=workspace.place("activations", "probed"),
            progress=job.console.progress,
        )
    _report_texts(job, activations[recipe.layers[0]])
    cells = [
        _carry_out(
            job, recipe, ProbeCell(layer, split.path(layer), label, _made(recipe, method)), column, rows, workspace
        )
        for layer, rows in activations.items()
        for label, column in columns.items()
        for method in recipe.methods
    ]
    if recipe.register_best:
        register_best(job, recipe, cells)
    return cells


def _made(recipe: ProbeRecipe, method: str) -> Probe:
    return PROBES.get(method)(seed=recipe.seed, **recipe.options_of(method))


def _report_texts(job: Job, rows: ActivationSet) -> None:
    cut, empty = rows.provenance["n_truncated"], len(rows.texts) - len(np.unique(rows.text_ids))
    parts = [f"{cut} of {len(rows.texts)} texts cut at {job.model.max_length} tokens"] if cut else []
    parts += [f"{empty} of {len(rows.texts)} texts have no rows and are skipped"] if empty else []
    if parts:
        job.console.say(f"  probes: {'; '.join(parts)}")


def _carry_out(
    job: Job, recipe: ProbeRecipe, cell: ProbeCell, column: Column, rows: ActivationSet, workspace: Workspace
) -> ProbeCell:
    """Fit, score and log one probe in a run of its own."""
    cell.hash = job.cell(_config(recipe, cell, column))
    with run(
        job.store,
        kind="probe",
        name=f"{cell.probe.name} of {cell.label} at {cell.path}",
        suite=job.suite,
        cell=cell.hash,
        tags={**job.tags(), schema.TAG_LAYER: cell.path, schema.TAG_METHOD: cell.probe.name},
        params=_params(job, recipe, cell),
    ) as log:
        cell.run_id = log.run_id
        workspace.opened(job.store, [log.run_id])
        start = time.perf_counter()
        with job.console.stage("probes"), unobserved():
            _fit(cell, column, rows, workspace)
        with job.console.stage("cross-validation"):
            cell.scores = cross_validate(
                _made(recipe, cell.probe.name),
                rows,
                column.labels,
                names=column.names,
                per="text",
                folds=recipe.folds,
                repeats=recipe.repeats,
                seed=recipe.seed,
            )
        cell.metrics = {**cell.scores.metrics(), f"{schema.COST}/seconds": time.perf_counter() - start}
        with job.console.stage("tracking"):
            _write(job, recipe, cell, column, log)
    return cell


def _config(recipe: ProbeRecipe, cell: ProbeCell, column: Column) -> dict[str, object]:
    asked = ("granularity", "aggregation", "activation_dtype", "autocast", "folds", "repeats", "seed")
    config = {**cell.probe.parameters, "method": cell.probe.name, "layer": cell.path, "label": cell.label}
    return {**config, "labelled": column.dataset.digest, **{name: getattr(recipe, name) for name in asked}}


def _params(job: Job, recipe: ProbeRecipe, cell: ProbeCell) -> dict[str, str]:
    """Return what is known of a run before anything is fitted, so that one that fails says what it was."""
    fixed = {"model": job.model.name, "task": job.model.task, "method": cell.probe.name, "layer": cell.path}
    fixed |= {name: getattr(recipe, name) for name in ("granularity", "aggregation", "folds", "repeats", "seed")}
    return schema.params({**fixed, "label": cell.label}, {**cell.probe.parameters})


def _fit(cell: ProbeCell, column: Column, rows: ActivationSet, workspace: Workspace) -> None:
    """Fit a probe, unless the workspace holds it already."""
    found = workspace.fitted(cell.hash)
    if isinstance(found, Probe):
        check_belongs(found, rows)
        cell.probe = found
        return
    cell.probe.fit(rows, column.labels, names=column.names, per="text")
    workspace.keep(cell.hash, cell.probe)


def _write(job: Job, recipe: ProbeRecipe, cell: ProbeCell, column: Column, log: RunLog) -> None:
    one = plain(
        recipe,
        layers=[cell.layer],
        methods=[cell.probe.name],
        label_columns=[cell.label],
        options={cell.probe.name: recipe.options_of(cell.probe.name)},
        register_best=False,
    )
    cell.logged = write_dictionary(
        log,
        cell.probe,
        name=schema.slugify(f"{cell.path}-{cell.probe.name}-{cell.label}"),
        metrics=cell.metrics,
        model=job.model,
        dataset=column.dataset,
    )
    kept = keepable(cell.probe)
    assert isinstance(kept, Probe)
    frame = cell.known.to_frame()
    called = dict(zip(cell.known.names, kept.names or (), strict=True))
    log.table(schema.PROBING_SCORES, frame.assign(concept=frame["concept"].map(called)))
    log.write_recipe(one)
    log.write_environment()


def register_best(job: Job, recipe: ProbeRecipe, cells: list[ProbeCell]) -> None:
    """Register the probe of each column whose metric is the best, over layers and methods."""
    with job.console.stage("tracking"):
        for label in recipe.label_columns:
            best = best_of([cell for cell in cells if cell.label == label], recipe.select_by)
            assert best.logged is not None
            name = schema.registered_name(job.model.name, best.path, f"{label}-{best.probe.name}")
            version = register_dictionary(job.store, best.logged, best.probe, name=name, metrics=best.metrics)
            best.registered = (name, str(version.version))
