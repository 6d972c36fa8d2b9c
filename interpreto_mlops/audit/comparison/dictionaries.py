"""Which concepts of two dictionaries are the same, which are new, which have vanished: by directions or by codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.belonging import check_belongs
from interpreto_mlops.concepts.metrics.stability import SHARED, matching, stability_random
from interpreto_mlops.errors import InputError
from interpreto_mlops.text.hiding import hidden_name, is_hash

Matrix = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

DIRECTIONS, ACTIVATIONS = "directions", "activations"
WAYS = ("auto", DIRECTIONS, ACTIVATIONS)

MATCHED_COLUMNS = ("first", "second", "similarity", "label_first", "label_second", "label_changed")
UNMATCHED_COLUMNS = ("concept", "label", "nearest", "nearest_label", "similarity")

_FEWEST = 3
_ROWS = 2048


@dataclass(frozen=True)
class ConceptMatch:
    """The concepts of two dictionaries, matched one to one.

    Arguments:
        by: `directions` or `activations`.
        threshold: from which similarity on a pair counts as the same concept.
        matched: a row for each such pair, the most alike first; whether its label changed, where both have one.
        new: a row for each concept of the second dictionary without a match, with the nearest of the first.
        vanished: the same of the first dictionary.
        mean: similarity of all pairs of the matching, whatever their similarity, as in `stability/stability`.
        random_mean: the same where there is nothing in common.
        n_pairs: how many pairs that are: of dictionaries of different sizes the surplus has none.
        silent: how many concepts of each dictionary have no direction, or a code that never changes; they are in none
            of the lists.
        rows: how many rows or texts codes were compared on; 0 for directions.
        unit: what those are, `rows` or `texts`.
    """

    by: str
    threshold: float
    matched: pd.DataFrame = field(repr=False)
    new: pd.DataFrame = field(repr=False)
    vanished: pd.DataFrame = field(repr=False)
    mean: float
    random_mean: float
    n_pairs: int
    silent: tuple[int, int]
    rows: int = 0
    unit: str = ""

    @property
    def n_changed_labels(self) -> int:
        """How many matched concepts have another label; those without a label count as the same."""
        return sum(changed is True for changed in self.matched["label_changed"])

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The concepts that are the same: of the first and of the second dictionary."""
        return list(zip(self.matched["first"].tolist(), self.matched["second"].tolist(), strict=True))


def way_of(first: ConceptDictionary, second: ConceptDictionary, by: str = "auto") -> str:
    """Return how two dictionaries are matched: by directions where these mean the same, else by activations.

    Directions mean the same where both dictionaries are of one layer of one model (by its fingerprint), or where the
    widths agree and nothing says that they are not.

    Raises:
        InputError: another way, or directions of different widths.
    """
    if by not in WAYS:
        raise InputError(f"concepts are matched by one of {', '.join(map(repr, WAYS))}, not by {by!r}")
    if by == DIRECTIONS and first.width != second.width:
        raise InputError(
            f"directions of width {first.width} and {second.width} cannot be compared; match by 'activations'"
        )
    if by != "auto":
        return by
    a, b = (_origin(each.provenance) for each in (first, second))
    differ = any(x is not None and y is not None and x != y for x, y in zip(a, b, strict=True))
    return ACTIVATIONS if first.width != second.width or differ else DIRECTIONS


def _origin(provenance: Mapping[str, Any]) -> tuple[Any, Any]:
    return (provenance.get("model") or {}).get("fingerprint"), provenance.get("layer")


def match_by_directions(
    first: ConceptDictionary, second: ConceptDictionary, *, threshold: float = SHARED
) -> ConceptMatch:
    """Match concepts by the cosine of their decoder directions dᵢ and eⱼ, dᵢ·eⱼ / (‖dᵢ‖ ‖eⱼ‖).

    The matching is one to one and makes the sum of the cosines largest; |cosine| where both dictionaries are signed.
    The baseline is the same for random directions of the same sizes (`stability/stability_random`).

    Arguments:
        first, second: of the same width.
        threshold: see `ConceptMatch`.

    Raises:
        InputError: different widths, or only zero rows.
    """
    if first.width != second.width:
        raise InputError(f"directions of width {first.width} and {second.width} cannot be compared")
    pairs, _ = matching(first, second)
    cosines = _cosines(first, second)
    return _matched(
        DIRECTIONS, cosines, pairs, stability_random([first, second]), labels_of(first), labels_of(second), threshold
    )


def _cosines(first: ConceptDictionary, second: ConceptDictionary) -> Matrix:
    """Return the cosines of all concepts, NaN for those without a direction, shape (concepts, concepts)."""
    rows = [each.dictionary.detach().cpu().double().numpy() for each in (first, second)]
    norms = [np.linalg.norm(each, axis=1, keepdims=True) for each in rows]
    a, b = (
        np.where(norm > 0, each / np.where(norm > 0, norm, 1.0), np.nan) for each, norm in zip(rows, norms, strict=True)
    )
    cosines = np.asarray(np.clip(a @ b.T, -1.0, 1.0))
    return np.asarray(np.abs(cosines)) if first.signed and second.signed else cosines


def match_by_activations(
    first: ConceptDictionary,
    first_rows: ActivationSet,
    second: ConceptDictionary,
    second_rows: ActivationSet,
    *,
    threshold: float = SHARED,
    seed: int = 0,
) -> ConceptMatch:
    """Match concepts by the correlation of their codes on the same texts.

    With the codes uᵢ(t) and vⱼ(t) it is Σ_t (uᵢ(t) − ūᵢ)(vⱼ(t) − v̄ⱼ) / (n σ(uᵢ) σ(vⱼ)), |·| where both dictionaries
    are signed; the matching makes its sum largest. t goes over rows where both sets have the same ones (the same
    granularity, and tokens at the same characters), else over texts: a text's code is that of its rows which is largest
    without its sign, 0 for a text without rows. The baseline pairs each row of the first with a random one of the
    second.

    Arguments:
        first, second: fitted, of any widths.
        first_rows, second_rows: activations of the same texts, each of the layer that its dictionary is of.
        threshold: see `ConceptMatch`.
        seed: of the baseline.

    Raises:
        InputError: other texts, too few of them, or a dictionary none of whose codes changes.
        IntegrityError: activations of another model or layer than the dictionary was fitted on.
    """
    check_belongs(first, first_rows)
    check_belongs(second, second_rows)
    if first_rows.texts != second_rows.texts:
        raise InputError("activation patterns are compared on the same texts, and these are other ones")
    by_row = same_rows(first_rows, second_rows)
    blocks = _row_blocks if by_row else _text_blocks
    found, chance = Correlation(), Correlation()
    rng, rows = np.random.default_rng(seed), 0
    for a, b in blocks(first, first_rows, second, second_rows):
        found.add(a, b)
        chance.add(a, b[rng.permutation(len(b))])
        rows += len(a)
    if rows < _FEWEST:
        raise InputError(f"activation patterns need at least {_FEWEST} texts or rows to be compared, not {rows}")
    signed = first.signed and second.signed
    correlations, random = (np.abs(each.matrix()) if signed else each.matrix() for each in (found, chance))
    pairs = assign(correlations)
    if not len(pairs):
        raise InputError(f"no code of one of the dictionaries changes on these {rows} rows; give other texts")
    random_pairs = assign(random)
    baseline = float(random[random_pairs[:, 0], random_pairs[:, 1]].mean())
    labels = labels_of(first), labels_of(second)
    return _matched(ACTIVATIONS, correlations, pairs, baseline, *labels, threshold, rows, "rows" if by_row else "texts")


def same_rows(first: ActivationSet, second: ActivationSet) -> bool:
    """Return whether the rows of two sets stand for the same characters of the same texts."""
    return (
        len(first) == len(second)
        and first.granularity == second.granularity
        and np.array_equal(first.text_ids, second.text_ids)
        and np.array_equal(first.spans, second.spans)
    )


def _row_blocks(
    first: ConceptDictionary, first_rows: ActivationSet, second: ConceptDictionary, second_rows: ActivationSet
) -> Iterator[tuple[Matrix, Matrix]]:
    for a, b in zip(first_rows.batches(_ROWS), second_rows.batches(_ROWS), strict=True):
        yield first.encode(a).double().numpy(), second.encode(b).double().numpy()


def _text_blocks(
    first: ConceptDictionary, first_rows: ActivationSet, second: ConceptDictionary, second_rows: ActivationSet
) -> Iterator[tuple[Matrix, Matrix]]:
    yield pooled(first, first_rows), pooled(second, second_rows)


def pooled(dictionary: ConceptDictionary, rows: ActivationSet) -> Matrix:
    """Return one code for each text and concept, that of its rows which is largest without its sign.

    Returns:
        Shape (texts, concepts); zeros for a text without rows.
    """
    shape = len(rows.texts), dictionary.n_concepts
    high, low = torch.full(shape, -torch.inf), torch.full(shape, torch.inf)
    owners = torch.from_numpy(rows.text_ids)
    place = 0
    for _, codes in dictionary.encode_chunks(rows):
        index = owners[place : place + len(codes)].unsqueeze(1).expand_as(codes)
        place += len(codes)
        high.scatter_reduce_(0, index, codes, "amax")
        low.scatter_reduce_(0, index, codes, "amin")
    largest = torch.where(high >= -low, high, low)
    return np.asarray(torch.where(torch.isfinite(largest), largest, 0.0).double().numpy())


class Correlation:
    """Pearson correlations of all columns of two streams of rows, in bounded memory."""

    def __init__(self) -> None:
        self._n = 0
        self._shift: tuple[Matrix, Matrix] | None = None

    def add(self, first: Matrix, second: Matrix) -> None:
        """Take the next rows, shape (rows, columns) each."""
        if self._shift is None:
            # Moments around something near the mean lose no digits to it.
            self._shift = first.mean(axis=0), second.mean(axis=0)
            self._cross = np.zeros((first.shape[1], second.shape[1]))
            self._sums = [np.zeros(each.shape[1]) for each in (first, second)]
            self._squares = [np.zeros(each.shape[1]) for each in (first, second)]
            self._ends = [(each[0].copy(), each[0].copy()) for each in (first, second)]
        self._n += len(first)
        moved = [each - shift for each, shift in zip((first, second), self._shift, strict=True)]
        self._cross += moved[0].T @ moved[1]
        for side, (rows, raw) in enumerate(zip(moved, (first, second), strict=True)):
            self._sums[side] += rows.sum(axis=0)
            self._squares[side] += (rows**2).sum(axis=0)
            low, high = self._ends[side]
            self._ends[side] = np.minimum(low, raw.min(axis=0)), np.maximum(high, raw.max(axis=0))

    def matrix(self) -> Matrix:
        """Return the correlations, NaN for a column that never changes, shape (columns, columns)."""
        if self._shift is None:
            return np.zeros((0, 0))
        cross = self._cross - np.outer(*self._sums) / self._n
        spreads = []
        for sums, squares, (low, high) in zip(self._sums, self._squares, self._ends, strict=True):
            variance = np.maximum(squares - sums**2 / self._n, 0.0)
            spreads.append(np.where(low < high, np.sqrt(variance), np.nan))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.clip(cross / np.outer(*spreads), -1.0, 1.0)
        return np.asarray(np.where(np.isfinite(found), found, np.nan))


def assign(similarity: Matrix) -> Integers:
    """Match rows and columns one to one so that the sum of their similarities is largest.

    Arguments:
        similarity: shape (rows, columns); a row or column of NaN alone takes no part.

    Returns:
        Shape (pairs, 2).
    """
    rows, columns = (np.flatnonzero(~np.isnan(similarity).all(axis=axis)) for axis in (1, 0))
    left, right = linear_sum_assignment(similarity[np.ix_(rows, columns)], maximize=True)
    return np.stack([rows[left], columns[right]], axis=1)


def labels_of(dictionary: ConceptDictionary) -> dict[int, str]:
    """Return the labels by concept; none for a dictionary that was not interpreted."""
    return {each.concept: each.label for each in dictionary.descriptions or ()}


def _matched(
    by: str,
    similarity: Matrix,
    pairs: Integers,
    random_mean: float,
    first_labels: Mapping[int, str],
    second_labels: Mapping[int, str],
    threshold: float,
    rows: int = 0,
    unit: str = "",
) -> ConceptMatch:
    values = similarity[pairs[:, 0], pairs[:, 1]]
    order = np.argsort(-values, kind="stable")
    kept = [place for place in order.tolist() if values[place] >= threshold]
    matched = [
        _pair(int(pairs[place, 0]), int(pairs[place, 1]), float(values[place]), first_labels, second_labels)
        for place in kept
    ]
    taken = pairs[kept]
    alive = [np.flatnonzero(~np.isnan(similarity).all(axis=axis)) for axis in (1, 0)]
    vanished = _without(similarity, alive[0], taken[:, 0], first_labels, second_labels)
    new = _without(similarity.T, alive[1], taken[:, 1], second_labels, first_labels)
    silent = (similarity.shape[0] - len(alive[0]), similarity.shape[1] - len(alive[1]))
    return ConceptMatch(
        by,
        threshold,
        pd.DataFrame(matched, columns=list(MATCHED_COLUMNS)),
        pd.DataFrame(new, columns=list(UNMATCHED_COLUMNS)),
        pd.DataFrame(vanished, columns=list(UNMATCHED_COLUMNS)),
        float(values.mean()),
        random_mean,
        len(pairs),
        silent,
        rows,
        unit,
    )


def _pair(
    first: int, second: int, similarity: float, first_labels: Mapping[int, str], second_labels: Mapping[int, str]
) -> dict[str, Any]:
    a, b = first_labels.get(first), second_labels.get(second)
    changed = None if a is None or b is None else _hidden(a) != _hidden(b)
    values = (first, second, similarity, a, b, changed)
    return dict(zip(MATCHED_COLUMNS, values, strict=True))


def _hidden(label: str) -> str:
    """A label, and the hash that stands for it in another dictionary, are the same."""
    return label if is_hash(label) else hidden_name(label)


def _without(
    similarity: Matrix, alive: Integers, taken: Integers, labels: Mapping[int, str], others: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return the living concepts without a match, each with the nearest of the other dictionary."""
    rows = []
    for concept in np.setdiff1d(alive, taken).tolist():
        nearest = int(np.nanargmax(similarity[concept]))
        values = (concept, labels.get(concept), nearest, others.get(nearest), float(similarity[concept, nearest]))
        rows.append(dict(zip(UNMATCHED_COLUMNS, values, strict=True)))
    return rows
