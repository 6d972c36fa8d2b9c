"""A text on its way through the model: its rows, how a change of each moves its tokens, and what was found so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.importance.base import Floats, Masks
from interpreto_mlops.concepts.row_plans import RowPlan, plan_rows
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.objectives import Objective, Target
from interpreto_mlops.models.questions import LabelQuestion, Question
from interpreto_mlops.text.granularity import NO_ELEMENT


def nothing() -> torch.Tensor:
    """Return what stands for a tensor that is not found yet."""
    return torch.empty(0)


@dataclass
class Subject:
    """One text on its way; what is below `weights` is found when it is run for the first time.

    Arguments:
        question: what is asked.
        plan: its rows.
        weights: how much of a row's change each token gets, shape (tokens, rows).
        output: what the layer puts out, shape (tokens, width).
        rows: of activations, shape (rows, width).
        codes: shape (rows, n_concepts).
        read: what was read from the model.
        full: the scores, of the reconstruction where that is explained, shape (targets,).
        gradients: of the scores by the codes, shape (targets, rows, n_concepts), where a method wants them.
    """

    question: Question
    plan: RowPlan
    weights: torch.Tensor
    output: torch.Tensor = field(default_factory=nothing)
    rows: torch.Tensor = field(default_factory=nothing)
    codes: torch.Tensor = field(default_factory=nothing)
    read: Floats = field(default_factory=lambda: np.zeros(0))
    objective: Objective | None = None
    full: Floats = field(default_factory=lambda: np.zeros(0))
    gradients: torch.Tensor = field(default_factory=nothing)

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is scored, once that is known."""
        return () if self.objective is None else self.objective.targets

    @property
    def active(self) -> npt.NDArray[np.int64]:
        """The concepts that the text holds."""
        return np.flatnonzero((self.codes != 0).any(dim=0).numpy())

    def scored(self, read: torch.Tensor) -> torch.Tensor:
        """Return the scores of the targets, shape (targets,), from what was read, shape (width,)."""
        assert self.objective is not None
        return self.objective(read[None])[0]


def subject(question: Question, granularity: str, aggregation: str) -> Subject:
    """Find the rows of a text and how a change of each moves its tokens.

    Raises:
        InputError: an aggregation that a change of the row says nothing about.
    """
    encoding = question.encoding
    whole = plan_rows(encoding, granularity)
    cut = encoding.first_part if question.model.model.config.is_encoder_decoder else len(encoding)
    of_token = whole.of_token[:cut]
    n_rows = int(of_token.max(initial=-1)) + 1
    plan = RowPlan(encoding, of_token, whole.positions[:n_rows], whole.spans[:n_rows])
    weights = np.zeros((cut, n_rows), dtype=np.float32)
    kept = np.flatnonzero(of_token != NO_ELEMENT)
    weights[kept, of_token[kept]] = 1.0
    counts = weights.sum(axis=0)
    single = bool((counts <= 1).all())
    if aggregation == "sum" and not single:
        weights /= np.maximum(counts, 1)
    elif aggregation in {"first", "last"}:
        weights[:] = 0.0
        for row in range(n_rows):
            weights[np.flatnonzero(of_token == row)[0 if aggregation == "first" else -1], row] = 1.0
    elif aggregation != "mean" and not single:
        raise InputError(
            f"rows that are the {aggregation!r} of their tokens do not say which token a concept moves; fit on means"
        )
    return Subject(question, plan, torch.from_numpy(weights))


def n_targets(question: Question) -> int:
    """Return how many targets a question will have at most, as far as that is known before the model runs."""
    places = question.places if isinstance(question, LabelQuestion) else ()
    return max(1, len(places), len(question.expected), question.readout.gradients)


def masked(each: Subject, mask: Masks) -> torch.Tensor:
    """Return a text's codes with shares of its active concepts kept."""
    kept = torch.ones(each.codes.shape[1])
    kept[torch.from_numpy(each.active)] = torch.from_numpy(np.asarray(mask, dtype=np.float32))
    return each.codes * kept
