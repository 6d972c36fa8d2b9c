"""Sparse autoencoders: what all of them have as parameters, and how a family plugs in.

A family is a `SparseAutoencoder` that says which `Architecture` is trained (`architecture`) and how the fitted tensors
turn rows into codes. With a linear encoder it derives from `LinearDictionary` too and gives `activate`; any other gives
`_encode`, in float64, from the tensors that its architecture's `weights` returns. The architecture has

- `codes(rows)`: the codes of a batch, `SparseCodes` where rows hold few concepts (then decoding and all gradients cost
  what those places cost) or `DenseCodes`; differentiable in the tensors of `learned`;
- where the family has them: more tensors (`learn(name, start)` for trained ones, `kept` for others; all are saved in
  checkpoints), `sparsity`, `revival` of dead concepts, `test_codes` when the fitted dictionary's codes are not those of
  training, `decoder` with `project` and `settle` for a decoder that is not simply a matrix of unit rows.

`LinearEncoder` and `SelectingEncoder` are the architectures to start from. Batches, schedules, clipping, dead concepts,
validation, stopping, the training curve and states belong to the loop (`sae_learner.py`).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from interpreto_mlops.concepts.base import check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.linear import LinearDecoder, LinearDictionary
from interpreto_mlops.concepts.sae_architecture import Architecture
from interpreto_mlops.concepts.sae_learner import AutoencoderLearner
from interpreto_mlops.concepts.training import DataFacts
from interpreto_mlops.errors import InputError

PRECISIONS = ("float32", "bfloat16")


@dataclass(kw_only=True, eq=False)
class SparseAutoencoder(LinearDecoder):
    """Parameters and training that all sparse autoencoders share; a family adds its architecture.

    Rows are centred by their mean and divided by one scale, both kept in the dictionary; the decoder has rows of norm 1
    and a learned bias, which ends in `mean`; a linear encoder starts as the decoder's transpose.

    Arguments:
        n_concepts: how many concepts; more than the width of the layer is usual.
        seed: decides the initial weights; the order of the rows is the same for all seeds (`fit_together`).
        n_epochs: passes over the rows; None takes enough for about 300,000 rows, from 3 to 60 passes.
        batch_size: rows whose gradient is computed at once.
        accumulate: batches of one step: their gradients are averaged, so that memory is that of one batch.
        learning_rate: Adam's, at its highest, as a multiple of 1 / √width, the size of an entry of a row of norm 1.
        warmup: share of the training over which the learning rate rises from 0.
        decay: share of the training, at its end, over which it falls to 0.
        dead_after: a concept is dead when it has not fired for this many rows; a loss then revives it.
        aux_coefficient: weight of that loss.
        clip_norm: the gradient is shortened to this norm; a gradient that is not finite is left out.
        validation_share: share of the rows, at most 2,048 of them, that is never trained on and gives `train/r2`.
        patience: passes without a better loss of those rows after which training stops, and the best weights of a
            pass's end are kept; None trains to the end and keeps the last ones.
        log_every: steps between two lines of the training curve; the end of a pass has one too.
        precision: "float32", or "bfloat16" for the dense products alone, which takes a third of the time on processors
            that have such units; weights, sums and updates stay float32.
    """

    n_epochs: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    learning_rate: float = 0.06
    warmup: float = 0.05
    decay: float = 0.5
    dead_after: int = 4_000
    aux_coefficient: float = 1 / 32
    clip_norm: float = 1.0
    validation_share: float = 0.05
    patience: int | None = None
    log_every: int = 200
    precision: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_epochs", "patience"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        for name in ("batch_size", "accumulate", "dead_after", "log_every"):
            check_integer(name, getattr(self, name), 1)
        for name in ("learning_rate", "aux_coefficient", "clip_norm"):
            check_number(name, getattr(self, name), 0.0)
        for name in ("warmup", "decay", "validation_share"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is one of {', '.join(map(repr, PRECISIONS))}, not {self.precision!r}")
        if self.patience is not None and not self.validation_share:
            raise InputError(f"patience {self.patience!r} needs held-out rows: a validation_share above 0")

    @abstractmethod
    def architecture(self, width: int) -> Architecture:
        """Return what is trained, with its initial weights, for rows of that width."""

    def begin(self, facts: DataFacts) -> AutoencoderLearner:
        """Return what trains the autoencoder.

        Raises:
            InputError: fewer rows than concepts, or all rows equal.
        """
        check_enough_rows(facts, self.n_concepts)
        return AutoencoderLearner(self, self.architecture(facts.width), facts)

    @property
    def low_precision(self) -> bool:
        """Whether dense products of the training are of bfloat16 numbers."""
        return self.precision == "bfloat16"


@dataclass(kw_only=True, eq=False)
class SelectingAutoencoder(SparseAutoencoder, LinearDictionary):
    """Parameters of the autoencoders that keep the largest codes.

    Arguments:
        k: concepts of a row; 16 explains most of a small transformer's layer.
        k_aux: how many dead concepts explain the residual of a row; None takes half of the width.
    """

    k: int = 16
    k_aux: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("k", self.k, 1)
        if self.k_aux is not None:
            check_integer("k_aux", self.k_aux, 1)
        if self.k > self.n_concepts:
            raise InputError(f"k must be at most n_concepts ({self.n_concepts}), not {self.k}")


@dataclass(kw_only=True, eq=False)
class PenalisedAutoencoder(SparseAutoencoder, LinearDictionary):
    """Parameters of the autoencoders that are sparse by a penalty.

    Arguments:
        sparsity_coefficient: weight of the penalty for rows scaled to a mean squared norm of 1; more gives fewer
            concepts a row.
        sparsity_warmup: share of the training over which that weight rises from 0.
        aux_coefficient: weight of the loss that lifts dead concepts; small, since nothing else moves those.
        clip_norm: the gradient is shortened to this norm; tighter than in the others, for codes are dense at first.
    """

    sparsity_coefficient: float
    sparsity_warmup: float = 0.05
    aux_coefficient: float = 1e-4
    clip_norm: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sparsity_coefficient", self.sparsity_coefficient, 0.0)
        check_number("sparsity_warmup", self.sparsity_warmup, 0.0, 1.0)
