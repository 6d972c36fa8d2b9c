"""Names that people have given to texts or rows, and the concepts that they suit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from interpreto_mlops.concepts.base import ConceptDictionary, check_integer, check_number
from interpreto_mlops.concepts.interpretation.base import INTERPRETATIONS, Given, Interpretation, needed
from interpreto_mlops.concepts.interpretation.description import ConceptDescription, Label
from interpreto_mlops.concepts.interpretation.pooled_codes import POOLINGS, pooled_codes
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.text.hiding import hidden_name

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

ALIGNED = "aligned"
ASSIGNMENTS = ("hungarian", "best")
PLACES = ("text", "row")

_LEAST = 2
_BLOCK_NUMBERS = 2**24
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, eq=False)
class Alignment:
    """How well concepts tell given labels, and which label each concept was given.

    Arguments:
        concepts: their numbers in the dictionary.
        labels: the labels.
        auroc: of each concept's code for each label against the rest, on the held-out half, shape (concepts, labels);
            0.5 is chance.
        f1: on the held-out half, of `code ≥ threshold`, shape (concepts, labels).
        thresholds: of the best F1 on the other half, shape (concepts, labels).
        assigned: the label of each concept that was given one, by the concept's number.
        score: the AUROC on the held-out half of the concept that suits a label best on the other half, in the mean over
            labels.
        chance: the same with shuffled labels, in the mean over shuffles.
        chance_interval: in which 95 per cent of the shuffles lie.
        p_value: the share of shuffles, this one counted as one more, that score as high.
        counts: texts or rows of each label.
        left_out: labels with fewer than two texts or rows in a half.
        n_train: texts or rows on which labels were given.
        n_test: those that are held out.
        place: what was labelled: `text` or `row`.
    """

    concepts: tuple[int, ...]
    labels: tuple[str, ...]
    auroc: Floats
    f1: Floats
    thresholds: Floats
    assigned: Mapping[int, str]
    score: float
    chance: float
    chance_interval: tuple[float, float]
    p_value: float
    counts: tuple[int, ...]
    left_out: tuple[str, ...]
    n_train: int
    n_test: int
    place: str

    def label_of(self, concept: int) -> Label | None:
        """Return the name that a concept was given, with its scores; None where none suits it."""
        name = self.assigned.get(concept)
        if name is None:
            return None
        at = self.concepts.index(concept), self.labels.index(name)
        says = f"AUROC {self.auroc[at]:.2f} and F1 {self.f1[at]:.2f} on {self.n_test} held-out {self.place}s"
        return Label(name, ALIGNED, "given labels", says)

    def named(self, descriptions: Sequence[ConceptDescription]) -> list[ConceptDescription]:
        """Return descriptions with the names of the concepts that were given one."""
        labels = [(each, self.label_of(each.concept)) for each in descriptions]
        return [each if label is None else each.named(label) for each, label in labels]

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each concept and label: `concept`, `label`, `auroc`, `f1`, `threshold`, `assigned`."""
        n_concepts, n_labels = self.auroc.shape
        concepts, labels = np.repeat(self.concepts, n_labels), list(self.labels) * n_concepts
        return pd.DataFrame(
            {
                "concept": concepts,
                "label": labels,
                "auroc": self.auroc.ravel(),
                "f1": self.f1.ravel(),
                "threshold": self.thresholds.ravel(),
                "assigned": [self.assigned.get(int(c)) == name for c, name in zip(concepts, labels, strict=True)],
            }
        )

    def hidden(self) -> Alignment:
        """Return the same with hashes in place of the labels."""
        return replace(
            self,
            labels=tuple(map(hidden_name, self.labels)),
            assigned={concept: hidden_name(name) for concept, name in self.assigned.items()},
            left_out=tuple(map(hidden_name, self.left_out)),
        )


@INTERPRETATIONS.register("aligned_labels")
@dataclass(frozen=True, kw_only=True)
class AlignedLabels(Interpretation[Alignment]):
    """Give concepts the names that people gave to texts or rows, where a concept's code tells them from the rest.

    Half of the texts decide which concept suits which label; what is reported is measured on the other half. Of a
    signed dictionary it is the positive side. Rows of one text are in the same half; when rows are labelled, shuffles
    treat them as independent.

    Arguments:
        assignment: `hungarian` gives each label to one concept, so that the sum of AUROCs is largest; `best` gives
            each concept the label that it tells best.
        threshold: the least AUROC, on the half that decides, of a concept that is given a label.
        place: whether there is a label for each `text` or each `row` of the activations; None where their number says
            it.
        pooling: how the codes of a text's rows become the text's: `max` or `mean`.
        n_shuffles: how often labels are shuffled for the baseline.
        most: the most texts or rows that are looked at, drawn by the seed.
        seed: of the halves, the draw and the shuffles.

    Returns:
        One `Alignment` for all concepts.

    Raises:
        InputError: not as many labels as texts or rows.
        DataError: no label with two texts or rows in each half, and as many without it.
    """

    needs: ClassVar[tuple[str, ...]] = ("activations", "labels")

    assignment: str = "hungarian"
    threshold: float = 0.7
    place: str | None = None
    pooling: str = "max"
    n_shuffles: int = 100
    most: int = 20000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("assignment", self.assignment, ASSIGNMENTS),
            ("pooling", self.pooling, POOLINGS),
            ("place", self.place or PLACES[0], PLACES),
        ):
            if value not in known:
                raise UnknownNameError(name, value, known)
        check_number("threshold", self.threshold, 0.5, 1.0)
        check_integer("n_shuffles", self.n_shuffles, 1)
        check_integer("most", self.most, 4)
        check_integer("seed", self.seed, 0)

    def interpret(self, given: Given) -> Alignment:
        """Score concepts against labels and give labels to concepts; see the class."""
        activations = needed(given.activations, "activations", "those of the dictionary's layer")
        labels = needed(given.labels, "labels", "one for each text or row, None where there is none")
        rng = np.random.default_rng(self.seed)
        units = _Units(activations, labels, self.place, self.most, rng)
        scored = _Scored(units, self.n_shuffles, rng)
        for columns in _blocks(given.concepts, len(units.label)):
            codes = pooled_codes(
                given.dictionary,
                activations,
                units.of_row,
                len(units.label),
                columns,
                pooling=self.pooling,
                allow_mismatch=given.allow_mismatch,
            )
            scored.add(codes)
        return scored.result(given.concepts, self._assigned(scored.train, given.concepts, units.names))

    def _assigned(self, train: Floats, concepts: Sequence[int], names: Sequence[str]) -> dict[int, str]:
        if self.assignment == "hungarian":
            rows, columns = linear_sum_assignment(-train)
        else:
            rows, columns = np.arange(len(train)), train.argmax(axis=1)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        return {concepts[row]: names[column] for row, column in pairs if train[row, column] >= self.threshold}


def align(
    dictionary: ConceptDictionary,
    activations: ActivationSet,
    labels: Sequence[str | None],
    *,
    concepts: Sequence[int] | None = None,
    allow_mismatch: bool = False,
    **options: Any,
) -> Alignment:
    """Give concepts the labels of texts or rows that they tell; `options` are the parameters of `AlignedLabels`."""
    method = AlignedLabels(**options)
    return method(dictionary, activations, labels=labels, concepts=concepts, allow_mismatch=allow_mismatch)


def _blocks(concepts: Sequence[int], n_units: int) -> Iterator[Sequence[int]]:
    size = max(1, _BLOCK_NUMBERS // n_units)
    for start in range(0, len(concepts), size):
        yield concepts[start : start + size]


class _Units:
    """The texts or rows that have a label, in two halves."""

    def __init__(
        self,
        activations: ActivationSet,
        labels: Sequence[str | None],
        place: str | None,
        most: int,
        rng: np.random.Generator,
    ) -> None:
        self.place = _place(activations, labels, place)
        text_ids = activations.text_ids
        own = text_ids if self.place == "text" else np.arange(len(text_ids))
        has_row = np.zeros(len(labels), dtype=bool)
        has_row[own] = True
        there = np.asarray([label is not None for label in labels]) & has_row
        chosen = np.flatnonzero(there)
        if len(chosen) > most:
            chosen = np.sort(rng.choice(chosen, most, replace=False))
        place_of = np.full(len(labels), -1, dtype=np.int64)
        place_of[chosen] = np.arange(len(chosen))
        self.of_row = place_of[own]
        given = np.asarray([str(labels[i]) for i in chosen.tolist()], dtype=object)
        groups = chosen if self.place == "text" else text_ids[chosen]
        self.is_test = _halved(groups, given if self.place == "text" else None, rng)
        self.names, self.left_out = self._usable(given)
        self.label = np.asarray([self.names.index(name) if name in self.names else -1 for name in given])

    def _usable(self, given: npt.NDArray[Any]) -> tuple[list[str], tuple[str, ...]]:
        names, left_out = list[str](), list[str]()
        for name in sorted(set(given)):
            is_one = given == name
            halves = (is_one[self.is_test], is_one[~self.is_test])
            enough = all(_LEAST <= half.sum() <= len(half) - _LEAST for half in halves)
            (names if enough else left_out).append(name)
        if not names:
            raise DataError(
                f"no label has {_LEAST} {self.place}s in each half, and as many without it; labels: {left_out[:10]!r}"
            )
        return names, tuple(left_out)


def _place(activations: ActivationSet, labels: Sequence[str | None], place: str | None) -> str:
    if isinstance(labels, str):
        raise InputError(f"give a list of labels, not one string ({labels[:40]!r})")
    sizes = {"text": len(activations.texts), "row": len(activations)}
    fitting = [name for name in PLACES if sizes[name] == len(labels) and place in (None, name)]
    if not fitting:
        raise InputError(f"{sizes['text']} texts or {sizes['row']} rows need as many labels, not {len(labels)}")
    if len(fitting) == 2 and not np.array_equal(activations.text_ids, np.arange(len(activations))):
        raise InputError(f"there are {len(labels)} texts and as many rows; say place='text' or place='row'")
    return fitting[0]


def _halved(groups: Integers, labels: npt.NDArray[Any] | None, rng: np.random.Generator) -> Flags:
    """Draw half of the groups, of each label where groups have one."""
    if labels is None:
        distinct, of_unit = np.unique(groups, return_inverse=True)
        return _half(len(distinct), rng)[of_unit.reshape(-1)]
    is_test = np.zeros(len(groups), dtype=bool)
    for name in sorted(set(labels)):
        places = np.flatnonzero(labels == name)
        is_test[places] = _half(len(places), rng)
    return is_test


def _half(n: int, rng: np.random.Generator) -> Flags:
    drawn = np.zeros(n, dtype=bool)
    drawn[rng.permutation(n)[: n // 2]] = True
    return drawn


class _Scored:
    """What is known of the concepts so far."""

    def __init__(self, units: _Units, n_shuffles: int, rng: np.random.Generator) -> None:
        self._units, n_labels = units, len(units.names)
        self._is = [units.label[half][:, None] == np.arange(n_labels) for half in (~units.is_test, units.is_test)]
        self._orders = [[rng.permutation(len(flags)) for flags in self._is] for _ in range(n_shuffles)]
        # Of the labels as they are, then of each shuffle: the best concept's AUROC on either half.
        self._best = np.full((n_shuffles + 1, n_labels), -np.inf)
        self._test_of_best = np.zeros((n_shuffles + 1, n_labels))
        self._parts: dict[str, list[Floats]] = {name: [] for name in ("train", "test", "f1", "threshold")}

    def add(self, codes: npt.NDArray[np.float32]) -> None:
        """Take the codes of some more concepts, shape (units, concepts)."""
        halves = (codes[~self._units.is_test], codes[self._units.is_test])
        ranks = [rankdata(half, axis=0) for half in halves]
        train, test = (_auroc(rank, flags) for rank, flags in zip(ranks, self._is, strict=True))
        self._note(0, train, test)
        for number, orders in enumerate(self._orders, 1):
            shuffled = [_auroc(rank, flags[order]) for rank, flags, order in zip(ranks, self._is, orders, strict=True)]
            self._note(number, *shuffled)
        found = [best_thresholds(halves[0][:, i], self._is[0]) for i in range(codes.shape[1])]
        threshold = np.stack(found)
        f1 = np.stack([f1_at(halves[1][:, i], self._is[1], row) for i, row in enumerate(threshold)])
        for name, part in zip(self._parts, (train, test, f1, threshold), strict=True):
            self._parts[name].append(part)

    def _note(self, number: int, train: Floats, test: Floats) -> None:
        best = train.argmax(axis=0)
        columns = np.arange(train.shape[1])
        better = train[best, columns] > self._best[number]
        self._best[number, better] = train[best, columns][better]
        self._test_of_best[number, better] = test[best, columns][better]

    @property
    def train(self) -> Floats:
        """The AUROCs on the half that decides, shape (concepts, labels)."""
        return np.concatenate(self._parts["train"])

    def result(self, concepts: tuple[int, ...], assigned: dict[int, str]) -> Alignment:
        """Return all that was found."""
        scores = self._test_of_best.mean(axis=1)
        own, chance = float(scores[0]), scores[1:]
        low, high = np.percentile(chance, _INTERVAL).tolist()
        names = self._units.names
        return Alignment(
            concepts=concepts,
            labels=tuple(names),
            auroc=np.concatenate(self._parts["test"]),
            f1=np.concatenate(self._parts["f1"]),
            thresholds=np.concatenate(self._parts["threshold"]),
            assigned=assigned,
            score=own,
            chance=float(chance.mean()),
            chance_interval=(low, high),
            p_value=float((1 + (chance >= own).sum()) / (1 + len(chance))),
            counts=tuple(int((self._units.label == number).sum()) for number in range(len(names))),
            left_out=self._units.left_out,
            n_train=int((~self._units.is_test).sum()),
            n_test=int(self._units.is_test.sum()),
            place=self._units.place,
        )


def _auroc(ranks: Floats, flags: Flags) -> Floats:
    """Return the area under the ROC curve of each column for each label, shape (columns, labels), ties at half."""
    positive = flags.sum(axis=0)
    negative = len(flags) - positive
    above = ranks.T @ flags.astype(np.float64) - positive * (positive + 1) / 2
    return np.asarray(above / (positive * negative))


def best_thresholds(codes: npt.NDArray[np.float32], flags: Flags) -> Floats:
    """Return for each label the threshold of the largest F1 of `code ≥ threshold`, the highest of equal ones.

    Arguments:
        codes: shape (units,).
        flags: whether each unit has each label, shape (units, labels).
    """
    order = np.argsort(-codes, kind="stable")
    sorted_codes = codes[order]
    hits = flags[order].cumsum(axis=0)
    f1 = 2 * hits / (np.arange(1, len(codes) + 1)[:, None] + flags.sum(axis=0))
    # A threshold takes in all units of its code.
    f1[:-1][sorted_codes[:-1] == sorted_codes[1:]] = -1.0
    return np.asarray(sorted_codes[f1.argmax(axis=0)], dtype=np.float64)


def f1_at(codes: npt.NDArray[np.float32], flags: Flags, thresholds: Floats) -> Floats:
    """Return the F1 of `code ≥ threshold` for each label, shape (labels,)."""
    said = codes[:, None].astype(np.float64) >= thresholds
    return np.asarray(2 * (said & flags).sum(axis=0) / np.maximum(1, said.sum(axis=0) + flags.sum(axis=0)))
