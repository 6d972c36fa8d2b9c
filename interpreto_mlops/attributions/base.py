"""The frame of every attribution method: elements, targets, baselines, batching and results are here, once.

A method is a dataclass whose fields are its parameters and whose `estimate` is its mathematics.
"""

from __future__ import annotations

import dataclasses
import operator
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from interpreto_mlops.attributions.game import Game as Game
from interpreto_mlops.attributions.game import Presence as Presence
from interpreto_mlops.attributions.queries import Query
from interpreto_mlops.attributions.results import Attribution, AttributionSet, Floats
from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.continuations import generation_arguments
from interpreto_mlops.models.layer_targets import layer_targets
from interpreto_mlops.models.objectives import InferenceMode, check_mode
from interpreto_mlops.models.questions import Question
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import Program
from interpreto_mlops.models.targets import check_texts, questions
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.observers import Observers
from interpreto_mlops.registry import Registry
from interpreto_mlops.text.granularity import parse_grain

METHODS: Registry[type[Attributor]] = Registry("attribution method")
"""Every attribution method by its registry name."""

EXPLAINED: Observers[tuple[Attributor, AttributionSet]] = Observers()
"""Is told of each call of a method: the method, and what it returns."""


@dataclass(frozen=True)
class Estimate:
    """What a method's mathematics returns.

    Arguments:
        scores: of the players, shape (targets, players).
        standard_error: of each score, the same shape, or None.
        checks: the estimate's own checks.
        baseline_output: the score of each target at the baseline, when it is not that of the empty coalition; NaN
            stands for a method without one.
        parameters: what a parameter resolved to, where that is not what it was given.
    """

    scores: Floats
    standard_error: Floats | None = None
    checks: dict[str, float] = field(default_factory=dict)
    baseline_output: Floats | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attributor(ABC):
    """Explains texts: call it with texts and, if wanted, targets.

    Arguments:
        model: the sequence or token classifier, or language model, to explain; of concepts any model.
        granularity: what receives a score: `word`, `token`, `sentence`, `2-grams` and so on (words of one sentence), or
            `all_tokens` (special ones too).
        inference_mode: the score that is explained: `logits`, `softmax` or `log_softmax`.
        replacement: what stands for an absent element: `auto`, `mask`, `pad`, `unk`, `remove`, or a token id.
        target_granularity: what is explained of a continuation: each `token`, or each `word` or `sentence` of it.

    Raises:
        InputError: a parameter that cannot be used; the message names the choices.
    """

    name: ClassVar[str]
    signed: ClassVar[bool] = True
    """Whether a score says for or against; without a sign it says how much only."""

    model: TextModel = field(kw_only=False, repr=False)
    granularity: str = "word"
    inference_mode: str = "logits"
    replacement: str | int = "auto"
    target_granularity: str = "token"

    def __post_init__(self) -> None:
        if not isinstance(self.model, TextModel):
            raise InputError(
                f"give a TextModel, as TextModel(model, tokenizer) makes, not a {type(self.model).__name__}"
            )
        parse_grain(self.granularity)
        parse_grain(self.target_granularity)
        check_mode(self.model, InferenceMode.parse(self.inference_mode))
        Replacement.resolve(self.replacement, self.model)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as runs log them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "model"}

    def __call__(
        self,
        texts: Iterable[Any],
        targets: Any = None,
        *,
        contrast: Any = None,
        generation: Mapping[str, Any] | None = None,
        truncation: bool = False,
        progress: bool | None = False,
    ) -> AttributionSet:
        """Explain texts.

        Arguments:
            texts: the raw texts; pairs of texts for a classifier of pairs; conversations (lists of messages) for the
                chat template of a language model. An iterator is consumed lazily when no targets are given.
            targets: None for what the model itself says; else one target for all texts, or one entry for each. For a
                classifier a class, by id or label, or several; for a token classifier a label, or pairs of an element
                (its number or character span) and a label; for a language model a continuation, as a string or as
                token ids, where None lets the model generate it. For a model of any task, concepts of a layer, as
                `interpreto_mlops.concepts.concept_targets` makes them.
            contrast: what the targets are explained against, in the same form: the score is the difference. For a
                language model as many tokens as the target has, or one for all places.
            generation: arguments of the model's `generate`, such as `{"max_new_tokens": 5}`; `seed` for samples.
            truncation: whether a prompt that is too long is cut on the left instead of refused.
            progress: True for a progress bar, False for none, None for one when the output is a terminal.

        Returns:
            One attribution for each text, in order.

        Raises:
            InputError: texts or targets that cannot be used.
            ModelOutputError: the model returns NaN or infinity.
        """
        check_texts(texts)
        start, before = time.perf_counter(), self.model.engine.counters.copy()
        total = len(texts) if isinstance(texts, Sized) else None
        stream = self.stream(texts, targets, contrast=contrast, generation=generation, truncation=truncation)
        items = list(tqdm(stream, total=total, desc=self.name, unit="text", disable=hidden(progress), leave=False))
        counters = self.model.engine.counters.since(before).as_dict()
        explanations = AttributionSet(items, seconds=time.perf_counter() - start, counters=counters)
        EXPLAINED.tell((self, explanations))
        return explanations

    def stream(
        self,
        texts: Iterable[Any],
        targets: Any = None,
        *,
        contrast: Any = None,
        generation: Mapping[str, Any] | None = None,
        truncation: bool = False,
    ) -> Iterator[Attribution]:
        """Explain texts one after the other, as `__call__` does, with bounded memory."""
        check_texts(texts)
        generation = generation_arguments(generation)
        if targets is not None or contrast is not None:
            texts = list(texts)
        asked = questions(
            self.model,
            texts,
            targets,
            contrast=contrast,
            granularity=parse_grain(self.granularity),
            target_granularity=parse_grain(self.target_granularity),
            generation=generation,
            truncation=truncation,
        )
        call: dict[str, Any] = {} if targets is None else {"targets": "given", **_record(targets)}
        if generation:
            call["generation"] = generation
        yield from self.model.engine.run(self._program(question, call) for question in asked)

    def _program(self, question: Question, call: Mapping[str, Any] | None) -> Program[Attribution]:
        """Explain one text: find its targets, let the method estimate, put the result together."""
        elements = question.encoding.elements(parse_grain(self.granularity))
        question.narrow(InferenceMode.parse(self.inference_mode))
        game = Game(question, elements, Replacement.resolve(self.replacement, self.model))
        if len(elements) == 0:
            message = f"text {question.encoding.index} has nothing to attribute: {question.encoding.text[:40]!r}"
            warnings.warn(message, TextWarning, stacklevel=2)
            return self._empty(game)
        estimate = yield from self._run(game)
        return self._attribution(game, estimate, dict(call or {}))

    def _run(self, game: Game) -> Program[Estimate]:
        """Drive the method's own generator."""
        if game.n_players == 0:
            (read,) = yield [game.request(np.ones((1, 0), dtype=bool), exact=1)]
            game.settle(read, self._mode)
            return Estimate(np.zeros((len(game.full), 0)))
        steps = self.estimate(game)
        try:
            asked = next(steps)
            answer = yield from self._ask_first(game, asked)
            while True:
                asked = steps.send(answer)
                answer = yield from self._ask(game, asked)
        except StopIteration as stop:
            estimate: Estimate = stop.value
            return estimate

    def _ask_first(self, game: Game, asked: Presence | Query) -> Program[Any]:
        """Answer a method's first request, which also finds the targets and the scores of full and empty text."""
        ends = np.asarray([[True], [False]]).repeat(game.n_players, axis=1)
        if isinstance(asked, np.ndarray):
            (read,) = yield [game.request(np.concatenate([ends, asked]), exact=2)]
            game.settle(read[:2], self._mode)
            return game.objective.score(read[2:])
        # Under autocast the text's score is read apart, in the model's own dtype.
        if asked.is_text and self.model.autocast is None:
            (result,) = yield [asked.request(game, self._settling(game))]
            return result
        # Not every query needs the empty text, and some tokenizers have nothing that could stand for it.
        (read,) = yield [game.request(ends if asked.needs_empty else ends[:1], exact=2)]
        game.settle(read, self._mode)
        return (yield from self._ask(game, asked))

    def _ask(self, game: Game, asked: Presence | Query) -> Program[Any]:
        if isinstance(asked, Query):
            (result,) = yield [asked.request(game, game.objective)]
            return result
        (read,) = yield [game.request(asked)]
        return game.objective.score(read)

    def _settling(self, game: Game) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return an objective that finds the targets from what it is given first, the read of the text itself."""

        def objective(read: torch.Tensor) -> torch.Tensor:
            game.settle(read[:1].detach().cpu().numpy().astype(np.float64), self._mode)
            return game.objective(read)

        return objective

    @property
    def _mode(self) -> InferenceMode:
        return InferenceMode.parse(self.inference_mode)

    @abstractmethod
    def estimate(self, game: Game) -> Steps:
        """The method's mathematics for one text, as a generator.

        It yields coalitions, shape (rows, players), and receives their scores, shape (rows, targets); or a `Query`,
        such as a `Path`, and receives the engine's answer. After the first answer `game.full`, `game.objective` and
        `game.valid` are known, and `game.empty` unless the first request was a query that does not need it (then it is
        NaN). It returns an `Estimate`.
        """

    def _attribution(self, game: Game, estimate: Estimate, call: dict[str, Any]) -> Attribution:
        base = game.empty if estimate.baseline_output is None else estimate.baseline_output
        error = estimate.standard_error
        parameters = {**self._recorded(game), **call}
        return self._about(
            game,
            scores=game.matrix(estimate.scores),
            targets=game.objective.targets,
            output=game.full,
            baseline_output=base,
            standard_error=None if error is None else game.matrix(error),
            parameters={**parameters, **estimate.parameters},
            checks={**estimate.checks, **game.not_shown(estimate.scores)},
        )

    def _recorded(self, game: Game) -> dict[str, Any]:
        # As files keep them: numbers of Python's own.
        given = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in self.parameters.items()
        }
        return {**given, "replacement": str(game.replacement), **self.model.arithmetic}

    def _empty(self, game: Game) -> Attribution:
        targets = game.question.expected
        nothing = np.full(len(targets), np.nan)
        return self._about(
            game,
            scores=np.zeros((len(targets), 0)),
            targets=targets,
            output=nothing,
            baseline_output=nothing,
            standard_error=None,
            parameters=self._recorded(game),
            checks={},
        )

    def _about(self, game: Game, **found: Any) -> Attribution:
        encoding, elements = game.encoding, game.elements
        return Attribution(
            text=encoding.text,
            index=encoding.index,
            elements=elements.names,
            spans=elements.spans,
            method=self.name,
            truncated=encoding.truncated,
            ids=encoding.ids,
            of_token=elements.of_token,
            boundary=encoding.boundary,
            prompt_tokens=encoding.prompt_tokens,
            **found,
        )


def _record(targets: Any) -> dict[str, Any]:
    """Return what results say of targets at a layer."""
    at_layer = layer_targets(targets)
    if at_layer is None:
        return {}
    first, *others = [each.record for each in (at_layer if isinstance(at_layer, list) else [at_layer])]
    differing = {name for other in others for name in first if other.get(name) != first[name]}
    return {name: "differs by text" if name in differing else value for name, value in first.items()}


Steps = Generator["Presence | Query", Any, Estimate]


def as_integer(name: str, value: Any, least: int) -> int:
    """Return a whole number, from whatever integer type.

    Raises:
        InputError: something else, or less than `least`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return number


def hidden(progress: bool | None) -> bool | None:
    """Turn "show it" into tqdm's "hide it", where None asks whether the output is a terminal."""
    return None if progress is None else not progress
