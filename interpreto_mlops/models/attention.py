"""Attention maps of any model that goes through transformers' attention interface, and its value vectors set to zero.

The model runs as it is: only the function that computes attention is another one, for as long as a context is open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from interpreto_mlops.errors import InputError

IMPLEMENTATION = "interpreto_mlops_observed"
"""The name under which our attention function stands in transformers' registries."""

_CROSS = re.compile(r"encdecattention|encoder_attn|cross_?att", re.IGNORECASE)


@dataclass(frozen=True)
class AttentionMap:
    """What one attention module computed for one batch.

    Arguments:
        name: the module's name in the model.
        kind: `encoder`, `decoder`, or `cross` (from a decoder to its encoder); a model of one stack is an `encoder`.
        weights: the attention probabilities, at least in float32, shape (rows, heads, queries, keys); exactly 0 at
            keys that a query does not see.
    """

    name: str
    kind: str
    weights: torch.Tensor


@dataclass(eq=False)
class Observation:
    """What the attention function does while a context is open.

    Arguments:
        visit: receives every attention map, in the order of computation; None when nobody asks for them.
        zeroed: the position in each row whose value vectors are zero, shape (rows,), or None.
    """

    model: PreTrainedModel
    visit: Callable[[AttentionMap], None] | None = None
    zeroed: torch.Tensor | None = None
    seen: list[torch.nn.Module] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names = {module: name for name, module in self.model.named_modules()}
        encoder: Any = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
        self._encoder = set(encoder.modules())

    def check(self) -> None:
        """Make sure that attention was seen.

        Raises:
            InputError: the model computes it in its own way.
        """
        if not self.seen:
            raise _unobservable(self.model)

    def report(self, module: torch.nn.Module, weights: torch.Tensor) -> None:
        """Hand a map on to the visitor."""
        assert self.visit is not None
        name = self._names[module]
        side = "encoder" if module in self._encoder else "decoder"
        self.visit(AttentionMap(name, "cross" if _CROSS.search(name) else side, weights))


_OBSERVATION: ContextVar[Observation | None] = ContextVar("interpreto_mlops_observation", default=None)


@contextmanager
def observed_attention(
    model: PreTrainedModel, visit: Callable[[AttentionMap], None] | None = None
) -> Iterator[Observation]:
    """Let `visit` see every attention map that the model computes while the context is open.

    The model's attention implementation is put back afterwards, also after an error.

    Raises:
        InputError: the model computes its attention in its own way.
    """
    observation = Observation(model, visit)
    with attention_implementation(model, IMPLEMENTATION):
        token = _OBSERVATION.set(observation)
        try:
            yield observation
        finally:
            _OBSERVATION.reset(token)
    observation.check()


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Run the model with another attention implementation, and put each configuration's own one back.

    Raises:
        InputError: the model does not let its attention be exchanged.
    """
    check_observable(model)
    before = [(config, getattr(config, "_attn_implementation_internal", None)) for config in _configs(model)]
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        for config, value in before:
            config._attn_implementation_internal = value


def check_observable(model: PreTrainedModel) -> None:
    """Refuse a model whose attention does not go through transformers' attention interface.

    Raises:
        InputError: it does not.
    """
    if not model._can_set_attn_implementation():
        raise _unobservable(model)


def _unobservable(model: PreTrainedModel) -> InputError:
    return InputError(
        f"the attention of a {type(model).__name__} cannot be observed, for it does not go through transformers' "
        "attention interface; choose a method that needs gradients or scores only"
    )


def _configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """Return the configuration of the model and all of its parts, each once."""
    found: dict[int, PretrainedConfig] = {}
    waiting = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            parts = (getattr(config, key, None) for key in config.sub_configs)
            waiting.extend(part for part in parts if part is not None)
    return list(found.values())


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute attention as sdpa does, shape (rows, queries, heads, width), under the observation that is open."""
    observation = _OBSERVATION.get()
    if observation is not None:
        observation.seen.append(module)
        if observation.zeroed is not None:
            value = value.clone()
            value[torch.arange(len(value), device=value.device), :, observation.zeroed.to(value.device)] = 0
    recording = observation is not None and observation.visit is not None
    if not recording and options.get("softcap") is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    weights = attention_weights(module, query, key, attention_mask, **options)
    if recording:
        assert observation is not None
        observation.report(module, weights)
    output = weights.to(value.dtype) @ _repeated(value, query.shape[1])
    return output.transpose(1, 2).contiguous(), None


def attention_weights(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> torch.Tensor:
    """Return softmax(query · key) as attention functions of transformers do, shape (rows, heads, queries, keys).

    Arguments:
        module: the attention module; `is_causal` is asked of it when the caller does not say.
        query: shape (rows, heads, queries, width).
        key: shape (rows, heads or fewer, keys, width); grouped heads are repeated.
        mask: True (or 0) where a query sees a key and False (or very negative) where not; None for all, or for the
            triangle of a causal module.
        scaling: of the products; 1 / sqrt(width) by default.
        softcap: the bound of the products, as Gemma 2 has.
        position_bias: is added to the products, as in T5.
        is_causal: whether a missing mask means the triangle.
        others: options without a bearing on the weights.

    Raises:
        InputError: the module has attention sinks of its own.
    """
    if others.get("s_aux") is not None:
        raise InputError(f"the attention sinks of a {type(module).__name__} are not supported")
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = query @ _repeated(key, query.shape[1]).transpose(2, 3)
    scores = (scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)).to(precise)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        return (scores + mask).softmax(-1)
    return scores.masked_fill(~mask, torch.finfo(precise).min).softmax(-1).masked_fill(~mask, 0.0)


def _repeated(states: torch.Tensor, heads: int) -> torch.Tensor:
    return states.repeat_interleave(heads // states.shape[1], dim=1)


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
