"""Whether a dictionary and what it is used on come from the same model and layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from interpreto_mlops.concepts.rows import Rows
from interpreto_mlops.errors import InputError, IntegrityError
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel


class Fitted(Protocol):
    """What has learned from activations, and knows which."""

    provenance: dict[str, Any]

    @property
    def width(self) -> int:
        """The width of the layer that it was fitted on."""
        ...


def check_belongs(dictionary: Fitted, other: TextModel | Splitter | Rows, *, allow_mismatch: bool = False) -> None:
    """Refuse a model, or activations, other than those that a dictionary was fitted on.

    Models are told apart by their fingerprint. Activations must also be of the same layer: two layers of a model have
    the same width, and nothing else would say that they were mixed up. What does not know where it comes from, like a
    bare tensor, is taken.

    Arguments:
        dictionary: fitted.
        other: the model, the split model, or the activations.
        allow_mismatch: take it all the same.

    Raises:
        IntegrityError: it is another one; the message names both.
    """
    if allow_mismatch:
        return
    own, given = dictionary.provenance, _provenance_of(other)
    own_model, given_model = own.get("model") or {}, given.get("model") or {}
    if _differ(own_model.get("fingerprint"), given_model.get("fingerprint")):
        raise IntegrityError(
            f"the dictionary was fitted on the model {_called(own_model)}, and this is another one, "
            f"{_called(given_model)}; allow_mismatch=True takes it all the same"
        )
    if _differ(own.get("layer"), given.get("layer")):
        raise IntegrityError(
            f"the dictionary was fitted on the layer {own['layer']!r}, and these activations are of "
            f"{given['layer']!r}; allow_mismatch=True takes them all the same"
        )


def place_of(
    split: Splitter, dictionary: Fitted, layer: int | str | None = None, *, allow_mismatch: bool = False
) -> str:
    """Return the split point that a dictionary belongs to.

    Arguments:
        split: the split model.
        dictionary: fitted.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        allow_mismatch: take a dictionary of another model or layer all the same.

    Raises:
        InputError: the model is not split at the dictionary's layer, or the widths differ.
        IntegrityError: the dictionary was fitted on another model, or on another layer than the one given.
    """
    own = dictionary.provenance.get("layer")
    if layer is not None:
        path = split.path(layer)
    elif own is None and len(split.split_points) == 1:
        path = split.split_points[0]
    elif own in split.split_points:
        path = str(own)
    else:
        raise InputError(
            f"the dictionary belongs to the layer {own!r}, and the model is split at {list(split.split_points)}"
        )
    if split.widths[path] != dictionary.width:
        raise InputError(f"the layer {path!r} has width {split.widths[path]}, and the dictionary {dictionary.width}")
    check_belongs(dictionary, split, allow_mismatch=allow_mismatch)
    if _differ(own, path) and not allow_mismatch:
        raise IntegrityError(
            f"the dictionary was fitted on the layer {own!r}, and this is {path!r}; allow_mismatch=True takes it all "
            "the same"
        )
    return path


def _provenance_of(other: TextModel | Splitter | Rows) -> Mapping[str, Any]:
    if isinstance(other, Splitter):
        other = other.model
    if isinstance(other, TextModel):
        return {"model": {"name": other.name, "fingerprint": other.fingerprint}}
    return other.provenance


def _called(model: Mapping[str, Any]) -> str:
    return f"{model.get('name')!r} (fingerprint {model['fingerprint'][:12]})"


def _differ(own: str | None, given: str | None) -> bool:
    return own is not None and given is not None and own != given
