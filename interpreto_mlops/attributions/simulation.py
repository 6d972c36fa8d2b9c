"""Simulatability of attributions: how much the words of an explanation help a reader to say what a classifier says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from interpreto_mlops.attributions.results import Attribution, AttributionSet, Target
from interpreto_mlops.errors import InputError
from interpreto_mlops.llm.questioner import Questioner
from interpreto_mlops.llm.simulation import (
    Contributions,
    Explanation,
    Feature,
    FeatureKind,
    Sample,
    Simulation,
    SimulationResult,
    Study,
)
from interpreto_mlops.llm.simulation.importances import normalised

NAME = "attributions"


def simulatability(
    explanations: AttributionSet,
    questioner: Questioner,
    *,
    classes: Sequence[str] | None = None,
    labels: Sequence[int | str] | None = None,
    n_words: int = 10,
    **options: Any,
) -> SimulationResult:
    """Ask a reader what a classifier says of texts, without and with the top words of attributions; score its answers.

    The global explanation of a class is the words with the largest mean score over the texts that the model says it
    of; the local one of a text, its words with the largest score. Scores are told as those of concepts are.

    Arguments:
        explanations: of what a sequence classifier says of each text (`targets=None`); where several classes of a text
            are explained, the one with the highest output is taken for what the model says.
        questioner: asks the reader.
        classes: the names of all classes, by id, as `model.labels`; None takes those that are explained.
        labels: the right class of each text, by id or name; without them, texts are not balanced over right and wrong
            predictions.
        n_words: the most words of a class, and of a text.
        options: of `Simulation`: settings, seeds, n_learn, n_evaluate, mistakes, anonymous, answers, min_parsed, …

    Raises:
        InputError: explanations of something else than classes of texts, hidden texts, classes or labels that do not
            fit, too few texts, or an option that cannot be used.
        LanguageModelError: none of the questions has an answer.

    Source: the protocol of Poché et al. 2025 (ConSim, arXiv 2501.05855), with words in the place of concepts.
    """
    simulation = Simulation(**options)
    study = attribution_study(explanations, classes=classes, labels=labels, n_words=n_words)
    return simulation.run(study, questioner, name=NAME)


def attribution_study(
    explanations: AttributionSet,
    *,
    classes: Sequence[str] | None = None,
    labels: Sequence[int | str] | None = None,
    n_words: int = 10,
) -> Study:
    """Return what a simulation with the words of attributions needs to know; arguments as for `simulatability`.

    Raises:
        InputError: as `simulatability`.
    """
    if isinstance(n_words, bool) or not isinstance(n_words, int) or n_words < 1:
        raise InputError(f"n_words must be a whole number of at least 1, not {n_words!r}")
    rows = [_predicted(item) for item in explanations]
    names, place_of = _classes([item.targets[row] for item, row in zip(explanations, rows, strict=True)], classes)
    right = _label_places(labels, len(explanations), names, place_of)
    words = _Words()
    sums: list[dict[int, float]] = [defaultdict(float) for _ in names]
    samples = []
    for place, (item, row) in enumerate(zip(explanations, rows, strict=True)):
        said = place_of[item.targets[row].id]
        scores = words.scores(item, row)
        for word, score in scores.items():
            sums[said][word] += score
        label = None if right is None else right[place]
        samples.append(Sample(item.text, item.index, said, label, None, _contributions(scores, n_words)))
    features = tuple(Feature(place, (word,)) for place, word in enumerate(words.known))
    # A mean is a sum over a class's texts by their number, which its shares do not depend on.
    importance = np.zeros((len(names), len(features)))
    for own, totals in zip(importance, sums, strict=True):
        top = _top(totals, n_words)
        own[top] = normalised([totals[word] for word in top])
    said_ones = {sample.prediction for sample in samples}
    importance[[place for place in range(len(names)) if place not in said_ones]] = np.nan
    return Study(names, samples, Explanation(FeatureKind.WORD, features, importance))


class _Words:
    """Numbers words in the order in which they are met, whatever their case."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def scores(self, item: Attribution, row: int) -> dict[int, float]:
        """Return the score of each word of a text; one that is there several times has their sum."""
        totals: dict[int, float] = defaultdict(float)
        for element, score in zip(item.elements, item.scores[row].tolist(), strict=True):
            word = " ".join(element.lower().split())
            if word and not np.isnan(score):
                totals[self.known.setdefault(word, len(self.known))] += score
        return totals


def _top(scores: dict[int, float], n: int) -> list[int]:
    return sorted((word for word in scores if scores[word]), key=lambda word: (-abs(scores[word]), word))[:n]


def _contributions(scores: dict[int, float], n_words: int) -> Contributions:
    """Return the shares that a text's top words have of all its words' scores."""
    top = _top(scores, n_words)
    total = sum(abs(score) for score in scores.values()) or 1.0
    return Contributions(np.asarray(top, dtype=np.int64), np.asarray([scores[word] / total for word in top]))


def _predicted(item: Attribution) -> int:
    """Return the row of the class that the model says."""
    if item.is_hidden:
        raise InputError("the explanations hold hashes in the place of texts, which tell a reader nothing")
    if not item.targets or any(target.positions or target.ids or target.contrast for target in item.targets):
        raise InputError(
            f"text {item.index} is not explained by a class alone; simulatability needs explanations of what a "
            "sequence classifier says, as targets=None gives"
        )
    return int(np.argmax(item.output))


def _classes(said: Sequence[Target], given: Sequence[str] | None) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the names of the classes, and the place of each class's id among them."""
    found = dict(sorted({target.id: target.name for target in said}.items()))
    if given is None:
        if len(found) < 2:
            raise InputError(
                f"the explained classes are {list(found.values())!r} alone; explain what the model says (targets=None) "
                "of texts of several classes, or give classes"
            )
        return tuple(found.values()), {number: place for place, number in enumerate(found)}
    names = tuple(map(str, given))
    if isinstance(given, str) or any(i >= len(names) or names[i] != name for i, name in found.items()):
        raise InputError(f"classes must be the names of all classes by id, and {given!r} does not fit {found!r}")
    return names, {number: number for number in range(len(names))}


def _label_places(
    labels: Sequence[int | str] | None, n: int, names: tuple[str, ...], place_of: dict[int, int]
) -> list[int] | None:
    if labels is None:
        return None
    if len(labels) != n:
        raise InputError(f"give a label for each of the {n} explained texts, not {len(labels)}")
    by_name = {name: place for place, name in enumerate(names)}
    return [_label_place(label, by_name, place_of) for label in labels]


def _label_place(label: int | str, by_name: dict[str, int], place_of: dict[int, int]) -> int:
    place = by_name.get(label) if isinstance(label, str) else place_of.get(int(label))
    if place is None:
        raise InputError(f"there is no class {label!r}; known: {list(by_name)}; give classes where it is another one")
    return place
