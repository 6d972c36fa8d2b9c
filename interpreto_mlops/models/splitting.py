"""A model cut at some of its layers: what they put out, and how the classes depend on it.

This file holds all of nnsight. Beside its traces stands an engine of plain forward hooks with the same results, for
threads, for workers, and where the source text that a trace needs is not there.
"""

from __future__ import annotations

import difflib
import importlib
import operator
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.requests import ClassLogits
from interpreto_mlops.models.text_model import TextModel

ENGINES = ("nnsight", "hooks")

_PROBE_TOKENS = 3


class Splitter:
    """A model, and the layers at which it is split.

    Arguments:
        model: the model; nothing on it changes.
        split_points: layers by number or by module path. Number i is the output of block i of the model's stack of
            blocks, counted from 0 (of the encoder's, where there is also a decoder); -1 is the last block.
        engine: `nnsight`, whose traces run one at a time in a process, or `hooks`, which may run in many threads.

    Raises:
        InputError: no layer, a layer named twice (by number and by path, say), or one whose output is not one vector
            for each token.
        UnknownNameError: there is no such layer or engine.
    """

    def __init__(self, model: TextModel, split_points: Sequence[int | str], *, engine: str = "nnsight") -> None:
        if engine not in ENGINES:
            raise UnknownNameError("engine", engine, ENGINES)
        if isinstance(split_points, (str, int)):
            raise InputError(f"give a list of split points, as in [{split_points!r}]")
        self.model = model
        self.engine = engine
        self._network = _network(model)
        self.points: dict[int | str, str] = _resolve(model, split_points)
        self._modules = {path: model.model.get_submodule(path) for path in self.points.values()}
        found = self._probe()
        self.widths: dict[str, int] = {path: tensor.shape[-1] for path, tensor in found.items()}
        self._wrapped: _Wrapped | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.name!r}, {list(self.split_points)}, engine={self.engine!r})"

    @property
    def split_points(self) -> tuple[str, ...]:
        """The module paths, in the order in which their outputs come."""
        return tuple(self.widths)

    def path(self, layer: int | str) -> str:
        """Return the module path of a split point, given as it was on construction or by its path.

        Raises:
            UnknownNameError: the model is not split there.
        """
        if layer in self.points and not isinstance(layer, bool):
            return self.points[layer]
        if layer in self.widths:
            return str(layer)
        raise UnknownNameError("split point", layer, self.points)

    def capture(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the model once, no further than the deepest split point, and return what the split points put out.

        Arguments:
            inputs: `input_ids` and `attention_mask`, shape (rows, tokens), padded on either side; other inputs of the
                model's forward where it takes them.

        Returns:
            For each module path, in depth order, a tensor of shape (rows, tokens, width); where the mask is 0 it means
            nothing.
        """
        batch = self._batch(inputs)
        with self.model.evaluating(), torch.inference_mode():
            run = self._run_traced if self.engine == "nnsight" else self._run_hooked
            found = run(batch)
        # Copied outside inference mode, so that the caller may use the tensors under autograd.
        return {path: _first_tensor(found[path]).clone() for path in self.split_points}

    @contextmanager
    def replaced(self, layer: int | str, replace: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
        """Exchange what a split point puts out, in every forward pass of the model that this thread makes meanwhile.

        Arguments:
            layer: the split point.
            replace: from the output, shape (rows, tokens, width), to one of the same shape, or None to leave it. When
                the model generates, it is called for each step, with the new tokens alone.
        """

        def exchange(output: Any) -> Any:
            tensor = replace(_first_tensor(output))
            return None if tensor is None else _with_first_tensor(output, tensor)

        with self.model.execution.hooked(), _hooked({self._modules[self.path(layer)]: exchange}):
            yield

    def output_gradients(
        self, inputs: Mapping[str, torch.Tensor], layer: int | str, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Differentiate a classifier's logits by the output of one split point.

        Arguments:
            inputs: as `TextModel.inputs` makes them: padded on the right, where the pooling of decoders looks for it.
            layer: the split point.
            targets: the ids of the classes, shape (rows,) or (rows, targets); None for all classes.

        Returns:
            The layer's output, shape (rows, tokens, width); the logits, shape (rows, classes); and the gradients, shape
            (rows, targets, tokens, width).

        Raises:
            InputError: the model is not a classifier.
        """
        if self.model.task != "classification":
            raise InputError(f"the model {self.model.name!r} is not a classifier, so it has no class logits")
        path = self.path(layer)
        with torch.inference_mode(False), self.model.evaluating():
            # Made under the caller's inference mode, inputs could not be used in a graph.
            batch = {name: value.clone() for name, value in self.model.with_positions(dict(inputs)).items()}
            leaf, logits = self._logits_of_leaf(self._modules[path], batch)
            if targets is None:
                scores = logits
            else:
                chosen = targets.to(logits.device).clone()
                scores = logits.gather(1, chosen.reshape(len(chosen), -1))
            gradients = torch.stack(
                [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in scores.unbind(1)], dim=1
            )
        return leaf.detach(), logits.detach(), gradients

    def _logits_of_leaf(self, module: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        leaves: list[torch.Tensor] = []

        def begin_graph(output: Any) -> Any:
            leaf = _first_tensor(output).detach().clone().requires_grad_(True)
            leaves.append(leaf)
            torch.set_grad_enabled(True)
            return _with_first_tensor(output, leaf)

        # Nothing before the layer needs a graph; `no_grad` puts the caller's mode back whatever happens.
        with torch.no_grad(), _hooked({module: begin_graph}):
            logits = ClassLogits.read(self.model, batch, [ClassLogits()] * len(batch["input_ids"]))
        return leaves[0], logits

    def _batch(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        tensors = {name: value.to(self.model.device) for name, value in inputs.items()}
        batch: dict[str, Any] = dict(self.model.with_positions(tensors))
        # Nothing is generated, and a cache of keys and values would double the memory.
        if "use_cache" in self.model.accepts and self._network is self.model.model:
            batch["use_cache"] = False
        return batch

    def _run_hooked(self, batch: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def keep(path: str) -> Callable[[Any], None]:
            def record(output: Any) -> None:
                found.setdefault(path, output)
                if len(found) == len(self._modules):
                    raise _Stop

            return record

        try:
            with _hooked({module: keep(path) for path, module in self._modules.items()}):
                self._network(**batch)
        except _Stop:
            pass
        return found

    def _run_traced(self, batch: dict[str, Any]) -> dict[str, Any]:
        with _TRACING:
            if self._wrapped is None or self._wrapped.is_stale():
                self._wrapped = _Wrapped(self._network)
            modules = {path: self._modules[path] for path in self.split_points}
            return self._wrapped.trace(modules, batch)

    def _refuse_repeated(self, batch: dict[str, Any]) -> None:
        """Refuse a module that runs several times in one pass: it has as many outputs, and is not one place."""
        calls = dict.fromkeys(self._modules, 0)

        def count(path: str) -> Callable[[Any], None]:
            def add(_output: Any) -> None:
                calls[path] += 1

            return add

        with _hooked({module: count(path) for path, module in self._modules.items()}):
            self._network(**batch)
        for path, times in calls.items():
            if times > 1:
                raise InputError(
                    f"the layer {path!r} runs {times} times in one forward pass, its weights being shared, so it is "
                    "not one place of the model"
                )

    def _probe(self) -> dict[str, torch.Tensor]:
        """Run a tiny row to see in which order the split points put out what."""
        ids = torch.zeros((1, _PROBE_TOKENS), dtype=torch.int64, device=self.model.device)
        with self.model.evaluating(), torch.inference_mode():
            batch = self._batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            outputs = self._run_hooked(batch)
            self._refuse_repeated(batch)
        for path in self._modules:
            if path not in outputs:
                raise InputError(f"the layer {path!r} takes no part in the model's forward pass")
            tensor = _first_tensor(outputs[path], path)
            if tensor.dim() != 3 or tensor.shape[:2] != ids.shape or not tensor.is_floating_point():
                raise InputError(
                    f"the layer {path!r} does not put out one vector for each token: for 1 row of {_PROBE_TOKENS} "
                    f"tokens its output has shape {tuple(tensor.shape)}"
                )
        return {path: _first_tensor(output) for path, output in outputs.items()}


def block_paths(model: TextModel) -> tuple[str, ...]:
    """Return the module paths of the model's blocks, first to last; of the encoder's, where there is also a decoder.

    The stack is found by its structure: of all module lists that lie in no other, the one with the most parameters.
    """
    network = _network(model)
    lists: dict[str, nn.ModuleList] = {}
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and len(module) and not inside:
            lists[name] = module
    if not lists:
        return ()
    largest = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    prefix = _path_of(network, model.model)
    return tuple(".".join(filter(None, (prefix, largest, str(i)))) for i in range(len(lists[largest])))


def _network(model: TextModel) -> nn.Module:
    """Return what runs over the text: the encoder of an encoder-decoder, else the model."""
    return model.model.get_encoder() if model.model.config.is_encoder_decoder else model.model


def _path_of(module: nn.Module, root: nn.Module) -> str:
    names: dict[nn.Module, str] = {candidate: name for name, candidate in root.named_modules()}
    return names[module]


def _resolve(model: TextModel, split_points: Sequence[int | str]) -> dict[int | str, str]:
    blocks = block_paths(model)
    prefix = _path_of(_network(model), model.model)
    paths = [f"{prefix}.{name}" if prefix else name for name, _ in _network(model).named_modules() if name]
    points: dict[int | str, str] = {}
    for given in split_points:
        key, path = _resolve_one(given, blocks, paths)
        if path in points.values():
            raise InputError(f"the split point {given!r} is the layer {path!r}, which is in the list already")
        points[key] = path
    if not points:
        raise InputError("give at least one split point")
    return points


def _resolve_one(given: int | str, blocks: Sequence[str], paths: Sequence[str]) -> tuple[int | str, str]:
    if isinstance(given, str):
        if given not in paths:
            close = difflib.get_close_matches(given, paths, n=3, cutoff=0.5)
            raise UnknownNameError("layer", given, [*close, *(path for path in blocks if path not in close)])
        return given, given
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise InputError(f"a split point must be a layer's number or a module path, not {given!r}")
    number = operator.index(given)
    if not blocks:
        raise InputError(f"the model has no list of blocks to count to {given!r}; give module paths")
    if not -len(blocks) <= number < len(blocks):
        last = len(blocks) - 1
        raise InputError(
            f"unknown layer {given!r}: the model has layers 0..{last} (or {-len(blocks)}..-1), "
            f"that is {blocks[0]!r} to {blocks[-1]!r}"
        )
    return number, blocks[number]


def _first_tensor(output: Any, path: str = "") -> torch.Tensor:
    """Return a module's output, or the first of several."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, torch.Tensor):
        raise InputError(f"the layer {path!r} puts out no tensor but {type(output).__name__}; choose a block inside it")
    return first


def _with_first_tensor(output: Any, tensor: torch.Tensor) -> Any:
    return (tensor, *output[1:]) if isinstance(output, (tuple, list)) else tensor


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward pass that has given what was asked for
    """Raised in a hook when everything is captured."""


@contextmanager
def _hooked(actions: Mapping[nn.Module, Callable[[Any], Any]]) -> Iterator[None]:
    """Call an action with each module's output, in this thread only; what it returns, if anything, replaces that."""
    owner = threading.get_ident()

    def hook_of(action: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda _module, _args, output: action(output) if threading.get_ident() == owner else None

    handles = [module.register_forward_hook(hook_of(action)) for module, action in actions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# nnsight keeps the state of a trace on the modules, so two traces never run at the same time.
_TRACING = threading.RLock()

# What nnsight writes into the dictionary of every module that it wraps.
_MARKS = ("forward", "__nnsight__")

_Marks = list[tuple[nn.Module, dict[str, Any]]]


class _Wrapped:
    """A network wrapped by nnsight, whose marks are on the modules during a trace only."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.before = _marks(network)
        with warnings.catch_warnings():
            # It warns of each submodule called `output`; here modules are found by identity, not by that name.
            warnings.simplefilter("ignore")
            self.root: Any = _import_nnsight().NNsight(network)
        self.during = _marks(network)
        _put_marks(self.before)

    def is_stale(self) -> bool:
        """Whether a module's own forward was exchanged since."""
        return _marks(self.network) != self.before

    def trace(self, modules: Mapping[str, nn.Module], batch: dict[str, Any]) -> dict[str, Any]:
        """Return the outputs of some modules, which must be given in the order in which they run."""
        nnsight, root = _import_nnsight(), self.root
        envoys = {path: root.interleaver.envoys[id(module)] for path, module in modules.items()}
        _put_marks(self.during)
        try:
            with root.trace(**batch) as tracer:
                found = nnsight.save({path: envoy.output for path, envoy in envoys.items()})
                tracer.stop()
            return dict(found)
        except nnsight.tracing.tracer.WithBlockNotFoundError as error:
            raise InputError("nnsight cannot read this package's source files; use engine='hooks'") from error
        finally:
            _put_marks(self.before)


def _marks(network: nn.Module) -> _Marks:
    return [
        (module, {key: module.__dict__[key] for key in _MARKS if key in module.__dict__})
        for module in network.modules()
    ]


def _put_marks(marks: _Marks) -> None:
    for module, values in marks:
        for key in _MARKS:
            module.__dict__.pop(key, None)
        module.__dict__.update(values)


def _import_nnsight() -> Any:
    """Import nnsight without what its import does to the whole process.

    It gives every object a method `save`, on which other libraries' `hasattr` checks fail, and exchanges
    `Tensor.backward`. Both are taken back, unless the user has imported nnsight before and may want them.
    """
    if "nnsight" in sys.modules:
        return sys.modules["nnsight"]
    backward = torch.Tensor.backward
    module = importlib.import_module("nnsight")
    torch.Tensor.backward = backward  # type: ignore[method-assign]
    if "save" in object.__dict__:
        importlib.import_module("nnsight._c").unmount("save")
    return module
