"""Scalars that are read at a layer instead of at the model's head: one more kind of target, for models of any task.

What makes them, such as a dictionary of concepts, says how what a layer puts out becomes scores. The model runs no
further than that layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.objectives import InferenceMode, Objective, Target
from interpreto_mlops.models.questions import Question
from interpreto_mlops.models.requests import ClassLogits, Floats, Readout
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import NO_ELEMENT


class LayerTargets(ABC):
    """What is explained at one split point of a model; give it to a method as its `targets`.

    Arguments:
        split: the split model.
        layer: the split point.
        targets: one for each scalar.
        key: says all that decides the scores, so that equal keys have equal scores.
        record: what results say of it, plain JSON.
    """

    def __init__(
        self, split: Splitter, layer: int | str, targets: Sequence[Target], key: str, record: Mapping[str, Any]
    ) -> None:
        self.split, self.path = split, split.path(layer)
        self.targets, self.key, self.record = tuple(targets), key, dict(record)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[target.title for target in self.targets]} at {self.path!r})"

    @property
    def without_gradient(self) -> str | None:
        """Why the scores cannot be differentiated by what the layer puts out, or None where they can be."""
        return None

    @property
    def numbers_a_token(self) -> int:
        """How many numbers are made for each token beside what the model makes."""
        return len(self.targets)

    @abstractmethod
    def of_token(self, encoding: Encoding) -> Ids:
        """Return the row that each token of a text is part of, counted from 0, or `NO_ELEMENT`; shape (tokens,).

        Raises:
            InputError: the text has no place that is asked for.
        """

    @abstractmethod
    def left(self, of_token: Ids, kept: npt.NDArray[np.bool_]) -> Ids:
        """Return the same for a text of which only some tokens are left, of shape (tokens,); one stands for nothing.

        Raises:
            InputError: what is read is at a token that is taken out.
        """

    @abstractmethod
    def scores(self, output: torch.Tensor, of_token: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
        """Map what the layer puts out to scores, differentiably unless `without_gradient` says otherwise.

        Arguments:
            output: shape (texts, tokens, width), or (texts, width) where the layer has one vector a text.
            of_token: the row of each text's tokens.

        Returns:
            The scores, and the row that each is strongest at, `NO_ELEMENT` for none; shape (texts, targets) each.
        """

    def targets_of(self, encoding: Encoding) -> tuple[Target, ...]:
        """Return the targets in one text."""
        return self.targets

    def check_model(self, model: TextModel) -> None:
        """Refuse another model than the one that is split.

        Raises:
            InputError: it is another one.
        """
        if self.split.model is not model:
            raise InputError(
                f"the targets are at the layer {self.path!r} of {self.split.model!r}, and this is {model!r}; split the "
                "very model that is explained"
            )


@dataclass(frozen=True, eq=False)
class LayerReadout(Readout):
    """The scores of some targets at a layer, and the row of the text at which each is strongest.

    Arguments:
        source: makes the scores.
        of_token: the row of each token, shape (tokens,).
    """

    source: LayerTargets
    of_token: Ids

    def __repr__(self) -> str:
        # Names what is read in the table of known rows.
        return f"LayerReadout({self.source.key}, {self.of_token.tolist()})"

    @property
    def width(self) -> int:
        """Two numbers a target."""
        return 2 * len(self.source.targets)

    @property
    def gradients(self) -> int:
        """One for each target."""
        return len(self.source.targets)

    def numbers(self, model: TextModel) -> int:
        """Return how many numbers a row has."""
        return len(self.of_token) * self.source.numbers_a_token

    def without(self, kept: npt.NDArray[np.bool_]) -> Readout:
        """Return the places in a row of which only some tokens are left.

        Raises:
            InputError: what is read is at a token that is taken out.
        """
        return self if kept.all() else replace(self, of_token=self.source.left(self.of_token, kept))

    @classmethod
    def embeddings_replaced(
        cls, model: TextModel, embeddings: torch.Tensor, readouts: Sequence[Readout]
    ) -> AbstractContextManager[Any]:
        """Make the model compute on these embeddings, the decoder of a classifier too where it is reached."""
        source = cast("LayerReadout", readouts[0]).source
        if source.split.network_of(source.path) is model.model:
            return ClassLogits.embeddings_replaced(model, embeddings, readouts)
        return model.embeddings_replaced(embeddings)

    @classmethod
    def read(cls, model: TextModel, batch: dict[str, torch.Tensor], readouts: Sequence[Readout]) -> torch.Tensor:
        """Return the scores, then where each is strongest, shape (rows, 2 · the most targets)."""
        mine = cast("Sequence[LayerReadout]", readouts)
        sources = {readout.source.key: readout.source for readout in mine}
        first = mine[0].source
        if torch.is_grad_enabled() and (reason := first.without_gradient):
            raise InputError(reason)
        output = first.split.reach(batch, first.path)
        places = {key: [i for i, each in enumerate(mine) if each.source.key == key] for key in sources}
        width = max(readout.width for readout in mine)
        parts = [
            _padded(source.scores(output[places[key]], [mine[i].of_token for i in places[key]]), width)
            for key, source in sources.items()
        ]
        order = torch.tensor([i for key in sources for i in places[key]]).argsort()
        return torch.cat(parts)[order.to(parts[0].device)]


def _padded(found: tuple[torch.Tensor, torch.Tensor], width: int) -> torch.Tensor:
    both = torch.cat([found[0], found[1].to(found[0].dtype)], dim=1)
    return torch.nn.functional.pad(both, (0, width - both.shape[1]))


@dataclass(frozen=True, kw_only=True)
class LayerObjective(Objective):
    """Scores that were read at a layer, as they are: they are no logits, and have no probabilities."""

    def __call__(self, read: torch.Tensor) -> torch.Tensor:
        """Map what was read, shape (rows, 2 · targets), to scores, shape (rows, targets)."""
        return read[:, : len(self.targets)]

    @property
    def probability(self) -> Objective:
        """The scores themselves, which metrics take in their own unit, as they do a regression's output."""
        return self


class LayerQuestion(Question):
    """Scalars at a layer.

    Arguments:
        source: makes them.
    """

    readout: LayerReadout

    def __init__(self, model: TextModel, encoding: Encoding, source: LayerTargets) -> None:
        super().__init__(model, encoding, LayerReadout(source, source.of_token(encoding)))
        self.source = source
        self._strongest: dict[Target, int] = {}

    def settle(self, full: Floats, mode: InferenceMode) -> LayerObjective:
        """Return the objective, and take note of where each target is strongest."""
        targets = self.expected
        strongest = full[len(targets) :].astype(int).tolist()
        self._strongest = dict(zip(targets, strongest, strict=True))
        return LayerObjective(targets=targets)

    def narrow(self, mode: InferenceMode) -> None:
        """Refuse what a score at a layer is not.

        Raises:
            InputError: another mode than logits.
        """
        if mode is not InferenceMode.LOGITS:
            raise InputError(
                f"inference_mode {mode.value!r} is for a model's outputs, and what is explained is read at the layer "
                f"{self.source.path!r}; use 'logits', which takes it as it is"
            )

    @property
    def expected(self) -> tuple[Target, ...]:
        """The targets, which are known beforehand."""
        return self.source.targets_of(self.encoding)

    @property
    def place(self) -> tuple[Splitter, str]:
        """The layer."""
        return self.source.split, self.source.path

    def positions_of(self, target: Target) -> tuple[int, ...]:
        """Return the tokens of the row that the target is strongest at; of all rows where that is no single one."""
        of_token = self.readout.of_token
        row = self._strongest.get(target, NO_ELEMENT)
        chosen = of_token != NO_ELEMENT if row == NO_ELEMENT else of_token == row
        return tuple(np.flatnonzero(chosen).tolist())


def layer_targets(targets: Any) -> LayerTargets | list[LayerTargets] | None:
    """Return targets at a layer, one for all texts or one for each, or None where something else is explained.

    Raises:
        InputError: a list of them with something else in it, or of several layers.
    """
    if targets is None or isinstance(targets, LayerTargets):
        return targets
    if not isinstance(targets, (list, tuple)) or not any(isinstance(each, LayerTargets) for each in targets):
        return None
    first = next(each for each in targets if isinstance(each, LayerTargets))
    for each in targets:
        if not isinstance(each, LayerTargets):
            raise InputError(f"one call explains a layer or the model's outputs, not both: {each!r} beside {first!r}")
        if (each.split.model, each.path) != (first.split.model, first.path):
            raise InputError(f"one call explains one layer, not {first.path!r} and {each.path!r}")
    return list(targets)


def layer_questions(
    model: TextModel, texts: Iterable[Any], targets: LayerTargets | list[LayerTargets], refused: Mapping[str, Any]
) -> Iterator[Question]:
    """Ask for the same targets, or for each text's own.

    Arguments:
        model: the model that is split.
        texts: raw texts.
        targets: for all texts, or one for each.
        refused: arguments that have no meaning here, and are to be empty.

    Raises:
        InputError: another model, an argument that is not empty, or as many targets as there are not texts.
    """
    for name, value in refused.items():
        if value is not None and value is not False and value != {}:
            raise InputError(f"{name} is for a model's outputs, and what is explained is read at a layer")
    entries: Iterable[LayerTargets] = repeat(targets) if isinstance(targets, LayerTargets) else targets
    if isinstance(targets, list) and (not isinstance(texts, Sized) or len(texts) != len(targets)):
        raise InputError(f"{len(targets)} targets at a layer were given; give one for each text, or one for all")
    for each in [targets] if isinstance(targets, LayerTargets) else targets:
        each.check_model(model)
    return (LayerQuestion(model, encoding, each) for encoding, each in zip(model.encode(texts), entries, strict=False))
