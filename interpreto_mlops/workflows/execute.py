"""A recipe from beginning to end: load, open the suite, run the cells, write the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from interpreto_mlops.attributions import AttributionSet
from interpreto_mlops.attributions.comparison import Comparison
from interpreto_mlops.errors import DataError, InputError
from interpreto_mlops.text.datasets import DATASETS, TextDataset, load_dataset
from interpreto_mlops.text.hiding import hiding_texts, texts_are_hidden
from interpreto_mlops.tracking.links import run_url, ui_command
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.workflows.attribute import AttributionCell, Plan, attribution_table, compared, explain, planned
from interpreto_mlops.workflows.cataloguing import catalogued, check_log, take_over
from interpreto_mlops.workflows.concept_cells import ConceptCell, concept_table
from interpreto_mlops.workflows.concepts import learn
from interpreto_mlops.workflows.job import DEFAULT_STORE, Console, Job, new_suite, plain
from interpreto_mlops.workflows.probe import Columns, columns_of, probe_layers
from interpreto_mlops.workflows.probe_cells import ProbeCell, probe_table
from interpreto_mlops.workflows.probe_report import write_probe_report
from interpreto_mlops.workflows.recipes import AttributeRecipe, ConceptsRecipe, ExplainRecipe, ProbeRecipe
from interpreto_mlops.workflows.reports import report_run, write_report
from interpreto_mlops.workflows.workspace import Workspace


@dataclass
class Outcome:
    """What a recipe led to.

    Arguments:
        store: where it is.
        suite: the tag of all its runs.
        report_run_id: of the run that compares them.
        attributions, concepts, probes: the finished cells.
        comparison: of the attribution methods, where there are any.
    """

    store: Store
    suite: str
    report_run_id: str
    attributions: list[AttributionCell] = field(default_factory=list)
    concepts: list[ConceptCell] = field(default_factory=list)
    comparison: Comparison | None = None
    probes: list[ProbeCell] = field(default_factory=list)

    @property
    def runs(self) -> list[tuple[str, AttributionSet | None]]:
        """The finished runs, each with its attributions where it has any; the report's is the last."""
        cells = [(each.run_id, each.explanations) for each in self.attributions]
        learned = [*(each.run_id for each in self.concepts), *(each.run_id for each in self.probes)]
        return [*cells, *((run_id, None) for run_id in learned), (self.report_run_id, None)]


def execute(recipe: ExplainRecipe, *, command: str, console: Console | None = None) -> Outcome:
    """Carry a recipe out.

    Arguments:
        recipe: what to do.
        command: what repeats it, for the record.
        console: where to report; by default nowhere.

    Raises:
        InterpretoError: whatever stops it; what had begun is then marked FAILED, and nothing is registered.
        CatalogueError: all is done, but the log does not tell of what was registered.
    """
    with hiding_texts(recipe.hide_texts):
        return _execute(recipe, command, console or Console(quiet=True))


def _execute(recipe: ExplainRecipe, command: str, console: Console) -> Outcome:
    texts_are_hidden()  # What the environment says of it must be readable.
    recipe.check()
    dataset = load_dataset(
        recipe.data,
        text_column=recipe.text_column,
        label_column=recipe.label_column,
        target_column=recipe.target_column if isinstance(recipe, AttributeRecipe) else None,
        split=recipe.split,
    ).head(recipe.max_texts)
    if not any(text.strip() for text in dataset.texts):
        raise DataError(f"all {len(dataset)} texts of {recipe.data!r} are empty")
    store = connect(recipe.tracking_uri, recipe.experiment, default=DEFAULT_STORE)
    with console.stage("model"):
        model = load_model(recipe.model, store=store, **_arithmetic(recipe))
        if isinstance(recipe, AttributeRecipe) and model.task == "encoder" and recipe.dictionary is None:
            raise InputError(f"{recipe.model!r} is neither a classifier nor a language model, which attributions need")
    job = Job(store, model, dataset, new_suite(recipe.kind), command, console)
    # Before any run is there: what the plan refuses leaves nothing in the store.
    plan = planned(recipe, model, dataset, store) if isinstance(recipe, AttributeRecipe) else None
    columns = columns_of(recipe, dataset, console) if isinstance(recipe, ProbeRecipe) else {}
    console.say(f"{model.name} on {len(dataset)} texts of {dataset.name}; runs go to {store.shown}, suite {job.suite}")
    with catalogued(store, console, recipe.catalogue_uri, wanted=recipe.catalogue) as keeper:
        outcome = _carry_out(job, recipe, plan, columns)
        take_over(keeper, console, outcome.runs)
    show(outcome, console)
    check_log(keeper)
    return outcome


def _carry_out(job: Job, recipe: ExplainRecipe, plan: Plan | None, columns: Columns) -> Outcome:
    console, store = job.console, job.store
    workspace = Workspace(None if isinstance(recipe, AttributeRecipe) else recipe.workspace)
    if count := workspace.close_abandoned(store):
        console.say(f"  {count} runs that a killed job left open in this workspace are marked KILLED")
    title = f"{recipe.kind} {job.model.name} on {job.dataset.name}"
    with report_run(job, title) as log:
        workspace.opened(store, [log.run_id])
        log.write_recipe(plain(recipe))
        outcome = Outcome(store, job.suite, log.run_id)
        if isinstance(recipe, ConceptsRecipe):
            outcome.concepts.extend(learn(job, recipe, _fit_texts(recipe)))
        if plan is not None:
            with console.stage("attributions"):
                outcome.attributions.extend(explain(job, plan))
                outcome.comparison = compared(outcome.attributions)
        if isinstance(recipe, ProbeRecipe):
            outcome.probes.extend(probe_layers(job, recipe, columns))
            with console.stage("report"):
                write_probe_report(job, log, title, outcome.probes)
            return outcome
        with console.stage("report"):
            write_report(job, log, title, outcome.comparison, outcome.concepts)
    return outcome


def _arithmetic(recipe: ExplainRecipe) -> dict[str, Any]:
    """Return how the model is to compute."""
    if isinstance(recipe, AttributeRecipe):
        return {"dtype": recipe.dtype, "autocast": recipe.autocast, "compile": recipe.compile}
    return {"dtype": recipe.dtype, "autocast": recipe.autocast}


def _fit_texts(recipe: ConceptsRecipe) -> TextDataset | None:
    if recipe.fit_split is None:
        return None
    if recipe.data not in DATASETS:
        raise InputError(f"fit_split needs a data set that is known by name, and {recipe.data!r} is a file")
    return load_dataset(recipe.data, split=recipe.fit_split).head(recipe.fit_max_texts)


def show(outcome: Outcome, console: Console) -> None:
    """Print the tables of an outcome, what was registered, and how to look at it."""
    if outcome.comparison is not None:
        console.say()
        console.table(attribution_table(outcome.comparison))
        if len(outcome.attributions) > 1 and len(outcome.comparison.table):
            console.say("* best; = no significant difference from the best (paired tests, Holm's correction, 5 %)")
    if outcome.concepts:
        console.say()
        console.table(concept_table(outcome.concepts))
    if outcome.probes:
        console.say()
        console.table(probe_table(outcome.probes))
    console.say()
    console.say(f"report: {run_url(outcome.store, outcome.report_run_id)}")
    if command := ui_command(outcome.store):
        console.say(f"to open the MLflow UI on it: {command}")
