"""Importance over a data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from interpreto_mlops.concepts.importance.base import Floats


@dataclass(frozen=True)
class ConceptImportance:
    """How much each concept speaks for (or, negative, against) each class.

    Arguments:
        classes: the names of the classes, by id; one alone, `continuation`, for a language model's targets.
        values: mean over the targets of that class, of all texts, of the importance in the text, shape (classes,
            concepts); a row of NaN for a class that is nobody's target.
        n_texts: how many targets are of each class; texts, where each has one.
        method: that computed it.
    """

    classes: tuple[str, ...]
    values: Floats
    n_texts: tuple[int, ...]
    method: str = "gradient_x_activation"

    @property
    def normalised(self) -> Floats:
        """The values as shares, Σ |share| = 1 in each class, shape (classes, concepts); 0 where all values are 0."""
        totals = np.abs(self.values).sum(axis=1, keepdims=True)
        return np.asarray(self.values / np.where(totals == 0, 1.0, totals))

    def top(self, class_index: int, k: int) -> tuple[int, ...]:
        """Return the concepts of the largest |importance| for a class, best first; none for a class without texts."""
        if self.n_texts[class_index] == 0:
            return ()
        return tuple(np.argsort(-np.abs(self.values[class_index]), kind="stable")[:k].tolist())

    def to_frame(self) -> pd.DataFrame:
        """Return a frame with the columns `class`, `concept`, `importance` and `share`, one row for each pair."""
        n_classes, n_concepts = self.values.shape
        return pd.DataFrame(
            {
                "class": np.repeat(np.asarray(self.classes, dtype=object), n_concepts),
                "concept": np.tile(np.arange(n_concepts), n_classes),
                "importance": self.values.ravel(),
                "share": self.normalised.ravel(),
            }
        )
