"""Rows of matrices that say how much each token contributes to each position, computed from attention."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.attention import AttentionMap, Observation, observed_attention
from interpreto_mlops.models.requests import Readout
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel

_COPIES = 8  # the share 1 / _COPIES of a text's tokens is zeroed side by side where the token budget allows it


@dataclass(frozen=True)
class ContributionRows(Readout):
    """Some rows of a matrix, shape (tokens, tokens), of a text of one stack of layers.

    Arguments:
        tokens: how many tokens the text has.
        positions: the rows that are wanted.
        place: the split point, a block's output, that contributions are followed to; None for the last block.
    """

    tokens: int
    positions: tuple[int, ...]
    place: tuple[Splitter, str] | None = field(default=None, kw_only=True)

    @property
    def width(self) -> int:
        """How many numbers the rows have together."""
        return len(self.positions) * self.tokens


@dataclass(frozen=True)
class RolloutRows(ContributionRows):
    """Rows of attention rollout.

    Arguments:
        alpha: the share of each layer's residual connection.
    """

    alpha: float

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Any]) -> torch.Tensor:
        """Return the rows, one after the other, shape (rows, width)."""
        device = batch["input_ids"].device
        alpha = torch.tensor([readout.alpha for readout in readouts], device=device)
        matrices = _Product()

        def visit(seen: AttentionMap) -> None:
            matrices.append(rollout_layer(seen.weights.mean(1), alpha[:, None, None].to(seen.weights.dtype)))

        with observed_attention(model.model, visit):
            _run(model, batch, readouts)
        return _flat([matrices.value[i, list(each.positions), : each.tokens] for i, each in enumerate(readouts)])


@dataclass(frozen=True)
class RfemRows(ContributionRows):
    """Rows of filtered attention, one map a head.

    Arguments:
        excluded: which columns take no part, shape (tokens,).
        k: how many standard deviations above the mean an entry must be.
        causal: whether a row is filtered by what stands up to its position only, as if the text ended there.
    """

    excluded: tuple[bool, ...]
    k: float
    causal: bool

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Any]) -> torch.Tensor:
        """Return the rows, one after the other, shape (rows, width)."""
        heads = _Product()
        with observed_attention(model.model, lambda seen: heads.append(rollout_layer(seen.weights, 0.5))):
            _run(model, batch, readouts)
        return _flat([each.filtered(maps) for each, maps in zip(readouts, heads.value, strict=True)])

    def filtered(self, heads: torch.Tensor) -> torch.Tensor:
        """Return the rows, shape (positions, tokens), from one matrix a head, shape (heads, at least tokens, same)."""
        rows = heads.new_zeros(len(self.positions), self.tokens, dtype=torch.float64)
        for row, position in zip(rows, self.positions, strict=True):
            end = position + 1 if self.causal else self.tokens
            row[:end] = filter_heads(heads[:, :end, :end], position, self.excluded[:end], self.k)
        return rows


@dataclass(frozen=True)
class ValueZeroingRows(ContributionRows):
    """Rows of the rollout of value zeroing."""

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Any]) -> torch.Tensor:
        """Return the rows, one after the other, shape (rows, width)."""
        rows, tokens = batch["input_ids"].shape
        # Copies of a small batch fill the token budget, so that several tokens are zeroed in one pass of a layer.
        copies = max(1, min(model.engine.token_budget // (rows * tokens), -(-tokens // _COPIES)))
        repeated = {name: tensor.repeat(copies, *[1] * (tensor.dim() - 1)) for name, tensor in batch.items()}
        matrices = _Product()
        with observed_attention(model.model) as observation:
            with _layer_calls(model) as calls:
                _run(model, repeated, readouts)
            observation.check()
            for call in _with_attention(model, calls, observation):
                matrices.append(_contributions(call, observation, batch["attention_mask"], copies))
        return _flat([matrices.value[i, list(each.positions), : each.tokens] for i, each in enumerate(readouts)])


def rollout_layer(attention: torch.Tensor, alpha: torch.Tensor | float) -> torch.Tensor:
    """Return (1 - alpha) attention + alpha identity, shape (..., tokens, tokens)."""
    identity = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    return (1 - alpha) * attention + alpha * identity


def filter_heads(heads: torch.Tensor, row: int, excluded: Sequence[bool], k: float) -> torch.Tensor:
    """Sum, over heads, what stands out in one row of each head's map, weighted by the head's maximum.

    Arguments:
        heads: one matrix a head, shape (heads, tokens, tokens).
        row: of the matrices.
        excluded: columns that take no part and get 0, shape (tokens,).
        k: an entry stays when it is at least mean + k · standard deviation of its head's columns that take part.

    Returns:
        Shape (tokens,).
    """
    result = heads.new_zeros(len(excluded), dtype=torch.float64)
    columns = [j for j, out in enumerate(excluded) if not out]
    if not columns:
        return result
    maps = heads[:, :, columns].double()
    mean, deviation = maps.mean((1, 2)), maps.std((1, 2), correction=0)
    kept = maps[:, row] >= (mean + k * deviation)[:, None]
    result[columns] = (maps.amax((1, 2))[:, None] * kept).sum(0)
    return result


class _Product:
    """The product of the matrices of all layers so far, the latest on the left."""

    def __init__(self) -> None:
        self._value: torch.Tensor | None = None

    @property
    def value(self) -> torch.Tensor:
        assert self._value is not None
        return self._value

    def append(self, matrix: torch.Tensor) -> None:
        self._value = matrix if self._value is None else matrix @ self._value.to(matrix.device)


@dataclass(frozen=True)
class _LayerCall:
    """What a layer was given and what it made of it."""

    layer: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor

    def again(self) -> torch.Tensor:
        return _hidden(self.layer(*self.args, **self.kwargs))


def _run(model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[ContributionRows]) -> None:
    """Run the model to the layer that the readouts name, else without its head."""
    # The texts of one call have one layer.
    if (place := readouts[0].place) is not None:
        place[0].reach(batch, place[1])
        return
    body: Any = model.model.base_model
    options = {"use_cache": False} if "use_cache" in inspect.signature(body.forward).parameters else {}
    body(**batch, **options)


@contextmanager
def _layer_calls(model: TextModel) -> Iterator[list[_LayerCall]]:
    """Note every call of a layer while the context is open."""
    calls: list[_LayerCall] = []

    def note(layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_LayerCall(layer, args, kwargs, _hidden(output)))

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in _layers(model.model)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _layers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the members of the outermost lists of modules."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _with_attention(model: TextModel, calls: list[_LayerCall], observation: Observation) -> list[_LayerCall]:
    attending = set(observation.seen)
    kept = [call for call in calls if not attending.isdisjoint(call.layer.modules())]
    if not kept:
        raise InputError(f"{model.name!r} keeps its layers in no list of modules, so their values cannot be zeroed")
    return kept


def _contributions(call: _LayerCall, observation: Observation, mask: torch.Tensor, copies: int) -> torch.Tensor:
    """Return how far each token's output turns when another's value vector is zero, rows normalised to 1.

    Arguments:
        call: of one layer, on `copies` copies of the batch.
        observation: the open one.
        mask: 1 where there is a token, shape (rows, tokens).
        copies: how many.

    Returns:
        Shape (rows, tokens, tokens).
    """
    rows, tokens = mask.shape
    before = _directions(call.output).view(copies, rows, tokens, -1)[0]
    turned = before.new_zeros(rows, tokens, tokens)
    for first in range(0, tokens, copies):
        places = (first + torch.arange(copies, device=mask.device)).clamp(max=tokens - 1)
        observation.zeroed = places.repeat_interleave(rows)
        after = _directions(call.again()).view(copies, rows, tokens, -1)
        # Half the squared distance of directions is 1 - cosine, without the rounding of a difference from 1.
        distance = (after - before).square().sum(-1) / 2
        turned[:, :, places] = distance.permute(1, 2, 0)
    observation.zeroed = None
    turned = turned * mask[:, None, :].to(turned.dtype)
    total = turned.sum(-1, keepdim=True)
    return torch.where(total > 0, turned / total, torch.eye(tokens, dtype=turned.dtype, device=turned.device))


def _directions(states: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(states.to(torch.promote_types(states.dtype, torch.float32)), dim=-1)


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _flat(rows: list[torch.Tensor]) -> torch.Tensor:
    """Lay the rows of each text after one another, and zeros after the shorter ones, shape (texts, widest)."""
    flat = [each.reshape(-1) for each in rows]
    return torch.nn.utils.rnn.pad_sequence(flat, batch_first=True)
