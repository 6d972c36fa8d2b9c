"""Detection and fuzzing: whether a label lets a reader tell where its concept is active."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.interpretation_metrics.base import (
    INTERPRETATION_METRICS,
    Case,
    RatingMetric,
    check_share,
)
from interpreto_mlops.concepts.interpretation_metrics.examples import WORD_ROWS, Codes, Example, Examples, Mask
from interpreto_mlops.concepts.interpretation_metrics.judging import Shown
from interpreto_mlops.concepts.interpretation_metrics.statistics import detection, fuzzing
from interpreto_mlops.concepts.interpretation_metrics.subjects import Subjects, columns, neighbours
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.llm.fences import MARKS

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

NEGATIVES = ("random", "hard")
"""Where examples come from in which a concept is not active."""

MARKED_WRONG = ("random_words", "wrong_words")
"""Which words are marked in the wrong examples of fuzzing."""

_OPEN, _CLOSE = MARKS


@dataclass(frozen=True, eq=False)
class _Found:
    """The examples of one concept: those in which it is active, and what others are drawn from."""

    source: Examples
    codes: Codes
    floor: float
    near: Mask | None
    active: list[Example]

    def inactive(self, n: int, rng: np.random.Generator) -> list[Example]:
        """Draw examples in which the concept is not active."""
        return self.source.inactive(self.codes, n, rng, floor=self.floor, near=self.near)


@dataclass(frozen=True, kw_only=True)
class ExampleMetric(RatingMetric):
    """Asks of examples whether a concept is active there.

    Arguments:
        n_active: examples in which the concept is active; as many as there are where there are fewer.
        n_inactive: examples in which it is not.
        least: a concept with fewer of either kind is skipped.
        quantiles: into how many parts of the same size the activations are divided, from which as many examples come.
        window: words of an example, where rows are tokens or words.
        active_above: a concept is active above this share of its largest activation.
        negatives: `random`, or `hard`: places where a neighbour is active are taken first.
        neighbours: how many concepts of the most similar directions (by the cosine) are a concept's neighbours.
    """

    n_active: int = 50
    n_inactive: int = 50
    least: int = 5
    quantiles: int = 10
    window: int = 32
    active_above: float = 0.0
    negatives: str = "random"
    neighbours: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_active", "n_inactive", "least", "quantiles", "window", "neighbours"):
            check_integer(name, getattr(self, name), 1)
        if self.least > min(self.n_active, self.n_inactive):
            raise InputError(f"least={self.least!r} is more than the examples that are asked for")
        check_share("active_above", self.active_above)
        if self.negatives not in NEGATIVES:
            raise UnknownNameError("kind of negatives", self.negatives, NEGATIVES)

    def _cases(self, dictionary: ConceptDictionary, activations: ActivationSet, found: Subjects) -> dict[int, Case]:
        source = Examples(activations, self.window)
        concepts = list(found.labels)
        beside = neighbours(dictionary, concepts, self.neighbours) if self.negatives == "hard" else None
        cases: dict[int, Case] = {}
        for concept, codes, near in columns(dictionary, activations, concepts, beside):
            rng = self._rng(concept)
            floor = self.active_above * float(found.largest[concept])
            active = source.active(codes, self.n_active, rng, floor=floor, quantiles=self.quantiles)
            right, wrong = self._sides(_Found(source, codes, floor, near, active), rng)
            if min(len(right), len(wrong)) < self.least:
                found.skipped[concept] = (
                    f"{len(right)} active and {len(wrong)} inactive examples; {self.least} of each are needed"
                )
                continue
            shown = [(text, True) for text in right] + [(text, False) for text in wrong]
            order = rng.permutation(len(shown)).tolist()
            cases[concept] = Case([shown[i][0] for i in order], [float(shown[i][1]) for i in order])
        return cases

    @abstractmethod
    def _sides(self, found: _Found, rng: np.random.Generator) -> tuple[list[Shown], list[Shown]]:
        """Return the texts to which the right answer is yes, and those to which it is no."""


@INTERPRETATION_METRICS.register("interpretation/detection")
@dataclass(frozen=True, kw_only=True)
class Detection(ExampleMetric):
    """Ask in which examples a concept is active, by its label: balanced accuracy.

    Source: Paulo et al. 2025 (automatically interpreting millions of features in large language models), section 3.
    """

    metric = detection
    highest: ClassVar[int] = 1
    protocol: ClassVar[str] = (
        "You decide which texts contain what a description says. The description is of a feature of texts, found in a "
        "language model. For each text answer 1 if what is described is in the text, and 0 if it is not. The texts "
        "are excerpts; any number of them may contain it, also all or none."
    )

    def _sides(self, found: _Found, rng: np.random.Generator) -> tuple[list[Shown], list[Shown]]:
        inactive = found.inactive(self.n_inactive, rng)
        return [marked(each, ()) for each in found.active], [marked(each, ()) for each in inactive]


@INTERPRETATION_METRICS.register("interpretation/fuzzing")
@dataclass(frozen=True, kw_only=True)
class Fuzzing(ExampleMetric):
    """Ask whether the marked words are those on which a concept is active, by its label: balanced accuracy.

    Arguments:
        threshold: the words whose activation is at least this share of the example's largest are marked.
        wrong: what is marked in the wrong examples: `random_words` of examples in which the concept is not active, as
            many as are marked in a right one in the mean; or `wrong_words` of active examples, as many as would be
            right there, on which it is not active.

    Source: Paulo et al. 2025, section 3.
    """

    metric = fuzzing
    highest: ClassVar[int] = 1
    protocol: ClassVar[str] = (
        "You decide whether the right words are marked. The description is of a feature of words, found in a language "
        f"model. In each text some words are marked {_OPEN}like this{_CLOSE}. Answer 1 if the marked words are those "
        "that the description is about, and 0 if they are not. Any number of the texts may be marked rightly, also all "
        "or none."
    )

    threshold: float = 0.3
    wrong: str = "random_words"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("threshold", self.threshold)
        if self.wrong not in MARKED_WRONG:
            raise UnknownNameError("kind of wrong marks", self.wrong, MARKED_WRONG)

    def _cases(self, dictionary: ConceptDictionary, activations: ActivationSet, found: Subjects) -> dict[int, Case]:
        if activations.granularity not in WORD_ROWS:
            raise InputError(
                f"fuzzing marks words, and the rows of these activations are {activations.granularity!r}; give rows of "
                "tokens or words"
            )
        return super()._cases(dictionary, activations, found)

    def _sides(self, found: _Found, rng: np.random.Generator) -> tuple[list[Shown], list[Shown]]:
        right = [
            np.flatnonzero(each.values >= max(self._least(each), np.nextafter(found.floor, np.inf)))
            for each in found.active
        ]
        texts = [marked(each, words) for each, words in zip(found.active, right, strict=True)]
        if self.wrong == "wrong_words":
            quiet = [np.flatnonzero(each.values <= found.floor) for each in found.active]
            pairs = zip(found.active, quiet, map(len, right), strict=True)
            drawn = [(each, words, n) for each, words, n in pairs if len(words)][: self.n_inactive]
        else:
            inactive = found.inactive(self.n_inactive, rng)
            n = math.ceil(np.mean([len(words) for words in right])) if right else 0
            drawn = [(each, np.arange(len(each.words)), n) for each in inactive]
        return texts, [marked(each, rng.permutation(words)[:n]) for each, words, n in drawn]

    def _least(self, example: Example) -> float:
        return self.threshold * float(example.values.max())


def marked(example: Example, words: Iterable[int]) -> Shown:
    """Return an example with some of its words marked."""
    spans = example.words[sorted(int(each) for each in words)].tolist()
    return example.text, tuple((start, end) for start, end in spans)
