"""interpreto_mlops itself: its sparse autoencoders at their defaults, for the same number of rows as the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from interpreto_mlops.concepts import DICTIONARIES

SETTINGS: list[dict[str, Any]] = [{}]


def train(job: dict[str, Any], family: str, seed: int, batches: Iterator[torch.Tensor], **settings: Any) -> Callable:
    rows = torch.cat(list(batches))  # one long pass: the same rows in the same order as the others see them
    chosen = {"n_concepts": job["concepts"], "k": job["k"], "seed": seed, "n_epochs": 1, "batch_size": job["batch"]}
    dictionary = DICTIONARIES.get(family)(**chosen, dead_after=job["dead_after"], validation_share=0.0, **settings)
    dictionary.fit(rows, progress=False)

    def apply(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = dictionary.encode(part)
        return codes, dictionary.decode(codes)

    return apply
