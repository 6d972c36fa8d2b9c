"""Interpreto at its defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from interpreto import Granularity
from interpreto.attributions import (
    GradientShap,
    IntegratedGradients,
    KernelShap,
    Lime,
    Occlusion,
    Saliency,
    SmoothGrad,
    Sobol,
    SquareGrad,
    VarGrad,
)

METHODS = {
    "occlusion": Occlusion,
    "kernel_shap": KernelShap,
    "lime": Lime,
    "sobol": Sobol,
    "integrated_gradients": IntegratedGradients,
    "input_x_gradient": Saliency,  # which multiplies with the input by default
    "gradient_shap": GradientShap,
    "smooth_grad": SmoothGrad,
    "square_grad": SquareGrad,
    "var_grad": VarGrad,
}


def classification(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Callable[[list[str]], Any]]]:
    """Yield our name of the method, what is special about the setting, and the call."""
    for name, method in METHODS.items():
        yield name, "", method(model, tokenizer)
    yield "saliency", "", Saliency(model, tokenizer, input_x_gradient=False)


def shapley(model: Any, tokenizer: Any) -> Iterable[tuple[str, Callable[[str, int, int, int], list[float]]]]:
    """Yield what estimates Shapley values of words from (text, target, evaluations, seed)."""

    def kernel_shap(text: str, target: int, evaluations: int, seed: int) -> list[float]:
        torch.manual_seed(seed)
        method = KernelShap(model, tokenizer, n_perturbations=evaluations, granularity=Granularity.WORD, batch_size=16)
        (explanation,) = method([text], targets=torch.tensor([target]))
        return explanation.attributions.reshape(-1).tolist()

    yield "KernelShap", kernel_shap
