"""Where paths start: the embeddings of a replaced text, or vectors in the place of the elements' embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.attributions.results import Floats
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.text_model import TextModel

_NAMES = ("replacement", "pad", "zero", "mean")
_CHUNK = 8192  # rows of the embedding matrix that are held twice at once


@dataclass(frozen=True, eq=False)
class Baseline:
    """Where a path starts. Tokens that belong to no element keep their own embeddings.

    Arguments:
        record: how a run's parameters name it.
        token: the id whose embedding stands for every element, or None.
        vector: what stands for every element when no token does, shape (width,) or (tokens, width).
    """

    record: str | dict[str, Any]
    token: int | None = None
    vector: torch.Tensor | None = None

    def anchors(self, encoding: Encoding, movable: npt.NDArray[np.bool_]) -> Ids:
        """Return the ids whose embeddings `start` needs: the text's, and the replaced text's; (1 or 2, tokens)."""
        if self.token is None:
            return encoding.ids[None]
        return np.stack([encoding.ids, np.where(movable, self.token, encoding.ids)])

    def start(self, anchors: torch.Tensor, movable: npt.NDArray[np.bool_]) -> torch.Tensor:
        """Return the embeddings at the start of the path, shape (tokens, width), from those of the anchors."""
        if self.vector is None:
            return anchors[1]
        inside = torch.from_numpy(movable).to(anchors.device)[:, None]
        return torch.where(inside, self.vector.to(anchors), anchors[0])

    def check(self, encoding: Encoding) -> None:
        """Refuse a text for which given vectors are too few or too many.

        Raises:
            InputError: the baseline has one vector a token, and the text another number of tokens.
        """
        if self.vector is not None and self.vector.ndim == 2 and len(self.vector) != len(encoding):
            raise InputError(
                f"the baseline has {len(self.vector)} rows, but text {encoding.index} has {len(encoding)} tokens; "
                "give one row for each token, or one vector for all"
            )


def resolve_baselines(value: Any, model: TextModel, replacement: Replacement) -> tuple[Baseline, ...]:
    """Turn what a user gives as baseline into baselines; the paths from several are averaged.

    Arguments:
        value: `replacement`, `pad`, `zero`, `mean` (of all embeddings), an array or tensor of shape (width,) or
            (tokens, width), or a list of these.
        model: gives the embeddings.
        replacement: what stands for an absent element. `remove` has no embedding: the baseline is then `zero`.

    Raises:
        InputError: an unknown name, a pad token that the tokenizer lacks, or an array of another shape or with NaN.
    """
    if isinstance(value, (list, tuple)):
        if not value:
            raise InputError("the list of baselines is empty; give at least one")
        return tuple(_resolve(each, model, replacement) for each in value)
    return (_resolve(value, model, replacement),)


def described(value: Any) -> Any:
    """Return a baseline as a run's parameters show it: an array by its shape and digest."""
    if isinstance(value, (list, tuple)):
        return [described(each) for each in value]
    if isinstance(value, str):
        return value
    array = _array(value)
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return {"name": "given", "shape": list(array.shape), "digest": digest}


def _resolve(value: Any, model: TextModel, replacement: Replacement) -> Baseline:
    width = model.embedding.weight.shape[1]
    if not isinstance(value, str):
        return Baseline(described(value), vector=_checked(value, width))
    if value not in _NAMES:
        raise UnknownNameError("baseline", value, _NAMES)
    if value == "pad":
        return Baseline("pad", Replacement.resolve("pad", model).id)
    if value == "mean":
        return Baseline("mean", vector=_mean_embedding(model))
    if value == "zero" or replacement.id is None:
        return Baseline("zero", vector=torch.zeros(width))
    return Baseline("replacement", replacement.id)


def _array(value: Any) -> Floats:
    if not isinstance(value, (np.ndarray, torch.Tensor)):
        raise InputError(
            f"a baseline must be one of {', '.join(map(repr, _NAMES))}, an array, or a list of these, not {value!r}"
        )
    numbers = value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else value
    try:
        return np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"a baseline must be an array of numbers, not of {numbers.dtype}") from None


def _checked(value: Any, width: int) -> torch.Tensor:
    array = _array(value)
    if array.ndim not in (1, 2) or array.shape[-1] != width:
        raise InputError(
            f"a given baseline must have the shape ({width},) or (tokens, {width}), not {tuple(array.shape)!r}"
        )
    if not np.isfinite(array).all():
        raise InputError("a given baseline must be finite; this one holds NaN or infinity")
    return torch.from_numpy(array.copy())


def _mean_embedding(model: TextModel) -> torch.Tensor:
    """Average the embeddings of all ids, as the embedding module gives them, in float64, shape (width,)."""
    rows = model.embedding.weight.shape[0]
    with torch.no_grad():
        ids = torch.arange(rows, device=model.device)
        totals = [model.embed(chunk).sum(0, dtype=torch.float64) for chunk in ids.split(_CHUNK)]
    return torch.stack(totals).sum(0) / rows
