"""What every probe is: a dictionary of concepts that are learned from labels."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import (
    FAMILIES,
    Activations,
    ConceptDictionary,
    check_integer,
    check_number,
)
from interpreto_mlops.concepts.interpretation import ConceptDescription, Label, top_words
from interpreto_mlops.concepts.learner import Learner, State
from interpreto_mlops.concepts.probes.calibration import CALIBRATIONS, best_threshold, platt
from interpreto_mlops.concepts.probes.dividing import divided
from interpreto_mlops.concepts.probes.labels import check_names, digest_of, groups_of, label_matrix
from interpreto_mlops.concepts.probes.normalising import NORMALISATIONS, Normaliser
from interpreto_mlops.concepts.rows import DataFacts, Rows, as_rows, data_facts
from interpreto_mlops.concepts.scikit import MOST_ROWS
from interpreto_mlops.concepts.training import FITTED
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.registry import NamingRegistry, Registry
from interpreto_mlops.text.hiding import hidden_name

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Learned = dict[str, Floats]
"""What a family has learned of one concept: arrays by the names of its weights."""

Self = TypeVar("Self", bound="Probe")

PROBES: Registry[type[Probe]] = NamingRegistry("probe")
"""The families of probes by name; they are in `concepts/probes/`."""

FAMILIES.append(PROBES)

_BLOCK_ROWS = 4096


@dataclass(kw_only=True, eq=False)
class Probe(ConceptDictionary):
    """Concepts learned from labels: a row's code is the probe's score, positive where it says that the row holds it.

    A family says what it learns of one concept (`learn`) and how it scores rows (`raw_scores`).

    Arguments:
        n_concepts: None, or how many columns the labels have.
        seed: of the rows that are held out for calibration, of samples, and of solvers that draw.
        normalisation: of rows before anything else: `none`, `centre`, `standardise` or `unit_norm`.
        calibration: `none`, `balanced` (the bias with the best balanced accuracy on held-out rows) or `platt` (scores
            become log odds, fitted on held-out rows; see `probabilities`).
        calibration_share: the share of the texts whose rows are held out for that, from 0.01 to a half; more where a
            concept has so few texts that one would not be held out.
        max_rows: of more rows an even sample is learned from.
    """

    signed: ClassVar[bool] = True
    sized: ClassVar[bool] = False
    unit: ClassVar[bool] = False
    """Whether the family divides rows by their norms, whatever the normalisation is."""

    n_concepts: int = None  # type: ignore[assignment]  # known only when the labels are
    normalisation: str = "centre"
    calibration: str = "none"
    calibration_share: float = 0.2
    max_rows: int = MOST_ROWS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalisation not in NORMALISATIONS:
            raise UnknownNameError("normalisation", self.normalisation, NORMALISATIONS)
        if self.calibration not in CALIBRATIONS:
            raise UnknownNameError("calibration", self.calibration, CALIBRATIONS)
        check_number("calibration_share", self.calibration_share, 0.01, 0.51)
        check_integer("max_rows", self.max_rows, 2)

    @abstractmethod
    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return what is learned of one concept, with a `bias` where the family has a boundary of its own.

        Arguments:
            rows: normalised, shape (rows, width).
            holds: whether each row holds the concept, shape (rows,).
        """

    @abstractmethod
    def raw_scores(self, rows: torch.Tensor, learned: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the scores of normalised rows before gain and bias, shape (rows, concepts), differentiably.

        Arguments:
            rows: shape (rows, width), float64.
            learned: of each concept a row, float64.
        """

    def begin(self, facts: DataFacts) -> Learner:
        """Refuse to learn without labels.

        Raises:
            InputError: always.
        """
        raise InputError(f"the probe {self.name!r} learns from labels; call its fit(activations, labels) by itself")

    def fit(
        self: Self,
        activations: Activations,
        labels: Any = None,
        *,
        names: Sequence[str] | None = None,
        groups: Sequence[Any] | Integers | None = None,
        per: str | None = None,
        **training: Any,
    ) -> Self:
        """Learn each labelled concept, anew if there were any.

        Arguments:
            activations: shape (rows, width).
            labels: of rows or of texts, a column for each concept: 1, 0, or NaN where it is not known.
            names: of the concepts; they become the labels of the dictionary's `descriptions`.
            groups: which rows belong together and are held out together; by default those of one text.
            per: `row` or `text`, where both are as many.
            training: what other dictionaries take and a probe, which learns in one go, does not.

        Raises:
            InputError: no labels, or ones that do not fit the rows; a row that is NaN or infinite; an argument that a
                probe does not have.
            DataError: a concept that all labelled rows hold, or none, or too few texts to hold some out.
        """
        if training:
            raise InputError(f"a probe learns in one go, and its fit takes no {next(iter(training))!r}")
        if labels is None:
            raise InputError(f"the probe {self.name!r} learns from labels; give fit(activations, labels)")
        rows = as_rows(activations)
        data_facts(rows)
        matrix = label_matrix(labels, rows, per)
        self._check_columns(matrix, names)
        places = self.sampled(matrix)
        weights = self._learned(gathered(rows, places), matrix[places], groups_of(rows, groups)[places])
        self.n_concepts = matrix.shape[1]
        said = {"names": None if names is None else list(names), "n_known": (~np.isnan(matrix)).sum(axis=0).tolist()}
        said |= {"n_positive": np.nansum(matrix, axis=0).astype(int).tolist(), "sha256": digest_of(matrix)}
        self.complete(weights, [], {**rows.provenance, "labels": said})
        if names is not None:
            self.descriptions = self._described(rows, names)
        FITTED.tell((self,))
        return self

    def _check_columns(self, matrix: Floats, names: Sequence[str] | None) -> None:
        # What an earlier fit has found in its labels binds no other.
        if not self.is_fitted and self.n_concepts not in (None, matrix.shape[1]):
            raise InputError(
                f"labels with {matrix.shape[1]} columns are of as many concepts, not {self.n_concepts}; leave "
                "n_concepts out"
            )
        check_names(names, matrix.shape[1])

    def sampled(self, matrix: Floats) -> Integers:
        """Return the places of the rows to learn from: those that have a label, or an even sample of them."""
        known = np.flatnonzero(~np.isnan(matrix).all(axis=1))
        if len(known) <= self.max_rows:
            return known
        drawn = np.random.default_rng(self.seed).choice(len(known), self.max_rows, replace=False)
        return known[np.sort(drawn)]

    def _learned(self, rows: Floats, matrix: Floats, groups: Integers) -> State:
        if not len(rows):
            raise DataError("no row has a label")
        normaliser = Normaliser.fitted(rows, self.normalisation, unit=self.unit)
        normalised = normaliser(torch.from_numpy(rows)).numpy()
        found = [self._one(normalised, matrix[:, j], groups, j) for j in range(matrix.shape[1])]
        stacked = {name: np.stack([each[name] for each in found]) for name in found[0]}
        weights = {name: torch.from_numpy(np.ascontiguousarray(array)).float() for name, array in stacked.items()}
        constants = {"shift": normaliser.shift, "spread": normaliser.spread, "length": torch.tensor(normaliser.length)}
        return weights | {name: tensor.float() for name, tensor in constants.items()}

    def _one(self, rows: Floats, labels: Floats, groups: Integers, concept: int) -> Learned:
        """Learn and calibrate one concept on the rows whose label is known."""
        known = np.flatnonzero(~np.isnan(labels))
        holds = labels[known] > 0
        if holds.all() or not holds.any():
            which = "all" if holds.any() else "none"
            raise DataError(f"{which} of the {len(known)} labelled rows hold concept {concept}; a probe needs both")
        if self.calibration == "none":
            learned = self.learn(rows[known], holds)
            return {**learned, "gain": np.asarray(1.0)}
        train, held = divided(holds, groups[known], self.calibration_share, self.seed)
        learned = self.learn(rows[known[train]], holds[train])
        alone = {name: torch.from_numpy(array[None]) for name, array in learned.items()}
        scores = self.raw_scores(torch.from_numpy(rows[known[held]]), alone)[:, 0].numpy()
        if self.calibration == "platt":
            gain, bias = platt(scores, holds[held])
        else:
            gain, bias = 1.0, -best_threshold(scores, holds[held])
        return {**learned, "gain": np.asarray(gain), "bias": np.asarray(bias)}

    def _described(self, rows: Rows, names: Sequence[str]) -> list[ConceptDescription]:
        """Return what the concepts respond to, by the names that their labels have."""
        if isinstance(rows, ActivationSet):
            found = top_words(self, rows)
        else:
            codes = self.encode(rows)
            found = [
                ConceptDescription(j, (), (), float((each > 0).float().mean()), max(0.0, float(each.max())))
                for j, each in enumerate(codes.T)
            ]
        return [each.named(Label(name, "human")) for each, name in zip(found, names, strict=True)]

    @property
    def names(self) -> tuple[str, ...] | None:
        """What the concepts are called, where `fit` was told."""
        found = (self.provenance.get("labels") or {}).get("names")
        return None if found is None else tuple(found)

    def hidden(self) -> ConceptDictionary:
        """Return the same probe without texts: hashes stand for its names, too; weights are shared."""
        without = super().hidden()
        said = dict(without.provenance.get("labels") or {})
        if said.get("names"):
            named = [hidden_name(name) for name in said["names"]]
            without.provenance = {**copy.copy(without.provenance), "labels": {**said, "names": named}}
        return without

    def probabilities(self, activations: Activations, *, allow_mismatch: bool = False) -> torch.Tensor:
        """Return the probability that each row holds each concept, shape (rows, n_concepts).

        Raises:
            InputError: the probe was not calibrated by `platt`.
            NotFittedError, IntegrityError: as for `encode`.
        """
        if self.calibration != "platt":
            raise InputError(f"scores are no log odds with calibration={self.calibration!r}; fit with 'platt'")
        return torch.sigmoid(self.encode(activations, allow_mismatch=allow_mismatch))

    @property
    def width(self) -> int:
        """The width of the layer that it was fitted on."""
        return len(self.tensor("shift"))

    @property
    def differentiable(self) -> bool:
        """Scores have a gradient by the rows."""
        return True

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        # In float64, so that a row's score is the same in any batch once it is rounded.
        learned = {name: self.tensor(name).double() for name in self.weights}
        normalise = Normaliser(learned["shift"], learned["spread"], float(learned["length"]))
        raw = self.raw_scores(normalise(rows.double()), learned)
        return (raw * learned["gain"] + learned["bias"]).float()

    def _check_codes(self, codes: torch.Tensor) -> None:
        self.tensor("bias")  # there is none before it is fitted
        if codes.shape[-1] != self.n_concepts:
            raise InputError(f"codes of this probe have {self.n_concepts} columns, not {codes.shape[-1]}")


def gathered(rows: Rows, places: Integers) -> Floats:
    """Return some rows, shape (places, width)."""
    out = np.empty((len(places), rows.width))
    start = 0
    for block in rows.batches(_BLOCK_ROWS):
        first, last = np.searchsorted(places, [start, start + len(block)])
        out[first:last] = block.numpy()[places[first:last] - start]
        start += len(block)
    return out
