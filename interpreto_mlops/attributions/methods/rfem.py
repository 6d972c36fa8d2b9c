"""RFEM: attention rolled out for each head, of which only what stands out is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.attention import ContributionMethod
from interpreto_mlops.attributions.base import METHODS
from interpreto_mlops.attributions.sampling import as_number
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.attention_readouts import ContributionRows, RfemRows
from interpreto_mlops.models.encoding import Encoding


@METHODS.register("rfem")
@dataclass(frozen=True, kw_only=True)
class Rfem(ContributionMethod):
    """How many heads' rolled-out attention stands out at a token, each head weighted by its maximum.

    For each head, (attention + identity) / 2 is multiplied over layers; an entry of the row that is read counts where
    it is at least mean + k · standard deviation of the head's matrix. Mean, deviation and maximum leave out the columns
    of special tokens and, on causal models, of the first token, which takes most of the attention; those score 0. What
    follows the position that is read counts on encoders only.
    Unsigned, and the same for every class: the paper's variant for one class is not implemented. Takes one forward
    pass.

    Source: Ayyar et al. 2025 (arXiv 2510.06070), without their variant for one class.

    Arguments:
        k: how many standard deviations above the mean an entry must be; the paper tries -0.5 to 2.
    """

    name: ClassVar[str] = "rfem"
    signed: ClassVar[bool] = False

    k: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not abs(as_number(self.k)) < float("inf"):
            raise InputError(f"k must be a finite number of standard deviations, not {self.k!r}")

    def rows(self, encoding: Encoding, positions: tuple[int, ...]) -> ContributionRows:
        """Ask for rows of the filtered maps."""
        excluded = encoding.special[: len(encoding)].copy()
        excluded[0] |= self.model.is_causal
        return RfemRows(len(encoding), positions, tuple(excluded.tolist()), float(self.k), self.model.is_causal)
