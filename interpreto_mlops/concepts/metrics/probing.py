"""Sparse probing: whether a few concepts tell the classes of labelled texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from interpreto_mlops.concepts.metrics.registry import METRICS, Array, ConceptMetric, as_matrix, metric
from interpreto_mlops.errors import DataError, InputError

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

Matrix = npt.NDArray[np.float64]

SIZES = (1, 5)
"""How many concepts the registered probes may use."""

_MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """What probes of one class against the rest reach on held-out rows.

    Arguments:
        classes: the labels.
        sizes: how many concepts each probe may use.
        concepts: the concepts chosen for each class, best first, shape (classes, the largest size).
        accuracy: balanced accuracy, chance being 0.5, shape (sizes, classes).
        f1: of the class, shape (sizes, classes).
        dense_accuracy: balanced accuracy with all concepts, shape (classes,).
        n_train, n_test: rows.
    """

    classes: tuple[Any, ...]
    sizes: tuple[int, ...]
    concepts: npt.NDArray[np.int64]
    accuracy: Matrix
    f1: Matrix
    dense_accuracy: Matrix
    n_train: int
    n_test: int


class ProbeMetric(ConceptMetric):
    """A metric of probes: call it with codes and labels."""

    needs: ClassVar[str] = "probe"

    def __call__(self, codes: Array, labels: Sequence[Any], *, seed: int = 0) -> float:
        """Train the probes and compute it; the arguments and errors are those of `sparse_probing`."""
        return self.compute(sparse_probing(codes, labels, seed=seed))


def _of_size(result: ProbeResult, size: int) -> float:
    return float(result.accuracy[result.sizes.index(size)].mean())


@metric(ProbeMetric, "probing/sparse_1", higher_is_better=True, bounds=(0.0, 1.0))
def sparse_1(result: ProbeResult) -> float:
    """Balanced accuracy of telling a class by a single concept, in the mean over classes; chance is 0.5.

    Source: Gurnee et al. 2023 (finding neurons in a haystack); SAEBench (Karvonen et al. 2025).
    """
    return _of_size(result, 1)


@metric(ProbeMetric, "probing/sparse_5", higher_is_better=True, bounds=(0.0, 1.0))
def sparse_5(result: ProbeResult) -> float:
    """Balanced accuracy of telling a class by five concepts, in the mean over classes; chance is 0.5."""
    return _of_size(result, 5)


@metric(ProbeMetric, "probing/dense", higher_is_better=True, bounds=(0.0, 1.0))
def dense_probe(result: ProbeResult) -> float:
    """Balanced accuracy of telling a class by all concepts, in the mean over classes; chance is 0.5."""
    return float(result.dense_accuracy.mean())


def sparse_probing(
    codes: Array,
    labels: Sequence[Any],
    *,
    sizes: Sequence[int] = SIZES,
    test_share: float = 0.3,
    seed: int = 0,
) -> ProbeResult:
    """Tell each class from the rest by a logistic regression on its k best concepts, on held-out rows.

    The k concepts are those whose means in and out of the class differ most, in units of their standard deviation, on
    the training rows.

    Arguments:
        codes: one row for each label, shape (rows, concepts).
        labels: of the rows; every class needs four rows at least.
        sizes: the k's; with fewer concepts than that all are used.
        test_share: the share of the rows that probes are scored on, the same of each class.
        seed: of the division.

    Raises:
        InputError: labels, sizes or a share that do not fit, or NaN.
        DataError: fewer than two classes, or one with fewer than four rows.

    Source: Gurnee et al. 2023, section 3 (maximum mean difference).
    """
    matrix = np.asarray(as_matrix(codes, "codes").double().numpy())
    if not 0 < test_share < 1:
        raise InputError(f"test_share must be above 0 and below 1, not {test_share!r}")
    classes, numbers = _classes(matrix, labels, sizes)
    train, test = train_test_split(np.arange(len(matrix)), test_size=test_share, random_state=seed, stratify=numbers)
    scaler = StandardScaler().fit(matrix[train])
    scaled = scaler.transform(matrix)
    most = min(max(sizes), matrix.shape[1])
    chosen = np.zeros((len(classes), most), dtype=np.int64)
    accuracy, f1 = (np.zeros((len(sizes), len(classes))) for _ in range(2))
    dense = np.zeros(len(classes))
    for number in range(len(classes)):
        is_class = numbers == number
        chosen[number] = _best(scaled[train], is_class[train], most)
        for place, size in enumerate(sizes):
            columns = chosen[number][:size]
            accuracy[place, number], f1[place, number] = _probe(scaled[:, columns], is_class, train, test)
        dense[number], _ = _probe(scaled, is_class, train, test)
    return ProbeResult(classes, tuple(sizes), chosen, accuracy, f1, dense, len(train), len(test))


def _classes(
    matrix: Matrix, labels: Sequence[Any], sizes: Sequence[int]
) -> tuple[tuple[Any, ...], npt.NDArray[np.int64]]:
    if len(labels) != len(matrix):
        raise InputError(f"{len(matrix)} rows of codes need as many labels, not {len(labels)}")
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise InputError(f"the sizes of probes must be whole numbers of at least 1, not {list(sizes)!r}")
    if not np.isfinite(matrix).all():
        raise InputError(f"row {int((~np.isfinite(matrix)).any(axis=1).argmax())} of the codes is NaN or infinite")
    texts = np.asarray([str(label) for label in labels])
    names, numbers, counts = np.unique(texts, return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < 4:
        found = dict(zip(names.tolist(), counts.tolist(), strict=True))
        raise DataError(f"probing needs two classes of at least four rows each, not {found}")
    return tuple(names.tolist()), numbers.astype(np.int64)


def _best(rows: Matrix, is_class: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.int64]:
    difference = np.abs(rows[is_class].mean(axis=0) - rows[~is_class].mean(axis=0))
    return np.argsort(-difference, kind="stable")[:size]


def _probe(
    rows: Matrix, is_class: npt.NDArray[np.bool_], train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]
) -> tuple[float, float]:
    probe = LogisticRegression(class_weight="balanced", max_iter=_MOST_ITERATIONS).fit(rows[train], is_class[train])
    said = probe.predict(rows[test])
    return float(balanced_accuracy_score(is_class[test], said)), float(f1_score(is_class[test], said))


def probe_texts(
    dictionary: ConceptDictionary, activations: ActivationSet, labels: Sequence[Any], *, seed: int = 0
) -> dict[str, float]:
    """Probe the classes of texts by the mean codes of their rows.

    Arguments:
        dictionary: fitted.
        activations: of the texts.
        labels: one for each text of the activations; None leaves a text out, as one without rows is.
        seed: of the division into training and held-out texts.

    Returns:
        The `probing/…` metrics by name.

    Raises:
        InputError: not as many labels as texts.
        DataError: fewer than two classes, or one with fewer than four texts.
    """
    if len(labels) != len(activations.texts):
        raise InputError(f"{len(activations.texts)} texts need as many labels, not {len(labels)}")
    means, counts = _text_means(dictionary, activations)
    kept = [i for i, label in enumerate(labels) if label is not None and counts[i] > 0]
    result = sparse_probing(means[kept], [labels[i] for i in kept], seed=seed)
    return {each.name: each.compute(result) for _, each in METRICS.items() if each.needs == "probe"}


def _text_means(
    dictionary: ConceptDictionary, activations: ActivationSet
) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    text_ids = torch.from_numpy(activations.text_ids)
    sums = torch.zeros(len(activations.texts), dictionary.n_concepts, dtype=torch.float64)
    place = 0
    for _, codes in dictionary.encode_chunks(activations):
        sums.index_add_(0, text_ids[place : place + len(codes)], codes.double())
        place += len(codes)
    counts = np.bincount(activations.text_ids, minlength=len(sums))
    return sums / torch.from_numpy(counts).clamp(min=1).unsqueeze(1), counts
