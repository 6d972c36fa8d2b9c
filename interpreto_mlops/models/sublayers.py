"""Where in a block its attention and its MLP put out what they add to the residual stream, found by what is summed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from interpreto_mlops.errors import InputError

if TYPE_CHECKING:
    from interpreto_mlops.models.text_model import TextModel

SUBLAYERS = ("attention", "mlp")
"""The parts of a block, as in `1.attention`."""

_ATTENTION = re.compile("att", re.IGNORECASE)
_TOKENS = 5
_MOST_SUMS = 4


def find_sublayers(model: TextModel, path: str, block: nn.Module, network: nn.Module) -> dict[str, str]:
    """Find the modules whose outputs are the summands of a block.

    A tiny row runs through the block. A module's output is a summand if the stream plus that output is what another
    module reads or what the block puts out; the stream is what the block reads, then each sum, or what a module makes
    of it (a norm, where that stands after the sum). Where attention and MLP run side by side, the block puts out what
    it reads plus both. Of modules with the same output, such as a projection and a dropout after it, the outermost
    counts, then the first.

    Arguments:
        model: the model.
        path: the block's path.
        block: the block.
        network: what has to run, such as an encoder.

    Raises:
        InputError: the block is built in another way.
    """
    ids = torch.arange(_TOKENS, device=model.device)[None] * 7919 % model.embedding.weight.shape[0]
    record = _Record()
    with (
        model.evaluating(),
        torch.inference_mode(),
        model.execution.plainly(),
        suppress(_BlockDone),
        _recorded(block, record),
    ):
        network(input_ids=ids, attention_mask=torch.ones_like(ids))
    summands = _summands(record)
    found = {"attention" if _ATTENTION.search(name) else "mlp": f"{path}.{name}" for name in summands}
    if len(summands) != 2 or len(found) != 2:
        raise InputError(
            f"the block {path!r} is not the sum of what it reads, what one module of its attention puts out and what "
            "one module of its MLP puts out; give module paths"
        )
    return found


class _BlockDone(Exception):  # noqa: N818 - not an error: it ends a forward pass that has given what was asked for
    """Raised in a hook when the block has run."""


@dataclass
class _Run:
    """One module's run."""

    name: str
    reads: list[torch.Tensor]
    output: torch.Tensor | None


@dataclass
class _Record:
    """What ran in a block: its modules in the order in which they ended, and the block itself."""

    shape: tuple[int, ...] = ()
    precision: float = 0.0
    runs: list[_Run] = field(default_factory=list)
    block: _Run | None = None

    def rows(self, value: Any) -> torch.Tensor | None:
        """Return the tensor in a value, if it has the stream's width and tokens; a copy, as it may be changed later."""
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if not isinstance(first, torch.Tensor) or not first.is_floating_point():
            return None
        if not self.shape:
            self.shape, self.precision = tuple(first.shape), torch.finfo(first.dtype).eps
        same = first.shape[-1:] == self.shape[-1:] and first.numel() == torch.Size(self.shape).numel()
        return first.reshape(self.shape).clone() if same else None

    def is_sum(self, total: torch.Tensor, stream: torch.Tensor, summand: torch.Tensor) -> bool:
        """Whether a tensor is the sum of two: to the bit, or up to rounding where the second is large enough."""
        if torch.equal(stream + summand, total):
            return not torch.equal(stream, total)
        difference = (total.double() - stream.double() - summand.double()).abs()
        rounding = self.precision * torch.stack([each.double().abs() for each in (total, stream, summand)]).amax(0)
        telling = float((summand.abs() > 4 * rounding).double().mean())
        return telling > 0.25 and bool((difference <= 2 * rounding).all())


@contextmanager
def _recorded(block: nn.Module, record: _Record) -> Iterator[None]:
    owner, waiting = threading.get_ident(), dict[str, list[torch.Tensor]]()

    def before(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == owner:
                reads = [record.rows(value) for value in (*args, *kwargs.values())]
                waiting[name] = [read for read in reads if read is not None]

        return note

    def after(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            if threading.get_ident() != owner:
                return
            run = _Run(name, waiting.pop(name, []), record.rows(output))
            if not name:
                record.block = run
                raise _BlockDone
            record.runs.append(run)

        return note

    handles: list[Any] = []
    try:
        for name, module in block.named_modules():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summands(record: _Record) -> list[str]:
    """Return the names of the modules whose outputs are added up, in the order in which they run."""
    if record.block is None or not record.block.reads or record.block.output is None:
        return []
    start, end = record.block.reads[0], record.block.output
    names = [run.name for run in record.runs]
    once = [run for run in record.runs if run.output is not None and names.count(run.name) == 1]
    return _one_after_the_other(record, once, start, end) or _side_by_side(record, once, start, end)


def _one_after_the_other(record: _Record, runs: list[_Run], start: torch.Tensor, end: torch.Tensor) -> list[str]:
    sums = [*(read for run in record.runs for read in run.reads), end]
    before, streams, found = [start], _streams(record, [start]), list[str]()
    for _ in range(_MOST_SUMS):
        matches = {
            run.name: [total for total in sums if any(record.is_sum(total, stream, _out(run)) for stream in streams)]
            for run in runs
        }
        # A norm that is left out puts out the stream itself.
        added = [run for run in runs if matches[run.name] and not any(torch.equal(_out(run), each) for each in before)]
        if not added:
            break
        chosen = _outermost([run for run in added if torch.equal(_out(run), _out(added[0]))])
        found.append(chosen.name)
        later = runs[runs.index(added[0]) + 1 :]
        runs = [run for run in later if not torch.equal(_out(run), _out(chosen))]
        before = matches[chosen.name]
        streams = _streams(record, before)
    return found


def _side_by_side(record: _Record, runs: list[_Run], start: torch.Tensor, end: torch.Tensor) -> list[str]:
    pairs = [
        (first, second)
        for i, first in enumerate(runs)
        for second in runs[i + 1 :]
        if record.is_sum(end, start, _out(first) + _out(second))
    ]
    if not pairs:
        return []
    sides = ([run for pair in pairs for run in pair if torch.equal(_out(run), _out(side))] for side in pairs[0])
    return [_outermost(side).name for side in sides]


def _streams(record: _Record, sums: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return sums and what modules make of them."""
    made = [
        run.output
        for run in record.runs
        if run.output is not None and any(torch.equal(read, total) for read in run.reads for total in sums)
    ]
    return [*sums, *made]


def _outermost(runs: Sequence[_Run]) -> _Run:
    return min(runs, key=lambda run: run.name.count("."))


def _out(run: _Run) -> torch.Tensor:
    assert run.output is not None
    return run.output
