"""ConSim: how much concepts help a reader to say what a classifier says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.importance import ConceptImportance, LocalImportance, local_importance
from interpreto_mlops.concepts.importance.base import Floats, ImportanceMethod
from interpreto_mlops.concepts.interpretation import ConceptDescription
from interpreto_mlops.concepts.metrics.effect import has_predictions, predicted_classes
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
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.targets import check_texts, label_id
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset

_WORDS = 5


def consim(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[Any] | TextDataset,
    questioner: Questioner,
    *,
    labels: Sequence[int | str] | None = None,
    descriptions: Sequence[ConceptDescription] | None = None,
    opposed: Mapping[int, Sequence[str]] | None = None,
    importance: ConceptImportance | None = None,
    method: str | ImportanceMethod = "gradient_x_activation",
    layer: int | str | None = None,
    token_budget: int = 2048,
    allow_mismatch: bool = False,
    **options: Any,
) -> SimulationResult:
    """Ask a reader what a classifier says of texts, without and with the concepts of a layer, and score its answers.

    Arguments:
        split: a sequence classifier, split at the dictionary's layer.
        dictionary: fitted.
        texts: the texts to draw from, best such that the dictionary was not fitted on.
        questioner: asks the reader.
        labels: the right class of each text, by id or name; None takes those of a `TextDataset`. Without any, texts
            are not balanced over right and wrong predictions.
        descriptions: what the concepts are called; None takes the dictionary's own. A given label is shown alone, else
            up to five words.
        opposed: words at the other end of signed concepts, by their numbers; up to five are shown.
        importance: of the concepts for the classes; None takes the mean over these texts, by predicted class.
        method: of importance, a name of `IMPORTANCE` or a method with its parameters.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        token_budget: the most tokens of a batch, padding included; it changes nothing but speed.
        allow_mismatch: take a dictionary of another model all the same.
        options: of `Simulation`: settings, seeds, n_learn, n_evaluate, mistakes, anonymous, answers, min_parsed, …

    Returns:
        The scores; `score` is that of E3, `gain` what it adds to L2, the examples without concepts.

    Raises:
        InputError: another model than a sequence classifier with exclusive classes, labels that do not fit, concepts
            without descriptions, too few texts, or an option that cannot be used.
        IntegrityError: a dictionary of another model.
        LanguageModelError: none of the questions has an answer.
        ModelOutputError: the model puts out NaN or infinity.

    Source: Poché et al. 2025 (ConSim, arXiv 2501.05855).
    """
    simulation = Simulation(**options)
    study = concept_study(
        split,
        dictionary,
        texts,
        labels=labels,
        descriptions=descriptions,
        opposed=opposed,
        importance=importance,
        method=method,
        layer=layer,
        token_budget=token_budget,
        allow_mismatch=allow_mismatch,
    )
    return simulation.run(study, questioner)


def concept_study(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[Any] | TextDataset,
    *,
    labels: Sequence[int | str] | None = None,
    descriptions: Sequence[ConceptDescription] | None = None,
    opposed: Mapping[int, Sequence[str]] | None = None,
    importance: ConceptImportance | None = None,
    method: str | ImportanceMethod = "gradient_x_activation",
    layer: int | str | None = None,
    token_budget: int = 2048,
    allow_mismatch: bool = False,
) -> Study:
    """Run the model on texts and return what a simulation with concepts needs to know; arguments as for `consim`.

    The model runs once for predictions and local importances and once with the layer reconstructed. Texts without a
    row of activations are left out.

    Raises:
        InputError, IntegrityError, ModelOutputError: as `consim`.
    """
    model = split.model
    if model.task != "classification" or not has_predictions(model):
        raise InputError(
            f"{model.name!r} cannot be simulated: that needs a sequence classifier with at least two exclusive classes"
        )
    features = _features(dictionary, descriptions, opposed or {})
    if isinstance(texts, TextDataset):
        labels = texts.labels if labels is None else labels
        texts = texts.texts
    check_texts(texts)
    read = list(texts)
    right = _label_ids(labels, len(read), model)
    common: dict[str, Any] = {"layer": layer, "token_budget": token_budget, "allow_mismatch": allow_mismatch}
    of_concepts = predicted_classes(split, dictionary, read, **common)[:, 1].tolist()
    means = _Means(len(model.labels), dictionary.n_concepts)
    samples = []
    for local in local_importance(split, dictionary, read, method=method, **common):
        means.add(local)
        if of_concepts[local.index] >= 0:
            label = None if right is None else right[local.index]
            samples.append(_sample(local, label, of_concepts[local.index]))
    shares = means.shares() if importance is None else _given(importance, means.values.shape, model)
    return Study(model.labels, samples, Explanation(FeatureKind.CONCEPT, features, shares))


def _features(
    dictionary: ConceptDictionary,
    descriptions: Sequence[ConceptDescription] | None,
    opposed: Mapping[int, Sequence[str]],
) -> tuple[Feature, ...]:
    told = dictionary.descriptions if descriptions is None else descriptions
    if told is None:
        raise InputError(
            "the concepts have no descriptions to show a reader; set dictionary.descriptions = top_words(dictionary, "
            "activations), or give descriptions"
        )
    by_number = {each.concept: each for each in told}
    missing = sorted(set(range(dictionary.n_concepts)) - by_number.keys())
    if missing:
        raise InputError(
            f"{len(missing)} of the {dictionary.n_concepts} concepts have no description, the first is {missing[0]}"
        )
    if any(each.hidden_label is not None for each in told):
        raise InputError("the descriptions hold hashes in the place of words, which tell a reader nothing")
    return tuple(
        Feature(number, _words(by_number[number]), tuple(opposed.get(number, ()))[:_WORDS])
        for number in range(dictionary.n_concepts)
    )


def _words(description: ConceptDescription) -> tuple[str, ...]:
    if description.given is not None or not description.words:
        return (description.label,)
    return tuple(word.word for word in description.words[:_WORDS])


def _label_ids(labels: Sequence[int | str] | None, n: int, model: TextModel) -> list[int] | None:
    if labels is None:
        return None
    if len(labels) != n:
        raise InputError(f"give a label for each of the {n} texts, not {len(labels)}")
    return [label_id(label, model) for label in labels]


def _sample(local: LocalImportance, label: int | None, of_concepts: int) -> Sample:
    (target,) = local.targets
    shares = normalised(local.totals[0])
    places = np.flatnonzero(shares)
    return Sample(local.text, local.index, target.id, label, of_concepts, Contributions(places, shares[places]))


class _Means:
    """Adds up importances by predicted class."""

    def __init__(self, n_classes: int, n_concepts: int) -> None:
        self.values = np.zeros((n_classes, n_concepts))
        self._counts = np.zeros(n_classes)

    def add(self, local: LocalImportance) -> None:
        self.values[local.targets[0].id] += local.totals[0]
        self._counts[local.targets[0].id] += 1

    def shares(self) -> Floats:
        """Return the means as shares, NaN for a class that is never said."""
        shares = normalised(self.values)
        shares[self._counts == 0] = np.nan
        return shares


def _given(importance: ConceptImportance, shape: tuple[int, ...], model: TextModel) -> Floats:
    if importance.classes != model.labels or importance.values.shape != shape:
        raise InputError(
            f"the importance is of {importance.values.shape[1]} concepts for the classes {list(importance.classes)}, "
            f"and there are {shape[1]} concepts and the classes {list(model.labels)}"
        )
    return importance.normalised
