"""dictionary_learning: its trainers on batches of given activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer
from dictionary_learning.training import trainSAE

KINDS = {"topk_sae": TopKTrainer, "batchtopk_sae": BatchTopKTrainer}
SETTINGS = [{"rate": rate} for rate in (None, 3e-4, 3e-3)]  # its default first: 1.1e-3 for 512 concepts


class Kept:
    """Lets the trained object out of `trainSAE`, which only saves it."""

    def __init__(self, kind: type, window: int) -> None:
        self.kind, self.window, self.trainer = kind, window, None

    def __call__(self, **settings: Any) -> Any:
        self.trainer = self.kind(**settings)
        self.trainer.dead_feature_threshold = self.window  # 10 million rows are more than the whole budget
        return self.trainer


def train(
    job: dict[str, Any], family: str, seed: int, batches: Iterator[torch.Tensor], *, rate: float | None
) -> Callable:
    kept = Kept(KINDS[family], job["dead_after"])
    settings = {
        "trainer": kept,
        "steps": job["steps"],
        "activation_dim": job["width"],
        "dict_size": job["concepts"],
        "k": job["k"],
        "layer": 0,
        "lm_name": "given activations",
        "lr": rate,
        "warmup_steps": job["warm_up"],
        "decay_start": job["steps"] - job["decay"],
        "threshold_start_step": job["steps"] // 4,
        "threshold_beta": 0.99,
        "seed": seed,
        "device": "cpu",
    }
    trainSAE(data=batches, trainer_configs=[settings], steps=job["steps"], device="cpu")
    sae = kept.trainer.ae.eval()

    def apply(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = sae.encode(rows)
        return codes, sae.decode(codes)

    return apply
