"""Sparse autoencoders: overcomplete's architectures, trained by a loop of our own."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from interpreto_mlops.concepts.base import check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.linear import LinearDictionary, linear_state
from interpreto_mlops.concepts.training import DataFacts, Learner, State

_MOST_HELD_OUT = 4096
# Without a number of epochs, training shows about this many rows, in at least so many epochs.
_ROWS_TO_SHOW = 300_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 60
# Multiplications of one matrix product: some 10 ms on one core.
_WORTH_THREADS = 2**28


@dataclass(kw_only=True, eq=False)
class SparseAutoencoder(LinearDictionary):
    """Parameters and training that all sparse autoencoders share; a family adds its architecture (`_module`).

    Rows are centred by their mean and divided by one scale, both kept in the dictionary; the decoder has rows of norm 1
    and a learned bias, which ends in `mean`; the encoder starts as the decoder's transpose.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        seed: decides the initial weights; the order of the rows is the same for all seeds (`fit_together`).
        n_epochs: passes over the rows; None takes enough for about 300,000 rows, from 3 to 60 passes.
        batch_size: rows of one step.
        learning_rate: Adam's, at its highest, as a multiple of 1 / √width, the size of an entry of a row of norm 1.
        warmup: share of the training over which the learning rate rises from 0.
        decay: share of the training, at its end, over which it falls to 0.
        dead_after: a concept is dead when it has not fired for this many rows; the auxiliary loss then revives it.
        k_aux: how many dead concepts explain the residual of a row; None takes half of the width.
        aux_coefficient: weight of that loss.
        clip_norm: the gradient is shortened to this norm.
        validation_share: share of the rows, at most 4,096 of them, that is never trained on and gives `train/r2`.
    """

    n_epochs: int | None = None
    batch_size: int = 256
    learning_rate: float = 0.06
    warmup: float = 0.05
    decay: float = 0.5
    dead_after: int = 10_000
    k_aux: int | None = None
    aux_coefficient: float = 1 / 32
    clip_norm: float = 1.0
    validation_share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_epochs", "k_aux"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        for name in ("batch_size", "dead_after"):
            check_integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "aux_coefficient", "clip_norm"):
            check_number(name, getattr(self, name), 0.0)
        for name in ("warmup", "decay", "validation_share"):
            check_number(name, getattr(self, name), 0.0, 1.0)

    @abstractmethod
    def _module(self, width: int) -> Any:
        """Return overcomplete's autoencoder, uninitialised: `encode(x)` is (before, codes), `dictionary`, `encoder`."""

    def begin(self, facts: DataFacts) -> AutoencoderLearner:
        """Return what trains the autoencoder.

        Raises:
            InputError: fewer rows than concepts, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        return AutoencoderLearner(self, self._module(facts.width), facts)


class AutoencoderLearner(Learner):
    """Trains one sparse autoencoder from the rows that stream by.

    Arguments:
        parameters: the dictionary that asks for it.
        module: overcomplete's autoencoder with uninitialised weights.
        facts: the data's size, mean and variance.

    Source: the reconstruction and auxiliary losses of Gao et al. 2024 (arXiv 2406.04093, sections 2.3 and A.2); the
    gradient of unit-norm rows without its radial part of Bricken et al. 2023.
    """

    def __init__(self, parameters: SparseAutoencoder, module: Any, facts: DataFacts) -> None:
        self.n_passes = parameters.n_epochs or min(
            _MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_ROWS_TO_SHOW / facts.n_rows))
        )
        self._parameters = parameters
        self._module = module
        self._facts = facts
        self._mean = torch.from_numpy(facts.mean).float()
        self._decoder = module.dictionary._weights
        linear = module.encoder.final_block[0]
        self._encoder, self._encoder_bias = linear.weight, linear.bias
        self._bias = torch.nn.Parameter(torch.zeros(facts.width))
        self._initialise()
        self._optimizer = torch.optim.Adam([*module.parameters(), self._bias], lr=0.0, betas=(0.9, 0.999), fused=True)
        self._k_aux = parameters.k_aux or max(1, facts.width // 2)
        self._silence = torch.zeros(parameters.n_concepts, dtype=torch.int64)
        self._n_seen = 0
        self._waiting: list[torch.Tensor] = []
        self._held_out: list[torch.Tensor] = []
        self._held_out_share = min(parameters.validation_share, _MOST_HELD_OUT / facts.n_rows)
        self._passes_ended = 0
        self._epoch = _EpochSums()
        self._news: list[dict[str, float]] = []

    @torch.no_grad()
    def _initialise(self) -> None:
        """Draw the decoder's rows from the sphere by the seed, without touching the global generator."""
        generator = torch.Generator().manual_seed(self._parameters.seed)
        self._module.dictionary.multiplier.zero_()
        self._decoder.normal_(generator=generator)
        self._decoder /= self._decoder.norm(dim=1, keepdim=True)
        self._encoder.copy_(self._decoder)
        self._encoder_bias.zero_()

    def observe(self, block: torch.Tensor) -> None:
        """Take the next rows: put some aside for validation, train on the others as batches fill."""
        with self._few_threads():
            self._observe(block)

    def _observe(self, block: torch.Tensor) -> None:
        self._n_seen += len(block)
        held_out = _held_out(block, self._held_out_share)
        if bool(held_out.any()):
            if self._passes_ended == 0:
                self._held_out.append(block[held_out])
            block = block[~held_out]
        self._waiting.append(block)
        for batch in self._full_batches():
            self._step(batch)

    def _full_batches(self) -> Iterator[torch.Tensor]:
        size = self._parameters.batch_size
        rows = torch.cat(self._waiting)
        whole = len(rows) // size * size
        self._waiting = [rows[whole:]]
        yield from rows[:whole].split(size)

    def _step(self, batch: torch.Tensor) -> None:
        rows = (batch - self._mean) / self._facts.scale
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        before, codes = self._module.encode(rows - self._bias)
        decoder = self._module.get_dictionary()
        error = rows - (codes @ decoder + self._bias)
        # Divided by the full batch size, the few rows at the end of a pass weigh no more than any others.
        loss = error.square().sum() / (self._parameters.batch_size * rows.shape[1])
        fired = (codes.detach() > 0).sum(dim=0)
        self._silence += len(rows)
        self._silence[fired > 0] = 0
        total = loss + self._parameters.aux_coefficient * self._auxiliary_loss(before, error.detach(), decoder)
        self._optimizer.zero_grad()
        total.backward()
        self._update()
        self._epoch.add(rows, error.detach(), fired)

    def _auxiliary_loss(self, before: torch.Tensor, error: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        """Return how badly the dead concepts alone explain what is left of the rows; 0 when none is dead."""
        dead = (self._silence > self._parameters.dead_after).nonzero().flatten()
        if len(dead) == 0:
            return torch.zeros(())
        codes = before[:, dead].relu()
        if len(dead) > self._k_aux:
            best = codes.topk(self._k_aux, dim=1)
            codes = torch.zeros_like(codes).scatter(1, best.indices, best.values)
        left = (error - codes @ decoder[dead]).square().sum()
        return left / error.square().sum().clamp(min=torch.finfo(torch.float32).tiny)

    @torch.no_grad()
    def _update(self) -> None:
        gradient, rows = self._decoder.grad, self._decoder
        gradient -= (gradient * rows).sum(dim=1, keepdim=True) * rows
        torch.nn.utils.clip_grad_norm_([*self._module.parameters(), self._bias], self._parameters.clip_norm)
        self._optimizer.step()

    def _learning_rate(self) -> float:
        done = self._n_seen / (self.n_passes * self._facts.n_rows)
        warm = done / self._parameters.warmup if self._parameters.warmup else 1.0
        left = (1.0 - done) / self._parameters.decay if self._parameters.decay else 1.0
        return self._parameters.learning_rate / math.sqrt(self._facts.width) * max(0.0, min(1.0, warm, left))

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

    def end_pass(self) -> None:
        """Train on the rows that fill no batch, and note `train/loss`, `train/r2`, `train/l0`, `train/dead`."""
        with self._few_threads():
            self._end_pass()

    def news(self) -> list[dict[str, float]]:
        """Return the lines of the training curve since the last call."""
        news, self._news = self._news, []
        return news

    def state(self) -> State:
        """Return the weights, the optimiser's moments, the counters, and the rows that wait."""
        state = {f"weight.{i}": parameter.detach().clone() for i, parameter in enumerate(self._parameters_list())}
        for i, moments in self._optimizer.state_dict()["state"].items():
            state |= {f"adam.{i}.{name}": tensor.clone() for name, tensor in moments.items()}
        empty = torch.empty(0, self._facts.width)
        return state | {
            "silence": self._silence.clone(),
            "waiting": torch.cat([empty, *self._waiting]),
            "held_out": torch.cat([empty, *self._held_out]),
            "counters": torch.tensor([self._n_seen, self._passes_ended, self._epoch.n_rows]),
            "epoch": self._epoch.sums.clone(),
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        with torch.no_grad():
            for i, parameter in enumerate(self._parameters_list()):
                parameter.copy_(state[f"weight.{i}"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name in [name for name in state if name.startswith("adam.")]:
            _, place, moment = name.split(".")
            moments.setdefault(int(place), {})[moment] = state[name].clone()
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        self._silence = state["silence"].clone()
        self._waiting, self._held_out = [state["waiting"].clone()], [state["held_out"].clone()]
        self._n_seen, self._passes_ended, self._epoch.n_rows = map(int, state["counters"])
        self._epoch.sums = state["epoch"].clone()

    def _parameters_list(self) -> list[torch.Tensor]:
        return [*self._module.parameters(), self._bias]

    def _end_pass(self) -> None:
        (rest,) = self._waiting
        if len(rest):
            self._step(rest)
        self._waiting = []
        self._passes_ended += 1
        sums, self._epoch = self._epoch, _EpochSums()
        line = {
            "train/loss": sums.error / max(1, sums.n_rows * self._facts.width),
            "train/r2": self._validation_r2(sums),
            "train/l0": sums.n_fired / max(1, sums.n_rows),
            "train/dead": float((self._silence > self._parameters.dead_after).double().mean()),
        }
        self._news.append({"step": self._passes_ended, **{n: v for n, v in line.items() if math.isfinite(v)}})

    @torch.no_grad()
    def _validation_r2(self, sums: _EpochSums) -> float:
        """Return the explained variance of the held-out rows, or of the epoch's own rows when none are held out."""
        held_out = torch.cat(self._held_out) if self._held_out else torch.empty(0, self._facts.width)
        rows = (held_out - self._mean) / self._facts.scale
        spread = (rows - rows.mean(dim=0)).double().square().sum() if len(rows) > 1 else torch.zeros(())
        if not float(spread):
            return 1.0 - sums.error / sums.spread if sums.spread else float("nan")
        _, codes = self._module.encode(rows - self._bias)
        error = rows - (codes @ self._module.get_dictionary() + self._bias)
        return 1.0 - float(error.double().square().sum() / spread)

    @torch.no_grad()
    def finish(self) -> State:
        """Return the matrices, with the decoder's bias folded into the mean."""
        decoder = self._module.get_dictionary()
        mean = self._mean + self._facts.scale * self._bias
        return linear_state(mean, self._facts.scale, self._encoder, self._encoder_bias, decoder)


class _EpochSums:
    """What an epoch's line of the training curve is made of; gathered as tensors, so that no step waits for numbers."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.sums = torch.zeros(3, dtype=torch.float64)

    def add(self, rows: torch.Tensor, error: torch.Tensor, fired: torch.Tensor) -> None:
        self.n_rows += len(rows)
        self.sums += torch.stack([error.square().sum(), rows.square().sum(), fired.sum()]).double()

    @property
    def error(self) -> float:
        return float(self.sums[0])

    @property
    def spread(self) -> float:
        return float(self.sums[1])

    @property
    def n_fired(self) -> float:
        return float(self.sums[2])


def _held_out(block: torch.Tensor, share: float) -> torch.Tensor:
    """Say which rows are for validation, by a hash of their content, shape (rows,).

    The choice depends on neither order nor epoch, and equal rows are all on the same side.
    """
    if share <= 0.0:
        return torch.zeros(len(block), dtype=torch.bool)
    multipliers = torch.from_numpy(np.random.default_rng(0).integers(1, 2**62, block.shape[1]) | 1)
    # Integer overflow wraps around, which is what a multiplicative hash wants; its high bits are the good ones.
    mixed = (block.contiguous().view(torch.int32).long() * multipliers).sum(dim=1)
    return (mixed >> 33).remainder(1_000_000) < share * 1_000_000
