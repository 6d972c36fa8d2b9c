"""What the metrics of a dictionary are computed from, gathered chunk by chunk in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from interpreto_mlops.errors import InputError

# The one-dimensional Wasserstein distance needs the values themselves: this many rows, evenly spread.
SAMPLE_ROWS = 8192


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


class CodeStatistics:
    """Sums over rows, their reconstructions and their codes.

    Arguments:
        n_rows: how many rows there will be; decides which of them the sample holds.
    """

    def __init__(self, n_rows: int) -> None:
        if n_rows < 1:
            raise InputError("metrics need at least one row of activations")
        self.n_rows = n_rows
        self.rows = Gaussian()
        self.reconstructions = Gaussian()
        self.squared_error = 0.0
        self.width = 0
        self.n_active = torch.zeros(0, dtype=torch.int64)
        self._step = -(-n_rows // SAMPLE_ROWS)
        self._sample: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, rows: torch.Tensor, reconstructions: torch.Tensor, codes: torch.Tensor) -> None:
        """Take the next rows and reconstructions, shape (rows, width), and codes, shape (rows, concepts)."""
        first = -self.rows.count % self._step
        self._sample.append((rows[first :: self._step], reconstructions[first :: self._step]))
        self.width = rows.shape[1]
        self.squared_error += float((rows.double() - reconstructions.double()).square().sum())
        self.rows.add(rows)
        self.reconstructions.add(reconstructions)
        active = (codes != 0).sum(dim=0)
        self.n_active = active if not len(self.n_active) else self.n_active + active

    @property
    def n_concepts(self) -> int:
        """The number of concepts."""
        return len(self.n_active)

    @property
    def sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and their reconstructions, evenly spread, at most `SAMPLE_ROWS` of each."""
        rows, reconstructions = zip(*self._sample, strict=True)
        return torch.cat(rows), torch.cat(reconstructions)
