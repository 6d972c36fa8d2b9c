"""Whether several fits find the same concepts, and whether one fit finds a concept twice."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts.metrics.registry import ConceptMetric, metric
from interpreto_mlops.errors import InputError

if TYPE_CHECKING:
    from interpreto_mlops.concepts.base import ConceptDictionary

SHARED = 0.7
"""Two fits share a concept where its directions have a larger cosine than this."""

REDUNDANT = 0.9
"""A concept is redundant where another one has a larger cosine with it than this."""

Matrix = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_BLOCK = 1024
_ALL_ZERO = "a dictionary all of whose rows are zero cannot be compared"


class StabilityMetric(ConceptMetric):
    """A metric of several fits: call it with their dictionaries."""

    needs: ClassVar[str] = "dictionaries"

    def __call__(self, dictionaries: Sequence[ConceptDictionary]) -> float:
        """Compute it for dictionaries.

        Arguments:
            dictionaries: at least two, fitted, of the same width.

        Raises:
            InputError: fewer than two, or of different widths, or one whose rows are all zero.
        """
        widths = [dictionary.width for dictionary in dictionaries]
        if len(widths) < 2:
            raise InputError(f"stability compares at least two dictionaries, not {len(widths)}")
        if len(set(widths)) > 1:
            raise InputError(f"dictionaries of different widths {sorted(set(widths))} cannot be compared")
        if not all(len(_alive(dictionary)[1]) for dictionary in dictionaries):
            raise InputError(_ALL_ZERO)
        return self.compute(dictionaries)


class DictionaryMetric(ConceptMetric):
    """A metric of a fitted dictionary's directions: call it with the dictionary."""

    needs: ClassVar[str] = "dictionary"

    def __call__(self, dictionary: ConceptDictionary) -> float:
        """Compute it for a fitted dictionary.

        Raises:
            NotFittedError: it is not fitted.
        """
        return self.compute(dictionary)


@metric(StabilityMetric, "stability/stability", higher_is_better=True, bounds=(-1.0, 1.0))
def stability(dictionaries: Sequence[ConceptDictionary]) -> float:
    """Mean cosine of the concepts of two fits that match best, over all pairs of fits.

    Concepts are matched one to one so that the sum of the cosines is largest; |cosine| where both dictionaries are
    signed. Zero rows are left out, and of dictionaries of different sizes the surplus. A random baseline:
    `stability_random`.

    Source: Fel et al. 2023; Paulo and Belrose 2025.
    """
    return float(np.mean([matching(first, second)[1].mean() for first, second in combinations(dictionaries, 2)]))


@metric(StabilityMetric, "stability/stability_random", higher_is_better=None, bounds=(-1.0, 1.0))
def stability_random(dictionaries: Sequence[ConceptDictionary]) -> float:
    """Stability of random directions of the same sizes: what dictionaries reach that share nothing.

    Zero rows do not count for the sizes.
    """
    rng = np.random.default_rng(0)
    draws = [rng.standard_normal((len(_alive(each)[1]), each.width)) for each in dictionaries]
    return float(
        np.mean(
            [
                _match(_unit(draws[i]), _unit(draws[j]), _signed(dictionaries[i], dictionaries[j]))[1].mean()
                for i, j in combinations(range(len(draws)), 2)
            ]
        )
    )


@metric(StabilityMetric, "stability/shared_fraction", higher_is_better=True, bounds=(0.0, 1.0))
def shared_fraction(dictionaries: Sequence[ConceptDictionary]) -> float:
    """Share of the matched concepts whose directions have a cosine above 0.7, over all pairs of fits.

    Where both have a linear encoder, the concepts are matched by decoder and by encoder, and count when both matchings
    agree and both cosines are above.

    Source: Paulo and Belrose 2025 (sparse autoencoders trained on the same data learn different features).
    """
    return float(np.mean([_shared(first, second) for first, second in combinations(dictionaries, 2)]))


def _shared(first: ConceptDictionary, second: ConceptDictionary) -> float:
    pairs, cosines = matching(first, second)
    close = cosines > SHARED
    if "encoder" in first.weights and "encoder" in second.weights:
        encoders = [dictionary.tensor("encoder").double().numpy() for dictionary in (first, second)]
        ids = [pairs[:, side] for side in (0, 1)]
        rows = [_unit_or_zero(encoder[own]) for encoder, own in zip(encoders, ids, strict=True)]
        (left, right), others = _match(rows[0], rows[1], _signed(first, second))
        agree = np.zeros(len(pairs), dtype=bool)
        agree[left] = (left == right) & (others > SHARED)
        close &= agree
    return float(close.mean())


@metric(DictionaryMetric, "complexity/redundancy", higher_is_better=False, bounds=(0.0, 1.0))
def redundancy(dictionary: ConceptDictionary) -> float:
    """Share of the concepts whose direction has a cosine above 0.9 with that of another concept.

    |cosine| for a signed dictionary; zero rows are left out.
    """
    largest = _largest_cosines(dictionary)
    return float((largest > REDUNDANT).mean()) if len(largest) else 0.0


@metric(DictionaryMetric, "complexity/max_cosine", higher_is_better=False, bounds=(-1.0, 1.0))
def max_cosine(dictionary: ConceptDictionary) -> float:
    """Mean over concepts of the largest cosine of their direction with that of another concept.

    |cosine| for a signed dictionary; zero rows are left out; 0 where there are not two others.

    Source: the mean max cosine similarity of Sharkey et al. 2022, within one dictionary.
    """
    largest = _largest_cosines(dictionary)
    return float(largest.mean()) if len(largest) else 0.0


def _largest_cosines(dictionary: ConceptDictionary) -> Matrix:
    rows = dictionary.dictionary.double()
    norms = rows.norm(dim=1)
    rows = rows[norms > 0] / norms[norms > 0, None]
    if len(rows) < 2:
        return np.zeros(0)
    largest = []
    for start in range(0, len(rows), _BLOCK):
        cosines = rows[start : start + _BLOCK] @ rows.T
        if dictionary.signed:
            cosines = cosines.abs()
        places = torch.arange(len(cosines))
        cosines[places, start + places] = -2.0
        largest.append(cosines.amax(dim=1))
    return np.asarray(torch.cat(largest).clamp(-1.0, 1.0).numpy())


def matching(first: ConceptDictionary, second: ConceptDictionary) -> tuple[Integers, Matrix]:
    """Match the concepts of two dictionaries one to one.

    Returns:
        Pairs of concept ids, shape (pairs, 2), and their cosines (absolute where both are signed), shape (pairs,).

    Raises:
        InputError: a dictionary has only zero rows.
    """
    (rows, ids), (other_rows, other_ids) = _alive(first), _alive(second)
    if not len(ids) or not len(other_ids):
        raise InputError(_ALL_ZERO)
    (left, right), cosines = _match(_unit(rows), _unit(other_rows), _signed(first, second))
    return np.stack([ids[left], other_ids[right]], axis=1), cosines


def _alive(dictionary: ConceptDictionary) -> tuple[Matrix, Integers]:
    """Return the rows that are not zero, shape (living, width), and the ids of their concepts, shape (living,)."""
    rows = dictionary.dictionary.double().numpy()
    ids = np.flatnonzero(np.linalg.norm(rows, axis=1) > 0)
    return rows[ids], ids


def _signed(first: ConceptDictionary, second: ConceptDictionary) -> bool:
    return first.signed and second.signed


def _match(first: Matrix, second: Matrix, signed: bool) -> tuple[tuple[Integers, Integers], Matrix]:
    cosines = first @ second.T
    if signed:
        cosines = np.abs(cosines)
    left, right = linear_sum_assignment(cosines, maximize=True)
    return (left, right), np.clip(cosines[left, right], -1.0, 1.0)


def _unit(rows: Matrix) -> Matrix:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _unit_or_zero(rows: Matrix) -> Matrix:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms == 0, 1.0, norms))
