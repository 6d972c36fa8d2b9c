"""Dictionaries fetched from a store, with the activations of texts in the models they belong to, and matched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pandas as pd

from interpreto_mlops.audit.comparison import dictionaries as matching
from interpreto_mlops.audit.comparison.dictionaries import ConceptMatch
from interpreto_mlops.audit.comparison.grouping import Group
from interpreto_mlops.audit.comparison.models import importance_shift
from interpreto_mlops.audit.comparison.results import SHIFT_FRAME_COLUMNS, ConceptComparison
from interpreto_mlops.audit.comparison.subjects import ConceptEvidence
from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.split import ModelWithSplitPoints
from interpreto_mlops.errors import InputError, IntegrityError, ModelLoadError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking.dictionary_facts import keepable
from interpreto_mlops.tracking.dictionary_flavor import load_dictionary
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.store import Store


class Dictionaries:
    """Loads each dictionary and each model once, and runs the texts through each model once for each layer.

    Arguments:
        store: where they are.
        texts: what codes are compared on, or None.
        by: `auto`, `directions` or `activations`.
        threshold: from which similarity on concepts are the same.
        seed: of the baseline.
        progress: whether bars are shown.
    """

    def __init__(
        self,
        store: Store,
        texts: TextDataset | None,
        by: str,
        threshold: float,
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        self.store, self.texts, self.by, self.threshold, self.seed = store, texts, by, threshold, seed
        self.progress = progress
        self._loaded: dict[str, ConceptDictionary] = {}
        self._models: dict[tuple[Any, ...], TextModel] = {}
        self._rows: dict[tuple[Any, ...], ActivationSet] = {}

    def match(self, first: ConceptEvidence, second: ConceptEvidence) -> ConceptMatch:
        """Match the concepts of two dictionaries.

        Raises:
            TextsNeededError: their codes must be compared, and there are no texts.
            InputError: a dictionary that does not say which model it belongs to, or that cannot be compared.
            ModelLoadError: a dictionary or its model is not there.
            IntegrityError: one of them was changed.
        """
        a, b = self._dictionary(first.uri), self._dictionary(second.uri)
        if matching.way_of(a, b, self.by) == matching.DIRECTIONS:
            return matching.match_by_directions(a, b, threshold=self.threshold)
        if self.texts is None:
            why = "are not of the same layer of the same model"
            if self.by == matching.ACTIVATIONS:
                why = "are to be matched by 'activations'"
            raise TextsNeededError(
                f"the dictionaries {first.uri!r} and {second.uri!r} {why}, so their concepts are compared by their "
                "codes on texts; give these by --data and --text-column"
            )
        rows = [self._activations(each) for each in (a, b)]
        return matching.match_by_activations(a, rows[0], b, rows[1], threshold=self.threshold, seed=self.seed)

    def labels(self, evidence: ConceptEvidence) -> dict[int, str]:
        """Return the labels of a dictionary's concepts."""
        return matching.labels_of(self._dictionary(evidence.uri))

    def _dictionary(self, uri: str) -> ConceptDictionary:
        if uri not in self._loaded:
            self._loaded[uri] = keepable(load_dictionary(uri, store=self.store))
        return self._loaded[uri]

    def _activations(self, dictionary: ConceptDictionary) -> ActivationSet:
        said = dictionary.provenance
        model, named = self._model(dictionary)
        layer = said["layer"]
        rows = {"granularity": said["granularity"], "aggregation": said.get("aggregation") or "mean"}
        key = (*named, layer, *rows.values())
        if key not in self._rows:
            split = ModelWithSplitPoints(model, [layer])
            assert self.texts is not None
            (self._rows[key],) = split.get_activations(self.texts, progress=self.progress, **rows).values()
        return self._rows[key]

    def _model(self, dictionary: ConceptDictionary) -> tuple[TextModel, tuple[Any, ...]]:
        """Load the model that a dictionary belongs to, as it was when it was fitted."""
        said = dictionary.provenance.get("model") or {}
        if not said.get("uri") or not said.get("fingerprint") or not dictionary.provenance.get("layer"):
            raise InputError(
                f"a {dictionary.name} dictionary does not say which layer of which model it belongs to, so its codes "
                "on texts cannot be computed; match by 'directions', which takes dictionaries of the same width"
            )
        harvest = dictionary.provenance.get("harvest") or {}
        options = {"dtype": said.get("dtype"), "autocast": harvest.get("autocast")}
        given = {name: value for name, value in options.items() if value is not None}
        key = (said["uri"], said["fingerprint"], *map(str, given.values()))
        if key not in self._models:
            model = load_model(str(said["uri"]), store=self.store, run_code=False, **given)
            if model.fingerprint != said["fingerprint"]:
                raise IntegrityError(
                    f"the model at {said['uri']!r} is not the one that the dictionary was made from: its fingerprint "
                    f"is {model.fingerprint[:12]}…, not {said['fingerprint'][:12]}…"
                )
            self._models[key] = model
        return self._models[key], key


class TextsNeededError(InputError):
    """Codes must be compared, and no texts are given."""


def compare_concepts(
    held: Dictionaries, groups: Sequence[Group[ConceptEvidence]], *, must: bool
) -> tuple[list[ConceptComparison], pd.DataFrame, list[str]]:
    """Match the dictionaries of each group pair by pair, and look at how their importance shifted.

    Arguments:
        held: fetches what is needed.
        groups: of at least two dictionaries each.
        must: whether it is an error that something cannot be compared; else it is said.

    Returns:
        The matched pairs, the shifts of importance where both runs hold one, and what could not be compared.

    Raises:
        InputError, ModelLoadError, IntegrityError: see `Dictionaries.match`; only where it must be.
        DataError: importance that cannot be read; only where it must be.
        TrackingError: the store fails.
    """
    found: list[ConceptComparison] = []
    shifts: list[pd.DataFrame] = []
    told = _Told(must)
    for group in groups:
        for (first, a), (second, b) in combinations(group.members.items(), 2):
            with told(f"{group.label}: concepts were not matched"):
                match = held.match(a, b)
                found.append(ConceptComparison(group.label, first, second, a.uri, b.uri, match))
                told.notes.extend(_importance_notes(group.label, first, a, second, b))
                with told(f"{group.label}: the importance of concepts was not compared"):
                    shift = _shift(held, match, a, b)
                    if shift is not None:
                        shifts.append(shift.assign(method=group.label, first=first, second=second))
    kept = [each[list(SHIFT_FRAME_COLUMNS)] for each in shifts if len(each)]
    joined = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=list(SHIFT_FRAME_COLUMNS))
    return found, joined, list(dict.fromkeys([*told.alarms, *told.notes]))


class _Told:
    """Makes notes of errors, where what fails is one part of several.

    Arguments:
        must: whether errors stay errors.
    """

    def __init__(self, must: bool) -> None:
        self.must = must
        self.alarms: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except (InputError, ModelLoadError, IntegrityError) as error:
            if self.must:
                raise
            said = f"{what}: {error}."
            if isinstance(error, IntegrityError):
                self.alarms.append(f"CHANGED EVIDENCE: {said}")
            else:
                self.notes.append(said)


def _shift(
    held: Dictionaries, match: ConceptMatch, first: ConceptEvidence, second: ConceptEvidence
) -> pd.DataFrame | None:
    if first.importance_method != second.importance_method or first.importance is None or second.importance is None:
        return None
    shift = importance_shift(first.importance, second.importance, match.pairs)
    for side, evidence in (("first", first), ("second", second)):
        labels: Mapping[int, str] = held.labels(evidence)
        shift[f"label_{side}"] = [labels.get(concept) for concept in shift[f"concept_{side}"]]
    return shift


def _importance_notes(label: str, first: str, a: ConceptEvidence, second: str, b: ConceptEvidence) -> Iterator[str]:
    if a.importance_method != b.importance_method and None not in (a.importance_method, b.importance_method):
        yield (
            f"{label}: the importance of concepts was found by {a.importance_method} for {first} and by "
            f"{b.importance_method} for {second}, and is not compared."
        )
    elif a.importance_method is not None and a.digest != b.digest:
        yield f"{label}: {first} and {second} have the importance of concepts on different texts."
