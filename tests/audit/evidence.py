"""Real evidence in a real store: a registered classifier, its attributions, and two versions of a dictionary."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from interpreto_mlops.attributions import AttributionSet, Occlusion, Saliency
from interpreto_mlops.attributions.metrics import Deletion
from interpreto_mlops.concepts import ConceptDictionary, ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import log_text_model, register_dictionary, run, write_attributions, write_dictionary
from interpreto_mlops.tracking.store import Store
from tests.conftest import TEXTS, build, word_tokenizer


@dataclass(frozen=True)
class Evidence:
    """What is in the store.

    Arguments:
        store: the store.
        model: the explained model.
        data: its texts.
        attributions: by run.
        dictionary_runs: of the first and second version of the dictionary.
        labels: of the two, by concept.
    """

    store: Store
    model: TextModel
    data: TextDataset
    attributions: dict[str, AttributionSet]
    dictionary_runs: tuple[str, str]
    labels: tuple[dict[int, str], dict[int, str]]
    dictionary_name: str = "tiny.layer-1.pca"


def make_evidence(store: Store) -> Evidence:
    """Write it: two methods' attributions of `models:/reviews/1`, and two versions of a dictionary of it."""
    plain = TextModel(build("bert"), word_tokenizer(), name="tiny")
    logged = log_text_model(store, None, plain, name="reviews", registered_model_name="reviews")
    model = TextModel(plain.model, plain.tokenizer, name="reviews", uri=logged.uri, model_id=logged.model_id)
    data = TextDataset("reviews", TEXTS)
    attributions = {}
    for method in (Occlusion(model), Saliency(model)):
        found = method(data.texts)
        scores = [Deletion(model)(found)] if method.name == "occlusion" else []
        with run(store, kind="attributions", name=method.name, suite="s") as log:
            write_attributions(log, found, metrics=scores, model=model, dataset=data)
        attributions[log.run_id] = found
    activations = ModelWithSplitPoints(model, [1]).get_activations(data, progress=False)[1]
    first = PCAConcepts(n_concepts=4).fit(activations)
    first.descriptions = top_words(first, activations)
    second = copy.copy(first)
    words = first.descriptions[2].words
    second.descriptions = [*first.descriptions]
    second.descriptions[2] = replace(first.descriptions[2], words=words[::-1])
    runs = tuple(_dictionary(store, each) for each in (first, second))
    labels = tuple({each.concept: each.label for each in found.descriptions or ()} for found in (first, second))
    return Evidence(store, model, data, attributions, runs, labels)  # type: ignore[arg-type]


def _dictionary(store: Store, dictionary: ConceptDictionary) -> str:
    metrics = {"reconstruction/r2": 0.5, "complexity/l0": float("nan")}
    with run(store, kind="concepts", name="pca", suite="s") as log:
        logged = write_dictionary(log, dictionary, metrics=metrics)
    register_dictionary(store, logged, dictionary, name="tiny.layer-1.pca", metrics=metrics)
    return log.run_id
