"""The frame of concept importance: texts, targets and batches are here, the mathematics in one file a method.

A method is a dataclass whose fields are its parameters. Those by gradients say what they make of them; those by
variants are generators that yield masks over a text's concepts and receive the scores of its targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.linear import LinearDecoder
from interpreto_mlops.concepts.row_plans import RowPlan, plan_rows
from interpreto_mlops.errors import InputError, ModelOutputError, OutOfMemoryError
from interpreto_mlops.models.objectives import InferenceMode, Objective, Target
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.probes import bears_padding
from interpreto_mlops.models.questions import LabelQuestion, Question
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.suffix import Suffix
from interpreto_mlops.registry import Registry
from interpreto_mlops.text.granularity import NO_ELEMENT

Floats = npt.NDArray[np.float64]
C = TypeVar("C")

# Texts of like length meet in windows of this many batches' tokens.
_WINDOW_BATCHES = 16
# Numbers of a window's codes and gradients: 256 MiB.
_WINDOW_NUMBERS = 2**26
# Numbers of the masks that wait for their scores: 64 MiB.
_MASK_NUMBERS = 2**24


class _Methods(Registry[type["ImportanceMethod"]]):
    """A registry that tells each class the name it is registered by."""

    def register(self, name: str) -> Callable[[C], C]:
        remember = super().register(name)

        def decorate(method: C) -> C:
            method.name = name  # type: ignore[attr-defined]
            return remember(method)

        return decorate


IMPORTANCE: Registry[type[ImportanceMethod]] = _Methods("concept importance method")
"""The methods by name; a method is one file in `concepts/importance/`."""


@dataclass(frozen=True, kw_only=True)
class ImportanceMethod(ABC):
    """How much each concept of a text matters to each target."""

    name: ClassVar[str]
    per_row: ClassVar[bool] = False
    """Whether it has a value for each row, whose sum over rows is the text's."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class GradientMethod(ImportanceMethod):
    """A method by the gradients of the scores by the codes, at one or more points on the way from no concept to all."""

    per_row: ClassVar[bool] = True

    @property
    @abstractmethod
    def points(self) -> tuple[Floats, Floats]:
        """The shares of the codes at which gradients are taken, and the weights that they are added with."""

    @abstractmethod
    def values(self, codes: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return the importances.

        Arguments:
            codes: shape (rows, n_concepts).
            gradients: weighted sum over points, shape (targets, rows, n_concepts).

        Returns:
            Shape (targets, rows, n_concepts).
        """


Masks = npt.NDArray[np.float32]
"""What share of each active concept's code stays, shape (variants, active concepts)."""

Steps = Generator[Masks, Floats, Floats]
"""Yields masks, receives scores, shape (variants, targets), and returns values, shape (targets, active concepts)."""


class VariantMethod(ImportanceMethod):
    """A method by the scores of the text with other codes."""

    @abstractmethod
    def steps(self, n_active: int, full: Floats, rng: np.random.Generator) -> Steps:
        """Ask for variants and return the values.

        Arguments:
            n_active: how many concepts the text holds, at least one.
            full: the scores of the text as it is, shape (targets,).
            rng: the text's own random numbers.
        """


@dataclass(frozen=True)
class LocalImportance:
    """How much each concept matters to the targets of one text.

    Arguments:
        index: the text's place.
        text: the raw text; a prompt together with its continuation.
        targets: what is explained.
        spans: the characters that each row stands for, shape (rows, 2).
        codes: shape (rows, n_concepts).
        totals: shape (targets, n_concepts).
        values: of each row, shape (targets, rows, n_concepts), where the method has them; their sum is `totals`.
        scores: of the targets, shape (targets,).
    """

    index: int
    text: str
    targets: tuple[Target, ...]
    spans: npt.NDArray[np.int64]
    codes: npt.NDArray[np.float32]
    totals: Floats
    values: Floats | None
    scores: Floats

    def top(self, target: int, k: int) -> tuple[int, ...]:
        """Return the concepts of the largest |importance| for a target, best first."""
        return tuple(np.argsort(-np.abs(self.totals[target]), kind="stable")[:k].tolist())


def _nothing() -> torch.Tensor:
    return torch.empty(0)


@dataclass
class Subject:
    """One text on its way; what is below `weights` is found when it is run for the first time.

    Arguments:
        question: what is asked.
        plan: its rows.
        weights: how much of a row's change each token gets, shape (tokens, rows).
        output: what the layer puts out, shape (tokens, width).
        rows: of activations, shape (rows, width).
        codes: shape (rows, n_concepts).
        read: what was read from the model.
        full: the scores, of the reconstruction where that is explained, shape (targets,).
        gradients: of the scores by the codes, shape (targets, rows, n_concepts), where a method wants them.
    """

    question: Question
    plan: RowPlan
    weights: torch.Tensor
    output: torch.Tensor = field(default_factory=_nothing)
    rows: torch.Tensor = field(default_factory=_nothing)
    codes: torch.Tensor = field(default_factory=_nothing)
    read: Floats = field(default_factory=lambda: np.zeros(0))
    objective: Objective | None = None
    full: Floats = field(default_factory=lambda: np.zeros(0))
    gradients: torch.Tensor = field(default_factory=_nothing)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is scored, once that is known."""
        return () if self.objective is None else self.objective.targets

    @property
    def active(self) -> npt.NDArray[np.int64]:
        """The concepts that the text holds."""
        return np.flatnonzero((self.codes != 0).any(dim=0).numpy())

    def scored(self, read: torch.Tensor) -> torch.Tensor:
        """Return the scores of the targets, shape (targets,), from what was read, shape (width,)."""
        assert self.objective is not None
        return self.objective(read[None])[0]


def subject(question: Question, granularity: str, aggregation: str) -> Subject:
    """Find the rows of a text and how a change of each moves its tokens.

    Raises:
        InputError: an aggregation that a change of the row says nothing about.
    """
    encoding = question.encoding
    whole = plan_rows(encoding, granularity)
    cut = encoding.first_part if question.model.model.config.is_encoder_decoder else len(encoding)
    of_token = whole.of_token[:cut]
    n_rows = int(of_token.max(initial=-1)) + 1
    plan = RowPlan(encoding, of_token, whole.positions[:n_rows], whole.spans[:n_rows])
    weights = np.zeros((cut, n_rows), dtype=np.float32)
    kept = np.flatnonzero(of_token != NO_ELEMENT)
    weights[kept, of_token[kept]] = 1.0
    counts = weights.sum(axis=0)
    single = bool((counts <= 1).all())
    if aggregation == "sum" and not single:
        weights /= np.maximum(counts, 1)
    elif aggregation in {"first", "last"}:
        weights[:] = 0.0
        for row in range(n_rows):
            weights[np.flatnonzero(of_token == row)[0 if aggregation == "first" else -1], row] = 1.0
    elif aggregation != "mean" and not single:
        raise InputError(
            f"rows that are the {aggregation!r} of their tokens do not say which token a concept moves; fit on means"
        )
    return Subject(question, plan, torch.from_numpy(weights))


class Frame:
    """One dictionary at one layer of one model, and the batches in which texts are run.

    Arguments:
        split: the split model.
        dictionary: fitted.
        path: the split point.
        mode: the space in which scores are read.
        keep_error: whether what the dictionary does not reconstruct stays.
        token_budget: the most tokens of a batch, padding included.
        seed: of random draws; each text has its own, by its token ids.
    """

    def __init__(
        self,
        split: Splitter,
        dictionary: ConceptDictionary,
        path: str,
        *,
        mode: InferenceMode,
        keep_error: bool,
        token_budget: int,
        seed: int,
    ) -> None:
        self.split, self.dictionary, self.path, self.model = split, dictionary, path, split.model
        self.mode, self.keep_error, self.token_budget, self.seed = mode, keep_error, token_budget, seed
        said = dictionary.provenance
        self.granularity = str(said.get("granularity", "sample" if path in split.per_text else "token"))
        self.aggregation = str(said.get("aggregation") or "mean")
        self.suffix = Suffix(split, path)
        if self.model.task == "generation":
            # What it finds out by a run of its own shall not be found out while a layer is replaced.
            _ = self.model.plain_head

    def run(self, method: ImportanceMethod, questions: Iterable[Question]) -> Iterator[LocalImportance]:
        """Yield each text's importances, in order."""
        # Where the reconstruction is explained, the gradient at the model's own activations is another one.
        at_text = isinstance(method, GradientMethod) and method.points[0].tolist() == [1.0] and self.keep_error
        for subjects in self.subjects(questions, gradients=at_text):
            if isinstance(method, VariantMethod):
                yield from self._by_variants(method, subjects)
            elif isinstance(method, GradientMethod):
                if not at_text:
                    self._path_gradients(method, subjects)
                for each in subjects:
                    yield self._local(each, values=method.values(each.codes, each.gradients))

    def subjects(self, questions: Iterable[Question], *, gradients: bool = False) -> Iterator[list[Subject]]:
        """Yield windows of texts that were run once: layer's output, codes, scores, and gradients where wanted."""
        for window in self._windows(questions):
            subjects = [self._subject(question) for question in window]
            self._observe(subjects, gradients=gradients)
            if not self.keep_error:
                reads = self.read_with(subjects, [each.codes for each in subjects].__getitem__)
                for each, read in zip(subjects, reads, strict=True):
                    each.full = each.scored(read).double().cpu().numpy()
            yield subjects

    def read_with(self, subjects: Sequence[Subject], codes: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """Return what is read from the model for each text with other codes.

        Arguments:
            subjects: the texts, observed.
            codes: from a place in `subjects` to codes, shape (rows, n_concepts); asked for batch by batch.
        """
        found: list[torch.Tensor] = [_nothing()] * len(subjects)
        for places in self._packed(subjects):
            batch = [subjects[i] for i in places]
            moved = [self._moved(subjects[i], codes(i)) for i in places]
            with self.model.evaluating(), torch.no_grad():
                _, read = self._read(batch, moved)
            for place, each, row in zip(places, batch, read, strict=True):
                found[place] = self._own(each, row)
        return found

    def _subject(self, question: Question) -> Subject:
        question.narrow(self.mode)
        if self.path not in self.split.per_text:
            return subject(question, self.granularity, self.aggregation)
        plan = plan_rows(question.encoding, "sample")
        return Subject(question, plan, torch.ones(1, 1))

    def _windows(self, questions: Iterable[Question]) -> Iterator[list[Question]]:
        window: list[Question] = []
        held = numbers = 0
        for question in questions:
            tokens = len(question.encoding)
            # A text without tokens, or without any that has a label.
            if not tokens or question.readout.width == 0:
                continue
            window.append(question)
            held += tokens
            numbers += tokens * self.dictionary.n_concepts * (1 + _n_targets(question))
            if held >= self.token_budget * _WINDOW_BATCHES or numbers >= _WINDOW_NUMBERS:
                yield window
                window, held, numbers = [], 0, 0
        if window:
            yield window

    def _packed(self, subjects: Sequence[Subject]) -> list[list[int]]:
        """Return the places of the texts of each batch: of equal length where padding changes the model's answers."""
        lengths = [len(each.question.encoding) for each in subjects]
        if self._may_pad(subjects, lengths):
            return pack(lengths, self.token_budget)
        batches: list[list[int]] = []
        for length in sorted(set(lengths), reverse=True):
            alike = [place for place, other in enumerate(lengths) if other == length]
            batches += [[alike[i] for i in batch] for batch in pack([length] * len(alike), self.token_budget)]
        return batches

    def _may_pad(self, subjects: Sequence[Subject], lengths: Sequence[int]) -> bool:
        ends = [subjects[lengths.index(wanted)].question for wanted in (min(lengths), max(lengths))]
        if len(ends[0].encoding) == len(ends[1].encoding):
            return True
        return bears_padding(self.model, [(each.encoding, each.encoding.ids, each.readout) for each in ends])

    def _observe(self, subjects: list[Subject], *, gradients: bool) -> None:
        """Run every text once: outputs of the layer, codes, scores, and gradients at the codes where wanted."""
        for places in self._packed(subjects):
            batch = [subjects[i] for i in places]
            self._guarded(batch, lambda part: self._observe_batch(part, gradients))

    def _guarded(self, batch: list[Subject], run: Callable[[list[Subject]], None]) -> None:
        try:
            run(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                encoding = batch[0].question.encoding
                message = f"text {encoding.index} with {len(encoding)} tokens does not fit in memory"
                raise OutOfMemoryError(message) from error
            for part in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._guarded(part, run)

    def _inputs(self, batch: Sequence[Subject]) -> tuple[dict[str, torch.Tensor], list[Any]]:
        encodings = [each.question.encoding for each in batch]
        readouts = [each.question.readout for each in batch]
        kind = type(readouts[0])
        return kind.inputs(self.model, encodings, [encoding.ids for encoding in encodings], readouts), readouts

    def _observe_batch(self, batch: list[Subject], gradients: bool) -> None:
        inputs, readouts = self._inputs(batch)
        caught: list[torch.Tensor] = []

        def catch(output: torch.Tensor) -> torch.Tensor | None:
            if caught:
                return None
            if not gradients:
                caught.append(output.detach().clone())
                return None
            leaf = output.detach().clone().requires_grad_(True)
            caught.append(leaf)
            torch.set_grad_enabled(True)
            return leaf

        # Nothing before the layer needs a graph; `no_grad` puts the caller's mode back whatever happens.
        with torch.inference_mode(False), self.model.evaluating(), self.model.frozen(), torch.no_grad():
            inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            with self.split.replaced(self.path, catch):
                read = type(readouts[0]).read(self.model, self.model.with_positions(inputs), readouts)
            output = caught[0]
            scores = [self._settle(each, row) for each, row in zip(batch, read, strict=True)]
            found = self._gradients(scores, output) if gradients else None
        for place, each in enumerate(batch):
            self._take(each, output.detach()[place])
            if found is not None:
                each.gradients = self._of_codes(each, found[place][: len(scores[place])])

    def _settle(self, each: Subject, read: torch.Tensor) -> torch.Tensor:
        """Say what is explained, now that the text's outputs are known; return its scores, shape (targets,)."""
        own = self._own(each, read)
        each.read = own.detach().double().cpu().numpy()
        each.objective = each.question.settle(each.read, self.mode)
        scores = each.scored(own)
        each.full = scores.detach().double().cpu().numpy()
        return scores

    def _own(self, each: Subject, read: torch.Tensor) -> torch.Tensor:
        """Return a text's part of what was read for a batch, shape (width,).

        Raises:
            ModelOutputError: it is not finite.
        """
        question = each.question
        own = read if question.readout.width is None else read[: question.readout.width]
        if not bool(own.isfinite().all()):
            encoding = question.encoding
            raise ModelOutputError(f"the model gives NaN or infinity for text {encoding.index}: {encoding.text[:60]!r}")
        return own

    def _gradients(self, scores: Sequence[torch.Tensor], leaf: torch.Tensor) -> torch.Tensor:
        """Return the gradients of each text's targets by the layer's output, shape (texts, targets, …)."""
        most = max(len(each) for each in scores)
        found = []
        for target in range(most):
            total = torch.stack([each[target] for each in scores if target < len(each)]).sum()
            found.append(torch.autograd.grad(total, leaf, retain_graph=target + 1 < most)[0])
        return torch.stack(found, dim=1)

    def _take(self, each: Subject, output: torch.Tensor) -> None:
        each.output = output[: len(each.weights)] if self.path not in self.split.per_text else output[None]
        each.rows = self._rows(each)
        each.codes = self.dictionary.encode(each.rows) if len(each.rows) else torch.zeros(0, self.dictionary.n_concepts)

    def _rows(self, each: Subject) -> torch.Tensor:
        tokens = each.output.float().cpu()
        if self.aggregation == "sum":
            return (each.weights > 0).float().T @ tokens
        counts = each.weights.sum(dim=0).clamp(min=1e-9)
        return (each.weights / counts).T @ tokens

    def _of_codes(self, each: Subject, of_output: torch.Tensor) -> torch.Tensor:
        """Return gradients by codes, shape (targets, rows, n_concepts), from those by the layer's output."""
        by_token = of_output.float().cpu()
        by_token = by_token[:, : len(each.weights)] if self.path not in self.split.per_text else by_token[:, None]
        of_rows = torch.einsum("tr,gtw->grw", each.weights, by_token)
        return torch.stack([self.dictionary.gradient(each.codes, target) for target in of_rows])

    def _moved(self, each: Subject, codes: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for the text with other codes, shape (tokens, width)."""
        change = self._change(each, codes)
        if not self.keep_error:
            change = change + (self.dictionary.decode(each.codes) - each.rows)
        output = each.output.to(torch.promote_types(each.output.dtype, torch.float32)).cpu()
        return output + each.weights.to(output) @ change.to(output)

    def _change(self, each: Subject, codes: torch.Tensor) -> torch.Tensor:
        """Return decode(codes) − decode(the text's codes), shape (rows, width)."""
        if not isinstance(self.dictionary, LinearDecoder):
            return self.dictionary.decode(codes) - self.dictionary.decode(each.codes)
        # The concepts that change are few, and no large mean is subtracted from itself.
        difference = codes - each.codes
        changed = difference.any(dim=0).nonzero()[:, 0]
        return difference[:, changed] @ self.dictionary.dictionary[changed] * self.dictionary.scale

    def _path_gradients(self, method: GradientMethod, subjects: list[Subject]) -> None:
        shares, weights = method.points
        for each in subjects:
            each.gradients = torch.zeros(len(each.full), *each.codes.shape, dtype=torch.float64)
        items = [(each, share, weight) for each in subjects for share, weight in zip(shares, weights, strict=True)]
        for places in self._packed([each for each, _, _ in items]):
            batch = [items[i] for i in places]
            moved = [self._moved(each, each.codes * float(share)) for each, share, _ in batch]
            with torch.inference_mode(False), self.model.evaluating(), self.model.frozen(), torch.no_grad():
                leaf, read = self._read([each for each, _, _ in batch], moved, gradients=True)
                scores = [each.scored(self._own(each, row)) for (each, _, _), row in zip(batch, read, strict=True)]
                found = self._gradients(scores, leaf)
            for (each, _, weight), gradient, score in zip(batch, found, scores, strict=True):
                each.gradients += float(weight) * self._of_codes(each, gradient[: len(score)]).double()

    def _read(
        self, subjects: Sequence[Subject], moved: Sequence[torch.Tensor], *, gradients: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put outputs of the layer in, each of shape (tokens, width); return what was put in and what was read."""
        inputs, readouts = self._inputs(subjects)
        inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        put: list[torch.Tensor] = []

        def replace(output: torch.Tensor) -> torch.Tensor:
            full = torch.zeros(output.shape, dtype=output.dtype, device=output.device)
            for place, tensor in enumerate(moved):
                if self.path in self.split.per_text:
                    full[place] = tensor[0].to(full)
                else:
                    full[place, : len(tensor)] = tensor.to(full)
            if gradients:
                full.requires_grad_(True)
                torch.set_grad_enabled(True)
            put.append(full)
            return full

        read = self.suffix.read(inputs, readouts, replace)
        return put[-1], read

    def _by_variants(self, method: VariantMethod, subjects: list[Subject]) -> Iterator[LocalImportance]:
        """Run the programs of texts side by side, as many as fill batches and little memory."""
        results: dict[int, Floats] = {}
        running: dict[int, tuple[Steps, Masks]] = {}
        for place, each in enumerate(subjects):
            n_active = len(each.active)
            if n_active == 0:
                results[place] = np.zeros((len(each.full), 0))
                continue
            rng = np.random.default_rng(each.question.encoding.seed(self.seed))
            self._advance(place, method.steps(n_active, each.full, rng), None, running, results)
            if sum(masks.size for _, masks in running.values()) >= _MASK_NUMBERS:
                self._finish(running, results, subjects)
        self._finish(running, results, subjects)
        for place, each in enumerate(subjects):
            totals = np.zeros((len(each.full), self.dictionary.n_concepts))
            totals[:, each.active] = results[place]
            yield self._local(each, totals=totals)

    def _finish(
        self, running: dict[int, tuple[Steps, Masks]], results: dict[int, Floats], subjects: list[Subject]
    ) -> None:
        """Answer programs until all of them have ended."""
        while running:
            answers = self._score({place: masks for place, (_, masks) in running.items()}, subjects)
            for place, (steps, _) in list(running.items()):
                del running[place]
                self._advance(place, steps, answers[place], running, results)

    def _advance(
        self,
        place: int,
        steps: Steps,
        answer: Floats | None,
        running: dict[int, tuple[Steps, Masks]],
        results: dict[int, Floats],
    ) -> None:
        try:
            running[place] = (steps, next(steps) if answer is None else steps.send(answer))
        except StopIteration as stop:
            results[place] = stop.value

    def _score(self, wanted: dict[int, Masks], subjects: list[Subject]) -> dict[int, Floats]:
        """Return the scores of each text's masks, shape (variants, targets); an identical mask is run once."""
        distinct = {place: np.unique(masks, axis=0, return_inverse=True) for place, masks in wanted.items()}
        found = {place: np.zeros((len(masks), len(subjects[place].full))) for place, (masks, _) in distinct.items()}
        items = [(place, number) for place, (masks, _) in distinct.items() for number in range(len(masks))]

        def codes(item: int) -> torch.Tensor:
            place, number = items[item]
            return _masked(subjects[place], distinct[place][0][number])

        reads = self.read_with([subjects[place] for place, _ in items], codes)
        for (place, number), read in zip(items, reads, strict=True):
            found[place][number] = subjects[place].scored(read).double().cpu().numpy()
        return {place: found[place][inverse.reshape(-1)] for place, (_, inverse) in distinct.items()}

    def _local(
        self, each: Subject, *, values: torch.Tensor | None = None, totals: Floats | None = None
    ) -> LocalImportance:
        by_row = None if values is None else values.double().numpy()
        if totals is None:
            assert by_row is not None
            totals = by_row.sum(axis=1)
        encoding = each.question.encoding
        return LocalImportance(
            encoding.index,
            encoding.text,
            each.targets,
            each.plan.spans,
            each.codes.numpy(),
            totals,
            by_row,
            each.full,
        )


def _n_targets(question: Question) -> int:
    places = question.places if isinstance(question, LabelQuestion) else ()
    return max(1, len(places), len(question.expected), question.readout.gradients)


def _masked(each: Subject, mask: Masks) -> torch.Tensor:
    """Return a text's codes with shares of its active concepts kept."""
    kept = torch.ones(each.codes.shape[1])
    kept[torch.from_numpy(each.active)] = torch.from_numpy(np.asarray(mask, dtype=np.float32))
    return each.codes * kept
