"""What a metric of concept dictionaries is: what it needs, its direction, its range, and how it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.errors import InputError
from interpreto_mlops.registry import Registry

INFINITY = float("inf")

Array = torch.Tensor | npt.NDArray[Any]
Compute = Callable[[Any], float]


@dataclass(frozen=True)
class ConceptMetric:
    """A metric of concept dictionaries; each kind can be called with tensors, see there.

    `needs` says what it is computed from: `reconstructions` (of rows), `codes` (of rows), a `dictionary`, several
    `dictionaries`, `outputs` of the model with the layer replaced, `targets` (those outputs and the right answers), or
    a `probe` (of labels).

    Arguments:
        name: its name in runs, `group/metric`.
        higher_is_better: its direction; None where neither end is good in itself.
        bounds: the values it can take.
        compute: from what it needs: the statistics of rows or outputs, the dictionaries, or the probe's results.
    """

    needs: ClassVar[str] = ""

    name: str
    higher_is_better: bool | None
    bounds: tuple[float, float]
    compute: Compute

    def __post_init__(self) -> None:
        # What is asked for help on `mse` says what the mean squared error is.
        object.__setattr__(self, "__doc__", self.compute.__doc__)
        object.__setattr__(self, "__name__", self.compute.__name__)

    @property
    def description(self) -> str:
        """The first sentence of what computes it."""
        return (self.compute.__doc__ or "").split("\n")[0].rstrip(".")

    def goodness(self, value: float) -> float:
        """Return a number that is larger for better values; NaN, which is neither, counts as the worst."""
        if math.isnan(value):
            return -INFINITY
        return -value if self.higher_is_better is False else value


METRICS: Registry[ConceptMetric] = Registry("concept metric")
"""The metrics of dictionaries by their names in runs."""

M = TypeVar("M", bound=ConceptMetric)


def metric(
    kind: type[M], name: str, *, higher_is_better: bool | None, bounds: tuple[float, float]
) -> Callable[[Compute], M]:
    """Decorate a function of statistics to make it a metric of that kind, known as `name`."""

    def decorate(compute: Compute) -> M:
        made = kind(name, higher_is_better, bounds, compute)
        METRICS.register(name)(made)
        return made

    return decorate


def as_matrix(numbers: Array, what: str) -> torch.Tensor:
    """Return numbers as a tensor of two dimensions on the CPU.

    Raises:
        InputError: another number of dimensions.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(numbers)) if isinstance(numbers, np.ndarray) else numbers
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2:
        raise InputError(f"{what} must be a tensor or an array of two dimensions, not {_shape(numbers)}")
    return tensor.detach().cpu()


def _shape(numbers: object) -> str:
    shape = getattr(numbers, "shape", None)
    return type(numbers).__name__ if shape is None else f"of the shape {tuple(shape)}"
