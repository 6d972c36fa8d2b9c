"""What metrics of labels share: whom they ask, which concepts, and the baseline of other concepts' labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.interpretation_metrics.judging import Cost, Shown, ask_all, rating_prompt, read_ratings
from interpreto_mlops.concepts.interpretation_metrics.score import InterpretationScore
from interpreto_mlops.concepts.interpretation_metrics.statistics import AnswerMetric, Judged
from interpreto_mlops.concepts.interpretation_metrics.subjects import Labels, Subjects, other_labels, subjects
from interpreto_mlops.errors import InputError, LanguageModelError, NotAskedError
from interpreto_mlops.llm import Answer, Prompt, Questioner
from interpreto_mlops.registry import NamingRegistry, Registry

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

INTERPRETATION_METRICS: Registry[type[LabelMetric]] = NamingRegistry("interpretation metric")
"""What asks a language model about labels, by the name of its metric in runs."""


class _Listing(Questioner):
    """Takes note of questions and asks none."""

    def ask(self, prompts: Iterable[Prompt]) -> list[Answer | LanguageModelError]:
        """Return that none was asked."""
        found: list[Answer | LanguageModelError] = []
        for prompt in prompts:
            found.append(NotAskedError("the question was only listed"))
            self.record.append((prompt, found[-1]))
        return found


@dataclass(frozen=True)
class Case:
    """What is asked about one concept.

    Arguments:
        texts: the examples, with the spans that are marked in them, in the order in which they are shown.
        given: what is known of each, shape (examples,).
    """

    texts: Sequence[Shown]
    given: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class LabelMetric(ABC):
    """What asks a language model how well labels say what concepts are.

    Arguments:
        questioner: asks the language model.
        shuffled: whether to ask the same questions with the labels of other concepts, too, which doubles the cost.
        min_parsed: no value is reported where a smaller share of the examples has an answer that can be read.
        seed: of every choice.

    Raises:
        InputError: a parameter that cannot be used.
    """

    name: ClassVar[str]
    metric: ClassVar[AnswerMetric]

    questioner: Questioner = field(kw_only=False)
    shuffled: bool = True
    min_parsed: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.questioner, Questioner):
            raise InputError(f"give a Questioner, not {self.questioner!r}: Questioner(model)")
        check_share("min_parsed", self.min_parsed)
        check_integer("seed", self.seed, 0)

    def __call__(
        self,
        dictionary: ConceptDictionary,
        activations: ActivationSet,
        labels: Labels | None = None,
        *,
        concepts: Iterable[int] | None = None,
    ) -> InterpretationScore:
        """Score the labels of a dictionary's concepts.

        Arguments:
            dictionary: fitted.
            activations: of its layer, better of texts that neither the dictionary nor its labels were made from.
            labels: one for each concept, or some by the concept's number; None takes the dictionary's descriptions.
            concepts: which ones to score; None for all that have a label.

        Raises:
            NotFittedError: the dictionary is not fitted.
            InputError: labels or concepts that do not fit the dictionary.
            IntegrityError: activations of another model or layer.
        """
        found = subjects(dictionary, activations, labels, concepts)
        known, cost = dict(found.labels), Cost()
        judged, shuffled = self._ask(dictionary, activations, found, cost)
        return InterpretationScore(
            self.metric,
            known,
            judged,
            shuffled,
            found.skipped,
            cost,
            self.parameters,
            self.min_parsed,
            self.seed,
        )

    def questions(
        self,
        dictionary: ConceptDictionary,
        activations: ActivationSet,
        labels: Labels | None = None,
        *,
        concepts: Iterable[int] | None = None,
    ) -> list[Prompt]:
        """Return what scoring would ask, without asking: `questioner.estimate(…)` says what that takes.

        The arguments and errors are those of the call. Faithfulness lets the model write for it.
        """
        listing = _Listing(self.questioner.model)
        replace(self, questioner=listing)(dictionary, activations, labels, concepts=concepts)
        return [prompt for prompt, _ in listing.record]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, but for who asks."""
        return {each.name: getattr(self, each.name) for each in fields(self) if _is_plain(getattr(self, each.name))}

    @abstractmethod
    def _ask(
        self, dictionary: ConceptDictionary, activations: ActivationSet, found: Subjects, cost: Cost
    ) -> tuple[dict[int, Judged], dict[int, tuple[str, Judged]] | None]:
        """Ask about all concepts; those that cannot be asked about go from `found.labels` to `found.skipped`."""

    def _rng(self, concept: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, concept])


@dataclass(frozen=True, kw_only=True)
class RatingMetric(LabelMetric):
    """A metric for which a language model gives a number to each example.

    Arguments:
        per_question: examples in one question; the last question of a concept may have fewer.
    """

    protocol: ClassVar[str]
    highest: ClassVar[int]

    per_question: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("per_question", self.per_question, 1)

    def _ask(
        self, dictionary: ConceptDictionary, activations: ActivationSet, found: Subjects, cost: Cost
    ) -> tuple[dict[int, Judged], dict[int, tuple[str, Judged]] | None]:
        cases = self._cases(dictionary, activations, found)
        for concept in found.skipped:
            found.labels.pop(concept, None)
        others = other_labels(found.labels, self.seed) if self.shuffled else {}
        asked = [(concept, found.labels[concept]) for concept in cases] + list(others.items())
        answers = self._judged([(cases[concept], label) for concept, label in asked], cost)
        judged = dict(zip(cases, answers, strict=False))
        shuffled = {
            c: (label, each) for (c, label), each in zip(asked, answers, strict=True) if label != found.labels[c]
        }
        return judged, shuffled if self.shuffled else None

    @abstractmethod
    def _cases(self, dictionary: ConceptDictionary, activations: ActivationSet, found: Subjects) -> dict[int, Case]:
        """Choose the examples of each concept; those with too few go to `found.skipped`."""

    def _judged(self, asked: Sequence[tuple[Case, str]], cost: Cost) -> list[Judged]:
        """Ask about the examples of each case under a label; equal texts of a case are asked about once."""
        prompts, batches = [], []
        for number, (case, label) in enumerate(asked):
            texts = [text for text in dict.fromkeys(case.texts) if text[0].strip()]
            for start in range(0, len(texts), self.per_question):
                batch = texts[start : start + self.per_question]
                prompts.append(rating_prompt(self.protocol, label, batch, self.highest, self.seed))
                batches.append((number, batch))
        answers = ask_all(
            self.questioner, prompts, lambda i, answer: read_ratings(answer, len(batches[i][1]), self.highest), cost
        )
        # What says nothing shows nothing: nobody has to be asked about it.
        ratings = [{text: 0 for text in case.texts if not text[0].strip()} for case, _ in asked]
        for (number, batch), numbers in zip(batches, answers, strict=True):
            ratings[number].update(zip(batch, numbers or (), strict=False))
        return [_answered(case, rated) for (case, _), rated in zip(asked, ratings, strict=True)]


def _answered(case: Case, rated: Mapping[Shown, int]) -> Judged:
    pairs = [(given, rated[text]) for text, given in zip(case.texts, case.given, strict=True) if text in rated]
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    return Judged(table[:, 0], table[:, 1], len(case.texts))


def check_share(name: str, value: object) -> None:
    """Refuse what is no number from 0 to 1.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{name} must be a number from 0 to 1, not {value!r}")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple)
