"""Faithfulness: whether a model writes what a label says when its concept is set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.interpretation_metrics.base import INTERPRETATION_METRICS, Case, RatingMetric
from interpreto_mlops.concepts.interpretation_metrics.rating import RATINGS
from interpreto_mlops.concepts.interpretation_metrics.statistics import HIGHEST, faithfulness
from interpreto_mlops.concepts.interpretation_metrics.subjects import Subjects
from interpreto_mlops.concepts.interventions import steer
from interpreto_mlops.concepts.split import ModelWithSplitPoints
from interpreto_mlops.errors import DataError, InputError
from interpreto_mlops.models.continuations import continued
from interpreto_mlops.text.granularity import word_spans

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

MULTIPLES = (-50.0, -10.0, -1.0, 0.0, 1.0, 10.0, 50.0)
"""What a concept is set to, in units of its largest natural activation."""


@INTERPRETATION_METRICS.register("interpretation/faithfulness")
@dataclass(frozen=True, kw_only=True)
class Faithfulness(RatingMetric):
    """Set a concept while its model writes: how much more often the continuations show the label.

    Continuations of all multiples are rated in random order, without the prompts and without saying which is which.
    Equal continuations of a concept are rated once. It is worth asking of concepts whose clarity and responsiveness are
    at least 0.5 (the paper asks of no others): give those as `concepts`.

    Arguments:
        split: a language model, split at the dictionary's layer.
        per_question: continuations in one question.
        n_prompts: beginnings of natural texts; as many as there are different ones where there are fewer.
        prompt_words: words of a beginning.
        n_tokens: tokens of a continuation, the most likely ones.
        multiples: of the concept's largest natural activation; 0 has to be among them.

    Raises:
        InputError: a model that does not write, or a parameter that cannot be used.

    Source: Puri et al. 2025 (FADE), section 3.
    """

    metric = faithfulness
    highest: ClassVar[int] = HIGHEST
    protocol: ClassVar[str] = RATINGS

    split: ModelWithSplitPoints = field(kw_only=False)
    per_question: int = 15
    n_prompts: int = 50
    prompt_words: int = 8
    n_tokens: int = 30
    multiples: tuple[float, ...] = MULTIPLES

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_prompts", "prompt_words", "n_tokens"):
            check_integer(name, getattr(self, name), 1)
        for multiple in self.multiples:
            if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not np.isfinite(multiple):
                raise InputError(f"a multiple must be a finite number, not {multiple!r}")
        if len(set(self.multiples)) < 2 or 0 not in self.multiples:
            raise InputError(f"give 0 and at least one other multiple, not {self.multiples!r}")
        if self.split.model.task != "generation":
            raise InputError(
                f"the model {self.split.model.name!r} does not write text: its task is "
                f"{self.split.model.task!r}, and faithfulness needs a language model"
            )

    def _cases(self, dictionary: ConceptDictionary, activations: ActivationSet, found: Subjects) -> dict[int, Case]:
        prompts = self._prompts(activations)
        cases = {}
        for concept in found.labels:
            shown = [
                (text, float(multiple))
                for multiple in dict.fromkeys(self.multiples)
                for text in self._continuations(dictionary, prompts, {concept: multiple * found.largest[concept]})
            ]
            order = self._rng(concept).permutation(len(shown)).tolist()
            cases[concept] = Case([(shown[i][0], ()) for i in order], [shown[i][1] for i in order])
        return cases

    def _continuations(self, dictionary: ConceptDictionary, prompts: list[str], change: dict[int, float]) -> list[str]:
        generation = {"max_new_tokens": self.n_tokens, "do_sample": False, "num_beams": 1}
        model = self.split.model
        with steer(self.split, dictionary, change, mode="set"):
            written = continued(model, prompts, [None] * len(prompts), generation=generation, truncation=True)
            return [encoding.text[encoding.boundary :] for encoding, _ in written]

    def _prompts(self, activations: ActivationSet) -> list[str]:
        """Return the beginnings of random texts, all different.

        Raises:
            DataError: no text has a word.
        """
        rng = np.random.default_rng([self.seed, 4])
        found: dict[str, None] = {}
        for place in rng.permutation(len(activations.texts)).tolist():
            text = activations.texts[place]
            words = word_spans(text)[: self.prompt_words]
            if len(words):
                found[text[words[0, 0] : words[-1, 1]]] = None
            if len(found) == self.n_prompts:
                break
        if not found:
            raise DataError("no text has a word to begin with")
        return list(found)
