"""The rows of programs that wait for the model, and the batches that they go into."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from interpreto_mlops.errors import ModelOutputError, OutOfMemoryError
from interpreto_mlops.models.coalition_table import CoalitionTable
from interpreto_mlops.models.counters import EngineCounters as EngineCounters
from interpreto_mlops.models.encoding import Ids
from interpreto_mlops.models.gradient_sums import GradientSums, PointScores, padded
from interpreto_mlops.models.packing import first_batch
from interpreto_mlops.models.prefixes import PrefixGroup
from interpreto_mlops.models.probes import bears_padding
from interpreto_mlops.models.relevance import relevance_rules
from interpreto_mlops.models.requests import (
    EmbeddingRequest,
    GradientRequest,
    Readout,
    Request,
    Result,
    ScoreRequest,
)
from interpreto_mlops.models.rows import Row, Slot, Task, order

if TYPE_CHECKING:
    from interpreto_mlops.models.engine import Engine

_CALL_SHARE = 25  # a call costs as much as this part of a full batch, however few rows it has: measured on a CPU
# What torch says of it on a GPU, and on a CPU under Linux and elsewhere.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
_NUMBERS = {"cpu": 2**25}  # that a batch may make beside its tokens, such as logits of a large vocabulary
_ACCELERATOR_NUMBERS = 2**28
_BACKWARD = 3  # logits, their gradients, and what a softmax keeps


class Work:
    """The rows of one `run` that wait, and the table of those that are known."""

    def __init__(self, engine: Engine, table: CoalitionTable) -> None:
        self.engine = engine
        self.model = engine.model
        self.table = table
        self.most_numbers = _NUMBERS.get(engine.model.device.type, _ACCELERATOR_NUMBERS)
        self.rows: list[Row] = []
        self.groups: deque[PrefixGroup] = deque()
        self.pending: dict[bytes, Row] = {}
        self.tokens = 0
        self.sorted = True

    def advance(self, slot: Slot[Any], results: list[Result] | None) -> None:
        """Let a program go on until it waits for rows or ends."""
        while True:
            try:
                requests = next(slot.program) if results is None else slot.program.send(results)
            except StopIteration as stop:
                slot.done, slot.value, slot.tasks = True, stop.value, []
                self.table.drop(slot)
                return
            slot.tasks = [self._open(request, slot) for request in requests]
            slot.waiting = sum(task.missing > 0 for task in slot.tasks)
            if slot.waiting:
                return
            results = [_result(task) for task in slot.tasks]

    def _open(self, request: Request, slot: Slot[Any]) -> Task:
        if isinstance(request, ScoreRequest):
            return self._open_scores(request, slot)
        rules = None if isinstance(request, EmbeddingRequest) else request.rules
        if isinstance(request, EmbeddingRequest):
            task = Task(request, slot, missing=request.n_points, output=PointScores(self.model, request))
        else:
            task = Task(request, slot, missing=len(request.weights), output=GradientSums(self.model, request))
        rules = None if isinstance(request, EmbeddingRequest) else request.rules
        self.engine.counters.evaluations_asked += task.missing
        width = self.model.embedding.weight.shape[1]
        for point in range(task.missing):
            ids = request.anchors[0]
            row = Row(len(ids), request.encoding, request.readout, ids, None, [(task, point)], point, rules)
            row.numbers = request.readout.numbers(self.model)
            if isinstance(request, GradientRequest):
                row.numbers = _BACKWARD * row.numbers + request.readout.gradients * len(ids) * width
            self._wait(row)
        return task

    def _open_scores(self, request: ScoreRequest, slot: Slot[Any]) -> Task:
        task = Task(request, slot, missing=len(request.rows), output=[None] * len(request.rows))
        self.engine.counters.evaluations_asked += len(request.rows)
        readouts, exact = self._readouts(request), self._exact(request)
        fresh: list[Row] = []
        for place, (ids, key) in enumerate(zip(request.rows, self._keys(request, readouts), strict=True)):
            if (known := self.table.get(key, slot)) is not None:
                task.output[place] = known
                task.missing -= 1
            elif (row := self.pending.get(key)) is not None:
                row.waiters.append((task, place))
            else:
                readout = readouts[place]
                row = Row(len(ids), request.encoding, readout, ids, key, [(task, place)], exact=place < exact)
                row.numbers = readout.numbers(self.model)
                self.pending[key] = row
                fresh.append(row)
        self._admit(request, readouts, fresh)
        return task

    def _readouts(self, request: ScoreRequest) -> Sequence[Readout]:
        """Return what to read for each row: where rows are shared, all that anybody may want of it."""
        shared = self.engine._shared is not None
        if isinstance(request.readout, Readout):
            return [request.readout.whole if shared else request.readout] * len(request.rows)
        return [readout.whole if shared else readout for readout in request.readout]

    def _exact(self, request: ScoreRequest) -> int:
        """Return how many rows at the start are to be computed in the model's own precision."""
        return 0 if self.model.autocast is None else request.exact

    def _admit(self, request: ScoreRequest, readouts: Sequence[Readout], rows: list[Row]) -> None:
        """Let rows wait: those of one text that begin alike together, where that saves something."""
        group: PrefixGroup | None = None
        taken: set[int] = set()
        if rows and self.engine.prefixes.fits(request, readouts[0]):
            alike = [row for row in rows if not row.exact and self._shown(row) is row.ids]
            group = self.engine.prefixes.group(request, readouts[0], alike, self.engine.token_budget)
        if group is not None:
            self.groups.append(group)
            self.tokens += group.tokens
            taken = set(map(id, alike))
        for row in rows:
            if id(row) not in taken:
                self._wait(row)

    def _shown(self, row: Row) -> Ids:
        return self.model.ids_to_show(row.encoding.ids, row.ids)

    def _keys(self, request: ScoreRequest, readouts: Sequence[Readout]) -> Iterator[bytes]:
        """Name each row by everything that the model computes on: ids, segments, and the ids it is shown instead."""
        encoding, exact = request.encoding, self._exact(request)
        starts: dict[tuple[int, bool, int], Any] = {}
        hidden = self.model.rows_not_shown(encoding.ids, request.rows)
        for place, (ids, readout, is_hidden) in enumerate(zip(request.rows, readouts, hidden, strict=True)):
            # What the rows of a request have in common is written once.
            common = id(readout), place < exact, len(ids)
            start = starts.get(common)
            if start is None:
                start = hashlib.blake2b(f"{readout!r}:{place < exact}:{len(ids)}:".encode(), digest_size=16)
                if encoding.token_type_ids is not None:
                    start.update(encoding.token_type_ids[: len(ids)].tobytes())
                starts[common] = start
            digest = start.copy()
            digest.update(ids.tobytes())
            if is_hidden:
                digest.update(encoding.ids.tobytes())
            yield digest.digest()

    def _wait(self, row: Row) -> None:
        self.rows.append(row)
        self.tokens += row.length
        self.sorted = False

    def step(self) -> None:
        """Run one batch and hand its results on."""
        trial = self._trial()
        batch = self._next_batch()
        start = perf_counter()
        try:
            with self.engine.counters.timed([row.length for row in batch]):
                self._run_batch(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            self._shrink(error, batch[0], len(batch), batch[0].length)
            for row in batch:
                self._wait(row)
            return
        if trial is not None:
            self.engine.tried(trial, sum(row.length for row in batch), perf_counter() - start)
        self._deliver(batch)

    def _trial(self) -> int | None:
        """Return the token budget that the next batch tries out, when there is something to find out."""
        tuner = self.engine.tuner
        if tuner is None or self.tokens < tuner.needed or max(self.rows, key=order).key is None:
            return None
        if (trial := tuner.trial) is not None:
            self.engine.token_budget = trial
        return trial

    def step_group(self) -> None:
        """Run one batch of the rows of one text that begin alike, and hand its results on."""
        group = self.groups[0]
        batch = group.next_batch(self.engine.token_budget)
        try:
            with (
                self.engine.counters.timed(batch.lengths),
                self.model.evaluating(),
                torch.inference_mode(),
            ):
                rows = cast("list[Row]", batch.rows)
                self._remember(rows, group.read(self.model, batch))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            self._shrink(error, cast(Row, group.rows[0]), len(batch.lengths), max(batch.lengths))
            return
        group.remove(batch)
        if not group.rows:
            self.groups.popleft()
        self.tokens -= sum(row.length for row in rows)
        self._deliver(rows)

    def _next_batch(self) -> list[Row]:
        if not self.sorted:
            self.rows.sort(key=order)
            self.sorted = True
        batch = self.rows[-self._batch_size() :][::-1]
        del self.rows[-len(batch) :]
        self.tokens -= sum(row.length for row in batch)
        return batch

    def _batch_size(self) -> int:
        """Return how many of the longest rows make the next batch."""
        top, budget = self.rows[-1], self.engine.token_budget
        lengths = [top.length]
        # Half the rows of one batch may be long ones and half short, and the next batch counts, too.
        for row in self.rows[-2 : -2 * max(32, budget // top.length) : -1]:
            if row.kind != top.kind or (row.length != top.length and not self._may_pad(top, row)):
                break
            lengths.append(row.length)
        most = max(1, self.most_numbers // top.numbers) if top.numbers else len(lengths)
        return min(most, first_batch(lengths, budget, budget / _CALL_SHARE))

    def _may_pad(self, first: Row, other: Row) -> bool:
        try:
            return bears_padding(self.model, [(row.encoding, row.ids, row.readout) for row in (other, first)])
        except RuntimeError as error:
            if _is_out_of_memory(error):
                return True  # the batch itself will say so
            raise

    def _run_batch(self, batch: list[Row]) -> None:
        with self.model.evaluating():
            (self._run_scores, self._run_points, self._run_gradients)[batch[0].stage](batch)

    def _run_scores(self, batch: list[Row]) -> None:
        encodings, readouts = [row.encoding for row in batch], [row.readout for row in batch]
        kind = type(readouts[0])
        seen = [self._shown(row) for row in batch]
        with torch.inference_mode(), self.model.execution.exactly(batch[0].exact):
            inputs = kind.inputs(self.model, encodings, seen, readouts)
            if all(shown is row.ids for shown, row in zip(seen, batch, strict=True)):
                read = kind.read(self.model, inputs, readouts)
            else:
                with kind.embeddings_replaced(self.model, self._embedded(batch), readouts):
                    read = kind.read(self.model, inputs, readouts)
        self._remember(batch, read)

    def _remember(self, batch: Sequence[Row], read: torch.Tensor) -> None:
        """Put what was read into the table and into the results, shape (rows, width)."""
        values = read.cpu().numpy().astype(np.float64)
        _check_finite(values, batch)
        for row, value in zip(batch, values, strict=True):
            assert row.key is not None
            # A copy, or the whole batch would stay as long as one of its rows.
            value = value[: row.readout.width].copy()
            slots = {task.slot for task, _ in row.waiters}
            self.table.put(row.key, value, slots.pop() if len(slots) == 1 else None)
            del self.pending[row.key]
            for task, place in row.waiters:
                task.output[place] = value

    def _embedded(self, batch: list[Row]) -> torch.Tensor:
        """Return the embeddings of the rows' own ids, shape (rows, tokens, width)."""
        ids = [torch.from_numpy(row.ids.copy()).to(self.model.device)[None] for row in batch]
        blocks = [row.readout.embed(self.model, each) for row, each in zip(batch, ids, strict=True)]
        return padded(blocks, max(len(row.ids) for row in batch))

    def _run_points(self, batch: list[Row]) -> None:
        batch, groups = _by_request(batch)
        readouts = [row.readout for row in batch]
        kind = type(readouts[0])
        with torch.inference_mode():
            inputs = kind.inputs(self.model, [row.encoding for row in batch], [row.ids for row in batch], readouts)
            points = padded(
                [scores.points(numbers) for scores, numbers in groups.items()], max(row.length for row in batch)
            )
            with kind.embeddings_replaced(self.model, points, readouts):
                read = kind.read(self.model, inputs, readouts)
        values = read.cpu().numpy().astype(np.float64)
        _check_finite(values, batch)
        for row, value in zip(batch, values, strict=True):
            row.waiters[0][0].output.read[row.point] = value[: row.readout.width].copy()

    def _run_gradients(self, batch: list[Row]) -> None:
        batch, groups = _by_request(batch)
        readouts = [row.readout for row in batch]
        with torch.inference_mode(False), torch.enable_grad(), self.model.frozen():
            kind = type(readouts[0])
            inputs = kind.inputs(self.model, [row.encoding for row in batch], [row.ids for row in batch], readouts)
            leaf = padded([sums.points(points) for sums, points in groups.items()], max(row.length for row in batch))
            leaf.requires_grad_(True)
            rules = batch[0].rules
            with (
                kind.embeddings_replaced(self.model, leaf, readouts),
                relevance_rules(self.model.model, rules) if rules else nullcontext(),
            ):
                read = kind.read(self.model, inputs, readouts)
            _check_finite(read.detach().cpu().numpy(), batch)
            self._differentiate(groups, leaf, read)

    def _differentiate(self, groups: dict[GradientSums, list[int]], leaf: torch.Tensor, read: torch.Tensor) -> None:
        """One backward pass for the first targets of all texts, one for the second, and so on."""
        blocks = torch.split(read, [len(points) for points in groups.values()])
        scalars = [
            sums.request.objective(block[:, : sums.request.readout.width])
            for sums, block in zip(groups, blocks, strict=True)
        ]
        most = max(block.shape[1] for block in scalars)
        gradients: list[torch.Tensor] = []
        for target in range(most):
            total = torch.stack([block[:, target].sum() for block in scalars if target < block.shape[1]]).sum()
            gradients.append(torch.autograd.grad(total, leaf, retain_graph=target + 1 < most)[0])
        # Only now: when memory ran out above, the whole batch comes again, and nothing may have been counted yet.
        start = 0
        for (sums, points), block in zip(groups.items(), scalars, strict=True):
            own = [each[start : start + len(points)] for each in gradients[: block.shape[1]]]
            sums.add(points, own, block.detach())
            start += len(points)

    def _deliver(self, batch: Sequence[Row]) -> None:
        for row in batch:
            for task, _ in row.waiters:
                task.missing -= 1
                if task.missing == 0:
                    self._finish(task)

    def _finish(self, task: Task) -> None:
        slot = task.slot
        slot.waiting -= 1
        if slot.waiting == 0:
            self.advance(slot, [_result(task) for task in slot.tasks])

    def _shrink(self, error: BaseException, row: Row, count: int, longest: int) -> None:
        """Halve the token budget when memory has run out for `count` rows, of which `row` is one.

        Raises:
            OutOfMemoryError: it was a single row.
        """
        if not _is_out_of_memory(error):
            raise error
        if count == 1:
            raise OutOfMemoryError(
                f"text {row.encoding.index} with {row.length} tokens does not fit in memory"
            ) from error
        self.engine.refused(max(longest, min(self.engine.token_budget, count * longest) // 2))


def _result(task: Task) -> Result:
    if isinstance(task.output, PointScores):
        return task.output.result()
    request = cast(ScoreRequest, task.request)
    return request.readout_of(0).taken(np.stack(task.output))


def _by_request(batch: list[Row]) -> tuple[list[Row], dict[Any, list[int]]]:
    """Bring the points of each request together: the rows in that order, and the numbers of each request's points."""
    rows: dict[Any, list[Row]] = {}
    for row in batch:
        rows.setdefault(row.waiters[0][0].output, []).append(row)
    ordered = [row for group in rows.values() for row in group]
    return ordered, {output: [row.point for row in group] for output, group in rows.items()}


def _check_finite(values: Any, rows: Sequence[Row]) -> None:
    finite = np.isfinite(values).all(axis=1)
    if finite.all():
        return
    row = rows[int(np.argmin(finite))]
    same = len(row.ids) == len(row.encoding)
    changed = int((row.ids != row.encoding.ids).sum()) if same else len(row.encoding) - len(row.ids)
    raise ModelOutputError(
        f"the model returns NaN or infinity for text {row.encoding.index} "
        f"({changed} of {len(row.encoding)} tokens replaced): {row.encoding.text[:60]!r}"
    )


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _MEMORY_WORDS)
