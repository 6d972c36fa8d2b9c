"""Concepts of hostile words, and their importance for hostile classes."""

from __future__ import annotations

import numpy as np

from interpreto_mlops.concepts.importance import ConceptImportance
from interpreto_mlops.concepts.interpretation import ConceptDescription, Context, Word
from tests.visuals.hostile import HOSTILE


def description(concept: int, words: tuple[str, ...] = ("good", "great"), **changes: object) -> ConceptDescription:
    """A concept that is most active on `words`, each seen once."""
    values: dict[str, object] = {
        "concept": concept,
        "words": tuple(Word(word, 4.0 - i, 1) for i, word in enumerate(words)),
        "contexts": tuple(Context(i, "such a ", word, " thing", 4.0 - i) for i, word in enumerate(words)),
        "density": 0.125,
        "max_activation": 4.0,
    }
    return ConceptDescription(**{**values, **changes})  # type: ignore[arg-type]


def dead(concept: int) -> ConceptDescription:
    """A concept that never fires."""
    return description(concept, (), density=0.0, max_activation=0.0)


def hostile_descriptions() -> list[ConceptDescription]:
    """One concept for each hostile text, which is its word and its context."""
    return [
        description(i, (text or "empty",), contexts=(Context(0, text, text, text, -1.0),))
        for i, text in enumerate(HOSTILE)
    ]


def importance(values: np.ndarray, classes: tuple[str, ...] = ("negative", "positive")) -> ConceptImportance:
    """The importance of those values, shape (classes, concepts)."""
    return ConceptImportance(classes, values, tuple(0 if np.isnan(row).all() else 7 for row in values))
