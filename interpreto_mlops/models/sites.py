"""The places at which a model can be split: blocks, what is summed in them, any module's input or output, the head."""

from __future__ import annotations

import difflib
import operator
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.sublayers import SUBLAYERS, find_sublayers
from interpreto_mlops.models.text_model import TextModel

HEAD = "head"
"""The split point that is whatever the model's last linear layer reads."""

Replace = Callable[[torch.Tensor], "torch.Tensor | None"]
"""From the tensor at a place to the one that is put there, or None to leave it."""

_INPUT = ".input"
_IN_A_BLOCK = re.compile(r"(-?\d+)\.(\w+)")
_HEAD_TOKENS = 4


@dataclass(frozen=True, eq=False)
class Site:
    """One place of a model.

    Arguments:
        path: the module's path.
        module: the module.
        is_input: whether the place is what the module reads, not what it puts out.
    """

    path: str
    module: nn.Module
    is_input: bool = False

    @property
    def name(self) -> str:
        """The module's path, with `.input` after it where the place is what the module reads."""
        return self.path + _INPUT if self.is_input else self.path

    def read(self, value: Any) -> torch.Tensor:
        """Return the tensor here, from a module's output or from its arguments, `(args, kwargs)`.

        Raises:
            InputError: there is none.
        """
        if self.is_input:
            value = _first_argument(*value)
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if not isinstance(first, torch.Tensor):
            what = "reads" if self.is_input else "puts out"
            raise InputError(
                f"the layer {self.path!r} {what} no tensor but {type(value).__name__}; choose a block inside it"
            )
        return first

    def written(self, value: Any, tensor: torch.Tensor) -> Any:
        """Return a module's output, or its arguments, with another tensor here."""
        if not self.is_input:
            return _with_first(value, tensor)
        args, kwargs = value
        if args:
            return (_with_first(args[0], tensor), *args[1:]), kwargs
        first = next(iter(kwargs))
        return args, {**kwargs, first: _with_first(kwargs[first], tensor)}


def _first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _with_first(value: Any, tensor: torch.Tensor) -> Any:
    return (tensor, *value[1:]) if isinstance(value, (tuple, list)) else tensor


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy, for the model may go on to change the tensor in place, and that autograd can use later."""
    with torch.inference_mode(False):
        return tensor.detach().clone()


@contextmanager
def hooked(actions: Iterable[tuple[Site, Replace]]) -> Iterator[None]:
    """Call an action with the tensor at each site, in this thread only; what it returns, if anything, replaces that."""
    owner = threading.get_ident()

    def act(site: Site, action: Replace, value: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        changed = action(site.read(value))
        return None if changed is None else site.written(value, changed)

    def hook(site: Site, action: Replace) -> Any:
        if site.is_input:
            return site.module.register_forward_pre_hook(
                lambda _module, args, kwargs: act(site, action, (args, kwargs)), with_kwargs=True
            )
        return site.module.register_forward_hook(lambda _module, _args, output: act(site, action, output))

    handles: list[Any] = []
    try:
        handles.extend(hook(site, action) for site, action in actions)
        yield
    finally:
        for handle in handles:
            handle.remove()


def block_paths(model: TextModel) -> tuple[str, ...]:
    """Return the module paths of the model's blocks, first to last; of the encoder's, where there is also a decoder.

    The stack is found by its structure: of all module lists that lie in no other, the one with the most parameters.
    """
    network = text_network(model)
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


def text_network(model: TextModel) -> nn.Module:
    """Return what runs over the text: the encoder of an encoder-decoder, else the model."""
    return model.model.get_encoder() if model.model.config.is_encoder_decoder else model.model


def network_for(model: TextModel, sites: Iterable[Site]) -> nn.Module:
    """Return the least that must run to reach the sites: an encoder-decoder's encoder, or the model."""
    network = text_network(model)
    inside = set(network.modules())
    return network if all(site.module in inside for site in sites) else model.model


def _path_of(module: nn.Module, root: nn.Module) -> str:
    names: dict[nn.Module, str] = {candidate: name for name, candidate in root.named_modules()}
    return names[module]


def find_sites(model: TextModel, split_points: Sequence[int | str]) -> dict[int | str, Site]:
    """Find the places that split points mean, by what they were called.

    Raises:
        InputError: none is given, or one twice (by number and by path, say), or it is no place of the text.
        UnknownNameError: there is no such place.
    """
    places = _Places(model)
    found: dict[int | str, Site] = {}
    for given in split_points:
        key, site = places.find(given)
        if site.name in {other.name for other in found.values()}:
            raise InputError(f"the split point {given!r} is the layer {site.name!r}, which is in the list already")
        found[key] = site
    if not found:
        raise InputError("give at least one split point")
    return found


class _Places:
    """The names of a model's places."""

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self.blocks = block_paths(model)
        self._sublayers: dict[str, dict[str, str]] = {}

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of the modules that run over the text."""
        # The decoder of a classifier reads the text itself.
        whole = self.model.task in {"classification", "token_classification"}
        network = self.model.model if whole else text_network(self.model)
        prefix = _path_of(network, self.model.model)
        return tuple(f"{prefix}.{name}" if prefix else name for name, _ in network.named_modules() if name)

    def find(self, given: int | str) -> tuple[int | str, Site]:
        """Return the key under which a place is kept, and the place."""
        if not isinstance(given, str):
            number = self._number(given)
            return number, self._site(self.blocks[number])
        if given == HEAD:
            return given, find_head(self.model)
        if given in self.paths:
            return given, self._site(given)
        if given.endswith(_INPUT) and given.removesuffix(_INPUT) in self.paths:
            return given, self._site(given.removesuffix(_INPUT), is_input=True)
        if match := _IN_A_BLOCK.fullmatch(given):
            return given, self._site(self._sublayer(int(match[1]), match[2]))
        raise self._unknown(given)

    def _site(self, path: str, *, is_input: bool = False) -> Site:
        return Site(path, self.model.model.get_submodule(path), is_input)

    def _number(self, given: Any) -> int:
        blocks = self.blocks
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
        return number

    def _sublayer(self, number: int, part: str) -> str:
        block = self.blocks[self._number(number)]
        if part not in SUBLAYERS:
            raise UnknownNameError("part of a block", part, SUBLAYERS)
        if block not in self._sublayers:
            module, network = self.model.model.get_submodule(block), text_network(self.model)
            self._sublayers[block] = find_sublayers(self.model, block, module, network)
        return self._sublayers[block][part]

    def _unknown(self, given: str) -> InputError:
        if given.removesuffix(_INPUT) in {name for name, _ in self.model.model.named_modules() if name}:
            return InputError(
                f"the layer {given!r} is not in the encoder, and an encoder-decoder that does not classify can be "
                "split in its encoder only: its decoder reads the text that it writes"
            )
        others = [f"{number}.{part}" for number in range(len(self.blocks)) for part in SUBLAYERS]
        others.append(HEAD)
        close = difflib.get_close_matches(given, [*self.paths, *others], n=3, cutoff=0.5)
        return UnknownNameError("layer", given, dict.fromkeys([*close, *self.blocks, *others]))


def probe_inputs(model: TextModel, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return inputs of different tokens, that end as a classifying encoder-decoder wants texts to end."""
    ids = torch.arange(tokens, device=model.device) * 7919 % model.embedding.weight.shape[0]
    end = model.model.config.eos_token_id
    if model.model.config.is_encoder_decoder and end is not None:
        ids[-1] = end[0] if isinstance(end, (list, tuple)) else end
    ids = ids.expand(rows, tokens).clone()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def find_head(model: TextModel) -> Site:
    """Return the input of the last linear layer that the model runs: that which puts out the logits, or their parts.

    Raises:
        InputError: the model puts out no logits, or those of a text that it writes itself.
    """
    if model.model.config.is_encoder_decoder and model.task not in {"classification", "token_classification"}:
        raise InputError(
            f"a head of {model.name!r} would read the text that its decoder writes, so it is no place of the text that "
            "the model is given; choose a layer of the encoder"
        )
    ran: list[tuple[str, nn.Module, int]] = []
    handles = [
        module.register_forward_hook(_note(name, ran))
        for name, module in model.model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and not isinstance(module, nn.Embedding)
    ]
    try:
        with model.evaluating(), torch.inference_mode(), model.execution.plainly():
            output = model.model(**probe_inputs(model, 1, _HEAD_TOKENS))
    finally:
        for handle in handles:
            handle.remove()
    logits = getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise InputError(f"the model {model.name!r} has no head: it puts out no logits")
    last = [(name, module) for name, module, width in ran if width == logits.shape[-1]]
    if not last:
        raise InputError(f"the model {model.name!r} has no linear layer that puts out its logits; give a module path")
    return Site(*last[-1], is_input=True)


def _note(name: str, ran: list[tuple[str, nn.Module, int]]) -> Callable[..., None]:
    owner = threading.get_ident()

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        if threading.get_ident() == owner and isinstance(output, torch.Tensor):
            ran.append((name, module, output.shape[-1]))

    return note
