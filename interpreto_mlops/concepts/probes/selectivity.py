"""How much a layer knows of a concept beyond what a probe can learn by heart: cross-validated, with control tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from interpreto_mlops.concepts.base import Activations, check_integer
from interpreto_mlops.concepts.metrics.registry import METRICS, ConceptMetric, metric
from interpreto_mlops.concepts.probes.base import Bools, Floats, Integers, Probe, gathered
from interpreto_mlops.concepts.probes.dividing import Division, folds_of
from interpreto_mlops.concepts.probes.labels import groups_of, label_matrix
from interpreto_mlops.concepts.rows import Rows, as_rows, data_facts
from interpreto_mlops.errors import InputError
from interpreto_mlops.observers import unobserved

Scores = npt.NDArray[np.float64]
"""Accuracy, balanced accuracy and AUROC of each fold, shape (folds, 3)."""

RANDOM = "_random"
_CONFIDENCE = 0.95
_DRAWS = 20


@dataclass(frozen=True)
class ProbeScores:
    """What probes of concepts reach on texts that they were not fitted on.

    Arguments:
        names: of the concepts.
        scores: accuracy, balanced accuracy and AUROC, shape (concepts, folds, 3).
        control: balanced accuracy on the control task, shape (concepts, folds).
        random: of probes that learned from labels which were dealt out anew among the texts, as `scores`.
        n_rows: labelled rows of each concept.
        n_texts: texts, or other groups, of each concept.
    """

    names: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    control: Floats
    random: npt.NDArray[np.float64]
    n_rows: tuple[int, ...]
    n_texts: tuple[int, ...]

    @property
    def accuracy(self) -> Floats:
        """The share of rows that are told right, shape (concepts, folds)."""
        return self.scores[..., 0]

    @property
    def balanced_accuracy(self) -> Floats:
        """The mean of the shares of rows with and without the concept that are told right, shape (concepts, folds)."""
        return self.scores[..., 1]

    @property
    def auroc(self) -> Floats:
        """The chance that a row with the concept has a higher score than one without, shape (concepts, folds)."""
        return self.scores[..., 2]

    @property
    def selectivity(self) -> Floats:
        """Balanced accuracy less that on the control task, shape (concepts, folds)."""
        return self.balanced_accuracy - self.control

    def metrics(self) -> dict[str, float]:
        """Return the `probing/…` metrics by name, means over concepts and folds, with `…_random` beside each score."""
        found = {each.name: each.compute(self) for _, each in METRICS.items() if isinstance(each, ProbeScoreMetric)}
        for place, name in enumerate(("accuracy", "balanced_accuracy", "auroc")):
            found[f"probing/{name}{RANDOM}"] = _mean(self.random[..., place])
        return found

    def interval(self, name: str, concept: int | None = None) -> tuple[float, float]:
        """Return the 95 % interval of a score's mean over folds.

        Folds share what they learn from, so that their variance is divided by less than their number: Student's t with
        the variance times 1 / folds + held out / learned from; what no score can be is cut off. NaN with fewer than two
        folds that have a score.

        Arguments:
            name: `accuracy`, `balanced_accuracy`, `auroc`, `control` or `selectivity`.
            concept: its number; None for the mean over concepts.

        Source: Nadeau and Bengio 2003 (inference for the generalization error), the corrected resampled t-test.
        """
        values: Floats = getattr(self, name)
        row = values.mean(axis=0) if concept is None else values[concept]
        row = row[~np.isnan(row)]
        if (n := len(row)) < 2:
            return float("nan"), float("nan")
        half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * row.std(ddof=1) * math.sqrt(1 / n + 1 / (n - 1)))
        least = -1.0 if name == "selectivity" else 0.0
        return max(least, float(row.mean()) - half), min(1.0, float(row.mean()) + half)

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each concept and score: `concept`, `score`, `mean`, `low`, `high`, `random`, `texts`."""
        lines = []
        for number, name in enumerate(self.names):
            for place, score in enumerate(("accuracy", "balanced_accuracy", "auroc", "control", "selectivity")):
                low, high = self.interval(score, number)
                chance = _mean(self.random[number, :, place]) if place < 3 else float("nan")
                mean = _mean(getattr(self, score)[number])
                lines.append((name, score, mean, low, high, chance, self.n_texts[number]))
        return pd.DataFrame(lines, columns=["concept", "score", "mean", "low", "high", "random", "texts"])


class ProbeScoreMetric(ConceptMetric):
    """A metric of cross-validated probes: call it with what `cross_validate` returns."""

    needs: ClassVar[str] = "probe scores"

    def __call__(self, scores: ProbeScores) -> float:
        """Compute it."""
        return self.compute(scores)


@metric(ProbeScoreMetric, "probing/accuracy", higher_is_better=True, bounds=(0.0, 1.0))
def probe_accuracy(scores: ProbeScores) -> float:
    """Share of held-out rows of which a probe tells right whether they hold the concept, in the mean over concepts."""
    return _mean(scores.accuracy)


@metric(ProbeScoreMetric, "probing/balanced_accuracy", higher_is_better=True, bounds=(0.0, 1.0))
def probe_balanced_accuracy(scores: ProbeScores) -> float:
    """Mean of a probe's accuracies on held-out rows with and without the concept; chance is 0.5."""
    return _mean(scores.balanced_accuracy)


@metric(ProbeScoreMetric, "probing/auroc", higher_is_better=True, bounds=(0.0, 1.0))
def probe_auroc(scores: ProbeScores) -> float:
    """Chance that a held-out row with the concept has a higher score than one without; 0.5 says nothing is known."""
    return _mean(scores.auroc)


@metric(ProbeScoreMetric, "probing/control", higher_is_better=None, bounds=(0.0, 1.0))
def probe_control(scores: ProbeScores) -> float:
    """Balanced accuracy of the same probe on the control task: labels dealt at random to words or texts.

    Source: Hewitt and Liang 2019 (designing and interpreting probes with control tasks).
    """
    return _mean(scores.control)


@metric(ProbeScoreMetric, "probing/selectivity", higher_is_better=True, bounds=(-1.0, 1.0))
def probe_selectivity(scores: ProbeScores) -> float:
    """Balanced accuracy less that on the control task: what is known beyond what a probe learns by heart.

    Source: Hewitt and Liang 2019, section 3, with balanced accuracies, whose chance is the same for every concept.
    """
    return _mean(scores.selectivity)


def cross_validate(
    probe: Probe,
    activations: Activations,
    labels: Any,
    *,
    names: Sequence[str] | None = None,
    groups: Sequence[Any] | Integers | None = None,
    types: Sequence[Any] | Integers | None = None,
    per: str | None = None,
    folds: int = 5,
    repeats: int = 2,
    seed: int = 0,
) -> ProbeScores:
    """Score a family of probes on rows of texts that it was not fitted on, beside control tasks and dealt-out labels.

    Folds have about the same share of the concept, and rows of one text are never on both sides. On the control task
    each type has one label, drawn with the concept's own frequency: a probe can only learn it by heart, from rows of
    the same type. A row's type is what stands there, in lower case: its token or word, or the whole text.

    Arguments:
        probe: with its parameters; it is not fitted by this.
        activations: shape (rows, width).
        labels: of rows or texts, as for `Probe.fit`.
        names: of the concepts.
        groups: which rows belong together; by default those of one text.
        types: of the rows, for the control task; by default what stands there, and for a tensor the groups.
        per: `row` or `text`, where both are as many.
        folds: how many, at least 2.
        repeats: control tasks, and deals of the labels, that are averaged.
        seed: of folds, control tasks and deals.

    Raises:
        InputError, DataError: as `Probe.fit`; or fewer texts with or without the concept than folds.

    Source: Hewitt and Liang 2019.
    """
    check_integer("folds", folds, 2)
    check_integer("repeats", repeats, 1)
    rows = as_rows(activations)
    data_facts(rows)
    matrix = label_matrix(labels, rows, per)
    if names is not None and len(names) != matrix.shape[1]:
        raise InputError(f"{matrix.shape[1]} concepts need as many names, not {list(names)!r}")
    own, kinds = groups_of(rows, groups), _types_of(rows, types, groups)
    found = [
        _Task(probe, rows, matrix[:, j], own, kinds).scores(folds, repeats, np.random.default_rng([seed, j]), seed)
        for j in range(matrix.shape[1])
    ]
    scores, control, random, n_rows, n_texts = zip(*found, strict=True)
    called = tuple(names) if names is not None else tuple(f"concept {j}" for j in range(matrix.shape[1]))
    return ProbeScores(called, np.stack(scores), np.stack(control), np.stack(random), n_rows, n_texts)


def _types_of(rows: Rows, types: Sequence[Any] | Integers | None, groups: Sequence[Any] | Integers | None) -> Integers:
    known: Any = rows
    if types is None and hasattr(rows, "spans"):
        places: Iterator[tuple[int, list[int]]] = zip(known.text_ids, known.spans.tolist(), strict=True)
        # What is not in the text, as the first token, stands for all of it.
        types = [known.texts[text][start:end].strip().lower() or known.texts[text] for text, (start, end) in places]
    return groups_of(rows, groups if types is None else types)


class _Task:
    """One concept: the rows whose label is known."""

    def __init__(self, probe: Probe, rows: Rows, labels: Floats, groups: Integers, types: Integers) -> None:
        places = probe.sampled(labels[:, None])
        self.probe = probe
        self.rows = torch.from_numpy(gathered(rows, places)).float()
        self.holds = labels[places] > 0
        self.groups, self.types = groups[places], types[places]

    def scores(
        self, folds: int, repeats: int, rng: np.random.Generator, seed: int
    ) -> tuple[Scores, Floats, Scores, int, int]:
        """Return scores, those on the control task, those of dealt-out labels, and how many rows and groups."""
        divisions = list(folds_of(self.holds, self.groups, folds, seed))
        own = self._over(divisions, self.holds)
        control = np.mean([self._over(divisions, self._control(rng)) for _ in range(repeats)], axis=0)[:, 1]
        dealt = np.mean([self._over(divisions, self._dealt(rng)) for _ in range(repeats)], axis=0)
        return own, control, dealt, len(self.holds), len(np.unique(self.groups))

    def _over(self, divisions: Sequence[Division], holds: Bools) -> Scores:
        return np.asarray([self._score(train, held, holds) for train, held in divisions])

    def _score(self, train: Integers, held: Integers, holds: Bools) -> list[float]:
        """Fit on some rows and score on others; what cannot be told apart is NaN."""
        if holds[train].all() or not holds[train].any() or holds[held].all() or not holds[held].any():
            return [float("nan")] * 3
        fresh = type(self.probe)(**{**self.probe.parameters, "n_concepts": None})
        with unobserved():
            fresh.fit(self.rows[train], holds[train], groups=self.groups[train])
        codes = fresh.encode(self.rows[held])[:, 0].numpy()
        truth, said = holds[held], codes > 0
        return [
            float(accuracy_score(truth, said)),
            float(balanced_accuracy_score(truth, said)),
            float(roc_auc_score(truth, codes)),
        ]

    def _control(self, rng: np.random.Generator) -> Bools:
        """Deal a label to each type, with the concept's frequency, until there are both among the rows."""
        share, n_types = float(self.holds.mean()), int(self.types.max()) + 1
        labels = np.zeros(len(self.holds), dtype=bool)
        for _ in range(_DRAWS):
            labels = (rng.random(n_types) < share)[self.types]
            if labels.any() and not labels.all():
                break
        return labels

    def _dealt(self, rng: np.random.Generator) -> Bools:
        """Deal the labels out anew: among the groups where rows of one group have the same, else among the rows."""
        names, first, inverse = np.unique(self.groups, return_index=True, return_inverse=True)
        of_group = self.holds[first]
        if np.array_equal(of_group[inverse], self.holds):
            return np.asarray(of_group[rng.permutation(len(names))][inverse])
        return np.asarray(self.holds[rng.permutation(len(self.holds))])


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))
