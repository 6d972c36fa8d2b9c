"""What a method of concept importance is, and what it finds about one text.

A method is a dataclass whose fields are its parameters. Those by gradients say what they make of them; those by
variants are generators that yield masks over a text's concepts and receive the scores of its targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from interpreto_mlops.models.objectives import Target
from interpreto_mlops.registry import NamingRegistry, Registry

Floats = npt.NDArray[np.float64]

_COLUMNS = ["target", "name", "row", "start", "end", "text", "concept", "activation", "importance"]


IMPORTANCE: Registry[type[ImportanceMethod]] = NamingRegistry("concept importance method")
"""The methods by name; a method is one file in `concepts/importance/`."""


@dataclass(frozen=True, kw_only=True)
class ImportanceMethod(ABC):
    """How much each concept of a text matters to each target."""

    name: ClassVar[str]
    per_row: ClassVar[bool] = False
    """Whether it has a value for each row, whose sum over rows is the text's."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class GradientMethod(ImportanceMethod):
    """A method by the gradients of the scores by the codes, at one or more points on the way from no concept to all."""

    per_row: ClassVar[bool] = True

    @property
    @abstractmethod
    def points(self) -> tuple[Floats, Floats]:
        """The shares of the codes at which gradients are taken, and the weights that they are added with."""

    @abstractmethod
    def values(self, codes: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return the importances.

        Arguments:
            codes: shape (rows, n_concepts).
            gradients: weighted sum over points, shape (targets, rows, n_concepts).

        Returns:
            Shape (targets, rows, n_concepts).
        """


Masks = npt.NDArray[np.float32]
"""What share of each active concept's code stays, shape (variants, active concepts)."""

Steps = Generator[Masks, Floats, Floats]
"""Yields masks, receives scores, shape (variants, targets), and returns values, shape (targets, active concepts)."""


class VariantMethod(ImportanceMethod):
    """A method by the scores of the text with other codes."""

    @abstractmethod
    def steps(self, n_active: int, full: Floats, rng: np.random.Generator) -> Steps:
        """Ask for variants and return the values.

        Arguments:
            n_active: how many concepts the text holds, at least one.
            full: the scores of the text as it is, shape (targets,).
            rng: the text's own random numbers.
        """


@dataclass(frozen=True)
class LocalImportance:
    """How much each concept matters to the targets of one text.

    Arguments:
        index: the text's place.
        text: the raw text; a prompt together with its continuation.
        targets: what is explained.
        spans: the characters that each row stands for, shape (rows, 2).
        codes: shape (rows, n_concepts).
        totals: shape (targets, n_concepts).
        values: of each row, shape (targets, rows, n_concepts), where the method has them; their sum is `totals`.
        scores: of the targets, shape (targets,).
    """

    index: int
    text: str
    targets: tuple[Target, ...]
    spans: npt.NDArray[np.int64]
    codes: npt.NDArray[np.float32]
    totals: Floats
    values: Floats | None
    scores: Floats

    def top(self, target: int, k: int) -> tuple[int, ...]:
        """Return the concepts of the largest |importance| for a target, best first."""
        return tuple(np.argsort(-np.abs(self.totals[target]), kind="stable")[:k].tolist())

    def to_frame(self) -> pd.DataFrame:
        """Return a line for each target, row and concept that is active there or matters.

        Returns:
            Columns `target` (its place), `name`, `row`, `start`, `end` (the row's characters), `text`, `concept`,
            `activation` and `importance`. Of a method without `values` there is a line for each target and concept,
            without a row.
        """
        lines: list[tuple[Any, ...]] = []
        if self.values is None:
            kept = np.argwhere(np.broadcast_to((self.codes != 0).any(axis=0), self.totals.shape) | (self.totals != 0))
            lines += [(t, None, None, None, None, c, None, float(self.totals[t, c])) for t, c in kept.tolist()]
        else:
            for t, r, c in np.argwhere((self.codes != 0)[None] | (self.values != 0)).tolist():
                start, end = self.spans[r].tolist()
                piece = self.text[start:end]
                lines.append((t, r, start, end, piece, c, float(self.codes[r, c]), float(self.values[t, r, c])))
        names = [str(target.name) for target in self.targets]
        return pd.DataFrame([(line[0], names[line[0]], *line[1:]) for line in lines], columns=_COLUMNS)
