"""Probes by the mean of the rows that hold a concept: differences, inner products, cosines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.concepts.probes.base import PROBES, Bools, Floats, Learned
from interpreto_mlops.concepts.probes.linear import LinearProbe


def half_way(direction: Floats, rows: Floats, holds: Bools) -> Learned:
    """Return a direction with the boundary half-way between the mean scores of the rows with the concept and without.

    Arguments:
        direction: shape (width,).
        rows: normalised, shape (rows, width).
        holds: shape (rows,).
    """
    scores = rows @ direction
    return {"encoder": direction, "bias": np.asarray(-(scores[holds].mean() + scores[~holds].mean()) / 2.0)}


@PROBES.register("mean_difference")
@dataclass(kw_only=True, eq=False)
class MeanDifferenceProbe(LinearProbe):
    """The mean of the rows with the concept less the mean of those without; the boundary lies half-way.

    It is the classifier by the nearer of the two means, too: ‖u − m₋‖² − ‖u − m₊‖² is twice its score.

    Source: Marks and Tegmark 2023 (the geometry of truth), the mass-mean probe.
    """

    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return the difference of the means."""
        return half_way(rows[holds].mean(axis=0) - rows[~holds].mean(axis=0), rows, holds)


@PROBES.register("dot_product")
@dataclass(kw_only=True, eq=False)
class DotProductProbe(LinearProbe):
    """The inner product with the mean of the rows that hold the concept; the boundary lies half-way.

    The rows without the concept have no part in the direction; with centred rows they are where it starts from.
    """

    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return the mean of the rows with the concept."""
        return half_way(rows[holds].mean(axis=0), rows, holds)


@PROBES.register("cosine")
@dataclass(kw_only=True, eq=False)
class CosineProbe(LinearProbe):
    """The cosine with the mean direction of the rows that hold the concept; the boundary lies half-way."""

    unit: ClassVar[bool] = True

    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return the mean direction, of norm 1; `rows` have norm 1 already."""
        mean = rows[holds].mean(axis=0)
        norm = float(np.linalg.norm(mean))
        return half_way(mean / norm if norm > 0 else mean, rows, holds)
