"""Several metrics of the same labels, where one can share another's answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from interpreto_mlops.concepts.interpretation_metrics.base import INTERPRETATION_METRICS, LabelMetric
from interpreto_mlops.concepts.interpretation_metrics.rating import NaturalRatings
from interpreto_mlops.concepts.interpretation_metrics.score import InterpretationScore
from interpreto_mlops.concepts.interpretation_metrics.subjects import Labels
from interpreto_mlops.concepts.split import ModelWithSplitPoints
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.llm import Questioner
from interpreto_mlops.registry import check_options

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

GROUP = "interpretation/"


def score_labels(
    questioner: Questioner,
    dictionary: ConceptDictionary,
    activations: ActivationSet,
    labels: Labels | None = None,
    *,
    metrics: Iterable[str] = ("detection",),
    split: ModelWithSplitPoints | None = None,
    concepts: Iterable[int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    **common: Any,
) -> dict[str, InterpretationScore]:
    """Score labels by several metrics; responsiveness and purity with the same options share their questions.

    Arguments:
        questioner: asks the language model.
        dictionary: fitted.
        activations: of its layer, better of texts that neither the dictionary nor its labels were made from.
        labels: one for each concept, or some by the concept's number; None takes the dictionary's descriptions.
        metrics: `detection`, `fuzzing`, `clarity`, `responsiveness`, `purity`, `faithfulness`, with or without
            `interpretation/` before it.
        split: the model, split at the dictionary's layer, for clarity and faithfulness.
        concepts: which ones to score; None for all that have a label.
        options: parameters of each metric by its name.
        common: parameters of all metrics: `shuffled`, `min_parsed`, `seed`.

    Returns:
        The scores by the metrics' names in runs.

    Raises:
        UnknownNameError: a metric or an option that there is not.
        InputError: an option that cannot be used, or no `split` where it is needed.
    """
    if isinstance(metrics, str):
        raise InputError(f"give a list of metrics, as in [{metrics!r}]")
    given = {_full(name): values for name, values in (options or {}).items()}
    names = list(dict.fromkeys(map(_full, metrics)))
    if strange := given.keys() - set(names):
        raise UnknownNameError("metric in options", min(strange), names)
    # All are made before any question is asked, so that no mistake is found after money was spent.
    made = [_made(name, questioner, split, {**common, **given.get(name, {})}) for name in names]
    chosen = None if concepts is None else list(concepts)
    found: dict[str, InterpretationScore] = {}
    for each in made:
        twin = next((m for m in made if m.name in found and _same_questions(m, each)), None)
        if twin is None:
            found[each.name] = each(dictionary, activations, labels, concepts=chosen)
        else:
            found[each.name] = found[twin.name].scored_by(each.metric)
    return found


def _full(name: str) -> str:
    return name if name.startswith(GROUP) else GROUP + name


def _made(
    name: str, questioner: Questioner, split: ModelWithSplitPoints | None, options: Mapping[str, Any]
) -> LabelMetric:
    kind = INTERPRETATION_METRICS.get(name)
    check_options(kind, name, options)
    given = dict(options)
    if "split" in {each.name for each in dataclasses.fields(kind)}:
        if split is None:
            raise InputError(f"{name!r} runs the model: give split, the model split at the dictionary's layer")
        given["split"] = split
    return kind(questioner, **given)


def _same_questions(first: LabelMetric, second: LabelMetric) -> bool:
    return (
        isinstance(first, NaturalRatings)
        and isinstance(second, NaturalRatings)
        and first.parameters == second.parameters
    )
