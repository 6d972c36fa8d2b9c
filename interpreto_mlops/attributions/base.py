"""The frame of every attribution method: elements, targets, baselines, batching and results are here, once.

A method is a dataclass whose fields are its parameters and whose `estimate` is its mathematics.
"""

from __future__ import annotations

import dataclasses
import operator
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from interpreto_mlops.attributions.queries import Query
from interpreto_mlops.attributions.results import Attribution, AttributionSet, Floats, Target
from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.objectives import (
    ClassObjective,
    InferenceMode,
    check_mode,
    is_multi_label,
    resolve_classes,
)
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import GradientRequest, GradientResult, Program, ScoreRequest
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.registry import Registry
from interpreto_mlops.text.granularity import NO_ELEMENT, Elements, Granularity

METHODS: Registry[type[Attributor]] = Registry("attribution method")
"""Every attribution method by its registry name."""

Presence = npt.NDArray[np.bool_]
"""Coalitions of a text's elements, shape (rows, elements): True where an element stays."""


@dataclass(frozen=True)
class Estimate:
    """What a method's mathematics returns.

    Arguments:
        scores: shape (targets, elements), or (targets, tokens) from a gradient method.
        standard_error: of each score, the same shape, or None.
        checks: the estimate's own checks.
        baseline_output: the score of each target at the baseline, when it is not that of the empty coalition.
        parameters: what a parameter resolved to, where that is not what it was given.
    """

    scores: Floats
    standard_error: Floats | None = None
    checks: dict[str, float] = field(default_factory=dict)
    baseline_output: Floats | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


class Game:
    """One text as a game: its elements are the players, the model's score of each target is the value.

    `full` and `empty`, shape (targets,), are the scores with every and with no element; `targets` what is explained.
    """

    full: Floats
    empty: Floats
    objective: ClassObjective

    def __init__(self, encoding: Encoding, elements: Elements, replacement: Replacement) -> None:
        self.encoding = encoding
        self.elements = elements
        self.replacement = replacement
        self._spare = elements.of_token == NO_ELEMENT

    @property
    def n_players(self) -> int:
        """How many elements there are."""
        return len(self.elements)

    def request(self, present: Presence) -> ScoreRequest:
        """Ask for the scores of coalitions, shape (rows, elements). Tokens of no element always stay."""
        tokens = present[:, self.elements.of_token] | self._spare
        return ScoreRequest(self.encoding, self.replacement.rows(self.encoding, tokens))

    def generator(self, seed: int) -> np.random.Generator:
        """Return random numbers that depend on the seed and this text alone."""
        return np.random.default_rng(self.encoding.seed(seed))

    def sum_tokens(self, token_scores: Floats) -> Floats:
        """Sum token scores, shape (..., tokens), over the tokens of each element, shape (..., elements)."""
        member = self.elements.of_token[:, None] == np.arange(self.n_players)
        scores: Floats = token_scores @ member.astype(np.float64)
        return scores


@dataclass(frozen=True, kw_only=True)
class Attributor(ABC):
    """Explains texts: call it with texts and, if wanted, targets.

    Arguments:
        model: the classifier to explain.
        granularity: what receives a score: `word`, `token`, `sentence`, or `all_tokens` (special ones too).
        inference_mode: the score that is explained: `logits`, `softmax` or `log_softmax`.
        replacement: what stands for an absent element: `auto`, `mask`, `pad`, `unk`, `remove`, or a token id.

    Raises:
        InputError: a parameter that cannot be used; the message names the choices.
    """

    name: ClassVar[str]

    model: TextModel = field(kw_only=False, repr=False)
    granularity: str = "word"
    inference_mode: str = "logits"
    replacement: str | int = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.model, TextModel):
            raise InputError(
                f"give a TextModel, as TextModel(model, tokenizer) makes, not a {type(self.model).__name__}"
            )
        if self.model.task != "classification":
            raise InputError(
                f"attributions need a sequence classifier; {self.model.name!r} is a {type(self.model.model).__name__}"
            )
        Granularity.parse(self.granularity)
        check_mode(self.model, InferenceMode.parse(self.inference_mode))
        Replacement.resolve(self.replacement, self.model)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as runs log them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "model"}

    def __call__(self, texts: Iterable[str], targets: Any = None, *, progress: bool | None = False) -> AttributionSet:
        """Explain texts.

        Arguments:
            texts: the raw texts; an iterator is consumed lazily when no targets are given.
            targets: the class to explain, by id or label: None for the predicted one, one for all texts, or one entry
                (a class or several) for each text.
            progress: True for a progress bar, False for none, None for one when the output is a terminal.

        Returns:
            One attribution for each text, in order.

        Raises:
            InputError: texts or targets that cannot be used.
            ModelOutputError: the model returns NaN or infinity.
        """
        start, before = time.perf_counter(), self.model.engine.counters.copy()
        total = len(texts) if isinstance(texts, Sequence) else None
        stream = self.stream(texts, targets)
        items = list(tqdm(stream, total=total, desc=self.name, unit="text", disable=hidden(progress), leave=False))
        counters = self.model.engine.counters.since(before).as_dict()
        return AttributionSet(items, seconds=time.perf_counter() - start, counters=counters)

    def stream(self, texts: Iterable[str], targets: Any = None) -> Iterator[Attribution]:
        """Explain texts one after the other, as `__call__` does, with bounded memory."""
        if isinstance(texts, str):
            raise InputError(f"give a list of texts, not one string ({texts[:40]!r})")
        if targets is None:
            classes: Iterator[tuple[int, ...] | None] = _forever_none()
        else:
            texts = list(texts)
            classes = iter(resolve_classes(targets, self.model, len(texts)))
        encodings = self.model.encode(texts)
        yield from self.model.engine.run(self._program(e, c) for e, c in zip(encodings, classes, strict=False))

    def _program(self, encoding: Encoding, classes: tuple[int, ...] | None) -> Program[Attribution]:
        """Explain one text: find its target, let the method estimate, put the result together."""
        elements = encoding.elements(Granularity.parse(self.granularity))
        game = Game(encoding, elements, Replacement.resolve(self.replacement, self.model))
        if len(elements) == 0:
            message = f"text {encoding.index} has nothing to attribute: {encoding.text[:40]!r}"
            warnings.warn(message, TextWarning, stacklevel=2)
            return self._empty(game, classes or ())
        estimate = yield from self._run(game, classes)
        return self._attribution(game, estimate)

    def _run(self, game: Game, classes: tuple[int, ...] | None) -> Program[Estimate]:
        """Drive the method's own generator; its first request also carries the full and the empty coalition."""
        steps = self.estimate(game)
        try:
            asked = next(steps)
            present = asked if isinstance(asked, np.ndarray) else np.zeros((0, game.n_players), dtype=bool)
            full, empty = np.ones((1, game.n_players), dtype=bool), np.zeros((1, game.n_players), dtype=bool)
            # A path has its own baseline, and some tokenizers have nothing that could stand for an empty text.
            ends = [full] if isinstance(asked, Path) and asked.zero_baseline else [full, empty]
            (logits,) = yield [game.request(np.concatenate([*ends, present]))]
            self._settle(game, logits[: len(ends)], classes)
            answer: Any = game.objective.score(logits[len(ends) :])
            while True:
                if isinstance(asked, Query):
                    (answer,) = yield [asked.request(game)]
                asked = steps.send(answer)
                if isinstance(asked, np.ndarray):
                    (logits,) = yield [game.request(asked)]
                    answer = game.objective.score(logits)
        except StopIteration as stop:
            estimate: Estimate = stop.value
            return estimate

    def _settle(self, game: Game, logits: Floats, classes: tuple[int, ...] | None) -> None:
        chosen = classes or (int(logits[0].argmax()),)
        game.objective = ClassObjective(chosen, InferenceMode.parse(self.inference_mode), is_multi_label(self.model))
        ends = game.objective.score(logits)
        game.full = ends[0]
        game.empty = ends[1] if len(ends) > 1 else np.full_like(ends[0], np.nan)

    @abstractmethod
    def estimate(self, game: Game) -> Steps:
        """The method's mathematics for one text, as a generator.

        It yields coalitions, shape (rows, elements), and receives their scores, shape (rows, targets); or a `Query`,
        such as a `Path`, and receives the engine's answer. After the first answer `game.full`, `game.empty` and
        `game.objective` are known.
        It returns an `Estimate`.
        """

    def _attribution(self, game: Game, estimate: Estimate) -> Attribution:
        base = game.empty if estimate.baseline_output is None else estimate.baseline_output
        return Attribution(
            text=game.encoding.text,
            index=game.encoding.index,
            elements=game.elements.names,
            spans=game.elements.spans,
            scores=estimate.scores,
            targets=tuple(Target(c, self.model.labels[c]) for c in game.objective.classes),
            output=game.full,
            baseline_output=base,
            standard_error=estimate.standard_error,
            method=self.name,
            parameters={**self._recorded(game), **estimate.parameters},
            checks=estimate.checks,
            truncated=game.encoding.truncated,
        )

    def _recorded(self, game: Game) -> dict[str, Any]:
        return {**self.parameters, "replacement": str(game.replacement), "dtype": str(self.model.dtype).split(".")[-1]}

    def _empty(self, game: Game, classes: Sequence[int]) -> Attribution:
        nothing = np.full(len(classes), np.nan)
        return Attribution(
            text=game.encoding.text,
            index=game.encoding.index,
            elements=(),
            spans=game.elements.spans,
            scores=np.zeros((len(classes), 0)),
            targets=tuple(Target(c, self.model.labels[c]) for c in classes),
            output=nothing,
            baseline_output=nothing,
            standard_error=None,
            method=self.name,
            parameters=self._recorded(game),
            truncated=game.encoding.truncated,
        )


@dataclass(frozen=True)
class Path(Query):
    """Points between a baseline and the text in the embedding space, at which gradients are summed.

    Arguments:
        nodes: the share of the text at each point: 0 is the baseline, 1 the text; shape (points,).
        weights: the weight of each point's gradient, shape (points,).
        zero_baseline: whether the baseline's embeddings are zero instead of those of the replacement token.
    """

    nodes: Floats
    weights: Floats
    zero_baseline: bool = False

    def request(self, game: Game) -> GradientRequest:
        """Return what the engine is asked for: anchor 0 is the text, anchor 1 the text with every element replaced."""
        baseline = _baseline_ids(game)
        players = game.elements.of_token != NO_ELEMENT

        def points(anchors: Any, numbers: Any) -> Any:
            # Nodes in half precision would be other nodes; the engine rounds the points, once.
            precise = torch.promote_types(anchors.dtype, torch.float32)
            share = torch.as_tensor(self.nodes, dtype=precise, device=anchors.device)[numbers][:, None, None]
            start = anchors[1].clone()
            if self.zero_baseline:
                start[anchors.new_tensor(players).bool()] = 0
            return start + share * (anchors[0] - start)

        return GradientRequest(
            encoding=game.encoding,
            anchors=np.stack([game.encoding.ids, baseline]),
            points=points,
            weights=self.weights,
            objective=game.objective,
            n_targets=len(game.objective.classes),
        )

    def difference(self, game: Game, result: GradientResult) -> Floats:
        """Return text minus baseline in the embedding space, shape (tokens, width)."""
        text, replaced = result.anchors
        start = replaced.copy()
        if self.zero_baseline:
            start[game.elements.of_token != NO_ELEMENT] = 0
        difference: Floats = text - start
        return difference


Steps = Generator["Presence | Query", Any, Estimate]


def _baseline_ids(game: Game) -> npt.NDArray[np.int64]:
    if game.replacement.id is None:
        return game.encoding.ids
    return np.where(game.elements.of_token == NO_ELEMENT, game.encoding.ids, game.replacement.id)


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


def _forever_none() -> Iterator[None]:
    while True:
        yield None


def hidden(progress: bool | None) -> bool | None:
    """Turn "show it" into tqdm's "hide it", where None asks whether the output is a terminal."""
    return None if progress is None else not progress
