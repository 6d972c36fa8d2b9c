"""Max-sensitivity: how far an explanation moves when the embeddings move a little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.attributions.base import Attributor, as_integer
from interpreto_mlops.attributions.game import Game
from interpreto_mlops.attributions.metrics.base import METRICS, Outcome, TextMetric, side_by_side, text_score
from interpreto_mlops.attributions.metrics.results import Floats, MetricResult
from interpreto_mlops.attributions.metrics.subjects import Subject
from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.attributions.sampling import as_number
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.questions import Question
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import (
    EmbeddingRequest,
    GradientRequest,
    GradientResult,
    Program,
    Readout,
    Request,
    Result,
    ScoreRequest,
)
from interpreto_mlops.text.granularity import NO_ELEMENT, Elements


@METRICS.register("max_sensitivity")
@dataclass(frozen=True, kw_only=True)
class MaxSensitivity(TextMetric):
    """Largest change of the scores, relative to their length, when the embeddings move a little: low is good.

    max over draws of ‖a(e + δ) − a(e)‖ / ‖a(e)‖, |δ| ≤ `radius` in every component of the elements' embeddings. Only
    for methods that take gradients: token ids have no small change. The random baseline permutes a(e + δ).
    Source: Yeh et al. 2019 (arXiv 1901.09392), definition 3.1.

    Arguments:
        explainer: the method, as it made the explanations.
        n_draws: moves of each text.
        radius: the largest move of a component, in the embeddings' unit.
    """

    name: ClassVar[str] = "max_sensitivity"
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    needs: ClassVar[str] = "explainer"

    explainer: Attributor = field(repr=False)
    n_draws: int = 10
    radius: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_draws", as_integer("n_draws", self.n_draws, 1))
        if not 0 < as_number(self.radius) < float("inf"):
            raise InputError(f"the radius must be above 0, and finite, not {self.radius!r}")
        check_explainer(self.name, self.explainer)
        if self.explainer.model is not self.model:
            raise InputError(f"{self.name} needs the explainer's own model, {self.explainer.model!r}")

    def __call__(self, explanations: AttributionSet, *, progress: bool | None = False) -> MetricResult:
        """Score the explanations, which must be the explainer's.

        Raises:
            InputError: they are of another method, or the method takes no gradients.
        """
        check_method(self.name, self.explainer, explanations)
        return super().__call__(explanations, progress=progress)

    def program(self, subject: Subject) -> Program[Outcome]:
        """Explain the text again at each move, and measure how far the scores went."""
        moved = yield from side_by_side([self._explained(subject, draw) for draw in range(self.n_draws)])
        scores = np.stack([subject.scored(each).scores for each in moved])
        length = np.linalg.norm(subject.scores, axis=-1)
        if not length.any():
            return "zero scores"
        orders = subject.random_orders(self.n_random, self.seed)
        shuffled = np.stack([replace(subject, scores=each).permuted(orders) for each in scores])
        every = np.concatenate([scores[:, None], shuffled], axis=1)
        distance = np.linalg.norm(every - subject.scores, axis=-1).max(axis=0)
        relative = np.where(length > 0, distance / np.where(length > 0, length, 1.0), np.nan)
        return text_score(relative[0], relative[1:]) or "zero scores"

    def _explained(self, subject: Subject, draw: int) -> Program[Floats]:
        """Explain the text with its embeddings moved, shape (targets, elements)."""
        encoding = subject.game.encoding
        question = subject.game.question
        players = subject.player_of_token != NO_ELEMENT
        shift = _Shift(encoding, players, self.radius, (encoding.seed(self.seed), draw), type(question.readout))
        program = explained_again(self.explainer, question, subject.game.elements)
        gradients, answers = False, None
        while True:
            try:
                requests = program.send(answers)  # type: ignore[arg-type]
            except StopIteration as stop:
                explained: Floats = stop.value
                break
            gradients |= any(isinstance(request, GradientRequest) for request in requests)
            moves = [shift.request(request) for request in requests]
            received = iter((yield [request for asked, _ in moves for request in asked]))
            answers = [join([next(received) for _ in asked]) for asked, join in moves]
        if not gradients:
            raise InputError(
                f"{self.name} needs a method that takes gradients, which {self.explainer.name!r} does not: "
                "token ids have no small change"
            )
        return explained


Join = Callable[[list[Result]], Result]
"""Makes the answer to a request from those to what was asked instead of it."""


@dataclass(frozen=True)
class _Shift:
    """Moves the embeddings of a text by the same random amount in all that a method asks for.

    Arguments:
        encoding: the text.
        players: which tokens move, shape (tokens,).
        radius: the largest move of a component.
        seed: of the move.
        kind: the readout of scores; what else a method reads is none that a gradient method asks for.
    """

    encoding: Encoding
    players: npt.NDArray[np.bool_]
    radius: float
    seed: tuple[int, int]
    kind: type[Readout]

    def request(self, request: Request) -> tuple[list[Request], Join]:
        """Return what to ask instead, and what makes the answer from the answers to that."""
        if isinstance(request, ScoreRequest):
            return self._score(request)
        moved = replace(request, points=lambda anchors, numbers: request.points(self.moved(anchors), numbers))
        return [moved], self._gradient if isinstance(request, GradientRequest) else _only

    def moved(self, anchors: torch.Tensor) -> torch.Tensor:
        """Return the anchors with the first, the text, moved; shape (anchors, tokens, width)."""
        out = anchors.clone()
        out[0] += torch.from_numpy(self._delta(anchors.shape[-1])).to(anchors)
        return out

    def _delta(self, width: int) -> Floats:
        drawn = np.random.default_rng(self.seed).uniform(-self.radius, self.radius, (len(self.players), width))
        return np.where(self.players[:, None], drawn, 0.0)

    def _gradient(self, results: list[Result]) -> GradientResult:
        result: GradientResult = results[0]
        anchors = result.anchors.copy()
        anchors[0] += self._delta(anchors.shape[-1])
        return replace(result, anchors=anchors)

    def _score(self, request: ScoreRequest) -> tuple[list[Request], Join]:
        """Ask for the untouched text at its moved embeddings, for other rows as they are."""
        whole = np.asarray([np.array_equal(row, self.encoding.ids) for row in request.rows], dtype=bool)
        if not whole.any() or type(request.readout_of(0)) is not self.kind:
            return [request], _only
        text = EmbeddingRequest(
            self.encoding,
            self.encoding.ids[None],
            lambda anchors, numbers: self.moved(anchors)[:1].expand(len(numbers), -1, -1),
            1,
            request.readout_of(int(whole.argmax())),
        )
        others = [row for row, is_text in zip(request.rows, whole, strict=True) if not is_text]
        if not others:
            return [text], lambda results: np.repeat(results[0], len(whole), axis=0)

        def join(results: list[Result]) -> Result:
            out = np.empty((len(whole), results[0].shape[1]))
            out[whole], out[~whole] = results
            return out

        readouts = [request.readout_of(place) for place in np.flatnonzero(~whole).tolist()]
        return [text, replace(request, rows=others, readout=readouts)], join


def _only(results: list[Result]) -> Result:
    return results[0]


def explained_again(explainer: Attributor, question: Question, elements: Elements) -> Program[Floats]:
    """Explain the same question once more, on the explainer's model; return the scores, shape (targets, elements)."""
    game = Game(question, elements, Replacement.resolve(explainer.replacement, explainer.model))
    estimate = yield from explainer._run(game)
    return game.matrix(estimate.scores)


def check_explainer(name: str, explainer: Any) -> None:
    """Refuse what is no attribution method.

    Raises:
        InputError: it is none.
    """
    if not isinstance(explainer, Attributor):
        raise InputError(f"{name} needs the explainer, an attribution method of the model, not {explainer!r}")


def check_method(name: str, explainer: Attributor, explanations: AttributionSet) -> None:
    """Refuse explanations that are not the explainer's.

    Raises:
        InputError: they are by another method, or of other elements or scores.
    """
    if not len(explanations):
        return
    given = {"method": explanations.method, **explanations.parameters}
    mine = {"method": explainer.name, "granularity": explainer.granularity, "inference_mode": explainer.inference_mode}
    for key, value in mine.items():
        if given.get(key, value) != value:
            raise InputError(
                f"{name} was given explanations with {key} {given[key]!r}, but an explainer with {value!r}"
            )
