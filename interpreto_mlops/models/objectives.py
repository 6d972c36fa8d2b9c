"""The scalar that is explained: targets by id or name, read in logits or probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.registry import Choice


class InferenceMode(Choice):
    """The space in which a target's score is read."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    LOG_SOFTMAX = "log_softmax"


@dataclass(frozen=True)
class Target:
    """One scalar that is explained: a class, the label of a token, or generated tokens.

    Arguments:
        id: the class or label; of generated tokens the first one's id.
        name: the label's name, or the tokens' text.
        positions: where in the text's ids it is read, one place a token; empty for a class.
        ids: of generated tokens, as many as `positions`; else empty.
        contrast: the class, or the ids (as many as `ids`), that it is explained against: the score is the difference.
        contrast_name: the contrast's label or text.
        layer: of what is read at a layer and not at the model's head, the layer; `id` is then a concept's.
    """

    id: int
    name: str
    positions: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    contrast: tuple[int, ...] = ()
    contrast_name: str | None = None
    layer: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether the name may hold words of texts: of this one, of what was written, or of those a layer saw."""
        return bool(self.positions or self.ids or self.layer is not None)

    @property
    def position(self) -> int | None:
        """The first of `positions`, or None."""
        return self.positions[0] if self.positions else None

    @property
    def title(self) -> str:
        """The name, with the contrast if there is one."""
        return self.name if self.contrast_name is None else f"{self.name} rather than {self.contrast_name}"


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """Maps what was read from the model to the scores of some targets.

    Arguments:
        targets: what is scored.
        mode: logits, probabilities or their logarithms.
    """

    targets: tuple[Target, ...]
    mode: InferenceMode = InferenceMode.LOGITS

    @abstractmethod
    def __call__(self, read: torch.Tensor) -> torch.Tensor:
        """Map what was read, shape (rows, width), to scores, shape (rows, targets)."""

    def score(self, read: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Map an array to scores in float64."""
        scores: npt.NDArray[np.float64] = self(torch.from_numpy(np.asarray(read, dtype=np.float64))).numpy()
        return scores

    @property
    def probability(self) -> Objective:
        """The same targets as metrics see them: probabilities, without contrasts."""
        return replace(
            self, mode=InferenceMode.SOFTMAX, targets=tuple(replace(target, contrast=()) for target in self.targets)
        )


@dataclass(frozen=True, kw_only=True)
class ClassObjective(Objective):
    """Scores of classes, from the logits of all classes; of a regression's one output always the output itself.

    Arguments:
        multi_label: whether the classes do not exclude each other (sigmoid instead of softmax).
    """

    multi_label: bool = False

    def __call__(self, read: torch.Tensor) -> torch.Tensor:
        """Map logits, shape (rows, classes), to scores, shape (rows, targets)."""
        scores = read
        if self.mode is not InferenceMode.LOGITS and (read.shape[1] > 1 or self.multi_label):
            scores = _log_probabilities(read, self.multi_label)
            scores = scores.exp() if self.mode is InferenceMode.SOFTMAX else scores
        out = scores[:, [target.id for target in self.targets]]
        return _less_contrast(out, self.targets, lambda k: scores[:, self.targets[k].contrast[0]])


@dataclass(frozen=True, kw_only=True)
class LabelObjective(Objective):
    """Scores of the labels of tokens, from the logits of all labels at some positions.

    A target of several tokens has the sum of their logits or log-probabilities, or the product of their probabilities.

    Arguments:
        positions: those that were read, in order; each target's own `positions` are among them.
    """

    positions: tuple[int, ...]

    def __call__(self, read: torch.Tensor) -> torch.Tensor:
        """Map logits, shape (rows, positions · labels), to scores, shape (rows, targets)."""
        logits = read.unflatten(1, (len(self.positions), -1))
        values = logits if self.mode is InferenceMode.LOGITS else logits.log_softmax(-1)
        place = {position: k for k, position in enumerate(self.positions)}

        def total(target: Target, label: int) -> torch.Tensor:
            scores: torch.Tensor = values[:, [place[position] for position in target.positions], label].sum(-1)
            return scores.exp() if self.mode is InferenceMode.SOFTMAX else scores

        out = torch.stack([total(target, target.id) for target in self.targets], dim=1)
        return _less_contrast(out, self.targets, lambda k: total(self.targets[k], self.targets[k].contrast[0]))


@dataclass(frozen=True, kw_only=True)
class TokenObjective(Objective):
    """Scores of generated tokens, from the logit and the log-sum-exp that were read for each.

    The tokens of all targets come first, in order, then those of all contrasts. A target of several tokens has the sum
    of their logits or log-probabilities, or the product of their probabilities.

    Arguments:
        logits_only: whether the log-sum-exps were left out, which logits do not need.

    Raises:
        InputError: a mode other than logits, of logits only.
    """

    logits_only: bool = False

    def __post_init__(self) -> None:
        if self.logits_only and self.mode is not InferenceMode.LOGITS:
            raise InputError(f"inference_mode {self.mode.value!r} needs more than the logits that were read")

    def __call__(self, read: torch.Tensor) -> torch.Tensor:
        """Map what was read, shape (rows, 2 · tokens) or (rows, tokens), to scores, shape (rows, targets)."""
        values = self._values(read)
        own = [len(target.ids) for target in self.targets]
        out = self._totals(values[:, : sum(own)], own)
        if not any(target.contrast for target in self.targets):
            return out
        against = [len(target.contrast) for target in self.targets]
        totals = self._totals(values[:, sum(own) : sum(own) + sum(against)], against)
        return _less_contrast(out, self.targets, lambda k: totals[:, k])

    def _values(self, read: torch.Tensor) -> torch.Tensor:
        if self.logits_only:
            return read
        pairs: torch.Tensor = read.unflatten(1, (-1, 2))
        return pairs[..., 0] if self.mode is InferenceMode.LOGITS else pairs[..., 0] - pairs[..., 1]

    def _totals(self, values: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Sum the values of each target's tokens, shape (rows, targets)."""
        owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(values.device)
        totals = values.new_zeros(len(values), len(lengths)).index_add(1, owner, values)
        return totals.exp() if self.mode is InferenceMode.SOFTMAX else totals


def _log_probabilities(logits: torch.Tensor, multi_label: bool) -> torch.Tensor:
    return torch.nn.functional.logsigmoid(logits) if multi_label else logits.log_softmax(-1)


def _less_contrast(
    scores: torch.Tensor, targets: Sequence[Target], contrast: Callable[[int], torch.Tensor]
) -> torch.Tensor:
    """Subtract from each target's score, shape (rows, targets), that of its contrast, if it has one."""
    if not any(target.contrast for target in targets):
        return scores
    nothing = scores.new_zeros(len(scores))
    return scores - torch.stack([contrast(k) if t.contrast else nothing for k, t in enumerate(targets)], dim=1)


def is_multi_label(model: TextModel) -> bool:
    """Whether the model's classes do not exclude each other."""
    return bool(getattr(model.model.config, "problem_type", None) == "multi_label_classification")


def check_mode(model: TextModel, mode: InferenceMode) -> None:
    """Refuse a softmax over a single output, which is constant.

    Raises:
        InputError: the model has one output and the mode is not logits.
    """
    if len(model.labels) == 1 and mode is not InferenceMode.LOGITS and not is_multi_label(model):
        raise InputError(
            f"inference_mode {mode.value!r} is constant for the one output of {model.name!r}; use 'logits'"
        )
