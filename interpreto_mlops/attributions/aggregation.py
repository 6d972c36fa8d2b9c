"""How the scores of an element's tokens become the element's score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.results import Floats
from interpreto_mlops.registry import Choice


class Aggregation(Choice):
    """What is made of the scores of an element's tokens."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    MIN = "min"
    SIGNED_MAX = "signed_max"
    FIRST = "first"
    LAST = "last"


def aggregate(
    scores: Floats, of_token: npt.NDArray[np.int64], n_elements: int, how: Aggregation = Aggregation.SUM
) -> Floats:
    """Aggregate token scores, shape (..., tokens), to element scores, shape (..., n_elements).

    Arguments:
        scores: of the tokens.
        of_token: the element of each token, shape (tokens,); tokens of no element are left out.
        n_elements: how many elements there are; one without tokens gets 0.
        how: `sum` keeps completeness; `signed_max` is the score of largest absolute value, with its sign, the first of
            several such.
    """
    member = of_token[:, None] == np.arange(n_elements)
    if how is Aggregation.SUM:
        total: Floats = scores @ member.astype(np.float64)
        return total
    out = np.zeros((*scores.shape[:-1], n_elements))
    for element in np.flatnonzero(member.any(axis=0)):
        out[..., element] = _FUNCTIONS[how](scores[..., member[:, element]])
    return out


def _signed_max(scores: Floats) -> Floats:
    largest = np.abs(scores).argmax(axis=-1, keepdims=True)
    chosen: Floats = np.take_along_axis(scores, largest, axis=-1)[..., 0]
    return chosen


_FUNCTIONS: dict[Aggregation, Callable[[Floats], Floats]] = {
    Aggregation.MEAN: lambda scores: scores.mean(axis=-1),
    Aggregation.MAX: lambda scores: scores.max(axis=-1),
    Aggregation.MIN: lambda scores: scores.min(axis=-1),
    Aggregation.SIGNED_MAX: _signed_max,
    Aggregation.FIRST: lambda scores: scores[..., 0],
    Aggregation.LAST: lambda scores: scores[..., -1],
}
