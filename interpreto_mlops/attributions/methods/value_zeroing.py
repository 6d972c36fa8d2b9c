"""Value zeroing: how far a token's output turns when another token has no value vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from interpreto_mlops.attributions.attention import ContributionMethod
from interpreto_mlops.attributions.base import METHODS
from interpreto_mlops.models.attention_readouts import ContributionRows, ValueZeroingRows
from interpreto_mlops.models.encoding import Encoding


@METHODS.register("value_zeroing")
@dataclass(frozen=True, kw_only=True)
class ValueZeroing(ContributionMethod):
    """The row of the position that is read, in the product over layers of what each token's value vector changes.

    In one layer at a time the value vector of token j is set to 0 in all heads; attention weights and the layer's input
    stay. The entry (i, j) is 1 - the cosine between the layer's outputs at i with and without; rows are normalised to 1
    and the layers multiplied. Unsigned, and the same for every class. Takes one forward pass and as many passes
    of each layer as the text has tokens.

    Source: Mohebbi et al. 2023 (arXiv 2301.12971), section 3.
    """

    name: ClassVar[str] = "value_zeroing"
    signed: ClassVar[bool] = False

    def rows(self, encoding: Encoding, positions: tuple[int, ...]) -> ContributionRows:
        """Ask for rows of the product over layers."""
        return ValueZeroingRows(len(encoding), positions)
