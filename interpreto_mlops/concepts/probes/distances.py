"""Probes by how far a row is from where a concept's rows are: they have a place, and no direction to decode along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch

from interpreto_mlops.concepts.base import check_number
from interpreto_mlops.concepts.probes.base import PROBES, Bools, Floats, Learned, Probe
from interpreto_mlops.concepts.probes.data_description import description
from interpreto_mlops.errors import InputError

# Variances below this share of their mean are rounding.
_FLOOR = 1e-6


@dataclass(kw_only=True, eq=False)
class DistanceProbe(Probe):
    """score = bias − gain · Σ precision · (u − centre)², for rows as they are normalised.

    It cannot be decoded: a distance says how far a row is and not on which side. Interpretation, probing metrics,
    saving and the registry work with it; importance, reconstruction and interventions, which decode, refuse it.

    Shapes of weights: `shift` and `spread` (width,), `length` (), `centre`, `precision` and `toward` (n_concepts,
    width), `gain` and `bias` (n_concepts,).
    """

    def raw_scores(self, rows: torch.Tensor, learned: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return minus the weighted squared distances from the centres, shape (rows, concepts)."""
        places = zip(learned["centre"], learned["precision"], strict=True)
        # Differences first: squares of rows far from the origin would lose what their difference holds.
        return torch.stack([-((rows - centre).square() @ precision) for centre, precision in places], dim=1)

    @property
    def dictionary(self) -> torch.Tensor:
        """The directions from the mean of the rows to each concept's centre, of norm 1, shape (n_concepts, width)."""
        toward = self.tensor("toward") * self.tensor("spread")
        norms = toward.norm(dim=1, keepdim=True)
        return toward / torch.where(norms > 0, norms, 1.0)

    def decode(self, codes: torch.Tensor) -> NoReturn:
        """Refuse to decode.

        Raises:
            NotFittedError: the probe is not fitted.
            InputError: always, else: no row follows from a distance.
        """
        self._check_codes(codes)
        raise InputError(
            f"a {self.name!r} probe says how far a row is and not where, so its scores cannot be decoded; take a probe "
            "with a direction, such as 'mean_difference'"
        )

    def gradient(self, codes: torch.Tensor, of_rows: torch.Tensor) -> NoReturn:
        """Refuse, as `decode` does.

        Raises:
            InputError: always.
        """
        self.decode(codes)


def placed(centre: Floats, precision: Floats, rows: Floats, holds: Bools, bias: float | None = None) -> Learned:
    """Return a centre with its boundary: where it is given, or half-way between the mean scores of the two kinds."""
    if bias is None:
        scores = -((rows - centre) ** 2 @ precision)
        bias = float(-(scores[holds].mean() + scores[~holds].mean()) / 2.0)
    found = {"centre": centre, "precision": precision, "toward": centre - rows.mean(axis=0)}
    return {**found, "bias": np.asarray(bias)}


@PROBES.register("squared_distance")
@dataclass(kw_only=True, eq=False)
class SquaredDistanceProbe(DistanceProbe):
    """Minus the squared distance from the mean of the rows that hold the concept; the boundary lies half-way."""

    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return the mean of the rows with the concept."""
        return placed(rows[holds].mean(axis=0), np.ones(rows.shape[1]), rows, holds)


@PROBES.register("diagonal_mahalanobis")
@dataclass(kw_only=True, eq=False)
class DiagonalMahalanobisProbe(DistanceProbe):
    """Minus the squared distance from the concept's mean, each dimension in units of the concept's own deviation.

    Arguments:
        shrinkage: the share of each variance that is that of all rows, which steadies it where few hold the concept.

    The other arguments: as for every probe.
    """

    shrinkage: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("shrinkage", self.shrinkage, 0.0, 1.0 + 1e-9)

    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return the mean and the inverse variances of the rows with the concept."""
        variance = (1.0 - self.shrinkage) * rows[holds].var(axis=0) + self.shrinkage * rows.var(axis=0)
        floor = max(_FLOOR * float(variance.mean()), float(np.finfo(np.float32).tiny))
        return placed(rows[holds].mean(axis=0), 1.0 / np.maximum(variance, floor), rows, holds)


@PROBES.register("svdd")
@dataclass(kw_only=True, eq=False)
class SVDDProbe(DistanceProbe):
    """The smallest sphere around most of the rows that hold the concept: its squared radius less the squared distance.

    Rows without the concept have no part in it, but for calibration.

    Arguments:
        nu: at most this share of the concept's rows lies outside.

    The other arguments: as for every probe.

    Source: Tax and Duin 2004 (support vector data description), with C = 1 / (nu · rows) and no kernel.
    """

    nu: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("nu", self.nu, np.finfo(float).tiny, 1.0 + 1e-9)

    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return the sphere's centre and squared radius."""
        centre, radius = description(rows[holds], self.nu)
        return placed(centre, np.ones(rows.shape[1]), rows, holds, bias=radius)
