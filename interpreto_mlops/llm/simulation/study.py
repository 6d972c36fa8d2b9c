"""What a simulation is about: texts, what a model says of them, and an explanation, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from interpreto_mlops.errors import InputError
from interpreto_mlops.registry import Choice

Floats = npt.NDArray[np.float64]


class FeatureKind(Choice):
    """What an explanation speaks of: concepts, which need a name, or words, which are their own."""

    CONCEPT = "concept"
    WORD = "word"


@dataclass(frozen=True)
class Feature:
    """One thing that an explanation speaks of.

    Arguments:
        id: by which prompts call it: a concept's number in its dictionary, a word's place among all words.
        words: its name: a label alone, or the words that say what it is; of a word the word.
        opposed: the words at its other end, where it has one.
    """

    id: int
    words: tuple[str, ...]
    opposed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What an explanation says of the model as a whole.

    Arguments:
        kind: of its features.
        features: all of them; local explanations refer to them by their place here.
        importance: of each for each class, shape (classes, features), Σ |importance| = 1 in each class; a row of NaN
            for a class that nothing is known of. `normalised` makes it so.
    """

    kind: FeatureKind
    features: tuple[Feature, ...]
    importance: Floats

    def __post_init__(self) -> None:
        if self.importance.ndim != 2 or self.importance.shape[1] != len(self.features):
            raise InputError(
                f"the importance must have the shape (classes, {len(self.features)} features), not "
                f"{self.importance.shape}"
            )


def _no_places() -> npt.NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


def _no_values() -> Floats:
    return np.zeros(0)


@dataclass(frozen=True, eq=False)
class Contributions:
    """What an explanation says of one text.

    Arguments:
        places: of the features that have a part in it, shape (n,).
        values: their importance for the text's prediction, Σ |value| = 1 over all features of the text, shape (n,).
    """

    places: npt.NDArray[np.int64] = field(default_factory=_no_places)
    values: Floats = field(default_factory=_no_values)


@dataclass(frozen=True, eq=False)
class Sample:
    """One text and what is known of it.

    Arguments:
        text: the raw text.
        index: its place in the data set.
        prediction: the class that the model says, by its place among the classes.
        label: the right class, or None where that is not known.
        of_concepts: what the model says when the dictionary's reconstruction is in the layer's place, or None.
        contributions: the local explanation of the prediction.
    """

    text: str
    index: int
    prediction: int
    label: int | None = None
    of_concepts: int | None = None
    contributions: Contributions = field(default_factory=Contributions)


@dataclass(frozen=True)
class Study:
    """The texts, the classes and the explanation of one simulation.

    Arguments:
        classes: the names of the classes, at least two.
        samples: the texts; all of them have a label or none has.
        explanation: of the model as a whole.

    Raises:
        InputError: fewer than two classes, a class that is not there, or labels for some texts only.
    """

    classes: tuple[str, ...]
    samples: Sequence[Sample]
    explanation: Explanation

    def __post_init__(self) -> None:
        n = len(self.classes)
        if n < 2:
            raise InputError(f"a simulation needs at least two classes to choose from, not {list(self.classes)!r}")
        if len(self.explanation.importance) != n:
            raise InputError(f"the importance is of {len(self.explanation.importance)} classes, and there are {n}")
        for what in ("prediction", "label", "of_concepts"):
            found = {getattr(sample, what) for sample in self.samples}
            if found - {None} - set(range(n)):
                raise InputError(f"there are {n} classes, and a {what} of a text is {max(found - {None})!r}")
            if len(found) > 1 and None in found:
                raise InputError(f"give a {what} for each text, or for none")

    @property
    def is_labelled(self) -> bool:
        """Whether the right classes are known."""
        return bool(self.samples) and self.samples[0].label is not None
