"""What stands in the place of a word that is taken out."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.text_model import TextModel

_NAMES = ("auto", "mask", "pad", "unk", "remove")


@dataclass(frozen=True)
class Replacement:
    """What stands in the place of a word that is taken out.

    Arguments:
        name: `mask`, `pad`, `unk`, `id`, or `remove`.
        id: the token id that is put there; None for `remove`.
        keep: for `remove`, the token that stands for a text, or a prompt, of which nothing would be left.
    """

    name: str
    id: int | None
    keep: int | None = None

    def __str__(self) -> str:
        return self.name if self.id is None else f"{self.name}:{self.id}"

    @classmethod
    def resolve(cls, value: str | int, model: TextModel) -> Replacement:
        """Find the token to use.

        Arguments:
            value: `auto` (the first that exists of mask, pad, unk, passing over a pad or unk that also ends texts; else
                `remove`), `mask`, `pad`, `unk`, `remove`, or a token id.
            model: whose tokenizer has the token. None is ever added to it.

        Raises:
            InputError: an unknown name, a token that the tokenizer does not have, or an id out of range.
        """
        tokenizer = model.tokenizer
        ids = {"mask": tokenizer.mask_token_id, "pad": tokenizer.pad_token_id, "unk": tokenizer.unk_token_id}
        if isinstance(value, str):
            return _named(value, ids, model)
        try:
            number = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = -1
        if not 0 <= number < model.embedding.weight.shape[0]:
            raise InputError(f"replacement must be one of {_quoted()} or a token id of the model, not {value!r}")
        return cls("id", number)

    def rows(self, encoding: Encoding, present: npt.NDArray[np.bool_]) -> list[Ids] | Ids:
        """Return the token ids of a text with some tokens taken out.

        Arguments:
            encoding: the text.
            present: which tokens stay, shape (rows, tokens).

        Raises:
            InputError: `remove` would leave nothing, and the tokenizer has no token to start or end a text with; or the
                tokens of one text have several segment ids, which would no longer fit the tokens left.
        """
        if self.id is not None:
            return np.where(present, encoding.ids, self.id)
        segments = encoding.token_type_ids
        if segments is not None and len(np.unique(segments)) > 1:
            raise InputError(
                "replacement 'remove' does not work with a tokenizer that gives several segments; use 'mask'"
            )
        return [self._kept(encoding, row) for row in present]

    def _kept(self, encoding: Encoding, row: npt.NDArray[np.bool_]) -> Ids:
        ids = encoding.ids[row]
        if row[: encoding.first_part].any():
            return ids
        if self.keep is None:
            raise InputError(
                "replacement 'remove' would leave an empty text, and the tokenizer has no bos or eos token to keep"
            )
        return np.concatenate([np.asarray([self.keep], dtype=np.int64), ids])


def _named(value: str, ids: dict[str, int | None], model: TextModel) -> Replacement:
    ends = {model.tokenizer.bos_token_id, model.tokenizer.eos_token_id}
    if value == "auto":
        usable = [name for name in ids if ids[name] is not None and (name == "mask" or ids[name] not in ends)]
        value = usable[0] if usable else "remove"
    if value == "remove":
        keep = [i for i in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id) if i is not None]
        return Replacement("remove", None, keep[0] if keep else None)
    if value not in ids:
        raise InputError(f"replacement must be one of {_quoted()} or a token id, not {value!r}")
    if ids[value] is None:
        raise InputError(f"the tokenizer of {model.name!r} has no {value} token; use replacement='auto'")
    return Replacement(value, ids[value])


def _quoted() -> str:
    return ", ".join(repr(name) for name in _NAMES)
