"""The one place where a model is run for its scores or gradients.

It packs rows of different texts into batches by a token budget, longest first, evaluates an identical row once,
keeps gradients' sums instead of gradients, and counts what it did.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from interpreto_mlops.errors import InputError, ModelOutputError, OutOfMemoryError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.gradient_sums import GradientSums, padded
from interpreto_mlops.models.probes import bears_padding
from interpreto_mlops.models.requests import (
    Floats,
    Program,
    Readout,
    Request,
    Result,
    ScoreRequest,
)
from interpreto_mlops.models.text_model import TextModel

R = TypeVar("R")

DEFAULT_TOKEN_BUDGET = 1024
"""Tokens a batch on a CPU: more made every model that was tried slower (benchmarks/attributions.py)."""

ACCELERATOR_TOKEN_BUDGET = 16384
"""Tokens a batch elsewhere; halved where they do not fit."""

_WINDOW = 32  # batches' worth of rows that wait together, so that rows of like length meet
# What torch says of it on a GPU, and on a CPU under Linux and elsewhere.
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")
_OPEN = 1024  # programs under way at once; those whose rows all stand in the table add no waiting tokens
_TABLE_ROWS = 2**18


@dataclass
class EngineCounters:
    """What the engine did: these are the `cost/…` metrics of a run.

    `evaluations_asked` counts rows that methods asked for, `evaluations_run` those that the model saw; `tokens` and
    `padding` count positions in the batches; `seconds` is the time inside the model.
    """

    evaluations_asked: int = 0
    evaluations_run: int = 0
    batches: int = 0
    tokens: int = 0
    padding: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the counters by name, with `tokens_per_second`."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return {**{key: float(value) for key, value in asdict(self).items()}, "tokens_per_second": rate}

    def since(self, before: EngineCounters) -> EngineCounters:
        """Return what was counted after `before` was copied."""
        now, then = asdict(self), asdict(before)
        return EngineCounters(**{key: now[key] - then[key] for key in now})

    def copy(self) -> EngineCounters:
        """Return the counters as they stand."""
        return EngineCounters(**asdict(self))


@dataclass(eq=False)
class _Task:
    """A request under way: how many of its rows are still to come, and where their results go."""

    request: Request
    slot: _Slot[Any]
    missing: int
    output: Any = None


@dataclass(eq=False)
class _Slot(Generic[R]):
    """A program under way."""

    program: Program[R]
    tasks: list[_Task] = field(default_factory=list)
    waiting: int = 0
    done: bool = False
    value: R | None = None


@dataclass(eq=False)
class _Row:
    """A row that waits for a batch: token ids for a score, or one point of a gradient request."""

    length: int
    encoding: Encoding
    readout: Readout
    ids: Ids
    key: bytes | None = None
    waiters: list[tuple[_Task, int]] = field(default_factory=list)
    point: int = -1

    @property
    def kind(self) -> tuple[bool, type[Readout]]:
        return self.key is None, type(self.readout)


class Engine:
    """Runs a model for programs of many texts.

    Arguments:
        model: the model.
        token_budget: the most tokens, padding included, in one batch (a single longer row still runs); None for 1024
            on a CPU and 16384 elsewhere.

    Raises:
        InputError: the budget is not positive.
    """

    def __init__(self, model: TextModel, token_budget: int | None = None) -> None:
        if token_budget is None:
            token_budget = DEFAULT_TOKEN_BUDGET if model.device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET
        if token_budget < 1:
            raise InputError(f"the token budget must be at least 1, not {token_budget!r}")
        self.model = model
        self.token_budget = token_budget
        self.counters = EngineCounters()
        self._shared: OrderedDict[bytes, Floats] | None = None

    @contextmanager
    def shared_table(self) -> Iterator[None]:
        """Remember the scores of rows from one call to the next while the context is open.

        Methods and metrics of the same texts then pay once for what they have in common. The model must not change
        meanwhile. The table holds 262,144 rows; those used longest ago go first, so that a job of more than some 500
        texts at default settings shares little between its methods.
        """
        outer = self._shared
        self._shared = OrderedDict() if outer is None else outer
        try:
            yield
        finally:
            self._shared = outer

    def run(self, programs: Iterable[Program[R]]) -> Iterator[R]:
        """Run programs side by side and yield what they return, in their order, as soon as it is known.

        Raises:
            ModelOutputError: the model returns NaN or infinity for a text.
            OutOfMemoryError: a single row does not fit in memory.
        """
        work = _Work(self, OrderedDict() if self._shared is None else self._shared)
        queue: deque[_Slot[R]] = deque()
        source = iter(programs)
        exhausted = False
        try:
            while True:
                while not exhausted and work.tokens < _WINDOW * self.token_budget and len(queue) < _OPEN:
                    program = next(source, None)
                    if program is None:
                        exhausted = True
                        break
                    queue.append(_Slot(program))
                    work.advance(queue[-1], None)
                while queue and queue[0].done:
                    yield queue.popleft().value  # type: ignore[misc]
                if work.rows:
                    work.step()
                elif exhausted and not queue:
                    return
        finally:
            for slot in queue:
                slot.program.close()


class _Work:
    """The rows of one `run` that wait, and the table of those that are known."""

    def __init__(self, engine: Engine, table: OrderedDict[bytes, Floats]) -> None:
        self.engine = engine
        self.model = engine.model
        self.table = table
        self.rows: list[_Row] = []
        self.pending: dict[bytes, _Row] = {}
        self.tokens = 0
        self.sorted = True

    def advance(self, slot: _Slot[Any], results: list[Result] | None) -> None:
        """Let a program go on until it waits for rows or ends."""
        while True:
            try:
                requests = next(slot.program) if results is None else slot.program.send(results)
            except StopIteration as stop:
                slot.done, slot.value = True, stop.value
                return
            slot.tasks = [self._open(request, slot) for request in requests]
            slot.waiting = sum(task.missing > 0 for task in slot.tasks)
            if slot.waiting:
                return
            results = [_result(task) for task in slot.tasks]

    def _open(self, request: Request, slot: _Slot[Any]) -> _Task:
        if isinstance(request, ScoreRequest):
            return self._open_scores(request, slot)
        task = _Task(request, slot, missing=len(request.weights), output=GradientSums(self.model, request))
        self.engine.counters.evaluations_asked += task.missing
        for point in range(task.missing):
            ids = request.anchors[0]
            self._wait(_Row(len(ids), request.encoding, request.readout, ids, None, [(task, point)], point))
        return task

    def _open_scores(self, request: ScoreRequest, slot: _Slot[Any]) -> _Task:
        task = _Task(request, slot, missing=len(request.rows), output=[None] * len(request.rows))
        self.engine.counters.evaluations_asked += len(request.rows)
        for place, ids in enumerate(request.rows):
            readout = request.readout_of(place)
            key = self._key(request.encoding, ids, readout)
            if (known := self.table.get(key)) is not None:
                self.table.move_to_end(key)
                task.output[place] = known
                task.missing -= 1
            elif (row := self.pending.get(key)) is not None:
                row.waiters.append((task, place))
            else:
                row = _Row(len(ids), request.encoding, readout, ids, key, [(task, place)])
                self.pending[key] = row
                self._wait(row)
        return task

    def _key(self, encoding: Encoding, ids: Ids, readout: Readout) -> bytes:
        """Name a row by everything that the model computes on: ids, segments, and the ids it is shown instead."""
        digest = hashlib.blake2b(f"{readout!r}:{len(ids)}:".encode(), digest_size=16)
        digest.update(ids.tobytes())
        if encoding.token_type_ids is not None:
            digest.update(encoding.token_type_ids[: len(ids)].tobytes())
        if self.model.ids_to_show(encoding.ids, ids) is not ids:
            digest.update(encoding.ids.tobytes())
        return digest.digest()

    def _wait(self, row: _Row) -> None:
        self.rows.append(row)
        self.tokens += row.length
        self.sorted = False

    def step(self) -> None:
        """Run one batch and hand its results on."""
        batch = self._next_batch()
        try:
            with self._timed(batch):
                self._run_batch(batch)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self._shrink(batch, error)
            return
        self._deliver(batch)

    def _next_batch(self) -> list[_Row]:
        if not self.sorted:
            self.rows.sort(key=lambda row: (row.key is None, row.length))
            self.sorted = True
        kind, longest = self.rows[-1].kind, self.rows[-1].length
        batch: list[_Row] = []
        while (
            self.rows
            and self.rows[-1].kind == kind
            and (len(batch) + 1) * longest <= max(self.engine.token_budget, longest)
            and (self.rows[-1].length == longest or self._may_pad(batch[0], self.rows[-1]))
        ):
            batch.append(self.rows.pop())
        self.tokens -= sum(row.length for row in batch)
        return batch

    def _may_pad(self, first: _Row, other: _Row) -> bool:
        try:
            return bears_padding(self.model, [(row.encoding, row.ids, row.readout) for row in (other, first)])
        except RuntimeError as error:
            if _is_out_of_memory(error):
                return True  # the batch itself will say so
            raise

    @contextmanager
    def _timed(self, batch: list[_Row]) -> Iterator[None]:
        start = time.perf_counter()
        yield
        counters, tokens = self.engine.counters, sum(row.length for row in batch)
        counters.seconds += time.perf_counter() - start
        counters.batches += 1
        counters.evaluations_run += len(batch)
        counters.tokens += tokens
        counters.padding += len(batch) * max(row.length for row in batch) - tokens

    def _run_batch(self, batch: list[_Row]) -> None:
        with self.model.evaluating():
            if batch[0].key is None:
                self._run_gradients(batch)
            else:
                self._run_scores(batch)

    def _run_scores(self, batch: list[_Row]) -> None:
        encodings, readouts = [row.encoding for row in batch], [row.readout for row in batch]
        kind = type(readouts[0])
        seen = [self.model.ids_to_show(row.encoding.ids, row.ids) for row in batch]
        with torch.inference_mode():
            inputs = kind.inputs(self.model, encodings, seen, readouts)
            if all(shown is row.ids for shown, row in zip(seen, batch, strict=True)):
                read = kind.read(self.model, inputs, readouts)
            else:
                with kind.embeddings_replaced(self.model, self._embedded(batch), readouts):
                    read = kind.read(self.model, inputs, readouts)
        values = read.cpu().numpy().astype(np.float64)
        _check_finite(values, batch)
        for row, value in zip(batch, values, strict=True):
            assert row.key is not None
            value = value[: row.readout.width]
            self.table[row.key] = value
            del self.pending[row.key]
            for task, place in row.waiters:
                task.output[place] = value
        while len(self.table) > _TABLE_ROWS:
            self.table.popitem(last=False)

    def _embedded(self, batch: list[_Row]) -> torch.Tensor:
        """Return the embeddings of the rows' own ids, shape (rows, tokens, width)."""
        ids = [torch.from_numpy(row.ids.copy()).to(self.model.device)[None] for row in batch]
        blocks = [row.readout.embed(self.model, each) for row, each in zip(batch, ids, strict=True)]
        return padded(blocks, max(len(row.ids) for row in batch))

    def _run_gradients(self, batch: list[_Row]) -> None:
        rows: dict[GradientSums, list[_Row]] = {}
        for row in batch:
            rows.setdefault(row.waiters[0][0].output, []).append(row)
        batch = [row for group in rows.values() for row in group]
        groups = {sums: [row.point for row in group] for sums, group in rows.items()}
        readouts = [row.readout for row in batch]
        with torch.inference_mode(False), torch.enable_grad():
            kind = type(readouts[0])
            inputs = kind.inputs(self.model, [row.encoding for row in batch], [row.ids for row in batch], readouts)
            leaf = padded([sums.points(points) for sums, points in groups.items()], max(row.length for row in batch))
            leaf.requires_grad_(True)
            with kind.embeddings_replaced(self.model, leaf, readouts):
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
            for target in range(block.shape[1]):
                sums.add(points, target, gradients[target][start : start + len(points)], block[:, target].detach())
            start += len(points)

    def _deliver(self, batch: list[_Row]) -> None:
        for row in batch:
            for task, _ in row.waiters:
                task.missing -= 1
                if task.missing == 0:
                    self._finish(task)

    def _finish(self, task: _Task) -> None:
        slot = task.slot
        slot.waiting -= 1
        if slot.waiting == 0:
            self.advance(slot, [_result(task) for task in slot.tasks])

    def _shrink(self, batch: list[_Row], error: BaseException) -> None:
        if len(batch) == 1:
            row = batch[0]
            raise OutOfMemoryError(
                f"text {row.encoding.index} with {row.length} tokens does not fit in memory"
            ) from error
        self.engine.token_budget = max(batch[0].length, self.engine.token_budget // 2)
        for row in batch:
            self._wait(row)


def _result(task: _Task) -> Result:
    if isinstance(task.output, GradientSums):
        return task.output.result()
    return np.stack(task.output)


def _check_finite(values: Any, rows: list[_Row]) -> None:
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
