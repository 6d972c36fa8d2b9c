"""A model cut at some of its places: what passes there, what is put there instead, and how the classes depend on it.

Two engines run it, with the same results: nnsight's traces, and plain forward hooks, for threads, for workers, and
where the source text that a trace needs is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.layouts import as_laid_out, in_rows, rolled, turned_right
from interpreto_mlops.models.requests import ClassLogits
from interpreto_mlops.models.sites import (
    Replace,
    Site,
    block_paths,
    copied,
    find_sites,
    hooked,
    network_for,
    probe_inputs,
)
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.models.traces import TRACING, Traced

__all__ = ["ENGINES", "Splitter", "block_paths"]

ENGINES = ("nnsight", "hooks")

Keep = Callable[[str, torch.Tensor], torch.Tensor]
"""From a split point's name and what is there to what is kept of it."""

_PROBE_ROWS, _PROBE_TOKENS = 2, 3


class Splitter:
    """A model, and the layers at which it is split.

    Arguments:
        model: the model; nothing on it changes.
        split_points: numbers or names of places of the model.

            - `i`: the output of block i of the model's stack of blocks, counted from 0 (of the encoder's, where there
              is also a decoder); -1 is the last block.
            - `"i.attention"`, `"i.mlp"`: what that part of block i puts out before it is added to the residual stream.
            - a module path: the module's output; with `.input` after it, what the module reads.
            - `"head"`: what the model's last linear layer reads, which is one vector a text (`per_text`) in encoders
              that classify texts, and else one for each token.

            An encoder-decoder that classifies runs its decoder over the same text, one place later; its decoder's
            modules are places of the text, too. The decoder of one that writes is not.
        engine: `hooks`, which may run in many threads, or `nnsight`, whose traces run one at a time in a process and
            need this package's source files. They give the same numbers; hooks are the default, being the cheaper ones
            for single rows as for harvests: a trace adds 0.3 to 1 ms to a pass, 1 per cent of 1024 tokens through 3 of
            MiniLM's layers and 15 per cent of 16 tokens.

    Raises:
        InputError: no layer, a layer named twice (by number and by path, say), or one whose output is not one vector
            for each token or each text.
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
        self._wrapped: Traced | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.name!r}, {list(self.split_points)}, engine={self.engine!r})"

    @property
    def split_points(self) -> tuple[str, ...]:
        """The module paths, with `.input` where it is what the module reads, in the order in which they are reached."""
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

    def capture(self, inputs: Mapping[str, torch.Tensor], keep: Keep | None = None) -> dict[str, torch.Tensor]:
        """Run the model once, no further than the deepest split point, and return what the split points put out.

        Arguments:
            inputs: `input_ids` and `attention_mask`, shape (rows, tokens), padded on either side; other inputs of the
                model's forward where it takes them.
            keep: what to return of a split point in place of a copy of all: a function of its name and of what is
                there, shaped as below, which must not keep that itself, for the model may change it.

        Returns:
            For each split point, in depth order, a tensor of shape (rows, tokens, width), or (rows, width) where it is
            in `per_text`, in the dtype in which the model computes. Where the mask is 0 it means nothing. A row has the
            same numbers whichever side is padded.
        """
        batch, shifts = turned_right(self._batch(inputs))
        rows, tokens = batch["input_ids"].shape
        traced = self.engine == "nnsight" and not self._is_hooked()
        # What is laid out otherwise is turned into rows first.
        early = set() if traced or keep is None else {n for n in self._sites if self._is_plain(n, shifts)}
        with self.model.evaluating(), torch.inference_mode(), self.model.execution.casting(self.model.device.type):
            found = self._run_traced(batch) if traced else self._run_hooked(batch, keep if early else None, early)
        for name in found.keys() - early:
            tensor = found[name]
            if name not in self.per_text:
                tensor = in_rows(tensor, self._layouts[name], (rows, tokens))[:, :tokens]
                tensor = tensor if shifts is None else rolled(tensor, -shifts)
            found[name] = tensor if keep is None else keep(name, tensor)
        return {name: found[name] for name in self.split_points}

    def network_of(self, layer: int | str) -> nn.Module:
        """Return the least that must run to reach a split point: an encoder-decoder's encoder, or the model."""
        return network_for(self.model, [self._sites[self.path(layer)]])

    def reach(self, inputs: Mapping[str, torch.Tensor], layer: int | str) -> torch.Tensor:
        """Run the model no further than one split point, and return what is there.

        Gradients are recorded where the caller's mode says so. It is hooks that run it, whatever the engine.

        Arguments:
            inputs: as `TextModel.inputs` makes them: padded on the right.
            layer: the split point.

        Returns:
            Shape (rows, tokens, width), or (rows, width) where it is in `per_text`.
        """
        path, network, found = self.path(layer), self.network_of(layer), list[torch.Tensor]()

        def stop(tensor: torch.Tensor) -> None:
            found.append(tensor)
            raise _Stop

        batch = self._batch(inputs, network)
        casting = self.model.execution.casting(self.model.device.type)
        with self.model.evaluating(), casting, hooked([(self._sites[path], stop)]), suppress(_Stop):
            network(**batch)
        shape = batch["input_ids"].shape
        return found[0] if path in self.per_text else in_rows(found[0], self._layouts[path], shape)[:, : shape[1]]

    def _is_plain(self, name: str, shifts: torch.Tensor | None) -> bool:
        layout = self._layouts[name]
        return layout == "text" or (layout == "token" and shifts is None)

    @contextmanager
    def replaced(self, layer: int | str, replace: Replace) -> Iterator[None]:
        """Exchange what there is at a split point, in every forward pass of the model that this thread makes meanwhile.

        Arguments:
            layer: the split point.
            replace: from what is there, shape (rows, tokens, width) or (rows, width), to a tensor of the same shape, or
                None to leave it. When the model generates, it is called for each step, with the new tokens alone.
        """
        name, shape = self.path(layer), list[int]()

        def note(embedded: torch.Tensor) -> None:
            shape[:] = embedded.shape[:2]

        act = self._act_on_rows(name, replace, shape)
        embedding = [(Site("embedding", self.model.embedding), note)] if self._layouts[name] == "flat" else []
        with self.model.execution.hooked(), hooked([*embedding, (self._sites[name], act)]):
            yield

    def outputs(self, inputs: Mapping[str, torch.Tensor], replace: Mapping[int | str, Replace]) -> Any:
        """Run the whole model once with what there is at some split points exchanged, by this splitter's engine.

        Arguments:
            inputs: as for `capture`; padded on the right where the model's head looks for the end of a row there.
            replace: for each split point to change, a function as for `replaced`.

        Returns:
            What the model's forward returns; gradients are recorded where the caller's mode says so.
        """
        batch = self.model.with_positions(self._batch(inputs))
        changes = {self.path(layer): function for layer, function in replace.items()}
        with self.model.evaluating(), self.model.execution.casting(self.model.device.type), ExitStack() as stack:
            if self.engine == "hooks" or self._is_hooked():
                for name, function in changes.items():
                    stack.enter_context(self.replaced(name, function))
                return self.model.model(**batch)
            shape = batch["input_ids"].shape
            acts = [
                (self._sites[name], self._act_on_rows(name, changes[name], shape))
                for name in self.split_points
                if name in changes
            ]
            with TRACING:
                return self._wrapper(self.model.model).edit(acts, batch)

    def _act_on_rows(self, name: str, replace: Replace, shape: Sequence[int]) -> Replace:
        """Let a function of rows of tokens act on a site's tensor, however that is laid out."""
        layout = self._layouts[name]

        def act(tensor: torch.Tensor) -> torch.Tensor | None:
            changed = replace(in_rows(tensor, layout, shape))
            return None if changed is None else as_laid_out(changed, layout)

        return act

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

    def _batch(self, inputs: Mapping[str, torch.Tensor], network: nn.Module | None = None) -> dict[str, Any]:
        batch: dict[str, Any] = {name: value.to(self.model.device) for name, value in inputs.items()}
        # Nothing is generated, and a cache of keys and values would double the memory.
        if "use_cache" in self.model.accepts and (network or self._network) is self.model.model:
            batch["use_cache"] = False
        return batch

    def _is_hooked(self) -> bool:
        """Whether a hook stands at a split point: a trace would not see what that changes."""
        modules = [site.module for site in self._sites.values()]
        return any(module._forward_hooks or module._forward_pre_hooks for module in modules)

    def _run_hooked(
        self, batch: dict[str, Any], keep: Keep | None = None, early: Container[str] = ()
    ) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        def keeping(name: str) -> Callable[[torch.Tensor], None]:
            def record(tensor: torch.Tensor) -> None:
                if name not in found:
                    found[name] = keep(name, tensor) if keep is not None and name in early else copied(tensor)
                if len(found) == len(self._sites):
                    raise _Stop

            return record

        try:
            with hooked([(site, keeping(name)) for name, site in self._sites.items()]):
                self._network(**batch)
        except _Stop:
            pass
        return found

    def _run_traced(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        with TRACING:
            return self._wrapper(self._network).capture([self._sites[name] for name in self.split_points], batch)

    def _wrapper(self, network: nn.Module) -> Traced:
        """Return the wrapper around the model, or its encoder; a new one if a module's own forward was exchanged."""
        if self._wrapped is None or self._wrapped.network is not network or self._wrapped.is_stale():
            self._wrapped = Traced(network)
        return self._wrapped

    def _widths_of_runs(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Return the last dimension at each split point, for each time that it is reached in one whole pass."""
        runs: dict[str, list[int]] = {name: [] for name in self._sites}

        def note(name: str) -> Callable[[torch.Tensor], None]:
            return lambda tensor: runs[name].append(tensor.shape[-1])

        with hooked([(site, note(name)) for name, site in self._sites.items()]):
            self._network(**batch)
        return runs

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
            raise self._no_vectors(name, shape)
        return layouts[shape[:-1]]

    def _padded(self, tokens: int) -> int:
        """Return the length to which the model itself lengthens rows, as Longformer does to a multiple of a window."""
        window = getattr(self.model.model.config, "attention_window", 1)
        step = max(window) if isinstance(window, (list, tuple)) else int(window)
        return -(-tokens // step) * step

    def _probe(self) -> dict[str, tuple[int, ...]]:
        """Run tiny batches to see in which order the split points give what."""
        with self.model.evaluating(), torch.inference_mode(), self.model.execution.plainly():
            found = self._run_hooked(self._batch(probe_inputs(self.model, _PROBE_ROWS, _PROBE_TOKENS)))
            # Decoders without a padding id classify one row only.
            runs = self._widths_of_runs(self._batch(probe_inputs(self.model, 1, _PROBE_TOKENS + 1)))
        for name, widths in runs.items():
            if name not in found:
                raise InputError(f"the layer {name!r} takes no part in the model's forward pass")
            if len(widths) > 1:
                raise InputError(
                    f"the layer {name!r} runs {len(widths)} times in one forward pass, its weights being shared, so it "
                    "is not one place of the model"
                )
            if not found[name].is_floating_point():
                raise InputError(f"the layer {name!r} has no activations but numbers of dtype {found[name].dtype}")
            if widths != [*found[name].shape[-1:]]:
                raise self._no_vectors(name, tuple(found[name].shape))
        return {name: tuple(tensor.shape) for name, tensor in found.items()}

    def _no_vectors(self, name: str, shape: tuple[int, ...]) -> InputError:
        verb = "read" if self._sites[name].is_input else "put out"
        return InputError(
            f"the layer {name!r} does not {verb} one vector for each token or each text: for {_PROBE_ROWS} texts of "
            f"{_PROBE_TOKENS} tokens its shape is {shape}"
        )


class _Stop(Exception):  # noqa: N818 - not an error: it ends a forward pass that has given what was asked for
    """Raised in a hook when everything is captured."""
