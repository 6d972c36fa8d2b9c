"""Layer-wise relevance propagation as a changed gradient: input times gradient then is the relevance.

The rules live in the forward pass, which they leave as it is; they give what is recorded for the backward pass another
slope. Nothing of the model is replaced: hooks on single modules and a mode of this thread's torch functions.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.attention import attention_implementation

RULES = ("attn_lrp", "cp_lrp")
"""AttnLRP splits every product half and half; CP-LRP takes attention weights as constants."""

_ELEMENTWISE = {
    *("gelu", "silu", "relu", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "celu", "relu6"),
    *("mish", "hardswish", "softsign", "softplus", "logsigmoid", "rms_norm"),
}
_PRODUCTS = {"mul", "__mul__", "__rmul__", "multiply", "matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "einsum"}
_PRODUCTS_AFTER_A_SUMMAND = {"addmm", "addbmm", "baddbmm"}
_QUOTIENTS = {"div", "__truediv__", "true_divide", "divide", "__rtruediv__", "__rdiv__", "div_"}
_WITHOUT_RULE = {
    *("mul_", "pow", "__pow__", "square", "sqrt", "rsqrt", "reciprocal", "exp", "norm", "normalize", "group_norm"),
    *("batch_norm", "multi_head_attention_forward", "scaled_dot_product_attention_"),
}
_ACTIVATION_HOMES = ("transformers.activations", "torch.nn.modules.activation")
_RMS_NORM = re.compile(r"rms_?norm$|^(U?M?T5|Pop2Piano|LongT5|SwitchTransformers|Udop|Pix2Struct\w*)LayerNorm$", re.I)


@contextmanager
def relevance_rules(model: PreTrainedModel, rule: str) -> Iterator[None]:
    """Let what the model computes while the context is open have the gradients of relevance propagation.

    The values stay what they are. Linear layers, sums and softmax keep their gradient; a norm is differentiated with
    its standard deviation held constant; an element-wise function f has the slope f(x) / x; of a product of two things
    that depend on the input each gets half its gradient, so query and key get a quarter and the value a half.
    `cp_lrp` holds attention weights constant instead, and the value gets its full gradient. Parameters are taken for
    constants. The backward pass may follow after the context is closed.

    Source: Achtibat et al. 2024 (arXiv 2402.05602), propositions 3.1 to 3.4; CP-LRP: Ali et al. 2022 (2202.07304).

    Arguments:
        model: any whose operations all have a rule; others are refused when they run.
        rule: `attn_lrp` or `cp_lrp`.

    Raises:
        UnknownNameError: another rule.
        InputError: a part of the model for which there is no rule.
    """
    check_rule(rule)
    mode = _Rules(type(model).__name__, constant_attention=rule == "cp_lrp")
    handles = [handle for module in model.modules() for handle in _hooks(module, mode)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with _plain_attention(model), mode:
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def check_rule(rule: str) -> None:
    """Refuse what is no rule.

    Raises:
        UnknownNameError: it is none; the message lists those there are.
    """
    if rule not in RULES:
        raise UnknownNameError("relevance rule", rule, RULES)


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let attention run through functions of torch, which the rules see, where it goes through a kernel of its own."""
    if model.config._attn_implementation in {"sdpa", "eager"}:
        yield
        return
    with attention_implementation(model, "sdpa"):
        yield


class _Rules(TorchFunctionMode):
    """Gives torch's functions the slopes of the rules. Only what depends on the input requires a gradient here."""

    def __init__(self, model: str, *, constant_attention: bool) -> None:
        super().__init__()
        self.model = model
        self.constant_attention = constant_attention
        self.inside = 0  # how many modules that have one rule as a whole are running

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        rule = None if self.inside else self._rule(name)
        return function(*args, **kwargs) if rule is None else rule(function, args, kwargs)

    def _rule(self, name: str) -> Callable[..., Any] | None:
        if name in _ELEMENTWISE:
            return _elementwise
        if name in _PRODUCTS:
            return _product
        if name in _PRODUCTS_AFTER_A_SUMMAND:
            return _product_after_a_summand
        if name in _QUOTIENTS or name in _WITHOUT_RULE:
            return self._refuse_if_nonlinear
        rules = {"layer_norm": _layer_norm, "scaled_dot_product_attention": self._attention, "softmax": self._softmax}
        return rules.get(name)

    def _attention(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("query", "key", "value"), args[:3], strict=False)) | kwargs
        query, key, value = (given.pop(name) for name in ("query", "key", "value"))
        if self.constant_attention:
            return function(query.detach(), key.detach(), value, *args[3:], **given)
        return function(_share(query, 0.25), _share(key, 0.25), _share(value, 0.5), *args[3:], **given)

    def _softmax(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        weights = function(*args, **kwargs)
        return weights.detach() if self.constant_attention else weights

    def _refuse_if_nonlinear(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        linear_in_first = function.__name__ in _QUOTIENTS - {"__rtruediv__", "__rdiv__"}
        watched = (args[1:], kwargs) if linear_in_first else args[:1]
        if function.__name__ == "mul_":
            watched = () if len(_dependent(args)) < 2 else args
        if _dependent(watched):
            raise InputError(
                f"relevance propagation has no rule for {function.__name__!r}, which a {self.model} applies to what "
                "depends on its input; choose another method"
            )
        return function(*args, **kwargs)


def _dependent(values: Any) -> list[torch.Tensor]:
    """Return the tensors in nested arguments that depend on the input."""
    if isinstance(values, torch.Tensor):
        return [values] if values.requires_grad else []
    if isinstance(values, dict):
        values = tuple(values.values())
    return [tensor for value in values for tensor in _dependent(value)] if isinstance(values, (tuple, list)) else []


def _share(values: Any, share: float) -> Any:
    """Return the same values with a share of their gradient, in nested arguments for every tensor."""
    if isinstance(values, (tuple, list)):
        return type(values)(_share(value, share) for value in values)
    if not isinstance(values, torch.Tensor) or not values.requires_grad:
        return values
    same = values.view_as(values)
    same.register_hook(lambda gradient: gradient * share)
    return same


def _product(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    factors = len(_dependent(args)) + len(_dependent(kwargs))
    if factors < 2:
        return function(*args, **kwargs)
    return function(*_share(args, 1 / factors), **{name: _share(value, 1 / factors) for name, value in kwargs.items()})


def _product_after_a_summand(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _product(lambda *factors, **named: function(args[0], *factors, **named), args[1:], kwargs)


def _elementwise(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    inputs = args[0] if args else kwargs["input"]
    outputs = function(*args, **kwargs)
    return proportional(inputs, outputs) if inputs.requires_grad else outputs


def _layer_norm(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = inspect.signature(torch.nn.functional.layer_norm).bind(*args, **kwargs)
    given.apply_defaults()
    inputs, shape, weight, _, epsilon = given.args
    outputs = function(*args, **kwargs)
    if not inputs.requires_grad:
        return outputs
    axes = tuple(range(-len(shape), 0))
    centred = inputs - inputs.mean(axes, keepdim=True)
    with torch.no_grad():
        precise = centred.to(torch.promote_types(centred.dtype, torch.float32))
        slope = (precise.square().mean(axes, keepdim=True) + epsilon).rsqrt()
        slope = slope if weight is None else slope * weight
    return _with_slope(centred, outputs, slope)


def proportional(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return the outputs with the slope outputs / inputs; where an input is 0, with their own slope.

    An RMS norm with its standard deviation held constant is such a function too: its slope is weight / deviation,
    whether the weight is stored as it is or less 1, and at 0 its own slope is just that.

    Arguments:
        inputs: any shape.
        outputs: the same shape.
    """
    with torch.no_grad():
        zero = inputs == 0
        slope = (outputs / inputs).masked_fill(zero, 0.0)
    changed = _with_slope(inputs, outputs, slope)
    return torch.where(zero, outputs, changed) if bool(zero.any()) else changed


def _with_slope(inputs: torch.Tensor, outputs: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return _WithSlope.apply(inputs, outputs.detach(), slope)  # type: ignore[no-any-return,no-untyped-call]


class _WithSlope(torch.autograd.Function):
    """The given outputs, with the given derivative by the inputs, element by element."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, outputs: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(slope)
        ctx.dtype = inputs.dtype
        return outputs.view_as(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (slope,) = ctx.saved_tensors
        return (gradients[0] * slope).to(ctx.dtype), None, None


def _hooks(module: torch.nn.Module, mode: _Rules) -> list[Any]:
    """Give a module made of many functions one rule, if it is a norm or an activation."""
    if not _is_whole(module):
        return []

    def enter(*_: Any) -> None:
        mode.inside += 1

    def leave(_: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        changed = proportional(inputs[0], output) if inputs[0].requires_grad and not mode.inside > 1 else output
        mode.inside -= 1
        return changed

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _is_whole(module: torch.nn.Module) -> bool:
    """Whether a module's output is to be taken for proportional to its input, element by element.

    Raises:
        InputError: a norm of an unknown kind.
    """
    name = type(module).__name__
    if type(module).__module__ in _ACTIVATION_HOMES:
        return not re.search("Softm|Attention", name)
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)) or next(module.children(), None) is not None:
        return False
    if re.search("norm", name, re.I) is None or isinstance(module, torch.nn.Identity):
        return False
    if _RMS_NORM.search(name) is None:
        raise InputError(f"relevance propagation has no rule for the norm {name!r}; choose another method")
    return True
