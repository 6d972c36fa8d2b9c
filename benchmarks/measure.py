"""What a call costs, and the floor below it: the bare model on rows of the same lengths.

Needs torch and numpy only, so that it runs in every library's own environment.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

BATCH_TOKENS = (512, 1024, 2048)
ANCHORS = 5


@dataclass
class Cost:
    """CPU and wall seconds of a call, and the lengths of the rows that the model saw, without and with gradients."""

    cpu: float = 0.0
    wall: float = 0.0
    scored: Counter[int] = field(default_factory=Counter)
    differentiated: Counter[int] = field(default_factory=Counter)
    result: Any = None

    @property
    def evaluations(self) -> int:
        return self.scored.total() + self.differentiated.total()

    @property
    def tokens(self) -> int:
        both = self.scored + self.differentiated
        return sum(length * rows for length, rows in both.items())


def measure(model: torch.nn.Module, call: Callable[[], Any]) -> Cost:
    """Run a call and note what it cost."""
    cost = Cost()

    def note(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2:
            lengths = mask.sum(-1).tolist()
        else:
            first = next(x for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if x is not None)
            lengths = [first.shape[1]] * first.shape[0]
        (cost.differentiated if torch.is_grad_enabled() else cost.scored).update(int(n) for n in lengths)

    # Below the head, for some libraries call the model's forward without its hooks.
    handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        cost.result = call()
    finally:
        cost.cpu, cost.wall = time.process_time() - cpu, time.perf_counter() - wall
        handle.remove()
    return cost


def best(model: torch.nn.Module, call: Callable[[], Any], seconds: float = 4.0, most: int = 5) -> Cost:
    """Repeat a short call for some seconds and return the run that took the least CPU time."""
    runs = [measure(model, call)]
    while sum(run.cpu for run in runs) < seconds and len(runs) < most:
        runs.append(measure(model, call))
    return min(runs, key=lambda run: run.cpu)


def floor(model: torch.nn.Module, cost: Cost, rounds: int) -> float:
    """CPU seconds that the bare model takes for the same rows, at its best rate for each length."""
    return sum(
        _seconds(model, lengths, gradients, rounds)
        for lengths, gradients in ((cost.scored, False), (cost.differentiated, True))
        if lengths
    )


def _seconds(model: torch.nn.Module, rows: Counter[int], gradients: bool, rounds: int) -> float:
    """Measure a few of the lengths; the time of a row is nearly linear in between."""
    lengths = np.asarray(sorted(rows))
    anchors = np.unique(np.linspace(lengths[0], lengths[-1], ANCHORS).round().astype(int))
    rates = [_rate(model, int(length), gradients, rounds) for length in anchors]
    return float(sum(np.interp(length, anchors, rates) * rows[int(length)] for length in lengths))


def _rate(model: torch.nn.Module, length: int, gradients: bool, rounds: int) -> float:
    """The least CPU seconds of a row of that length, over batch sizes and rounds."""
    least = float("inf")
    for tokens in BATCH_TOKENS:
        rows = max(1, tokens // length)
        ids = torch.randint(5, model.config.vocab_size, (rows, length))
        for _ in range(rounds):
            start = time.process_time()
            _bare(model, ids, gradients)
            least = min(least, (time.process_time() - start) / rows)
    return least


def _bare(model: torch.nn.Module, ids: torch.Tensor, gradients: bool) -> None:
    mask = torch.ones_like(ids)
    if not gradients:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask)
        return
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = model(inputs_embeds=embeddings, attention_mask=mask).logits
    torch.autograd.grad(logits[:, 0].sum(), embeddings)
