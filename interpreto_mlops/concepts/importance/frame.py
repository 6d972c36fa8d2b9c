"""The frame of concept importance: texts, targets and batches are here, the mathematics in one file a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.importance.base import (
    Floats,
    GradientMethod,
    ImportanceMethod,
    LocalImportance,
    VariantMethod,
)
from interpreto_mlops.concepts.importance.subjects import Subject, n_targets, nothing, subject
from interpreto_mlops.concepts.importance.variants import Programs
from interpreto_mlops.concepts.linear import LinearDecoder
from interpreto_mlops.concepts.row_plans import plan_rows
from interpreto_mlops.errors import ModelOutputError, OutOfMemoryError
from interpreto_mlops.models.objectives import InferenceMode
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.probes import bears_padding
from interpreto_mlops.models.questions import Question
from interpreto_mlops.models.readouts import TokenScores, WholeTokenScores
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.suffix import Suffix

# Texts of like length meet in windows of this many batches' tokens.
_WINDOW_BATCHES = 16
# Numbers of a window's codes and gradients: 256 MiB.
_WINDOW_NUMBERS = 2**26


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
        # A language model's head runs where tokens are predicted only, or not at all, unless it is told otherwise.
        body = set(self.model.model.base_model.modules())
        self._at_head = self.model.task == "generation" and split._sites[path].module not in body
        if self.model.task == "generation":
            # What it finds out by a run of its own shall not be found out while a layer is replaced.
            _ = self.model.plain_head

    def run(self, method: ImportanceMethod, questions: Iterable[Question]) -> Iterator[LocalImportance]:
        """Yield each text's importances, in order."""
        # Where the reconstruction is explained, the gradient at the model's own activations is another one.
        at_text = isinstance(method, GradientMethod) and method.points[0].tolist() == [1.0] and self.keep_error
        for subjects in self.subjects(questions, gradients=at_text):
            if isinstance(method, VariantMethod):
                totals = Programs(method, subjects, self.read_with, self.seed).totals()
                for each, total in zip(subjects, totals, strict=True):
                    yield self._local(each, totals=total)
            elif isinstance(method, GradientMethod):
                if not at_text:
                    self._path_gradients(method, subjects)
                for each in subjects:
                    yield self._local(each, values=method.values(each.codes, each.gradients))

    def subjects(self, questions: Iterable[Question], *, gradients: bool = False) -> Iterator[list[Subject]]:
        """Yield windows of texts that were run once: layer's output, codes, scores, and gradients where wanted."""
        for window in self._windows(questions):
            yield self._observed([self._subject(question) for question in window], gradients)

    def _observed(self, subjects: list[Subject], gradients: bool) -> list[Subject]:
        self._in_batches(subjects, lambda places: self._observe([subjects[i] for i in places], gradients))
        if not self.keep_error:
            reads = self.read_with(subjects, [each.codes for each in subjects].__getitem__)
            for each, read in zip(subjects, reads, strict=True):
                each.full = each.scored(read).double().cpu().numpy()
        return subjects

    def read_with(self, subjects: Sequence[Subject], codes: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """Return what is read from the model for each text with other codes.

        Arguments:
            subjects: the texts, observed.
            codes: from a place in `subjects` to codes, shape (rows, n_concepts); asked for batch by batch.
        """
        found: list[torch.Tensor] = [nothing()] * len(subjects)

        def run(places: list[int]) -> None:
            batch = [subjects[i] for i in places]
            moved = [self._moved(subjects[i], codes(i)) for i in places]
            with self.model.evaluating(), torch.no_grad():
                _, read = self._read(batch, moved)
            for place, each, row in zip(places, batch, read, strict=True):
                found[place] = self._own(each, row)

        self._in_batches(subjects, run)
        return found

    def _subject(self, question: Question) -> Subject:
        readout = question.readout
        if self._at_head and isinstance(readout, TokenScores):
            question.readout = WholeTokenScores(readout.positions, readout.ids, readout.prompt_tokens)
        else:
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
            numbers += tokens * self.dictionary.n_concepts * (1 + n_targets(question))
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

    def _in_batches(self, subjects: Sequence[Subject], run: Callable[[list[int]], None]) -> None:
        """Run the places of the texts of each batch; a batch that does not fit in memory is halved.

        Raises:
            OutOfMemoryError: it was a single text.
        """
        waiting = self._packed(subjects)[::-1]
        while waiting:
            places = waiting.pop()
            try:
                run(places)
                continue
            except torch.OutOfMemoryError as error:
                if len(places) == 1:
                    encoding = subjects[places[0]].question.encoding
                    message = f"text {encoding.index} with {len(encoding)} tokens does not fit in memory"
                    raise OutOfMemoryError(message) from error
            # Only here: while the error was handled, its traceback held the tensors of the batch that failed.
            half = len(places) // 2
            waiting += [places[half:], places[:half]]

    def _inputs(self, batch: Sequence[Subject]) -> tuple[dict[str, torch.Tensor], list[Any]]:
        encodings = [each.question.encoding for each in batch]
        readouts = [each.question.readout for each in batch]
        kind = type(readouts[0])
        return kind.inputs(self.model, encodings, [encoding.ids for encoding in encodings], readouts), readouts

    def _observe(self, batch: list[Subject], gradients: bool) -> None:
        """Run texts once: outputs of the layer, codes, scores, and gradients at the codes where wanted."""
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
        self._take(batch, output.detach())
        if found is not None:
            for place, each in enumerate(batch):
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

    def _take(self, batch: list[Subject], outputs: torch.Tensor) -> None:
        """Keep what the layer puts out for each text, its rows and their codes, which are found in one go."""
        for each, output in zip(batch, outputs, strict=True):
            each.output = output[: len(each.weights)] if self.path not in self.split.per_text else output[None]
            each.rows = self._rows(each)
        rows = torch.cat([each.rows for each in batch])
        codes = self.dictionary.encode(rows) if len(rows) else torch.zeros(0, self.dictionary.n_concepts)
        for each, own in zip(batch, codes.split([len(each.rows) for each in batch]), strict=True):
            each.codes = own

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

        def run(places: list[int]) -> None:
            batch = [items[i] for i in places]
            moved = [self._moved(each, each.codes * float(share)) for each, share, _ in batch]
            with torch.inference_mode(False), self.model.evaluating(), self.model.frozen(), torch.no_grad():
                leaf, read = self._read([each for each, _, _ in batch], moved, gradients=True)
                scores = [each.scored(self._own(each, row)) for (each, _, _), row in zip(batch, read, strict=True)]
                found = self._gradients(scores, leaf)
            for (each, _, weight), gradient, score in zip(batch, found, scores, strict=True):
                each.gradients += float(weight) * self._of_codes(each, gradient[: len(score)]).double()

        self._in_batches([each for each, _, _ in items], run)

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
