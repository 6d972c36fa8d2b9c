"""inseq: a given continuation, explained step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import inseq


def generation(model: Any, tokenizer: Any) -> Iterable[tuple[str, str, Callable[[str, str], Any]]]:
    """Yield method, setting and a call that explains a given continuation."""
    for name in ("occlusion", "integrated_gradients"):
        wrapped = inseq.load_model(model, name, tokenizer=tokenizer)
        yield name, "", _explain(wrapped, name)


def _explain(wrapped: Any, name: str) -> Callable[[str, str], Any]:
    def explain(prompt: str, target: str) -> Any:
        return wrapped.attribute(
            prompt,
            f"{prompt} {target}",
            method=name,
            attribute_target=True,
            show_progress=False,
        )

    return explain
