"""Sparse coding by a dictionary that is learned online."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.lasso import improve_directions, lasso_codes
from interpreto_mlops.concepts.linear import LinearDecoder
from interpreto_mlops.concepts.training import DataFacts, Learner, State
from interpreto_mlops.errors import InputError

# Without a number of epochs, about so many rows are shown, in at least and at most so many passes.
_ROWS_TO_SHOW = 100_000
_FEWEST_EPOCHS, _MOST_EPOCHS = 2, 30
# Directions start at rows chosen among so many for each; the lasso of an update need not be as exact as a code.
_ROWS_A_CONCEPT = 10
_TOLERANCE = 1e-6


@DICTIONARIES.register("dictionary_learning")
@dataclass(kw_only=True, eq=False)
class DictionaryLearningConcepts(LinearDecoder):
    """Directions of which few make up each row: online dictionary learning, with lasso codes.

    Rows are centred and divided by the root mean square of their norms, so that `alpha` means the same for every
    layer. Every batch is encoded by the lasso, then all directions are improved for the codes seen so far, old ones
    fading; it is what scikit-learn's `MiniBatchDictionaryLearning` does, over the whole stream. Directions have norm 1.
    Codes are not negative unless `positive` is False.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        seed: decides the rows that directions start from, and which replace an unused one.
        alpha: weight of ‖code‖₁ beside ½ ‖error‖²: a row whose product with every direction is below this share of the
            usual norm has no concept at all.
        positive: whether codes must not be negative.
        n_epochs: passes over the rows; None takes enough for about 100,000 rows, from 2 to 30 passes.
        batch_size: rows of one update.

    Source: Mairal, Bach, Ponce and Sapiro 2009 (Online dictionary learning for sparse coding), algorithms 1 and 2, with
    the batches and the forgetting of section 3.4.
    """

    alpha: float = 0.1
    positive: bool = True
    n_epochs: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0.0)
        if not isinstance(self.positive, bool):
            raise InputError(f"positive must be True or False, not {self.positive!r}")
        if self.n_epochs is not None:
            check_integer("n_epochs", self.n_epochs, 1)
        check_integer("batch_size", self.batch_size, 1)

    @property
    def signed(self) -> bool:  # type: ignore[override]
        """Whether codes can be negative."""
        return not self.positive

    def begin(self, facts: DataFacts) -> _Online:
        """Return what learns from batches.

        Raises:
            InputError: fewer rows than concepts, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        return _Online(self, facts)

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        mean, scale, decoder = (self.tensor(name).double() for name in ("mean", "scale", "decoder"))
        return lasso_codes((rows.double() - mean) / scale, decoder, self.alpha, positive=self.positive).float()


class _Online(Learner):
    """Cuts batches out of the stream; the rows that fill none wait for the next pass."""

    def __init__(self, parameters: DictionaryLearningConcepts, facts: DataFacts) -> None:
        self.n_passes = parameters.n_epochs or min(
            _MOST_EPOCHS, max(_FEWEST_EPOCHS, round(_ROWS_TO_SHOW / facts.n_rows))
        )
        self._parameters = parameters
        self._mean, self._scale = torch.from_numpy(facts.mean), facts.scale * math.sqrt(facts.width)
        self._batch_size = min(facts.n_rows, parameters.batch_size)
        self._n_to_start = min(facts.n_rows, _ROWS_A_CONCEPT * parameters.n_concepts)
        n, width = parameters.n_concepts, facts.width
        self._directions = torch.empty(0, width, dtype=torch.float64)
        self._squares = torch.zeros(n, n, dtype=torch.float64)
        self._products = torch.zeros(n, width, dtype=torch.float64)
        self._waiting = torch.empty(0, width)
        self._n_steps = self._n_ended = 0
        self._sums = _Sums()
        self._news: list[dict[str, float]] = []

    def observe(self, block: torch.Tensor) -> None:
        self._waiting = torch.cat([self._waiting, block])
        if len(self._directions) == 0:
            if len(self._waiting) < self._n_to_start:
                return
            self._directions = self._drawn(self._centred(self._waiting), self._parameters.n_concepts)
        whole = len(self._waiting) // self._batch_size * self._batch_size
        batches, self._waiting = self._waiting[:whole].split(self._batch_size), self._waiting[whole:].clone()
        for batch in batches[: whole // self._batch_size]:
            self._step(self._centred(batch))

    def _centred(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows.double() - self._mean) / self._scale

    def _drawn(self, rows: torch.Tensor, number: int) -> torch.Tensor:
        """Return rows that are not zero, of norm 1, chosen by the seed and by how far the training is."""
        norms = rows.norm(dim=1)
        usable = (norms > 0.0).nonzero().flatten().numpy()
        generator = np.random.default_rng([self._parameters.seed, self._n_steps])
        chosen = generator.choice(usable, number, replace=len(usable) < number)
        drawn: torch.Tensor = rows[chosen] / norms[chosen, None]
        return drawn

    def _step(self, rows: torch.Tensor) -> None:
        alpha, positive = self._parameters.alpha, self._parameters.positive
        codes = lasso_codes(rows, self._directions, alpha, positive=positive, tol=_TOLERANCE)
        self._sums.add(rows, codes, rows - codes @ self._directions)
        kept = self._share_kept(len(rows))
        self._squares.mul_(kept).addmm_(codes.T, codes, alpha=1.0 / len(rows))
        self._products.mul_(kept).addmm_(codes.T, rows, alpha=1.0 / len(rows))
        unused = improve_directions(self._directions, self._squares, self._products)
        if bool(unused.any()):
            self._directions[unused] = self._drawn(rows, int(unused.sum()))
        self._n_steps += 1

    def _share_kept(self, size: int) -> float:
        """Return how much remains of what older batches have summed up to."""
        step = self._n_steps
        weight = (step + 1) * size if step < size - 1 else size**2 + step + 1 - size
        return (weight + 1 - size) / (weight + 1)

    def end_pass(self) -> None:
        self._n_ended += 1
        sums, self._sums = self._sums, _Sums()
        self._news.append({"step": self._n_ended, **sums.line(self._parameters.alpha)})

    def news(self) -> list[dict[str, float]]:
        news, self._news = self._news, []
        return news

    def state(self) -> State:
        state = {
            "directions": self._directions,
            "squares": self._squares,
            "products": self._products,
            "waiting": self._waiting,
            "sums": self._sums.values,
        }
        counters = torch.tensor([self._n_steps, self._n_ended])
        return {name: tensor.clone() for name, tensor in state.items()} | {"counters": counters}

    def restore(self, state: State) -> None:
        self._directions, self._waiting = state["directions"].clone(), state["waiting"].clone()
        self._squares, self._products = state["squares"].clone(), state["products"].clone()
        self._sums.values = state["sums"].clone()
        self._n_steps, self._n_ended = map(int, state["counters"])

    def finish(self) -> State:
        decoder = self._directions / self._directions.norm(dim=1, keepdim=True)
        return {"mean": self._mean, "scale": torch.tensor(self._scale), "decoder": decoder}


class _Sums:
    """What a pass's line of the training curve is made of: each batch as it was before it was learned from."""

    def __init__(self) -> None:
        self.values = torch.zeros(5, dtype=torch.float64)

    def add(self, rows: torch.Tensor, codes: torch.Tensor, error: torch.Tensor) -> None:
        squares = [tensor.square().sum() for tensor in (rows, error)]
        self.values += torch.stack(
            [*squares, codes.abs().sum(), (codes != 0.0).sum().double(), rows.new_tensor(len(rows))]
        )

    def line(self, alpha: float) -> dict[str, float]:
        spread, error, size, active, n_rows = self.values.tolist()
        if not (n_rows and spread):
            return {}
        return {
            "train/loss": (0.5 * error + alpha * size) / n_rows,
            "train/r2": 1.0 - error / spread,
            "train/l0": active / n_rows,
        }
