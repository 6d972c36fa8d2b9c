"""A model cut at some of its layers: what they put out, and how the classes depend on it.

This file holds all of nnsight. Beside its traces stands an engine of plain forward hooks with the same results, for
threads, for workers, and where the source text that a trace needs is not there.
"""

from __future__ import annotations

import functools
import importlib
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
from interpreto_mlops.models.sites import Site, block_paths, find_sites, hooked, network_for, probe_inputs
from interpreto_mlops.models.text_model import TextModel

__all__ = ["ENGINES", "Splitter", "block_paths"]

ENGINES = ("nnsight", "hooks")

_PROBE_ROWS, _PROBE_TOKENS = 2, 3


class Splitter:
    """A model, and the layers at which it is split.

    Arguments:
        model: the model; nothing on it changes.
        split_points: layers by number or by module path. Number i is the output of block i of the model's stack of
            blocks, counted from 0 (of the encoder's, where there is also a decoder); -1 is the last block.
        engine: `hooks`, which may run in many threads, or `nnsight`, whose traces run one at a time in a process and
            need this package's source files. They give the same numbers; hooks are the default, being the cheaper ones
            for single rows as for harvests: a trace adds 0.3 to 1 ms to a pass, 1 per cent of 1024 tokens through 3 of
            MiniLM's layers and 15 per cent of 16 tokens.

    Raises:
        InputError: no layer, a layer named twice (by number and by path, say), or one whose output is not one vector
            for each token.
        UnknownNameError: there is no such layer or engine.
    """

    def __init__(self, model: TextModel, split_points: Sequence[int | str], *, engine: str = "hooks") -> None:
        if engine not in ENGINES:
            raise UnknownNameError("engine", engine, ENGINES)
        if isinstance(split_points, (str, int)):
            raise InputError(f"give a list of split points, as in [{split_points!r}]")
        self.model = model
        self.engine = engine
        found = find_sites(model, split_points)
        self.points: dict[int | str, str] = {given: site.name for given, site in found.items()}
        self._sites = {site.name: site for site in found.values()}
        self._network = network_for(model, self._sites.values())
        shapes = self._probe()
        self.widths: dict[str, int] = {name: shape[-1] for name, shape in shapes.items()}
        self._layouts = {name: self._layout(name, shape) for name, shape in shapes.items()}
        self.per_text: frozenset[str] = frozenset(name for name in shapes if self._layouts[name] == "text")
        self._wrapped: _Wrapped | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.name!r}, {list(self.split_points)}, engine={self.engine!r})"

    @property
    def split_points(self) -> tuple[str, ...]:
        """The module paths (with `.input` where it is what the module reads), in the order in which they are reached."""
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
            For each split point, in depth order, a tensor of shape (rows, tokens, width), or (rows, width) where it is
            in `per_text`, in the dtype in which the model computes. Where the mask is 0 it means nothing. A row has the
            same numbers whichever side is padded.
        """
        batch, shifts = _turned_right(self._batch(inputs))
        rows, tokens = batch["input_ids"].shape
        with self.model.evaluating(), torch.inference_mode(), self.model.execution.casting(self.model.device.type):
            run = self._run_traced if self.engine == "nnsight" and not self._is_hooked() else self._run_hooked
            found = run(batch)
        for name in found.keys() - self.per_text:
            tensor = _in_rows(found[name], self._layouts[name], (rows, tokens))[:, :tokens]
            found[name] = tensor if shifts is None else _rolled(tensor, -shifts)
        return {name: found[name] for name in self.split_points}

    @contextmanager
    def replaced(self, layer: int | str, replace: Callable[[torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
        """Exchange what there is at a split point, in every forward pass of the model that this thread makes meanwhile.

        Arguments:
            layer: the split point.
            replace: from what is there, shape (rows, tokens, width) or (rows, width), to a tensor of the same shape, or
                None to leave it. When the model generates, it is called for each step, with the new tokens alone.
        """

        name, shape = self.path(layer), list[int]()
        layout = self._layouts[name]

        def note(embedded: torch.Tensor) -> None:
            shape[:] = embedded.shape[:2]

        def act(tensor: torch.Tensor) -> torch.Tensor | None:
            changed = replace(_in_rows(tensor, layout, shape))
            return None if changed is None else _as_laid_out(changed, layout)

        embedding = [(Site("embedding", self.model.embedding), note)] if layout == "flat" else []
        with self.model.execution.hooked(), hooked([*embedding, (self._sites[name], act)]):
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
            leaf, logits = self._logits_of_leaf(self._sites[path], batch)
            if targets is None:
                scores = logits
            else:
                chosen = targets.to(logits.device).clone()
                scores = logits.gather(1, chosen.reshape(len(chosen), -1))
            gradients = torch.stack(
                [torch.autograd.grad(column.sum(), leaf, retain_graph=True)[0] for column in scores.unbind(1)], dim=1
            )
        return leaf.detach(), logits.detach(), gradients

    def _logits_of_leaf(self, site: Site, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        leaves: list[torch.Tensor] = []

        def begin_graph(tensor: torch.Tensor) -> torch.Tensor:
            leaf = tensor.detach().clone().requires_grad_(True)
            leaves.append(leaf)
            torch.set_grad_enabled(True)
            return leaf

        # Nothing before the layer needs a graph; `no_grad` puts the caller's mode back whatever happens.
        with torch.no_grad(), hooked([(site, begin_graph)]):
            logits = ClassLogits.read(self.model, batch, [ClassLogits()] * len(batch["input_ids"]))
        return leaves[0], logits

    def _batch(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        batch: dict[str, Any] = {name: value.to(self.model.device) for name, value in inputs.items()}
        # Nothing is generated, and a cache of keys and values would double the memory.
        if "use_cache" in self.model.accepts and self._network is self.model.model:
            batch["use_cache"] = False
        return batch

    def _is_hooked(self) -> bool:
        """Whether a hook stands at a split point: a trace would not see what that changes."""
        modules = [site.module for site in self._sites.values()]
        return any(module._forward_hooks or module._forward_pre_hooks for module in modules)

    def _run_hooked(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[[torch.Tensor], None]:
            def record(tensor: torch.Tensor) -> None:
                if name not in found:
                    found[name] = _copied(tensor)
                if len(found) == len(self._sites):
                    raise _Stop

            return record

        try:
            with hooked([(site, keep(name)) for name, site in self._sites.items()]):
                self._network(**batch)
        except _Stop:
            pass
        return found

    def _run_traced(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        with _TRACING:
            if self._wrapped is None or self._wrapped.is_stale():
                self._wrapped = _Wrapped(self._network)
            return self._wrapped.trace([self._sites[name] for name in self.split_points], batch)

    def _refuse_repeated(self, batch: dict[str, Any]) -> None:
        """Refuse a module that runs several times in one pass: it has as many outputs, and is not one place."""
        calls = dict.fromkeys(self._sites, 0)

        def count(name: str) -> Callable[[torch.Tensor], None]:
            def add(_tensor: torch.Tensor) -> None:
                calls[name] += 1

            return add

        with hooked([(site, count(name)) for name, site in self._sites.items()]):
            self._network(**batch)
        for name, times in calls.items():
            if times > 1:
                raise InputError(
                    f"the layer {name!r} runs {times} times in one forward pass, its weights being shared, so it is "
                    "not one place of the model"
                )

    def _layout(self, name: str, shape: tuple[int, ...]) -> str:
        """Say how a site's tensor is laid out, from its shape in the probe."""
        layouts = {
            (_PROBE_ROWS,): "text",
            (_PROBE_ROWS * _PROBE_TOKENS,): "flat",
            (_PROBE_TOKENS, _PROBE_ROWS): "turned",
            (_PROBE_ROWS, self._padded(_PROBE_TOKENS)): "token",
            (_PROBE_ROWS, _PROBE_TOKENS): "token",
        }
        if shape[:-1] not in layouts:
            verb = "read" if self._sites[name].is_input else "put out"
            raise InputError(
                f"the layer {name!r} does not {verb} one vector for each token or each text: for {_PROBE_ROWS} texts "
                f"of {_PROBE_TOKENS} tokens its shape is {shape}"
            )
        return layouts[shape[:-1]]

    def _padded(self, tokens: int) -> int:
        """Return the length to which the model itself lengthens rows, as Longformer does to a multiple of a window."""
        window = getattr(self.model.model.config, "attention_window", 1)
        step = max(window) if isinstance(window, (list, tuple)) else int(window)
        return -(-tokens // step) * step

    def _probe(self) -> dict[str, tuple[int, ...]]:
        """Run a tiny batch to see in which order the split points give what."""
        with self.model.evaluating(), torch.inference_mode(), self.model.execution.plainly():
            found = self._run_hooked(self._batch(probe_inputs(self.model, _PROBE_ROWS, _PROBE_TOKENS)))
            # Decoders without a padding id classify one row only.
            self._refuse_repeated(self._batch(probe_inputs(self.model, 1, _PROBE_TOKENS)))
        for name in self._sites:
            if name not in found:
                raise InputError(f"the layer {name!r} takes no part in the model's forward pass")
            if not found[name].is_floating_point():
                raise InputError(f"the layer {name!r} has no activations but numbers of dtype {found[name].dtype}")
        return {name: tuple(tensor.shape) for name, tensor in found.items()}


def _in_rows(tensor: torch.Tensor, layout: str, shape: Sequence[int]) -> torch.Tensor:
    """Return a site's tensor in rows of tokens, shape (rows, tokens, width); one vector a text stays as it is."""
    if layout == "flat":
        return tensor.unflatten(0, tuple(shape))
    return tensor.transpose(0, 1) if layout == "turned" else tensor


def _as_laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Undo `_in_rows`."""
    if layout == "flat":
        return tensor.flatten(0, 1)
    return tensor.transpose(0, 1) if layout == "turned" else tensor


def _turned_right(batch: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Move padding from the left of rows to their right, where every model numbers positions as for a row alone.

    Returns:
        The batch, and by how many columns its rows were moved, shape (rows, 1); None where there was nothing to do, or
        the caller has numbered the positions.
    """
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in batch or bool(mask[:, 0].all()):
        return batch, None
    shifts = (mask.cumsum(1) == 0).sum(1, keepdim=True)
    moved = {
        name: _rolled(value, shifts) if isinstance(value, torch.Tensor) and value.shape[:2] == mask.shape else value
        for name, value in batch.items()
    }
    return moved, shifts


def _rolled(tensor: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Move the columns of each row to the left, around the end."""
    columns = (torch.arange(tensor.shape[1], device=shifts.device) + shifts) % tensor.shape[1]
    return tensor.take_along_dim(columns.to(tensor.device).reshape(*columns.shape, *[1] * (tensor.dim() - 2)), dim=1)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy, for the model may go on to change the tensor in place, and that autograd can use later."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward pass that has given what was asked for
    """Raised in a hook when everything is captured."""


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
            # Without a device of its own it leaves inputs where they are: offloaded weights are nowhere.
            self.root: Any = type("NNsight", (_import_nnsight().NNsight,), {"device": None})(network)
        during = _marks(network)
        _put_marks(self.before)
        self.owner = [0]
        self.during = [
            (module, _in_one_thread(self.owner, module, marks, before))
            for (module, marks), (_, before) in zip(during, self.before, strict=True)
        ]

    def is_stale(self) -> bool:
        """Whether a module's own forward was exchanged since."""
        return _marks(self.network) != self.before

    def trace(self, sites: Sequence[Site], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return what passes some sites, which must be given in the order in which they are reached."""
        nnsight, root = _import_nnsight(), self.root
        places = [(site, root.interleaver.envoys[id(site.module)]) for site in sites]
        self.owner[0] = threading.get_ident()
        _put_marks(self.during)
        try:
            with root.trace(**batch) as tracer:
                found = nnsight.save({site.name: _copied(site.read(_here(site, envoy))) for site, envoy in places})
                tracer.stop()
            return dict(found)
        except nnsight.tracing.tracer.WithBlockNotFoundError as error:
            raise InputError("nnsight cannot read this package's source files; use engine='hooks'") from error
        finally:
            _put_marks(self.before)


def _here(site: Site, envoy: Any) -> Any:
    return envoy.inputs if site.is_input else envoy.output


def _in_one_thread(owner: list[int], module: nn.Module, marks: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return nnsight's marks with a forward that it sees in the tracing thread only; others run the module's own."""
    traced = marks["forward"]
    plain = before.get("forward", functools.partial(type(module).forward, module))

    @functools.wraps(traced)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (traced if threading.get_ident() == owner[0] else plain)(*args, **kwargs)

    return {**marks, "forward": forward}


def _marks(network: nn.Module) -> _Marks:
    return [
        (module, {key: module.__dict__[key] for key in _MARKS if key in module.__dict__})
        for module in network.modules()
    ]


def _put_marks(marks: _Marks) -> None:
    for module, values in marks:
        # Other threads may be running the module.
        module.__dict__.update(values)
        for key in _MARKS:
            if key not in values:
                module.__dict__.pop(key, None)


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
