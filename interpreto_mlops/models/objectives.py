"""The scalar that is explained: targets by id or name, read in logits or probabilities."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.registry import Choice


class InferenceMode(Choice):
    """The space in which a target's score is read."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    LOG_SOFTMAX = "log_softmax"


@dataclass(frozen=True)
class ClassObjective:
    """Maps the class logits of rows to the scores of some classes.

    Arguments:
        classes: the ids of the target classes.
        mode: logits, probabilities or their logarithms.
        multi_label: whether the classes do not exclude each other (sigmoid instead of softmax).
    """

    classes: tuple[int, ...]
    mode: InferenceMode = InferenceMode.LOGITS
    multi_label: bool = False

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Map logits, shape (rows, classes), to scores, shape (rows, targets)."""
        if self.mode is InferenceMode.SOFTMAX:
            logits = logits.sigmoid() if self.multi_label else logits.softmax(-1)
        elif self.mode is InferenceMode.LOG_SOFTMAX:
            logits = torch.nn.functional.logsigmoid(logits) if self.multi_label else logits.log_softmax(-1)
        return logits[:, list(self.classes)]

    def score(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Map logits of an array to scores of an array, in float64."""
        scores: npt.NDArray[np.float64] = self(torch.from_numpy(np.asarray(logits, dtype=np.float64))).numpy()
        return scores


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


def resolve_classes(targets: Any, model: TextModel, n_texts: int) -> list[tuple[int, ...] | None]:
    """Turn what a user gives as targets into class ids for each text.

    Arguments:
        targets: None (the predicted class), one class for all texts, or one entry a text: a class or several of them.
            A class is an id or a label.
        model: the classifier.
        n_texts: how many texts there are.

    Returns:
        For each text the ids, or None where the predicted class is to be explained.

    Raises:
        InputError: a class that the model does not have, or as many entries as there are not texts.
    """
    if targets is None:
        return [None] * n_texts
    if _is_single(targets):
        return [(_class_id(targets, model),)] * n_texts
    entries = list(targets)
    if len(entries) != n_texts:
        raise InputError(
            f"{len(entries)} targets were given for {n_texts} texts; give one entry for each text, or one class"
        )
    return [None if entry is None else _class_ids(entry, model) for entry in entries]


def _is_single(value: Any) -> bool:
    """Whether this is one class; arrays and tensors without a dimension say that they are iterable."""
    return isinstance(value, str) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0


def _class_ids(entry: Any, model: TextModel) -> tuple[int, ...]:
    if _is_single(entry):
        return (_class_id(entry, model),)
    classes: Sequence[Any] = list(entry)
    if not classes:
        raise InputError("a text was given an empty list of targets; give at least one class, or None")
    return tuple(_class_id(each, model) for each in classes)


def _class_id(value: Any, model: TextModel) -> int:
    if isinstance(value, str):
        if value not in model.labels:
            raise UnknownNameError("class", value, model.labels)
        return model.labels.index(value)
    if isinstance(value, (bool, np.bool_)):
        raise InputError(f"a target must be a class id or label, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"a target must be a class id or label, not {value!r}") from None
    if not 0 <= number < len(model.labels):
        known = ", ".join(f"{i} ({label})" for i, label in enumerate(model.labels))
        raise InputError(f"there is no class {number}; the model {model.name!r} has {known}")
    return number
