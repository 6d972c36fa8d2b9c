"""How well decoded codes stand for the activations."""

from __future__ import annotations

from typing import ClassVar

import torch

from interpreto_mlops.concepts.code_statistics import Gaussian, ReconstructionStatistics
from interpreto_mlops.concepts.metrics.registry import INFINITY, Array, ConceptMetric, as_matrix, metric
from interpreto_mlops.errors import InputError

N_PROJECTIONS = 128


class ReconstructionMetric(ConceptMetric):
    """A metric of reconstructions: call it with activations and what a dictionary makes of them."""

    needs: ClassVar[str] = "reconstructions"

    def __call__(
        self, activations: Array, reconstructions: Array, *, reference_mean: torch.Tensor | None = None
    ) -> float:
        """Compute it for rows in memory.

        Arguments:
            activations: shape (rows, width).
            reconstructions: of the same shape.
            reference_mean: see `fvu`; shape (width,).

        Raises:
            InputError: no rows, shapes that do not belong together, or a number that is NaN or infinite.
        """
        rows = as_matrix(activations, "activations")
        statistics = ReconstructionStatistics(len(rows), check_reference(reference_mean, rows.shape[1]))
        statistics.add(rows, as_matrix(reconstructions, "reconstructions"))
        return self.compute(statistics)


def check_reference(mean: Array | None, width: int) -> torch.Tensor | None:
    """Return the mean of a reference set as float64.

    Raises:
        InputError: another shape than (width,), or not finite.
    """
    if mean is None:
        return None
    tensor = torch.as_tensor(mean).detach().cpu().double()
    if tensor.shape != (width,) or not bool(tensor.isfinite().all()):
        raise InputError(f"the reference mean must be {width} finite numbers, not of the shape {tuple(tensor.shape)}")
    return tensor


@metric(ReconstructionMetric, "reconstruction/mse", higher_is_better=False, bounds=(0.0, INFINITY))
def mse(statistics: ReconstructionStatistics) -> float:
    """Mean squared error over all rows and dimensions."""
    return statistics.squared_error / (statistics.n_rows * statistics.width)


@metric(ReconstructionMetric, "reconstruction/fvu", higher_is_better=False, bounds=(0.0, INFINITY))
def fvu(statistics: ReconstructionStatistics) -> float:
    """Fraction of variance unexplained: Σ‖a − â‖² / Σ‖a − mean‖², with a mean for each dimension.

    The mean is the rows' own, or that of a reference set; predicting it gives 1. Where all rows are equal to it, the
    fraction is 0 if they are reconstructed exactly, else infinite.
    """
    if statistics.spread == 0.0:
        return 0.0 if statistics.squared_error == 0.0 else INFINITY
    return statistics.squared_error / statistics.spread


@metric(ReconstructionMetric, "reconstruction/r2", higher_is_better=True, bounds=(-INFINITY, 1.0))
def r2(statistics: ReconstructionStatistics) -> float:
    """Share of the variance that is explained: 1 − Σ‖a − â‖² / Σ‖a − mean‖², with a mean for each dimension.

    Predicting the mean gives 0. Where all rows are equal to it, 1 if they are reconstructed exactly, else −∞.
    """
    return 1.0 - fvu.compute(statistics)


@metric(ReconstructionMetric, "reconstruction/cosine", higher_is_better=True, bounds=(-1.0, 1.0))
def cosine(statistics: ReconstructionStatistics) -> float:
    """Mean cosine of a row and its reconstruction.

    Where one of the two is zero it counts 0, where both are 1.
    """
    return statistics.cosines / statistics.n_rows


@metric(ReconstructionMetric, "reconstruction/relative_error", higher_is_better=False, bounds=(0.0, INFINITY))
def relative_error(statistics: ReconstructionStatistics) -> float:
    """Mean of ‖a − â‖ / ‖a‖ over the rows.

    Zero rows are left out; without any other, 0 if nothing is wrong, else infinite.

    Source: the relative ℓ2 of Fel et al. 2023 (a holistic approach to concepts).
    """
    if statistics.n_nonzero == 0:
        return 0.0 if statistics.squared_error == 0.0 else INFINITY
    return statistics.relative_errors / statistics.n_nonzero


@metric(ReconstructionMetric, "reconstruction/norm_ratio", higher_is_better=None, bounds=(0.0, INFINITY))
def norm_ratio(statistics: ReconstructionStatistics) -> float:
    """Mean of ‖â‖ / ‖a‖ over the rows: below 1 the reconstructions shrink.

    Zero rows are left out; without any other, 1 if nothing is wrong, else infinite.

    Source: the L2 ratio of SAEBench (Karvonen et al. 2025).
    """
    if statistics.n_nonzero == 0:
        return 1.0 if statistics.squared_error == 0.0 else INFINITY
    return statistics.norm_ratios / statistics.n_nonzero


@metric(ReconstructionMetric, "reconstruction/relative_bias", higher_is_better=None, bounds=(-INFINITY, INFINITY))
def relative_bias(statistics: ReconstructionStatistics) -> float:
    """Relative reconstruction bias Σ‖â‖² / Σ a·â: 1 is unbiased, below 1 the reconstructions shrink.

    1 where activations and reconstructions are all zero; infinite where they have nothing in common.

    Source: Rajamanoharan et al. 2024 (gated sparse autoencoders), eq. 10.
    """
    if statistics.products == 0.0:
        return 1.0 if statistics.squared_error == 0.0 else INFINITY
    return statistics.squared_reconstructions / statistics.products


@metric(ReconstructionMetric, "reconstruction/fid", higher_is_better=False, bounds=(0.0, INFINITY))
def fid(statistics: ReconstructionStatistics) -> float:
    """Fréchet distance of Gaussians fitted to activations and reconstructions (squared, as usual for the FID).

    Source: Heusel et al. 2017, eq. 6: ‖Δμ‖² + Tr(S₁ + S₂ − 2 (S₁^½ S₂ S₁^½)^½).
    """
    return frechet(statistics.rows, statistics.reconstructions)


@metric(ReconstructionMetric, "reconstruction/wasserstein", higher_is_better=False, bounds=(0.0, INFINITY))
def wasserstein(statistics: ReconstructionStatistics) -> float:
    """Mean over dimensions of the 1-Wasserstein distance between activations and reconstructions.

    It sees no correlations. Computed on at most 8,192 rows, evenly spread.

    Source: what Fel et al. 2023 call FID.
    """
    rows, reconstructions = statistics.sample
    return _sorted_distance(rows.double(), reconstructions.double())


@metric(ReconstructionMetric, "reconstruction/sliced_wasserstein", higher_is_better=False, bounds=(0.0, INFINITY))
def sliced_wasserstein(statistics: ReconstructionStatistics) -> float:
    """Mean 1-Wasserstein distance between activations and reconstructions over 128 random directions.

    Unlike the distance along the dimensions it sees correlations. The directions are the same ones each time; at most
    8,192 rows, evenly spread.

    Source: Rabin et al. 2011; Bonneel et al. 2015.
    """
    return sliced_distance(*statistics.sample)


def sliced_distance(
    first: torch.Tensor, second: torch.Tensor, *, n_projections: int = N_PROJECTIONS, seed: int = 0
) -> float:
    """Return the sliced 1-Wasserstein distance of two sets of as many rows, shape (rows, width).

    Arguments:
        first: the one set.
        second: the other.
        n_projections: random directions, uniform on the sphere.
        seed: of the directions.
    """
    directions = torch.randn(
        first.shape[1], n_projections, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    directions /= directions.norm(dim=0)
    return _sorted_distance(first.double() @ directions, second.double() @ directions)


def _sorted_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.sort(dim=0).values - second.sort(dim=0).values).abs().mean())


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
