"""lime: its explainer of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from lime.lime_text import LimeTextExplainer

SAMPLES = 512


def classification(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Callable[[list[str]], Any]]]:
    """Yield our name of the method, what is special about the setting, and the call."""

    @torch.inference_mode()
    def probabilities(texts: list[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), 32):
            rows = tokenizer(texts[start : start + 32], padding=True, return_tensors="pt")
            parts.append(model(**rows).logits.softmax(-1))
        return torch.cat(parts).numpy()

    explainer = LimeTextExplainer()

    def explain(texts: list[str]) -> Any:
        return [explainer.explain_instance(text, probabilities, num_samples=SAMPLES).as_list() for text in texts]

    yield "lime", f"{SAMPLES} samples (its default is 5000)", explain
