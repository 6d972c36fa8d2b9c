"""The model from a layer on: what it puts out for other activations there, without running the layers before."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from interpreto_mlops.models.requests import Readout
from interpreto_mlops.models.splitting import Splitter, block_paths
from interpreto_mlops.models.traces import TRACING

_TOLERANCE = 1e-4


class Suffix:
    """Runs a model with the activations of one split point put in.

    Where the split point is a block's output, the blocks up to it are passed over, if the model then puts out the same
    as when it is run whole: that is tried with the first batch. Everywhere else the whole model is run, with the
    layer's output exchanged.

    Arguments:
        split: the split model.
        path: the split point.
    """

    def __init__(self, split: Splitter, path: str) -> None:
        self.split, self.path, self.model = split, path, split.model
        blocks = block_paths(split.model)
        last = blocks.index(path) if path in blocks else -1
        self._passed = [split.model.model.get_submodule(name) for name in blocks[: last + 1]]
        self._tried = not self._passed
        self._forms: dict[nn.Module, int | None] = {}

    @property
    def skips(self) -> bool:
        """Whether blocks are passed over; only known after a first run."""
        return self._tried and bool(self._passed)

    def read(
        self,
        inputs: dict[str, torch.Tensor],
        readouts: Sequence[Readout],
        replace: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Return what the readouts read, shape (rows, width), with the layer's output exchanged.

        Gradients are recorded where the caller's mode says so, from what `replace` returns on.

        Arguments:
            inputs: the model's, as the readouts make them.
            readouts: of one type, one a row.
            replace: from the layer's output, of which only shape and dtype mean something, to what is put in.
        """
        if not self._tried:
            self._try(inputs, readouts, replace)
        with ExitStack() as stack:
            if self._passed:
                stack.enter_context(_passing(self._passed, self._forms))
            stack.enter_context(self.split.replaced(self.path, replace))
            return type(readouts[0]).read(self.model, self.model.with_positions(inputs), readouts)

    def _try(self, inputs: Any, readouts: Sequence[Readout], replace: Callable[[torch.Tensor], torch.Tensor]) -> None:
        passed, self._passed, self._tried = self._passed, [], True
        with torch.no_grad():
            with ExitStack() as stack:
                for block in passed:
                    stack.callback(block.register_forward_hook(self._note_form).remove)
                whole = self.read(inputs, readouts, replace)
            # What modules remember of their last pass must not be that of these very texts.
            others = {**inputs, "input_ids": inputs["input_ids"].flip(1)}
            type(readouts[0]).read(self.model, self.model.with_positions(others), readouts)
            self._passed = passed
            try:
                short = self.read(inputs, readouts, replace)
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
                # Blocks that hand each other more than hidden states cannot be passed over.
                self._passed = []
                return
        allowed = _TOLERANCE * float(whole.abs().max())
        if whole.shape != short.shape or not torch.allclose(whole, short, rtol=_TOLERANCE, atol=allowed):
            self._passed = []

    def _note_form(self, block: nn.Module, _args: Any, output: Any) -> None:
        """Keep how many values a block puts out behind the hidden states; None where it puts out these alone."""
        self._forms[block] = len(output) - 1 if isinstance(output, tuple) else None


class _Shortcut:
    """A block's forward that returns, in the threads that ask for it, what it is given."""

    def __init__(self, block: nn.Module, extras: int | None) -> None:
        self.own = block.__dict__.get("forward")
        self.run = block.forward
        self.extras = extras
        self.threads: Counter[int] = Counter()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.threads[threading.get_ident()]:
            return self.run(*args, **kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if self.extras is None else (hidden, *[None] * self.extras)


_SHORTCUTS: dict[nn.Module, _Shortcut] = {}


@contextmanager
def _passing(blocks: Sequence[nn.Module], forms: Mapping[nn.Module, int | None]) -> Iterator[None]:
    """Let blocks return what they are given, in this thread only, while the context is open.

    Arguments:
        blocks: the blocks.
        forms: how many values each puts out behind the hidden states, for which there will be None.
    """
    owner = threading.get_ident()
    # Traces exchange forwards, too: none may run while one is put in or taken out.
    with TRACING:
        for block in blocks:
            if block not in _SHORTCUTS:
                _SHORTCUTS[block] = _Shortcut(block, forms.get(block))
                block.forward = _SHORTCUTS[block]
            _SHORTCUTS[block].threads[owner] += 1
    try:
        yield
    finally:
        with TRACING:
            for block in blocks:
                _leave(block, owner)


def _leave(block: nn.Module, owner: int) -> None:
    """Take a block's shortcut out when no thread uses it any more, in whatever order they end."""
    shortcut = _SHORTCUTS[block]
    shortcut.threads[owner] -= 1
    shortcut.threads += Counter()
    if shortcut.threads:
        return
    del _SHORTCUTS[block]
    if shortcut.own is None:
        block.__dict__.pop("forward", None)
    else:
        block.forward = shortcut.own
