"""Every metric of a dictionary over rows, in one pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

import torch

from interpreto_mlops.concepts.code_statistics import EPS, CodeStatistics, ReconstructionStatistics
from interpreto_mlops.concepts.metrics.complexity import ActivationDensity, density_of
from interpreto_mlops.concepts.metrics.reconstruction import check_reference
from interpreto_mlops.concepts.metrics.registry import METRICS, Array, ConceptMetric
from interpreto_mlops.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from interpreto_mlops.concepts.base import Activations, ConceptDictionary

OF_ROWS = ("reconstructions", "codes", "dictionary")
"""What the metrics of `evaluate` need."""


class Evaluation(NamedTuple):
    """The metrics of a dictionary by name, and how often each concept is active."""

    metrics: dict[str, float]
    density: ActivationDensity


def evaluate(
    dictionary: ConceptDictionary,
    activations: Activations,
    metrics: Iterable[str] | None = None,
    *,
    reference_mean: Array | None = None,
    eps: float = EPS,
) -> dict[str, float]:
    """Return metrics of a fitted dictionary over activations, in one pass and bounded memory.

    Arguments:
        dictionary: fitted.
        activations: shape (rows, width), better not those it was fitted on.
        metrics: names, such as `reconstruction/r2`; None for all that need nothing but rows.
        reference_mean: of each dimension, shape (width,), about which variance is taken (that of the rows fitted on,
            say); None for the mean of these rows.
        eps: a code is active above this share of its row's largest |code|.

    Returns:
        Values by name.

    Warns:
        UserWarning: a metric is not defined for these codes, so that it is NaN.

    Raises:
        NotFittedError: the dictionary is not fitted.
        InputError: no rows, rows of another width, or NaN.
        UnknownNameError: a name that is no metric of rows.
        IntegrityError: activations of another model or layer.
    """
    return evaluate_rows(dictionary, activations, metrics, reference_mean=reference_mean, eps=eps).metrics


def evaluate_rows(
    dictionary: ConceptDictionary,
    activations: Activations,
    metrics: Iterable[str] | None = None,
    *,
    reference_mean: Array | None = None,
    eps: float = EPS,
) -> Evaluation:
    """Return what `evaluate` does, and the density of each concept from the same pass."""
    chosen = _chosen(metrics)
    rows = ReconstructionStatistics(len(activations), check_reference(reference_mean, dictionary.width))
    codes = CodeStatistics(len(activations), eps)
    with torch.no_grad():
        for part, coded in dictionary.encode_chunks(activations):
            rows.add(part, dictionary.decode(coded))
            codes.add(coded)
    given = {"reconstructions": rows, "codes": codes, "dictionary": dictionary}
    values = {metric.name: metric.compute(given[metric.needs]) for metric in chosen}
    if unknown := [name for name, value in values.items() if isnan(value)]:
        warnings.warn(
            f"NaN, as no code is other than 0 or there is one concept only: {', '.join(unknown)}", stacklevel=3
        )
    return Evaluation(values, density_of(codes))


def _chosen(names: Iterable[str] | None) -> list[ConceptMetric]:
    known = {name: metric for name, metric in METRICS.items() if metric.needs in OF_ROWS}
    if names is None:
        return list(known.values())
    if isinstance(names, str):
        raise InputError(f"give a list of metrics, as in [{names!r}]")
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise UnknownNameError("metric of rows", name, known)
    return [known[name] for name in wanted]
