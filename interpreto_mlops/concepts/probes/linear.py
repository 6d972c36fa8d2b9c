"""Probes with a direction: score = gain · direction · row + bias, for rows as they are normalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.probes.base import Probe


@dataclass(kw_only=True, eq=False)
class LinearProbe(Probe):
    """A probe whose scores are inner products with directions.

    Shapes of weights: `shift` and `spread` (width,), `length` (), `encoder` (n_concepts, width), `gain` and `bias`
    (n_concepts,).
    """

    def raw_scores(self, rows: torch.Tensor, learned: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the inner products of normalised rows with the directions, shape (rows, concepts)."""
        return rows @ learned["encoder"].T

    @property
    def normals(self) -> torch.Tensor:
        """By how much each score grows with a row, shape (n_concepts, width); per unit of normalised length if that is
        taken out."""
        return self.tensor("gain")[:, None] * self.tensor("encoder") / self.tensor("spread")

    @property
    def dictionary(self) -> torch.Tensor:
        """The directions in which scores grow fastest, of norm 1, shape (n_concepts, width)."""
        normals = self.normals
        norms = normals.norm(dim=1, keepdim=True)
        return normals / torch.where(norms > 0, norms, 1.0)

    def _decoder(self) -> torch.Tensor:
        """Return by how much a row moves with each score, shape (n_concepts, width): of all moves the shortest."""
        length = float(self.tensor("length")) or 1.0
        decoder: torch.Tensor = length * torch.linalg.pinv(self.normals.double()).T
        return decoder

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the row nearest to the mean that has these scores, shape (rows, width); differentiable.

        Decoding a row's scores thus projects it, around the mean, on what the directions span: the least-squares
        reconstruction by them. A change of one score moves a row by the shortest way that changes this score and none
        of the others (where directions depend on each other: changes them least). Where rows are divided by their
        norms, the length that was lost is that of the root mean square of the rows that the probe was fitted on.

        Raises:
            NotFittedError: the probe is not fitted.
            InputError: codes of another number of concepts.
        """
        self._check_codes(codes)
        return ((codes.double() - self.tensor("bias")) @ self._decoder()).to(codes.dtype) + self.tensor("shift")

    def gradient(self, codes: torch.Tensor, of_rows: torch.Tensor) -> torch.Tensor:
        """Return d g / d codes = (d g / d rows) · decoderᵀ: exact, whatever the codes are."""
        return (of_rows.double() @ self._decoder().T).to(of_rows.dtype)
