"""Attributions of a data set: one run for each method, scored beside random rankings."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interpreto_mlops.attributions import METHODS, AttributionSet, Attributor
from interpreto_mlops.attributions.metrics import MetricResult, evaluate
from interpreto_mlops.errors import InputError, TextWarning, UnknownNameError
from interpreto_mlops.tracking.attribution_evidence import write_attributions
from interpreto_mlops.tracking.runs import run
from interpreto_mlops.workflows.job import Job, plain
from interpreto_mlops.workflows.recipes import AttributeRecipe


@dataclass(frozen=True)
class AttributionCell:
    """One finished run.

    Arguments:
        run_id: of the run.
        method: the registry name.
        scores: of its explanations.
        seconds: that the explanations took.
        counters: what the engine did for them.
    """

    run_id: str
    method: str
    scores: list[MetricResult]
    seconds: float
    counters: dict[str, float]


def explain(job: Job, recipe: AttributeRecipe) -> list[AttributionCell]:
    """Explain the job's texts by every method of the recipe, score them, and write one run for each method.

    What methods and metrics have in common is evaluated once.

    Raises:
        InterpretoError: whatever stops a method; its run is then marked FAILED.
    """
    recipe.check()
    explainers = [_explainer(job, recipe, name) for name in recipe.methods]
    with job.model.engine.shared_table(), warnings.catch_warnings():
        # Texts that were cut or are empty are counted and reported once, below.
        warnings.simplefilter("ignore", TextWarning)
        return [_cell(job, recipe, explainer) for explainer in explainers]


def _explainer(job: Job, recipe: AttributeRecipe, name: str) -> Attributor:
    method = METHODS.get(name)
    known = {field.name for field in dataclasses.fields(method)} - {"model"}
    given: dict[str, Any] = {
        "granularity": recipe.granularity,
        "inference_mode": recipe.inference_mode,
        "replacement": recipe.replacement,
    }
    if "seed" in known:
        given["seed"] = recipe.seed
    given |= recipe.options_of(name)
    for option in given:
        if option not in known:
            raise UnknownNameError(f"option of {name!r}", option, sorted(known))
    return method(job.model, **given)


def _cell(job: Job, recipe: AttributeRecipe, explainer: Attributor) -> AttributionCell:
    name = explainer.name
    one = plain(recipe, methods=[name], options={name: recipe.options_of(name)})
    scoring = {"names": recipe.metrics, "replacement": recipe.replacement, "n_random": recipe.n_random}
    config = {
        **explainer.parameters,
        "method": name,
        "metrics": {**scoring, "seed": recipe.seed},
        "target": recipe.target,
    }
    with run(
        job.store,
        kind="attributions",
        name=f"{name} on {job.dataset.name}",
        suite=job.suite,
        cell=job.cell(config),
        tags=job.tags(),
    ) as log:
        explanations = explainer(job.dataset.texts, recipe.target, progress=job.console.progress)
        if not any(len(item) for item in explanations):
            raise InputError(f"none of the {len(explanations)} texts of {job.dataset.name!r} has anything to attribute")
        scores = _scores(job, recipe, explainer, explanations)
        with job.console.stage("tracking"):
            write_attributions(log, explanations, metrics=scores, model=job.model, dataset=job.dataset)
            log.write_recipe(one)
            log.write_environment()
    _report_texts(job, explanations)
    return AttributionCell(log.run_id, name, scores, explanations.seconds, explanations.counters)


def _scores(
    job: Job, recipe: AttributeRecipe, explainer: Attributor, explanations: AttributionSet
) -> list[MetricResult]:
    common: dict[str, Any] = {"replacement": recipe.replacement, "n_random": recipe.n_random, "seed": recipe.seed}
    found = evaluate(
        explanations, job.model, recipe.metrics, explainer=explainer, progress=job.console.progress, **common
    )
    return list(found.values())


def _report_texts(job: Job, explanations: AttributionSet) -> None:
    empty = sum(len(item) == 0 for item in explanations)
    cut = explanations.n_truncated
    parts = [f"{cut} of {len(explanations)} texts cut at {job.model.max_length} tokens"] if cut else []
    open_gaps = sum(item.checks.get("complete") == 0 for item in explanations)
    parts += (
        [f"{open_gaps} of {len(explanations)} texts with a completeness gap above the tolerance"] if open_gaps else []
    )
    parts += [f"{empty} of {len(explanations)} texts have nothing to attribute and are skipped"] if empty else []
    if parts:
        job.console.say(f"  {explanations.method}: " + "; ".join(parts))


def attribution_table(cells: list[AttributionCell]) -> pd.DataFrame:
    """Return the results as a table: a row for each method, each metric beside its random ranking."""
    rows = []
    for cell in cells:
        row: dict[str, Any] = {"method": cell.method}
        for score in cell.scores:
            title = f"{score.name} {'↑' if score.higher_is_better else '↓'} (random)"
            row[title] = f"{score.mean:.3f} ({score.random_mean:.3f})"
        rows.append({**row, "evaluations": int(cell.counters.get("evaluations_run", 0)), "seconds": cell.seconds})
    return pd.DataFrame(rows)
