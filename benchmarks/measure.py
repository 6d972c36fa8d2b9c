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

BATCH_TOKENS = (512, 1024, 1536)
ANCHORS = 4


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


def measure(model: Any, call: Callable[[], Any]) -> Cost:
    """Run a call and note what it cost."""
    cost = Cost()

    def note(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        given = next(x for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if x is not None)
        if mask is not None and mask.ndim == 2:
            # Beside a cache the mask is wider than what is given.
            lengths = mask[:, -given.shape[1] :].sum(-1).tolist()
        else:
            lengths = [given.shape[1]] * given.shape[0]
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


def best(model: Any, call: Callable[[], Any], seconds: float = 4.0, most: int = 5) -> Cost:
    """Repeat a short call for some seconds and return the run that took the least CPU time."""
    runs = [measure(model, call)]
    while sum(run.cpu for run in runs) < seconds and len(runs) < most:
        runs.append(measure(model, call))
    return min(runs, key=lambda run: run.cpu)


class Floor:
    """CPU seconds that the bare model takes for given rows, at its best rate for each length.

    Arguments:
        model: the bare model.
        rounds: timings of each batch; the least counts.
    """

    def __init__(self, model: Any, rounds: int) -> None:
        self.model, self.rounds = model, rounds
        self.rates: dict[tuple[int, bool], float] = {}

    def seconds(self, cost: Cost) -> float:
        """What the rows of a call take. Rates are kept until `forget`."""
        both = ((cost.scored, False), (cost.differentiated, True))
        return sum(self._seconds(rows, gradients) for rows, gradients in both if rows)

    def forget(self) -> None:
        """Measure anew from here on: the machine may have become slower or faster."""
        self.rates.clear()

    def _seconds(self, rows: Counter[int], gradients: bool) -> float:
        """Measure a few of the lengths; the time of a row is nearly linear in between."""
        lengths = np.asarray(sorted(rows))
        anchors = np.unique(np.linspace(lengths[0], lengths[-1], ANCHORS).round().astype(int))
        rates = [self._rate(int(length), gradients) for length in anchors]
        return float(sum(np.interp(length, anchors, rates) * rows[int(length)] for length in lengths))

    def _rate(self, length: int, gradients: bool) -> float:
        """The least CPU seconds of a row of that length, over batch sizes and rounds."""
        if (length, gradients) not in self.rates:
            self.rates[length, gradients] = min(
                _timed(self.model, length, max(1, tokens // length), gradients)
                for tokens in BATCH_TOKENS
                for _ in range(self.rounds)
            )
        return self.rates[length, gradients]


def _timed(model: Any, length: int, rows: int, gradients: bool) -> float:
    ids = torch.randint(5, model.config.vocab_size, (rows, length))
    start = time.process_time()
    _bare(model, ids, gradients)
    return (time.process_time() - start) / rows


def _bare(model: Any, ids: torch.Tensor, gradients: bool) -> None:
    mask = torch.ones_like(ids)
    if not gradients:
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask)
        return
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = model(inputs_embeds=embeddings, attention_mask=mask).logits
    torch.autograd.grad(logits[:, 0].sum(), embeddings)
