"""Every coordinate of a layer as a concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from interpreto_mlops.concepts.base import DICTIONARIES
from interpreto_mlops.concepts.linear import LinearDecoder
from interpreto_mlops.concepts.training import DataFacts, Learner, State
from interpreto_mlops.errors import InputError


@DICTIONARIES.register("neurons")
@dataclass(kw_only=True, eq=False)
class NeuronsAsConcepts(LinearDecoder):
    """The layer's own coordinates: codes are the activations themselves, to the bit, and nothing is learned.

    It is what a learned dictionary is compared with. Codes are signed. Fitting only takes note of the width, so that
    any number of rows is enough; `n_concepts` is then the width.

    Arguments:
        n_concepts: None, or the width of the layer.
        seed: has no influence, for nothing is random; it is there because every family has one.
    """

    signed: ClassVar[bool] = True
    sized: ClassVar[bool] = False

    n_concepts: int = None  # type: ignore[assignment]  # known only when the width is

    def begin(self, facts: DataFacts) -> _Width:
        """Return what notes the width.

        Raises:
            InputError: another number of concepts than dimensions was asked for.
        """
        if self.n_concepts not in (None, facts.width):
            raise InputError(
                f"activations of width {facts.width} have {facts.width} neurons, not {self.n_concepts}; "
                "leave n_concepts out"
            )
        return _Width(facts.width)

    def complete(self, weights: State, *rest: Any) -> None:
        """Take over the width."""
        super().complete(weights, *rest)
        self.n_concepts = self.width

    @property
    def differentiable(self) -> bool:
        """Codes are the rows."""
        return True

    @property
    def width(self) -> int:
        """The width of the layer."""
        return len(self.mean)

    @property
    def dictionary(self) -> torch.Tensor:
        """The identity, shape (n_concepts, width)."""
        return torch.eye(self.width)

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.clone()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the codes, which are the activations, shape (rows, width); differentiable.

        Raises:
            NotFittedError: the dictionary is not fitted.
            InputError: codes of another number of concepts.
        """
        self._check_codes(codes)
        return codes.clone()

    def gradient(self, codes: torch.Tensor, of_rows: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to the rows, which is that with respect to the codes."""
        return of_rows


class _Width(Learner):
    n_passes = 0

    def __init__(self, width: int) -> None:
        self._width = width

    def observe(self, block: torch.Tensor) -> None:
        """Learn nothing."""

    def state(self) -> State:
        return {}

    def restore(self, state: State) -> None:
        """There is nothing to go on from."""

    def finish(self) -> State:
        return {"mean": torch.zeros(self._width), "scale": torch.tensor(1.0)}
