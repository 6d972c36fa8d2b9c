"""How good the dictionaries of a concepts job are, and what their concepts matter to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from interpreto_mlops.concepts import (
    IMPORTANCE,
    ActivationSet,
    ConceptDictionary,
    ConceptImportance,
    ModelWithSplitPoints,
    concept_importance,
    evaluate_effect,
    evaluate_rows,
    probe_texts,
    stability,
    stability_random,
)
from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
from interpreto_mlops.concepts.metrics import has_predictions, shared_fraction
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.objectives import InferenceMode, check_mode
from interpreto_mlops.models.targets import questions
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.workflows.concept_cells import ConceptCell
from interpreto_mlops.workflows.job import Job
from interpreto_mlops.workflows.recipes import ConceptsRecipe

_FEW_LABELS = 10
# Rows of these aggregations, or of one token each, say which tokens a concept moves.
_MOVABLE = {"mean", "sum", "first", "last"}
_SINGLE = {"token", "all_tokens", "cls"}

Explainer = Callable[[ConceptCell, TextDataset], ConceptImportance]


def explainer(job: Job, recipe: ConceptsRecipe, split: ModelWithSplitPoints) -> Explainer | None:
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


def check_selectable(job: Job, recipe: ConceptsRecipe, held_out: TextDataset) -> None:
    """Refuse a metric to select by that cannot be computed with this model or these texts, before anything is fitted.

    Raises:
        InputError: a model whose effect cannot be measured, or texts with too few labels to probe.
    """
    needs, missing = CONCEPT_METRICS.get(recipe.select_by).needs, None
    if needs == "outputs" and not has_predictions(job.model):
        missing = f"the effect on {job.model.name!r} needs exclusive classes, or a decoder"
    if needs == "probe" and _probed(held_out) is None:
        missing = f"two labels need at least {_FEW_LABELS} of the {len(held_out)} texts that metrics are computed on"
    if missing:
        raise InputError(f"no dictionary can be selected by {recipe.select_by!r}: {missing}")


def _why_no_importance(job: Job, recipe: ConceptsRecipe) -> str | None:
    """Return why nothing can be said about importance, or None where it can."""
    if job.model.task == "encoder":
        return f"the model {job.model.name!r} is neither a classifier nor a language model"
    if job.model.task == "generation" and not recipe.generate and recipe.target is None:
        return "a language model needs a target, or generation arguments, to say what its concepts matter to"
    if not moves_tokens(recipe.granularity, recipe.aggregation):
        return f"rows that are the {recipe.aggregation!r} of their tokens do not say which token a concept moves"
    return None


def moves_tokens(granularity: str, aggregation: str) -> bool:
    """Return whether rows say which tokens a concept moves."""
    return aggregation in _MOVABLE or granularity in _SINGLE


def score(
    job: Job,
    recipe: ConceptsRecipe,
    split: ModelWithSplitPoints,
    cells: list[ConceptCell],
    activations: ActivationSet,
    held_out: TextDataset,
) -> None:
    """Score the dictionaries of a layer on rows that they were not fitted on, where there are such."""
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
    kept = _probed(held_out)
    return {} if kept is None else probe_texts(dictionary, activations, kept)


def _probed(held_out: TextDataset) -> list[str | None] | None:
    """Return the labels that enough texts have, None for the others; or None where these are fewer than two."""
    counts = Counter(held_out.labels or ())
    kept = [label if counts[label] >= _FEW_LABELS else None for label in held_out.labels or ()]
    return kept if len({label for label in kept if label is not None}) >= 2 else None


def _by_seed(cells: list[ConceptCell]) -> list[list[ConceptCell]]:
    """Group dictionaries that differ in nothing but the seed."""
    groups: dict[tuple[str, int], list[ConceptCell]] = {}
    for cell in cells:
        groups.setdefault((cell.dictionary.name, cell.dictionary.n_concepts), []).append(cell)
    return list(groups.values())
