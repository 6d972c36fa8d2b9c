"""How good a dictionary is: reconstruction, complexity, and stability over fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts.code_statistics import CodeStatistics, Gaussian
from interpreto_mlops.errors import InputError
from interpreto_mlops.registry import Registry

if TYPE_CHECKING:
    from interpreto_mlops.concepts.base import Activations, ConceptDictionary

INFINITY = float("inf")


@dataclass(frozen=True)
class ConceptMetric:
    """A metric of concept dictionaries.

    Arguments:
        name: its name in runs, `group/metric`.
        higher_is_better: its direction; None where neither end is good in itself.
        bounds: the values it can take.
        compute: from the statistics of one dictionary over rows, or, where `of_several`, from dictionaries.
        of_several: whether it compares dictionaries.
    """

    name: str
    higher_is_better: bool | None
    bounds: tuple[float, float]
    compute: Callable[[Any], float]
    of_several: bool = False

    @property
    def description(self) -> str:
        """The first sentence of what computes it."""
        return (self.compute.__doc__ or "").split("\n")[0].rstrip(".")


METRICS: Registry[ConceptMetric] = Registry("concept metric")
"""The metrics of dictionaries by their names in runs."""

ComputeT = Callable[[Any], float]


def _metric(
    name: str, higher_is_better: bool | None, bounds: tuple[float, float], *, of_several: bool = False
) -> Callable[[ComputeT], ComputeT]:
    def decorate(compute: ComputeT) -> ComputeT:
        METRICS.register(name)(ConceptMetric(name, higher_is_better, bounds, compute, of_several))
        return compute

    return decorate


def evaluate(dictionary: ConceptDictionary, activations: Activations) -> dict[str, float]:
    """Return every metric of a fitted dictionary over activations, in one pass and bounded memory.

    Arguments:
        dictionary: fitted.
        activations: shape (rows, width), better not those it was fitted on.

    Returns:
        Values by name: `reconstruction/{mse,r2,fid,wasserstein}` and `complexity/{l0,sparsity,sparsity_ratio,dead}`.

    Raises:
        NotFittedError: the dictionary is not fitted.
        InputError: no rows, rows of another width, or NaN.
    """
    statistics = CodeStatistics(len(activations))
    for rows, codes in dictionary.encode_chunks(activations):
        statistics.add(rows, dictionary.decode(codes), codes)
    return {name: metric.compute(statistics) for name, metric in METRICS.items() if not metric.of_several}


def statistics_of(rows: torch.Tensor, reconstructions: torch.Tensor, codes: torch.Tensor) -> CodeStatistics:
    """Return the statistics of tensors in memory, from which every metric of `METRICS` can be computed.

    Arguments:
        rows: activations, shape (rows, width).
        reconstructions: of the same shape.
        codes: shape (rows, n_concepts).
    """
    if rows.shape != reconstructions.shape or len(codes) != len(rows):
        raise InputError(
            f"rows {tuple(rows.shape)}, reconstructions {tuple(reconstructions.shape)} and codes {tuple(codes.shape)} "
            "do not belong together"
        )
    statistics = CodeStatistics(len(rows))
    statistics.add(rows, reconstructions, codes)
    return statistics


@_metric("reconstruction/mse", higher_is_better=False, bounds=(0.0, INFINITY))
def mse(statistics: CodeStatistics) -> float:
    """Mean squared error over all rows and dimensions."""
    return statistics.squared_error / (statistics.n_rows * statistics.width)


@_metric("reconstruction/r2", higher_is_better=True, bounds=(-INFINITY, 1.0))
def r2(statistics: CodeStatistics) -> float:
    """Share of the variance that is explained: 1 − Σ‖a − â‖² / Σ‖a − mean‖², with a mean for each dimension.

    Predicting the rows' mean gives 0. Rows that are all equal give 1 if they are reconstructed exactly, else −∞.
    """
    spread = float(statistics.rows.covariance.diagonal().clamp(min=0.0).sum()) * statistics.n_rows
    if spread == 0.0:
        return 1.0 if statistics.squared_error == 0.0 else -INFINITY
    return 1.0 - statistics.squared_error / spread


@_metric("reconstruction/fid", higher_is_better=False, bounds=(0.0, INFINITY))
def fid(statistics: CodeStatistics) -> float:
    """Fréchet distance of Gaussians fitted to activations and reconstructions (squared, as usual for the FID).

    Source: Heusel et al. 2017, eq. 6: ‖Δμ‖² + Tr(S₁ + S₂ − 2 (S₁^½ S₂ S₁^½)^½).
    """
    return frechet(statistics.rows, statistics.reconstructions)


@_metric("reconstruction/wasserstein", higher_is_better=False, bounds=(0.0, INFINITY))
def wasserstein(statistics: CodeStatistics) -> float:
    """Mean over dimensions of the 1-Wasserstein distance between activations and reconstructions.

    It sees no correlations. Computed on at most 8,192 rows, evenly spread.

    Source: what Fel et al. 2023 call FID.
    """
    rows, reconstructions = statistics.sample
    return float((rows.double().sort(dim=0).values - reconstructions.double().sort(dim=0).values).abs().mean())


@_metric("complexity/l0", higher_is_better=False, bounds=(0.0, INFINITY))
def l0(statistics: CodeStatistics) -> float:
    """Mean number of concepts of a row whose code is not zero."""
    return float(statistics.n_active.sum()) / statistics.n_rows


@_metric("complexity/sparsity", higher_is_better=True, bounds=(0.0, 1.0))
def sparsity(statistics: CodeStatistics) -> float:
    """Share of the codes that are zero."""
    return 1.0 - sparsity_ratio(statistics)


@_metric("complexity/sparsity_ratio", higher_is_better=False, bounds=(0.0, 1.0))
def sparsity_ratio(statistics: CodeStatistics) -> float:
    """Share of the concepts that a row holds in the mean: l0 over the number of concepts."""
    return l0(statistics) / statistics.n_concepts


@_metric("complexity/dead", higher_is_better=False, bounds=(0.0, 1.0))
def dead(statistics: CodeStatistics) -> float:
    """Share of the concepts whose code is zero in all rows."""
    return float((statistics.n_active == 0).double().mean())


def frechet(first: Gaussian, second: Gaussian) -> float:
    """Return the squared Fréchet distance of two Gaussians; 0 for equal ones, whatever their rank."""
    # The singular values of S₁^½ S₂^½ are the eigenvalues of (S₁^½ S₂ S₁^½)^½, without squaring the rounding errors.
    crossed = torch.linalg.svdvals(_square_root(first.covariance) @ _square_root(second.covariance)).sum()
    shift = (first.mean - second.mean).square().sum()
    distance = shift + first.covariance.trace() + second.covariance.trace() - 2.0 * crossed
    return max(0.0, float(distance))


def _square_root(covariance: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: torch.Tensor = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
    return root


@_metric("stability/stability", higher_is_better=True, bounds=(-1.0, 1.0), of_several=True)
def stability(dictionaries: Sequence[ConceptDictionary]) -> float:
    """Mean cosine of the concepts of two fits that match best, over all pairs of fits.

    Concepts are matched one to one so that the sum of the cosines is largest; |cosine| where both dictionaries are
    signed. Zero rows are left out, and of dictionaries of different sizes the surplus. A random baseline:
    `stability_random`.

    Arguments:
        dictionaries: at least two, fitted, of the same width.

    Raises:
        InputError: fewer than two, or of different widths.

    Source: Fel et al. 2023; Paulo and Belrose 2025.
    """
    _check_comparable(dictionaries)
    return float(np.mean([matching(first, second)[1].mean() for first, second in combinations(dictionaries, 2)]))


@_metric("stability/stability_random", higher_is_better=None, bounds=(-1.0, 1.0), of_several=True)
def stability_random(dictionaries: Sequence[ConceptDictionary]) -> float:
    """Stability of random directions of the same sizes: what dictionaries reach that share nothing."""
    _check_comparable(dictionaries)
    rng = np.random.default_rng(0)
    draws = [rng.standard_normal(dictionary.dictionary.shape) for dictionary in dictionaries]
    values = [
        _match(_unit(draws[i]), _unit(draws[j]), dictionaries[i].signed and dictionaries[j].signed)[1].mean()
        for i, j in combinations(range(len(draws)), 2)
    ]
    return float(np.mean(values))


def matching(
    first: ConceptDictionary, second: ConceptDictionary
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Match the concepts of two dictionaries one to one.

    Returns:
        Pairs of concept ids, shape (pairs, 2), and their cosines (absolute where both are signed), shape (pairs,).

    Raises:
        InputError: a dictionary has only zero rows.
    """
    rows = [dictionary.dictionary.double().numpy() for dictionary in (first, second)]
    alive = [np.flatnonzero(np.linalg.norm(r, axis=1) > 0) for r in rows]
    if not all(len(ids) for ids in alive):
        raise InputError("a dictionary all of whose rows are zero cannot be compared")
    (left, right), cosines = _match(_unit(rows[0][alive[0]]), _unit(rows[1][alive[1]]), first.signed and second.signed)
    return np.stack([alive[0][left], alive[1][right]], axis=1), cosines


def _match(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], signed: bool
) -> tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float64]]:
    cosines = first @ second.T
    if signed:
        cosines = np.abs(cosines)
    left, right = linear_sum_assignment(cosines, maximize=True)
    return (left, right), cosines[left, right]


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _check_comparable(dictionaries: Iterable[ConceptDictionary]) -> None:
    widths = [dictionary.width for dictionary in dictionaries]
    if len(widths) < 2:
        raise InputError(f"stability compares at least two dictionaries, not {len(widths)}")
    if len(set(widths)) > 1:
        raise InputError(f"dictionaries of different widths {sorted(set(widths))} cannot be compared")
