"""The ERASER scorer's agreement of predicted elements with a human rationale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.metrics.results import Floats, f1
from interpreto_mlops.errors import InputError
from interpreto_mlops.text.granularity import Spans

Mask = npt.NDArray[np.bool_]
"""Which elements of a text are chosen, shape (elements,)."""


def rationale_spans(value: Any, index: int, length: int) -> Spans:
    """Return the character spans of one text's rationale, shape (spans, 2).

    Arguments:
        value: pairs (start, end), end exclusive; None or an empty list for a text without a rationale.
        index: the text's place, for messages.
        length: of the text, in characters.

    Raises:
        InputError: something else, or a span outside the text.
    """
    pairs = [] if value is None else list(value)
    spans = [tuple(pair) if isinstance(pair, (Sequence, np.ndarray)) else (pair,) for pair in pairs]
    for pair in spans:
        whole = len(pair) == 2 and all(isinstance(end, (int, np.integer)) for end in pair)
        if not whole or not 0 <= pair[0] < pair[1] <= length:
            raise InputError(
                f"the rationale of text {index} must be pairs (start, end) within its {length} characters, not {pair!r}"
            )
    return np.asarray(spans, dtype=np.int64).reshape(-1, 2)


def elements_in(spans: Spans, rationale: Spans) -> Mask:
    """Return which elements share a character with a rationale, shape (elements,)."""
    meets = (spans[:, None, 0] < rationale[None, :, 1]) & (rationale[None, :, 0] < spans[:, None, 1])
    found: Mask = np.any(meets, axis=1)
    return found


def area_under_precision_recall(truth: Mask, scores: Floats) -> float:
    """Return the trapezoid area under the precision-recall curve, which starts at recall 0 with precision 1.

    Arguments:
        truth: which elements are in the rationale, at least one.
        scores: of the elements; equal ones come together.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    hits = np.cumsum(truth[order])[last_of_tie]
    precision = np.concatenate([[1.0], hits / (last_of_tie + 1)])
    recall = np.concatenate([[0.0], hits / truth.sum()])
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def token_f1(truth: Mask, chosen: Mask) -> float:
    """Return the F1 of the chosen elements of one text, 0 when none is right."""
    hits = int((truth & chosen).sum())
    return f1(hits / chosen.sum(), hits / truth.sum()) if hits else 0.0


def runs(chosen: Mask) -> Spans:
    """Return the runs of adjacent chosen elements as spans (first, last + 1), shape (runs, 2)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(np.int64), [0]])))
    return edges.reshape(-1, 2)


def span_hits(truth: Mask, chosen: Mask, threshold: float = 0.5) -> tuple[int, int, int]:
    """Return how many predicted runs hit, how many there are, and how many human runs.

    A predicted run hits when its best intersection over union with a human run is at least the threshold.
    """
    predicted, human = runs(chosen), runs(truth)
    start = np.maximum(predicted[:, None, 0], human[None, :, 0])
    end = np.minimum(predicted[:, None, 1], human[None, :, 1])
    shared = np.maximum(0, end - start)
    sizes = np.diff(predicted, axis=1) + np.diff(human, axis=1).T
    best = (shared / (sizes - shared)).max(axis=1, initial=0.0)
    return int((best >= threshold).sum()), len(predicted), len(human)
