"""How a model's forward is called: as it is, under autocast, or compiled. The model itself is never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from interpreto_mlops.errors import InputError, MissingDependencyError

_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Execution:
    """How a model's forward is called.

    Arguments:
        autocast: `bfloat16` or `float16` for what torch's autocast runs in half precision, or None.
        compile: whether scores of token ids run through `torch.compile`. What hooks change in the model runs as it is:
            a compiled graph would not see them.

    Raises:
        InputError: `autocast` or `compile` is something else.
    """

    def __init__(self, autocast: str | None = None, compile: bool = False) -> None:
        name = str(autocast).split(".")[-1] if isinstance(autocast, torch.dtype) else autocast
        if name is not None and name not in _HALVES:
            raise InputError(f"autocast must be 'bfloat16', 'float16' or None, not {autocast!r}")
        if not isinstance(compile, bool):
            raise InputError(f"compile must be True or False, not {compile!r}")
        self.autocast: str | None = name
        self.compile = compile
        self._exact = False
        self._hooked = 0
        self._compiled: dict[int, Callable[..., Any]] = {}

    @property
    def recorded(self) -> dict[str, Any]:
        """What was asked for, as results record it; empty when nothing was."""
        return {**({"autocast": self.autocast} if self.autocast else {}), **({"compile": True} if self.compile else {})}

    def call(self, module: Any, inputs: dict[str, Any]) -> Any:
        """Call the model, or a part of it, on its inputs."""
        with self.casting(inputs["input_ids"].device.type):
            return self._call(module, inputs)

    def casting(self, device: str) -> AbstractContextManager[Any]:
        """Return a context for what runs on a kind of device: autocast, where that was asked for."""
        if self.autocast is None or self._exact:
            return nullcontext()
        # Weights are cast once for each context and forgotten after it.
        return torch.autocast(device, dtype=_HALVES[self.autocast])

    def _call(self, module: Any, inputs: dict[str, Any]) -> Any:
        if not self.compile or self._hooked or torch.is_grad_enabled() or "past_key_values" in inputs:
            return module(**inputs)
        if id(module) not in self._compiled:
            # A function around it: torch and transformers leave marks on a module that is compiled itself.
            self._compiled[id(module)] = torch.compile(lambda **given: module(**given), dynamic=True)
        try:
            return self._compiled[id(module)](**inputs)
        except TorchDynamoException as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MissingDependencyError(
                f"torch.compile fails for {type(module).__name__} ({first}); on a CPU it needs a C++ compiler; "
                "use compile=False"
            ) from error

    @contextmanager
    def exactly(self, wanted: bool = True) -> Iterator[None]:
        """Run without autocast while the context is open, when that is wanted."""
        outer, self._exact = self._exact, self._exact or wanted
        try:
            yield
        finally:
            self._exact = outer

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Run nothing compiled while the context is open."""
        self._hooked += 1
        try:
            yield
        finally:
            self._hooked -= 1

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Run the model as it is, for a question about itself, while the context is open."""
        with self.exactly(), self.hooked():
            yield
