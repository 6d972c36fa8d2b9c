"""The protocol of a simulation: questions of all settings and seeds, one second attempt, and the scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from interpreto_mlops.errors import InputError, LanguageModelError, TransientError
from interpreto_mlops.llm.base import Answer, Prompt
from interpreto_mlops.llm.questioner import Questioner
from interpreto_mlops.llm.simulation.parsing import ClassNames, parse_answer
from interpreto_mlops.llm.simulation.prompts import AnswerForm, Asking
from interpreto_mlops.llm.simulation.results import Attempt, SimulationResult, Trial
from interpreto_mlops.llm.simulation.sampling import Phases, draw_phases
from interpreto_mlops.llm.simulation.scoring import scored
from interpreto_mlops.llm.simulation.settings import Setting
from interpreto_mlops.llm.simulation.study import Study

# Added to a seed for the second attempt, so that a model that draws draws anew and a cache asks again.
_SECOND = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How a reader is asked what a model says, with and without an explanation.

    One question for each setting and seed asks for all texts of the evaluation phase; a question whose answer is not
    clear for all of them is asked once more, with another seed.

    Arguments:
        settings: names of `Setting`.
        seeds: of the draws of texts; at least five, since one draw of 20 texts has a standard error of about 0.11.
        n_learn: texts that are shown with the model's predictions.
        n_evaluate: texts that are asked for.
        mistakes: the share of both that the model gets wrong, as far as there are any, where labels are known.
        anonymous: call classes `Class_1`, `Class_2`, …, so that their names say nothing.
        answers: `lines`, or `json` with a schema for back ends that hold a model to one.
        min_parsed: the share of a setting's answers that must have a clear class for it to have a score.
        max_tokens: the most tokens of an answer; None takes several times what all lines need.
        temperature: of the reader.

    Raises:
        InputError: a parameter that cannot be used.

    Source: Poché et al. 2025 (ConSim, arXiv 2501.05855).
    """

    settings: Sequence[str | Setting] = tuple(Setting)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    n_learn: int = 20
    n_evaluate: int = 20
    mistakes: float = 0.5
    anonymous: bool = False
    answers: str | AnswerForm = AnswerForm.LINES
    min_parsed: float = 0.8
    max_tokens: int | None = None
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.settings, str) or not self.settings:
            raise InputError(f"settings must be a list of at least one name, not {self.settings!r}")
        object.__setattr__(self, "settings", tuple(dict.fromkeys(Setting.parse(each) for each in self.settings)))
        object.__setattr__(self, "answers", AnswerForm.parse(self.answers))
        seeds = () if isinstance(self.seeds, int) else tuple(self.seeds)
        if not seeds or len(set(seeds)) < len(seeds) or not all(_is_whole(seed, 0) for seed in seeds):
            raise InputError(f"seeds must be different whole numbers of at least 0, not {self.seeds!r}")
        object.__setattr__(self, "seeds", seeds)
        for name in ("n_learn", "n_evaluate"):
            if not _is_whole(getattr(self, name), 1):
                raise InputError(f"{name} must be a whole number of at least 1, not {getattr(self, name)!r}")
        if self.max_tokens is not None and not _is_whole(self.max_tokens, 1):
            raise InputError(f"max_tokens must be a whole number of at least 1, not {self.max_tokens!r}")
        for name in ("mistakes", "min_parsed"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} must be a share from 0 to 1, not {getattr(self, name)!r}")

    @property
    def n_questions(self) -> int:
        """How many questions are asked, second attempts aside; no more than twice as many in all."""
        return len(self.settings) * len(self.seeds)

    def prompts(self, study: Study) -> list[Prompt]:
        """Return all first questions, in order, for an estimate of what they cost.

        Raises:
            InputError: there are fewer texts than a draw needs, or classes that cannot be told apart.
        """
        return [question.prompt for question in self._questions(study)]

    def run(self, study: Study, questioner: Questioner, *, name: str = "consim") -> SimulationResult:
        """Ask all questions and score the answers.

        Arguments:
            study: the texts, the model's predictions and the explanation.
            questioner: asks the reader.
            name: of the score.

        Raises:
            InputError: there are fewer texts than a draw needs, or classes that cannot be told apart.
            LanguageModelError: none of the questions has an answer.
        """
        names = ClassNames(self._asking.names(study))
        questions = list(self._questions(study))
        first = questioner.ask([question.prompt for question in questions])
        errors = [answer for answer in first if isinstance(answer, LanguageModelError)]
        if len(errors) == len(first):
            raise errors[0]
        attempts = [[_Read.of(each, answer, names)] for each, answer in zip(questions, first, strict=True)]
        again = [place for place, tries in enumerate(attempts) if tries[0].is_worth_asking_again]
        second = [replace(questions[place], prompt=questions[place].second) for place in again]
        answers, notes = _second_answers(questioner, second)
        for place, question, answer in zip(again, second, answers, strict=False):
            attempts[place].append(_Read.of(question, answer, names))
        trials = [_trial(question, tries) for question, tries in zip(questions, attempts, strict=True)]
        drawn = {question.seed: question.phases for question in questions}
        model = questioner.model
        return scored(
            study,
            trials,
            drawn,
            name=name,
            model=model.name,
            price=model.price,
            parameters=self.parameters,
            notes=notes,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        plain = asdict(self)
        plain["settings"] = [Setting.parse(each).value for each in self.settings]
        plain["answers"] = AnswerForm.parse(self.answers).value
        return {**plain, "seeds": list(self.seeds)}

    @property
    def _asking(self) -> Asking:
        return Asking(AnswerForm.parse(self.answers), self.anonymous, self.max_tokens, self.temperature)

    def _questions(self, study: Study) -> Iterator[_Question]:
        asking = self._asking
        ClassNames(asking.names(study))  # before anything is paid for
        for seed in self.seeds:
            phases = draw_phases(
                study, n_learn=self.n_learn, n_evaluate=self.n_evaluate, mistakes=self.mistakes, seed=seed
            )
            for setting in map(Setting.parse, self.settings):
                yield _Question(setting, seed, phases, asking.prompt(study, phases, setting, seed))


@dataclass(frozen=True)
class _Question:
    setting: Setting
    seed: int
    phases: Phases
    prompt: Prompt

    @property
    def second(self) -> Prompt:
        return replace(self.prompt, seed=self.prompt.seed + _SECOND)


@dataclass(frozen=True)
class _Read:
    """An attempt, and the class of each text's number that could be read."""

    attempt: Attempt
    classes: dict[int, int]
    is_worth_asking_again: bool

    @classmethod
    def of(cls, question: _Question, answer: Answer | LanguageModelError, names: ClassNames) -> _Read:
        """Read what came of a question."""
        n = len(question.phases.evaluate)
        if isinstance(answer, LanguageModelError):
            attempt = Attempt(question.prompt, None, f"{type(answer).__name__}: {answer}", n)
            return cls(attempt, {}, isinstance(answer, TransientError))
        found = parse_answer(answer.text, names, n)
        problems: dict[str, Sequence[Any]] = {
            "duplicates": found.duplicates,
            "unknown_ids": found.unknown_ids,
            "unknown_classes": found.unknown_classes,
        }
        told = {kind: tuple(each) for kind, each in problems.items() if each}
        attempt = Attempt(question.prompt, answer, None, n - len(found.classes), told)
        return cls(attempt, found.classes, attempt.unparsed > 0)


def _second_answers(
    questioner: Questioner, questions: Sequence[_Question]
) -> tuple[list[Answer | LanguageModelError], tuple[str, ...]]:
    """Ask once more, and say where that was refused: what was answered before is not lost for want of a budget."""
    if not questions:
        return [], ()
    try:
        return questioner.ask([question.prompt for question in questions]), ()
    except InputError as error:
        return [], (f"{len(questions)} questions without a clear answer were not asked again: {error}",)


def _trial(question: _Question, tries: Sequence[_Read]) -> Trial:
    """Take the attempt that says most, the first of equals."""
    best = min(tries, key=lambda each: each.attempt.unparsed)
    places = question.phases.evaluate
    predicted = tuple(best.classes.get(number) for number in range(1, len(places) + 1))
    return Trial(question.setting, question.seed, places, predicted, tuple(each.attempt for each in tries))


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
