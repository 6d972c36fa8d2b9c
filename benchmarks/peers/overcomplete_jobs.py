"""overcomplete: its own training loop on batches of given activations, without the vision libraries of its root."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

_spec = importlib.util.find_spec("overcomplete")
_root = types.ModuleType("overcomplete")
_root.__path__, _root.__spec__ = list(_spec.submodule_search_locations), _spec
sys.modules["overcomplete"] = _root

from overcomplete.sae import BatchTopKSAE, TopKSAE, train_sae  # noqa: E402
from overcomplete.sae.losses import top_k_auxiliary_loss  # noqa: E402


def squared_error(x: Any, x_hat: Any, _before: Any, _codes: Any, _dictionary: Any) -> Any:
    return (x - x_hat).square().mean()


LOSSES = {"auxiliary": top_k_auxiliary_loss, "plain": squared_error}
SETTINGS = [{"rate": rate, "loss": loss} for rate in (5e-4, 1e-3, 3e-3) for loss in LOSSES]


class Loader:
    """The batches of one epoch, in the form that its loop takes."""

    def __init__(self, batches: Iterator[torch.Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self.batches


def train(
    job: dict[str, Any], family: str, seed: int, batches: Iterator[torch.Tensor], *, rate: float, loss: str
) -> Callable:
    torch.manual_seed(seed)
    if family == "topk_sae":
        sae = TopKSAE(job["width"], job["concepts"], top_k=job["k"])
    else:
        sae = BatchTopKSAE(job["width"], job["concepts"], top_k=job["k"] * job["batch"])  # it counts the whole batch
    optimizer = torch.optim.Adam(sae.parameters(), lr=rate)

    def scale(step: int) -> float:
        return min(1.0, (step + 1) / job["warm_up"], (job["steps"] - step) / job["decay"])

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    train_sae(sae, Loader(batches), LOSSES[loss], optimizer, scheduler, nb_epochs=1, monitoring=0)
    sae.eval()

    def apply(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = sae.encode(rows)[1]
        return codes, sae.decode(codes)

    return apply
