"""interpreto_mlops itself: every registered method at its defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from interpreto_mlops.attributions import METHODS, AttributionSet
from interpreto_mlops.models.text_model import TextModel

BUDGETED = ("kernel_shap", "shapley_sampling")


def classification(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Callable[[list[str]], Any]]]:
    """Yield the name of the method, what is special about the setting, and the call."""
    subject = TextModel(model, tokenizer, name="bert")
    for name in METHODS.names():
        yield name, "", METHODS.get(name)(subject)


def checks(result: AttributionSet) -> dict[str, float]:
    """What Integrated Gradients says about itself: nodes, and the gap relative to the difference of outputs."""
    if not all("nodes" in each.checks for each in result):
        return {}
    gaps = [
        each.checks["completeness_gap"] / float(np.abs(each.output - each.baseline_output).max()) for each in result
    ]
    return {"nodes": float(np.mean([each.checks["nodes"] for each in result])), "gap": float(max(gaps))}


def shapley(model: Any, tokenizer: Any) -> Iterable[tuple[str, Callable[[str, int, int, int], list[float]]]]:
    """Yield what estimates Shapley values of words from (text, target, evaluations, seed)."""
    subject = TextModel(model, tokenizer, name="bert")

    def estimate(name: str) -> Callable[[str, int, int, int], list[float]]:
        def run(text: str, target: int, evaluations: int, seed: int) -> list[float]:
            method = METHODS.get(name)
            budget = next(field.name for field in dataclasses.fields(method) if field.name.startswith("n_p"))
            (explanation,) = method(subject, seed=seed, **{budget: evaluations})([text], [target])
            return explanation.scores[0].tolist()

        return run

    yield "exact", lambda text, target, _evaluations, seed: estimate("kernel_shap")(text, target, 2**11, seed)
    for name in METHODS.names():
        if name in BUDGETED:
            yield name, estimate(name)


def generation(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Callable[[str, str], Any]]]:
    """Yield method, setting and a call that explains a given continuation."""
    subject = TextModel(model, tokenizer, name="gpt2")
    settings: list[tuple[str, str, dict[str, Any]]] = [
        ("occlusion", "", {}),
        ("integrated_gradients", "", {}),
        ("integrated_gradients", "50 nodes", {"n_nodes": 50}),
    ]
    for name, setting, parameters in settings:
        method = METHODS.get(name)(subject, granularity="token", inference_mode="log_softmax", **parameters)
        yield name, setting, lambda prompt, target, method=method: method([prompt], [target])
