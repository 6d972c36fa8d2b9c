"""SAELens: its trainer on batches of given activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

SETTINGS = [{"rate": rate} for rate in (3e-4, 1e-3, 3e-3)]  # its default first
KINDS = {
    "topk_sae": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk_sae": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def train(job: dict[str, Any], family: str, seed: int, batches: Iterator[torch.Tensor], *, rate: float) -> Callable:
    kind, config = KINDS[family]
    torch.manual_seed(seed)
    sae = kind(config(d_in=job["width"], d_sae=job["concepts"], k=job["k"]))
    total = job["steps"] * job["batch"]
    settings = SAETrainerConfig(
        total_training_samples=total,
        train_batch_size_samples=job["batch"],
        lr=rate,
        lr_end=0.0,
        lr_warm_up_steps=job["warm_up"],
        lr_decay_steps=job["decay"],
        dead_feature_window=max(1, job["dead_after"] // job["batch"]),
    )
    sae = SAETrainer(settings, sae, batches).fit().eval()
    if family == "batchtopk_sae":
        threshold = float(sae.topk_threshold)

        def apply(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            _, before = sae.encode_with_hidden_pre(rows)
            codes = before * (before > threshold)
            return codes, sae.decode(codes)

        return apply

    def plain(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = sae.encode(rows)
        codes = codes.to_dense() if codes.is_sparse else codes
        return codes, sae.decode(codes)

    return plain
