"""Attributions of a data set: one run for each method, scored beside random rankings and compared with each other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from interpreto_mlops.attributions import AttributionSet, Attributor
from interpreto_mlops.attributions.comparison import Comparison, compare
from interpreto_mlops.attributions.metrics import Metric, MetricResult
from interpreto_mlops.concepts import ConceptTargets, concept_targets
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.layer_targets import LayerTargets
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.targets import questions
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import parse_grain
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.attribution_evidence import write_attributions
from interpreto_mlops.tracking.dictionary_flavor import load_dictionary
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.visuals.page import arrow
from interpreto_mlops.workflows.job import Job, plain
from interpreto_mlops.workflows.recipes import AttributeRecipe
from interpreto_mlops.workflows.together import (
    Explained,
    build_methods,
    build_metrics,
    explain_together,
)


@dataclass(frozen=True)
class Plan:
    """What is done with the texts of a job.

    Arguments:
        methods: by label.
        metrics: of each method.
        call: what the methods are called with beside the texts (targets, …).
        recipes: what repeats one method's run, by label, where it can be repeated by a recipe.
    """

    methods: Mapping[str, Attributor]
    metrics: Mapping[str, Sequence[Metric]]
    call: Mapping[str, Any] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class AttributionCell:
    """One finished run.

    Arguments:
        run_id: of the run.
        method: the label: the registry name, with what tells methods of one name apart.
        explanations: of all texts.
        scores: of the explanations.
    """

    run_id: str
    method: str
    explanations: AttributionSet = field(repr=False)
    scores: list[MetricResult] = field(repr=False)

    @property
    def seconds(self) -> float:
        """How long the explanations took."""
        return self.explanations.seconds

    @property
    def counters(self) -> dict[str, float]:
        """What the engine did for the explanations."""
        return self.explanations.counters


def planned(recipe: AttributeRecipe, model: TextModel, dataset: TextDataset, store: Store | None = None) -> Plan:
    """Return what a recipe asks for.

    Arguments:
        recipe: of the job.
        model: the model to explain.
        dataset: the texts.
        store: where a dictionary's address is looked up.

    Raises:
        UnknownNameError: a name or a parameter that is not known.
        InputError: a parameter that cannot be used.
        ModelLoadError: there is no such dictionary.
        IntegrityError: the dictionary is of another model.
    """
    recipe.check()
    common = {
        "granularity": recipe.granularity,
        "inference_mode": recipe.inference_mode,
        "replacement": recipe.replacement,
        "seed": recipe.seed,
        "target_granularity": recipe.target_granularity,
    }
    scoring = {"replacement": recipe.replacement, "n_random": recipe.n_random, "seed": recipe.seed}
    methods = build_methods(model, recipe.methods, common, recipe.options)
    recipes = {
        label: plain(recipe, methods=[method.name], options=_options(recipe, [method.name, *recipe.metrics]))
        for label, method in methods.items()
    }
    targets = recipe.target if dataset.targets is None else column_targets(dataset)
    at_layer = None if recipe.dictionary is None else _concepts(recipe, model, store)
    metrics = build_metrics(methods, recipe.metrics, scoring, recipe.options, targets=at_layer)
    call: dict[str, Any] = {
        "targets": targets if at_layer is None else at_layer,
        "contrast": recipe.contrast,
        "generation": recipe.generate or None,
        "truncation": recipe.truncation,
    }
    # Targets that the model does not have are refused here, before anything runs.
    questions(
        model,
        dataset.texts,
        granularity=parse_grain(recipe.granularity),
        target_granularity=parse_grain(recipe.target_granularity),
        **call,
    )
    return Plan(methods, metrics, call, recipes)


def _concepts(recipe: AttributeRecipe, model: TextModel, store: Store | None) -> ConceptTargets:
    """Return the concepts to explain, of a dictionary that was fitted on this model."""
    assert recipe.dictionary is not None
    dictionary = load_dictionary(recipe.dictionary, store=store)
    layer = dictionary.provenance.get("layer")
    if layer is None:
        raise InputError(f"the dictionary {recipe.dictionary!r} does not say which layer it was fitted on")
    split = Splitter(model, [layer])
    targets = concept_targets(split, dictionary, recipe.concepts, aggregation=recipe.concept_aggregation)
    targets.record["dictionary_uri"] = recipe.dictionary
    return targets


def column_targets(dataset: TextDataset) -> list[str | None] | None:
    """Return what is to be explained in each text, None where the data do not say, or None where they never do."""
    return None if dataset.targets is None else [target or None for target in dataset.targets]


def _options(recipe: AttributeRecipe, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {name: recipe.options_of(name) for name in names if recipe.options_of(name)}


def explain(job: Job, plan: Plan) -> list[AttributionCell]:
    """Explain the job's texts by every method of the plan, score them, and write one run for each method.

    What methods and metrics have in common is evaluated once.

    Raises:
        InterpretoError: whatever stops a method; the runs that are not written yet are then marked FAILED.
    """
    with ExitStack() as open_runs:
        stacks = {label: open_runs.enter_context(ExitStack()) for label in plan.methods}
        logs = {label: stack.enter_context(_opened(job, plan, label)) for label, stack in stacks.items()}
        explained = explain_together(
            plan.methods, plan.metrics, job.dataset.texts, plan.call, progress=job.console.progress
        )
        cells = []
        for label, found in explained.items():
            _write(job, plan, label, logs[label], found)
            stacks[label].close()
            cells.append(AttributionCell(logs[label].run_id, label, found.explanations, found.scores))
        return cells


def _opened(job: Job, plan: Plan, label: str) -> AbstractContextManager[RunLog]:
    method = plan.methods[label]
    config = {
        **method.parameters,
        "method": method.name,
        "metrics": {metric.name: metric.parameters for metric in plan.metrics[label]},
        "call": {name: value for name, value in plan.call.items() if value is not None},
        "arithmetic": job.model.arithmetic,
    }
    return run(
        job.store,
        kind="attributions",
        name=f"{label} on {job.dataset.name}",
        suite=job.suite,
        cell=job.cell(_fixed(config)),
        tags=job.tags(),
        # What is known before anything runs, so that a run that fails says what it was.
        params=schema.params({"model": job.model.name, "task": job.model.task, "method": method.name}),
    )


def _fixed(value: Any) -> Any:
    """Turn a parameter into plain JSON that is the same whenever the parameter is."""
    if isinstance(value, Mapping):
        return {str(key): _fixed(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fixed(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value)
        return [str(content.dtype), list(content.shape), hashlib.sha256(content.tobytes()).hexdigest()]
    if isinstance(value, LayerTargets):
        return value.key
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _write(job: Job, plan: Plan, label: str, log: RunLog, found: Explained) -> None:
    explanations = found.explanations
    if not any(len(item) for item in explanations):
        raise InputError(f"none of the {len(explanations)} texts of {job.dataset.name!r} has anything to attribute")
    with job.console.stage("tracking"):
        write_attributions(log, explanations, metrics=found.scores, model=job.model, dataset=job.dataset)
        if label in plan.recipes:
            log.write_recipe(plan.recipes[label])
        log.write_environment()
    _report_texts(job, label, explanations)
    for reason in found.unscored.values():
        job.console.say(f"  {label}: {reason}")


def _report_texts(job: Job, label: str, explanations: AttributionSet) -> None:
    empty = sum(len(item) == 0 for item in explanations)
    cut = explanations.n_truncated
    parts = [f"{cut} of {len(explanations)} texts cut at {job.model.max_length} tokens"] if cut else []
    open_gaps = sum(item.checks.get("complete") == 0 for item in explanations)
    parts += (
        [f"{open_gaps} of {len(explanations)} texts with a completeness gap above the tolerance"] if open_gaps else []
    )
    parts += [f"{empty} of {len(explanations)} texts have nothing to attribute and are skipped"] if empty else []
    if parts:
        job.console.say(f"  {label}: " + "; ".join(parts))


def compared(cells: Sequence[AttributionCell]) -> Comparison:
    """Return the methods of a job compared: intervals, paired tests, costs."""
    found = compare(
        {cell.method: cell.scores for cell in cells},
        {cell.method: (cell.counters.get("evaluations_asked", np.nan), cell.seconds) for cell in cells},
    )
    return dataclasses.replace(
        found,
        explanations={cell.method: cell.explanations for cell in cells},
        run_ids={cell.method: cell.run_id for cell in cells if cell.run_id},
    )


def attribution_table(comparison: Comparison) -> pd.DataFrame:
    """Return the results as a table: a row for each method, each metric beside its random ranking.

    The best of a metric is marked by `*`, those that do not differ significantly from it by `=`.
    """
    rows = []
    for label, explanations in comparison.explanations.items():
        row: dict[str, Any] = {"method": label}
        for found in comparison.table[comparison.table["method"] == label].to_dict("records"):
            mark = "*" if found["best"] else "=" if found["tied_with_best"] else " "
            title = f"{found['metric']} {arrow(found['higher_is_better'])} (random)"
            row[title] = f"{found['mean']:.3f} ({found['random_mean']:.3f}) {mark}"
        evaluations = int(explanations.counters.get("evaluations_asked", 0))
        rows.append({**row, "evaluations": evaluations, "seconds": explanations.seconds})
    return pd.DataFrame(rows)
