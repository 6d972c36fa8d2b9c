"""What the metrics of a dictionary are computed from, gathered chunk by chunk in float64 and bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from interpreto_mlops.errors import InputError

# Distances of distributions and of co-activation need the values themselves: this many rows, evenly spread.
SAMPLE_ROWS = 8192

EPS = 1e-6
"""A code counts as active above this share of its row's largest |code|: float32 rounding is no activity."""


@dataclass
class Gaussian:
    """Mean and covariance of rows, in one pass.

    The first rows' mean is subtracted from all, so that nothing is lost when the mean is large.
    """

    count: int = 0
    _origin: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _sum: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    _products: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, rows: torch.Tensor) -> None:
        """Take rows, shape (rows, width)."""
        rows = rows.double()
        if self.count == 0:
            self._origin = rows.mean(dim=0)
            self._sum = torch.zeros_like(self._origin)
            self._products = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        centred = rows - self._origin
        self.count += len(rows)
        self._sum += centred.sum(dim=0)
        self._products.addmm_(centred.T, centred)

    @property
    def mean(self) -> torch.Tensor:
        """The mean, shape (width,)."""
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """The population covariance, shape (width, width)."""
        shift = self._sum / self.count
        return self._products / self.count - torch.outer(shift, shift)


class ReconstructionStatistics:
    """Sums over rows of activations and their reconstructions.

    Arguments:
        n_rows: how many rows there will be; decides which of them the sample holds.
        reference_mean: of each dimension, shape (width,), that the variance is taken about; None for the rows' own.

    Raises:
        InputError: no rows.
    """

    def __init__(self, n_rows: int, reference_mean: torch.Tensor | None = None) -> None:
        self._sample = _EvenSample(n_rows)
        self.reference_mean = reference_mean
        self.rows = Gaussian()
        self.reconstructions = Gaussian()
        self.squared_error = 0.0
        self.squared_rows = 0.0
        self.squared_reconstructions = 0.0
        self.products = 0.0
        self.cosines = 0.0
        self.n_nonzero = 0
        self.relative_errors = 0.0
        self.norm_ratios = 0.0

    def add(self, rows: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Take the next rows and their reconstructions, both of shape (rows, width).

        Raises:
            InputError: they do not belong together, or a number is NaN or infinite.
        """
        if rows.dim() != 2 or rows.shape != reconstructions.shape:
            raise InputError(
                f"activations {tuple(rows.shape)} and reconstructions {tuple(reconstructions.shape)} must have one "
                "shape (rows, width)"
            )
        _check_finite(rows, "activations")
        _check_finite(reconstructions, "reconstructions")
        self._sample.add(rows, reconstructions)
        rows, reconstructions = rows.double(), reconstructions.double()
        self.rows.add(rows)
        self.reconstructions.add(reconstructions)
        self._add_norms(rows, reconstructions)

    def _add_norms(self, rows: torch.Tensor, reconstructions: torch.Tensor) -> None:
        errors = (rows - reconstructions).norm(dim=1)
        norms, others = rows.norm(dim=1), reconstructions.norm(dim=1)
        products = (rows * reconstructions).sum(dim=1)
        self.squared_error += float(errors.square().sum())
        self.squared_rows += float(norms.square().sum())
        self.squared_reconstructions += float(others.square().sum())
        self.products += float(products.sum())
        both = (norms > 0) & (others > 0)
        self.cosines += float((products[both] / norms[both] / others[both]).clamp(-1.0, 1.0).sum())
        self.cosines += float(((norms == 0) & (others == 0)).sum())
        known = norms > 0
        self.n_nonzero += int(known.sum())
        self.relative_errors += float((errors[known] / norms[known]).sum())
        self.norm_ratios += float((others[known] / norms[known]).sum())

    @property
    def n_rows(self) -> int:
        """The rows so far."""
        return self.rows.count

    @property
    def width(self) -> int:
        """The numbers of a row."""
        return len(self.rows.mean)

    @property
    def spread(self) -> float:
        """Σ‖row − mean‖² about the reference mean, or the rows' own; exactly 0 where all rows are equal to it."""
        spread = float(self.rows.covariance.diagonal().clamp(min=0.0).sum()) * self.n_rows
        if self.reference_mean is not None:
            shift = self.rows.mean - self.reference_mean.double()
            spread += float(shift.square().sum()) * self.n_rows
        # Below this the differences are rounding errors of float64.
        return spread if spread > 1e-24 * self.squared_rows else 0.0

    @property
    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and their reconstructions, evenly spread, at most `SAMPLE_ROWS` of each."""
        rows, reconstructions = self._sample.columns()
        return rows, reconstructions


class CodeStatistics:
    """Sums over codes.

    Arguments:
        n_rows: how many rows there will be; decides which of them the sample holds.
        eps: a code is active above this share of its row's largest |code|; 0 counts whatever is not zero.

    Raises:
        InputError: no rows, or `eps` is not from 0 to below 1.
    """

    def __init__(self, n_rows: int, eps: float = EPS) -> None:
        if not 0.0 <= eps < 1.0:
            raise InputError(f"eps must be a number from 0 to below 1, not {eps!r}")
        self._sample = _EvenSample(n_rows)
        self.eps = eps
        self.n_rows = 0
        self.n_active = torch.zeros(0, dtype=torch.int64)
        self.absolute = 0.0
        self.hoyer = 0.0
        self.n_nonzero = 0

    def add(self, codes: torch.Tensor) -> None:
        """Take the next codes, shape (rows, concepts).

        Raises:
            InputError: another shape, or a number is NaN or infinite.
        """
        if codes.dim() != 2 or codes.shape[1] == 0:
            raise InputError(f"codes must have the shape (rows, concepts), not {tuple(codes.shape)}")
        sizes = codes.abs()
        largest = sizes.amax(dim=1)
        if not bool(torch.isfinite(largest).all()):
            _check_finite(codes, "codes")
        active = (sizes > self.eps * largest[:, None]) & (sizes > 0)
        self._sample.add(active)
        counts = active.sum(dim=0)
        self.n_active = counts if not len(self.n_active) else self.n_active + counts
        self.n_rows += len(codes)
        self._add_norms(sizes, largest)

    def _add_norms(self, sizes: torch.Tensor, largest: torch.Tensor) -> None:
        # Only what is summed up needs float64: the codes themselves stay as they are, which is several times faster.
        totals = sizes.sum(dim=1, dtype=torch.float64)
        self.absolute += float(totals.sum())
        known = largest > 0
        self.n_nonzero += int(known.sum())
        if self.n_concepts > 1:
            # Divided by the largest first, so that the squares of tiny or huge codes are numbers still.
            unit = torch.where(known, largest, 1.0)
            norms = (sizes / unit[:, None]).square_().sum(dim=1, dtype=torch.float64).sqrt() * unit.double()
            root = self.n_concepts**0.5
            self.hoyer += float(((root - totals[known] / norms[known]) / (root - 1.0)).sum())

    @property
    def n_concepts(self) -> int:
        """The number of concepts."""
        return len(self.n_active)

    @property
    def sample(self) -> torch.Tensor:
        """Which codes of at most `SAMPLE_ROWS` rows, evenly spread, are active, shape (rows, concepts), bool."""
        return self._sample.columns()[0]


class _EvenSample:
    """Every so many-th row of a stream, at most `SAMPLE_ROWS`."""

    def __init__(self, n_rows: int) -> None:
        if n_rows < 1:
            raise InputError("metrics need at least one row of activations")
        self._step = -(-n_rows // SAMPLE_ROWS)
        self._seen = 0
        self._pieces: list[tuple[torch.Tensor, ...]] = []

    def add(self, *columns: torch.Tensor) -> None:
        first = -self._seen % self._step
        # Copies, so that the chunks themselves can go.
        self._pieces.append(tuple(column[first :: self._step].clone() for column in columns))
        self._seen += len(columns[0])

    def columns(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.cat(pieces) for pieces in zip(*self._pieces, strict=True))


def _check_finite(numbers: torch.Tensor, what: str) -> None:
    if not bool(torch.isfinite(numbers).all()):
        row = int((~torch.isfinite(numbers).all(dim=1)).nonzero()[0])
        raise InputError(f"row {row} of the {what} is NaN or infinite")
