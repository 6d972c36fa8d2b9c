"""The loop that trains a sparse autoencoder from the rows that stream by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from interpreto_mlops.concepts.sae_architecture import Architecture, Codes
from interpreto_mlops.concepts.training import DataFacts, Learner, State

if TYPE_CHECKING:
    from interpreto_mlops.concepts.autoencoder import SparseAutoencoder

_MOST_HELD_OUT = 2048
_TESTED_AT_ONCE = 1024
_HASHED_AT_ONCE = 128  # rows whose numbers stay in the cache
# The learning rate is meant for steps of so many rows.
_USUAL_BATCH = 256
# Without a number of epochs, training shows about this many rows, in at least so many epochs.
_ROWS_TO_SHOW = 300_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 60
# Multiplications of one matrix product: some 10 ms on one core.
_WORTH_THREADS = 2**28


def n_passes(parameters: SparseAutoencoder, facts: DataFacts) -> int:
    """Return how many passes over the rows a training has at most."""
    return parameters.n_epochs or min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_ROWS_TO_SHOW / facts.n_rows)))


def held_out_share(parameters: SparseAutoencoder, facts: DataFacts) -> float:
    """Return the share of the rows that is for validation."""
    return min(parameters.validation_share, _MOST_HELD_OUT / facts.n_rows)


class AutoencoderLearner(Learner):
    """Trains one sparse autoencoder.

    Arguments:
        parameters: the dictionary that asks for it.
        architecture: its tensors, codes and losses.
        facts: the data's size, mean and variance.

    Source: Gao et al. 2024 (arXiv 2406.04093) for the auxiliary loss and what is dead; Bricken et al. 2023 for the
    gradient of unit-norm rows without its radial part; Malladi et al. 2022 (arXiv 2205.10287) for Adam's learning rate
    going with the root of the batch.
    """

    def __init__(self, parameters: SparseAutoencoder, architecture: Architecture, facts: DataFacts) -> None:
        self.n_passes = n_passes(parameters, facts)
        self.architecture = architecture
        self._parameters = parameters
        self._facts = facts
        self._mean = torch.from_numpy(facts.mean).float()
        self._optimizer = _adam(architecture)
        self._silence = torch.zeros(parameters.n_concepts, dtype=torch.int64)
        self._waiting: list[torch.Tensor] = []
        self._held_out: list[torch.Tensor] = []
        self._held_out_share = held_out_share(parameters, facts)
        self._n_shown = 0
        self._n_steps = 0
        self._passes_ended = 0
        self._sums = _Sums()
        self._residual = 1.0
        self._best = _Best()
        self._news: list[dict[str, float]] = []

    @property
    def stopped(self) -> bool:
        """Whether the held-out loss has not become better for `patience` passes."""
        patience = self._parameters.patience
        return patience is not None and self._passes_ended - self._best.at_pass >= patience

    def observe(self, block: torch.Tensor) -> None:
        """Take the next rows: put some aside for validation, train on the others as batches fill."""
        with self._few_threads():
            held_out = _held_out(block, self._held_out_share)
            if bool(held_out.any()):
                if self._passes_ended == 0:
                    self._held_out.append(self._normalised(block[held_out]))
                block = block[~held_out]
            self._waiting = [rows for rows in (*self._waiting, self._normalised(block)) if len(rows)]
            for group in self._full_groups():
                self._update(group)

    def end_pass(self) -> None:
        """Train on the rows that fill no batch, note a line, and keep the weights if they are the best."""
        with self._few_threads():
            rest = torch.cat(self._waiting) if self._waiting else torch.empty(0, self._facts.width)
            self._waiting = []
            if len(rest):
                self._update(rest)
            self._passes_ended += 1
            tested = self._test()
            if self._sums.n_rows:
                self._note(tested)
            if self._parameters.patience is not None:
                self._best.offer(tested.get("loss", -math.inf), self._passes_ended, self.architecture)

    def news(self) -> list[dict[str, float]]:
        """Return the lines of the training curve since the last call."""
        news, self._news = self._news, []
        return news

    def state(self) -> State:
        """Return the weights, the optimiser's moments, the counters, and the rows that wait."""
        state = {f"weight.{name}": tensor.detach().clone() for name, tensor in self._tensors().items()}
        for i, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"adam.{i}.{name}": tensor.clone() for name, tensor in moments.items()}
        empty = torch.empty(0, self._facts.width)
        counters = [self._n_shown, self._n_steps, self._passes_ended, self._sums.n_rows, self._best.at_pass]
        return state | {
            **{f"best.{name}": tensor.clone() for name, tensor in self._best.tensors.items()},
            "losses": torch.tensor([self._best.loss, self._residual], dtype=torch.float64),
            "silence": self._silence.clone(),
            "waiting": torch.cat([empty, *self._waiting]),
            "held_out": torch.cat([empty, *self._held_out]),
            "counters": torch.tensor(counters),
            "sums": self._sums.totals.clone(),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state[f"weight.{name}"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key in [key for key in state if key.startswith("adam.")]:
            _, place, moment = key.split(".")
            moments.setdefault(int(place), {})[moment] = state[key].clone()
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self._silence = state["silence"].clone()
        self._waiting, self._held_out = [state["waiting"].clone()], [state["held_out"].clone()]
        counters = map(int, state["counters"])
        self._n_shown, self._n_steps, self._passes_ended, self._sums.n_rows, self._best.at_pass = counters
        self._sums.totals = state["sums"].clone()
        self._best.loss, self._residual = map(float, state["losses"])
        self._best.tensors = {
            key.removeprefix("best."): tensor.clone() for key, tensor in state.items() if key.startswith("best.")
        }

    @torch.no_grad()
    def finish(self) -> State:
        """Return the matrices, with the decoder's bias folded into the mean."""
        for name, tensor in self._best.tensors.items():
            self._tensors()[name].copy_(tensor)
        bias, scale = self.architecture.learned["bias"], self._facts.scale
        return {
            "mean": self._mean + scale * bias,
            "scale": torch.tensor(scale),
            "decoder": self.architecture.decoder().detach().clone(),
            **{name: tensor.detach().clone() for name, tensor in self.architecture.weights().items()},
        }

    def _tensors(self) -> State:
        return {**self.architecture.learned, **self.architecture.kept}

    def _normalised(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - self._mean).div_(self._facts.scale)

    def _full_groups(self) -> Iterator[torch.Tensor]:
        """Yield the rows of one update after the other; fewer than that are left waiting."""
        if not self._waiting:
            return
        size = self._parameters.batch_size * self._parameters.accumulate
        rows = torch.cat(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        whole = len(rows) // size * size
        self._waiting = [rows[whole:]]
        if whole:
            yield from rows[:whole].split(size)

    def _update(self, group: torch.Tensor) -> None:
        """Gather the gradients of a group of batches and move the weights once."""
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = self._learning_rate(self._n_shown + len(group) / 2) * parameters["pace"]
        dead = self._dead().nonzero().flatten()
        before = self._sums.error
        for batch in group.split(self._parameters.batch_size):
            self._gather(batch, dead)
        self._residual = (self._sums.error - before) / (len(group) * self._facts.width)
        self._silence += len(group)
        self._silence[self._sums.fired_in_group() > 0] = 0
        self.architecture.project()
        if self._clipped():
            self._optimizer.step()
            self.architecture.settle()
        self._optimizer.zero_grad()
        self._n_shown += len(group)
        self._n_steps += 1
        if self._n_steps % self._parameters.log_every == 0:
            self._note(self._test())

    def _gather(self, rows: torch.Tensor, dead: torch.Tensor) -> None:
        """Add the gradients of a batch to those that are there.

        Divided by the rows of a full update, the few rows at the end of a pass weigh no more than any others.
        """
        architecture, full = self.architecture, self._parameters.batch_size * self._parameters.accumulate
        codes = architecture.codes(rows)
        decoded = self._decode(codes)
        error = rows - decoded.detach()
        sparsity = architecture.sparsity(codes, self._done(self._n_shown))
        self._sums.add(codes, error, sparsity)
        losses = [] if sparsity is None else [sparsity / full]
        if len(dead) and self._parameters.aux_coefficient:
            revival = architecture.revival(rows, codes, error, dead, self._residual)
            losses += [] if revival is None else [self._parameters.aux_coefficient / full * revival]
        # The gradient of Σ error² / width is written down: a pass over the batch instead of five.
        of_decoded = error * (-2.0 / (self._facts.width * full))
        torch.autograd.backward([decoded, *losses], [of_decoded, *(torch.ones_like(loss) for loss in losses)])

    def _decode(self, codes: Codes) -> torch.Tensor:
        return codes.decode(self.architecture.decoder()) + self.architecture.learned["bias"]

    def _dead(self) -> torch.Tensor:
        return self._silence > self._parameters.dead_window

    @torch.no_grad()
    def _clipped(self) -> bool:
        """Shorten the gradient to `clip_norm`; a gradient that is not finite is left out, and False returned."""
        gradients = [tensor.grad for tensor in self.architecture.learned.values() if tensor.grad is not None]
        norm = float(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm())
        if not math.isfinite(norm):
            return False
        if norm > self._parameters.clip_norm:
            for gradient in gradients:
                gradient *= self._parameters.clip_norm / norm
        return True

    def _done(self, n_shown: float) -> float:
        return min(1.0, n_shown / (self.n_passes * self._facts.n_rows * (1.0 - self._held_out_share)))

    def _learning_rate(self, n_shown: float) -> float:
        done = self._done(n_shown)
        warm = done / self._parameters.warmup if self._parameters.warmup else 1.0
        left = (1.0 - done) / self._parameters.decay if self._parameters.decay else 1.0
        size = self._parameters.batch_size * self._parameters.accumulate / _USUAL_BATCH
        return self._parameters.learning_rate * math.sqrt(size / self._facts.width) * min(1.0, warm, left)

    @contextmanager
    def _few_threads(self) -> Iterator[None]:
        """Hold torch to one thread where a step is too small to be worth handing out.

        On a busy machine every small operation would wait for the slowest thread: seconds become minutes.
        """
        threads = torch.get_num_threads()
        if self._parameters.batch_size * self._facts.width * self._parameters.n_concepts < _WORTH_THREADS:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _note(self, tested: dict[str, float]) -> None:
        """Add a line to the training curve: the sums since the last one, and what a test has found."""
        sums, self._sums = self._sums, _Sums()
        error = sums.error / (sums.n_rows * self._facts.width)
        line = {
            "train/loss": error + sums.penalty / sums.n_rows,
            # Without held-out rows that of the trained ones, whose mean square is 1 after normalisation.
            "train/r2": tested.get("r2", 1.0 - error),
            "train/l0": sums.n_fired / sums.n_rows,
            "train/dead": float(self._dead().double().mean()),
        }
        self._news.append({"step": self._n_steps, **{n: v for n, v in line.items() if math.isfinite(v)}})

    @torch.no_grad()
    def _test(self) -> dict[str, float]:
        """Return `r2` and `loss` of the held-out rows; nothing when there are none, or all are equal."""
        rows = torch.cat(self._held_out) if self._held_out else torch.empty(0, self._facts.width)
        spread = float((rows - rows.mean(dim=0)).double().square().sum()) if len(rows) > 1 else 0.0
        if not spread:
            return {}
        squares = penalty = torch.zeros((), dtype=torch.float64)
        for part in rows.split(_TESTED_AT_ONCE):
            codes = self.architecture.test_codes(part)
            squares = squares + (part - self._decode(codes)).double().square().sum()
            sparsity = self.architecture.sparsity(codes, 1.0)
            penalty = penalty if sparsity is None else penalty + sparsity.double()
        loss = (float(squares) / self._facts.width + float(penalty)) / len(rows)
        return {"r2": 1.0 - float(squares) / spread, "loss": loss}


def _adam(architecture: Architecture) -> torch.optim.Adam:
    paces = {name: architecture.pace.get(name, 1.0) for name in architecture.learned}
    groups = [
        {"params": [architecture.learned[name] for name in paces if paces[name] == pace], "pace": pace}
        for pace in dict.fromkeys(paces.values())
    ]
    return torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.999), fused=True)


class _Best:
    """The weights that explain the held-out rows best so far."""

    def __init__(self) -> None:
        self.loss, self.at_pass = math.inf, 0
        self.tensors: State = {}

    def offer(self, loss: float, at_pass: int, architecture: Architecture) -> None:
        if not loss < self.loss:
            return
        self.loss, self.at_pass = loss, at_pass
        tensors = {**architecture.learned, **architecture.kept}
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}


class _Sums:
    """What a line of the training curve is made of; gathered as tensors, so that no step waits for numbers."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.totals = torch.zeros(3, dtype=torch.float64)
        self._fired: torch.Tensor | None = None

    def add(self, codes: Codes, error: torch.Tensor, penalty: torch.Tensor | None) -> None:
        fired = codes.fired()
        self._fired = fired if self._fired is None else self._fired + fired
        self.n_rows += len(error)
        squares = torch.linalg.vector_norm(error).square()
        self.totals += torch.stack([squares, squares * 0 if penalty is None else penalty.detach(), fired.sum()])

    def fired_in_group(self) -> torch.Tensor:
        """Return how often each concept fired since the last call."""
        fired, self._fired = self._fired, None
        assert fired is not None
        return fired

    @property
    def error(self) -> float:
        return float(self.totals[0])

    @property
    def penalty(self) -> float:
        return float(self.totals[1])

    @property
    def n_fired(self) -> float:
        return float(self.totals[2])


def _held_out(block: torch.Tensor, share: float) -> torch.Tensor:
    """Say which rows are for validation, by a hash of their content, shape (rows,).

    The choice depends on neither order nor epoch, and equal rows are all on the same side.
    """
    if share <= 0.0:
        return torch.zeros(len(block), dtype=torch.bool)
    if block.shape[1] % 2:
        block = torch.nn.functional.pad(block, (0, 1))
    words = block.contiguous().view(torch.int64)
    multipliers = torch.from_numpy(np.random.default_rng(0).integers(1, 2**62, words.shape[1]) | 1)
    # Integer overflow wraps around, which is what a multiplicative hash wants; its high bits are the good ones.
    mixed = torch.cat([(part * multipliers).sum(dim=1) for part in words.split(_HASHED_AT_ONCE)])
    return (mixed >> 33).remainder(1_000_000) < share * 1_000_000
