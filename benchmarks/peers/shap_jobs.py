"""shap: its explainer of texts, and its estimators on the game itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import shap
import torch


def classification(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Callable[[list[str]], Any]]]:
    """Yield our name of the method, what is special about the setting, and the call."""

    @torch.inference_mode()
    def logits(texts: Any) -> np.ndarray:
        rows = tokenizer([str(text) for text in texts], padding=True, return_tensors="pt")
        return model(**rows).logits.numpy()

    masker = shap.maskers.Text(tokenizer)
    explain = shap.Explainer(logits, masker)
    yield "kernel_shap", "Partition (Owen values)", lambda texts: explain(texts, silent=True)
    permute = shap.Explainer(logits, masker, algorithm="permutation")
    yield "shapley_sampling", "Permutation", lambda texts: permute(texts, silent=True)


def shapley(model: Any, tokenizer: Any) -> Iterable[tuple[str, Callable[[str, int, int, int], list[float]]]]:
    """Yield what estimates Shapley values of words from (text, target, evaluations, seed)."""

    def game(text: str, target: int) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
        full = tokenizer(text, return_tensors="pt")["input_ids"]
        words = full.shape[1] - 2

        @torch.inference_mode()
        def value(present: np.ndarray) -> np.ndarray:
            ids = full.repeat(len(present), 1)
            ids[:, 1:-1].masked_fill_(torch.from_numpy(np.asarray(present) < 0.5), tokenizer.mask_token_id)
            rows = [model(input_ids=part).logits[:, target] for part in ids.split(64)]
            return torch.cat(rows).numpy().astype(np.float64)

        return value, words

    def kernel_shap(text: str, target: int, evaluations: int, seed: int) -> list[float]:
        np.random.seed(seed)
        value, words = game(text, target)
        explainer = shap.KernelExplainer(value, np.zeros((1, words)))
        # Its default keeps ten features; here all players are wanted.
        return explainer.shap_values(np.ones((1, words)), nsamples=evaluations, l1_reg=0, silent=True)[0].tolist()

    def permutation(text: str, target: int, evaluations: int, seed: int) -> list[float]:
        value, words = game(text, target)
        explainer = shap.PermutationExplainer(value, np.zeros((1, words)), seed=seed)
        return explainer(np.ones((1, words)), max_evals=evaluations, silent=True).values[0].tolist()

    yield "KernelExplainer", kernel_shap
    yield "PermutationExplainer", permutation
