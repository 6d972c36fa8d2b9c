"""How much of a dictionary a row needs, and how often each concept is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.sparse import csr_array

from interpreto_mlops.concepts.code_statistics import EPS, CodeStatistics
from interpreto_mlops.concepts.metrics.registry import INFINITY, Array, ConceptMetric, as_matrix, metric

DENSE = 0.1
"""A concept that is active in more than this share of the rows is dense."""

_BINS_PER_DECADE = 4
_BLOCK = 1024
_SPARSE = 0.05  # below this share of active codes a product of sparse matrices is faster


class CodeMetric(ConceptMetric):
    """A metric of codes: call it with them.

    A code is active where |code| is above `eps` times the largest |code| of its row: scaling changes nothing, and
    rounding errors are not counted.
    """

    needs: ClassVar[str] = "codes"

    def __call__(self, codes: Array, *, eps: float = EPS) -> float:
        """Compute it for codes in memory.

        Arguments:
            codes: shape (rows, concepts).
            eps: the share of a row's largest |code| above which a code is active; 0 counts whatever is not zero.

        Raises:
            InputError: no rows, no concepts, a number that is NaN or infinite, or `eps` is not from 0 to below 1.
        """
        return self.compute(_statistics(codes, eps))


def _statistics(codes: Array, eps: float) -> CodeStatistics:
    matrix = as_matrix(codes, "codes")
    statistics = CodeStatistics(len(matrix), eps)
    statistics.add(matrix)
    return statistics


@metric(CodeMetric, "complexity/rows", higher_is_better=None, bounds=(1.0, INFINITY))
def rows(statistics: CodeStatistics) -> float:
    """Number of rows that the other figures of this group are over: `dead` depends on it."""
    return float(statistics.n_rows)


@metric(CodeMetric, "complexity/l0", higher_is_better=False, bounds=(0.0, INFINITY))
def l0(statistics: CodeStatistics) -> float:
    """Mean number of active concepts of a row.

    Source: Bricken et al. 2023, whose measure of sparsity it is.
    """
    return float(statistics.n_active.sum()) / statistics.n_rows


@metric(CodeMetric, "complexity/l1", higher_is_better=False, bounds=(0.0, INFINITY))
def l1(statistics: CodeStatistics) -> float:
    """Mean over rows of the sum of |codes|; it depends on the scale of the codes."""
    return statistics.absolute / statistics.n_rows


@metric(CodeMetric, "complexity/sparsity", higher_is_better=True, bounds=(0.0, 1.0))
def sparsity(statistics: CodeStatistics) -> float:
    """Share of the codes that are not active.

    Interpreto's metric of this name is the share that is active, here `sparsity_ratio`.
    """
    return 1.0 - sparsity_ratio.compute(statistics)


@metric(CodeMetric, "complexity/sparsity_ratio", higher_is_better=False, bounds=(0.0, 1.0))
def sparsity_ratio(statistics: CodeStatistics) -> float:
    """Share of the concepts that are active in a row, in the mean: l0 over the number of concepts.

    It is also the mean density of a concept.
    """
    return l0.compute(statistics) / statistics.n_concepts


@metric(CodeMetric, "complexity/hoyer", higher_is_better=True, bounds=(0.0, 1.0))
def hoyer(statistics: CodeStatistics) -> float:
    """Mean over rows of (√c − ‖z‖₁/‖z‖₂) / (√c − 1): 1 for a single active concept, 0 where all c are equal.

    Zero rows are left out. Without any other, or with a single concept, it is not defined and NaN.

    Source: Hoyer 2004, section 3.1.
    """
    if statistics.n_nonzero == 0 or statistics.n_concepts == 1:
        return float("nan")
    return min(1.0, max(0.0, statistics.hoyer / statistics.n_nonzero))


@metric(CodeMetric, "complexity/dead", higher_is_better=False, bounds=(0.0, 1.0))
def dead(statistics: CodeStatistics) -> float:
    """Share of the concepts that are active in no row; `complexity/rows` says of how many."""
    return float((statistics.n_active == 0).double().mean())


@metric(CodeMetric, "complexity/dense", higher_is_better=False, bounds=(0.0, 1.0))
def dense(statistics: CodeStatistics) -> float:
    """Share of the concepts that are active in more than a tenth of the rows.

    Source: SAEBench (Karvonen et al. 2025), `freq_over_10_percent`.
    """
    return float((statistics.n_active > DENSE * statistics.n_rows).double().mean())


@metric(CodeMetric, "complexity/density_max", higher_is_better=None, bounds=(0.0, 1.0))
def density_max(statistics: CodeStatistics) -> float:
    """Share of the rows in which the most frequent concept is active."""
    return float(statistics.n_active.max()) / statistics.n_rows


@metric(CodeMetric, "complexity/coactivation", higher_is_better=False, bounds=(0.0, 1.0))
def coactivation(statistics: CodeStatistics) -> float:
    """Mean over concepts of the largest Jaccard index of their active rows and those of another concept.

    1 where every concept is always active together with some other one; concepts without an active row are left out,
    and without two others it is 0. Computed on at most 8,192 rows, evenly spread.

    Source: Clarke, Bhatnagar and Bloom 2024, who measure the co-occurrence of features by the Jaccard index.
    """
    active = statistics.sample
    active = active[:, active.any(dim=0)]
    if active.shape[1] < 2:
        return 0.0
    few = float(active.sum()) < _SPARSE * active.numel()
    return float((_jaccard_of_few(active) if few else _jaccard_of_many(active)).double().mean())


def _jaccard_of_many(active: torch.Tensor) -> torch.Tensor:
    """Return the largest Jaccard index of each concept with another, shape (concepts,), by dense products."""
    numbers = active.float()
    counts = numbers.sum(dim=0)
    largest = []
    for start in range(0, len(counts), _BLOCK):
        stop = min(start + _BLOCK, len(counts))
        # Counts of at most 8,192 rows are exact in float32.
        both = numbers[:, start:stop].T @ numbers
        both.div_(counts[start:stop, None] + counts - both)
        both[torch.arange(stop - start), torch.arange(start, stop)] = 0.0
        largest.append(both.amax(dim=1))
    return torch.cat(largest)


def _jaccard_of_few(active: torch.Tensor) -> torch.Tensor:
    """Return the same where few codes are active, from those alone."""
    rows = csr_array(active.numpy()).astype(np.float32)
    counts = rows.sum(axis=0)
    both = (rows.T @ rows).tocoo()
    first, second = both.coords
    shares = np.where(first == second, 0.0, both.data / (counts[first] + counts[second] - both.data))
    largest = np.zeros(len(counts))
    np.maximum.at(largest, first, shares)
    return torch.from_numpy(largest)


@dataclass(frozen=True)
class ActivationDensity:
    """How often each concept is active.

    Arguments:
        shares: the share of rows in which each concept is active, shape (concepts,).
        n_rows: the rows.
        edges: of the histogram's bins, log10 of a share, shape (bins + 1,); the last is 0, a concept of all rows.
        counts: how many concepts lie in each bin, shape (bins,). Those that are never active are in none.
    """

    shares: npt.NDArray[np.float64]
    n_rows: int
    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]

    @property
    def n_dead(self) -> int:
        """How many concepts are never active."""
        return int((self.shares == 0).sum())

    @property
    def mean(self) -> float:
        """The mean share, over all concepts."""
        return float(self.shares.mean())

    @property
    def max(self) -> float:
        """The share of the most frequent concept."""
        return float(self.shares.max())

    def to_frame(self) -> pd.DataFrame:
        """Return a frame with the columns `concept`, `density` and `log10_density` (−∞ for one never active)."""
        with np.errstate(divide="ignore"):
            logarithms = np.log10(self.shares)
        concepts = np.arange(len(self.shares))
        return pd.DataFrame({"concept": concepts, "density": self.shares, "log10_density": logarithms})


def density_of(statistics: CodeStatistics) -> ActivationDensity:
    """Return how often each concept is active, with a histogram of four bins a decade.

    Source: the feature density histogram of Bricken et al. 2023.
    """
    shares = statistics.n_active.numpy() / statistics.n_rows
    # From the decade of a concept that is active in one row; the rounding of a logarithm shall not open a further one.
    decades = max(1, int(np.ceil(np.log10(statistics.n_rows) - 1e-9)))
    edges = np.linspace(-decades, 0.0, decades * _BINS_PER_DECADE + 1)
    counts, _ = np.histogram(np.log10(shares[shares > 0]).clip(edges[0], 0.0), bins=edges)
    return ActivationDensity(shares, statistics.n_rows, edges, counts.astype(np.int64))


def code_density(codes: Array, *, eps: float = EPS) -> ActivationDensity:
    """Return how often each concept is active in codes in memory.

    Arguments:
        codes: shape (rows, concepts).
        eps: the share of a row's largest |code| above which a code is active.

    Raises:
        InputError: no rows, no concepts, or a number that is NaN or infinite.
    """
    return density_of(_statistics(codes, eps))
