"""What must be asked of the model itself: whether it looks ahead, and whether padding changes its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.requests import Readout
from interpreto_mlops.models.text_model import TextModel

_CAUSAL: WeakKeyDictionary[TextModel, bool] = WeakKeyDictionary()
_BEARS_PADDING: WeakKeyDictionary[TextModel, bool] = WeakKeyDictionary()

Row = tuple[Encoding, Ids, Readout]
"""A text, the token ids of one row of it, and what is read there."""


def check_left_to_right(model: TextModel) -> None:
    """Refuse a model whose scores of a token change with what comes after it: one pass cannot score a continuation.

    The model is asked once, with two tokens alone and with others behind them.

    Raises:
        InputError: it attends to what follows (XLNet, BERT's head without `is_decoder`), or to how much (ProphetNet).
    """
    if model not in _CAUSAL:
        rows = model.embedding.weight.shape[0]
        ids = [k % rows for k in (1, 2, 3, 5)]
        _CAUSAL[model] = _alike(model, *(_first_logits(model, part) for part in (ids[:2], ids)))
    if not _CAUSAL[model]:
        raise InputError(
            f"{model.name!r} scores a token otherwise when others follow it, as {type(model.model).__name__} does; "
            "give a model that reads from left to right"
        )


def bears_padding(model: TextModel, rows: Sequence[Row]) -> bool:
    """Whether a row reads the same beside a longer one as alone. Asked once, with a short row and a longer one.

    Padding under an attention mask changes the answers of FNet, Funnel, ConvBERT, Nystromformer and XLNet.
    """
    if model.task == "generation" and not model.model.config.is_encoder_decoder:
        return True  # what stands on the right of a row is not seen
    if model not in _BEARS_PADDING:
        alone, together = (_read(model, each)[0, : rows[0][2].width] for each in (rows[:1], rows))
        _BEARS_PADDING[model] = _alike(model, alone, together)
    return _BEARS_PADDING[model]


def _alike(model: TextModel, a: torch.Tensor, b: torch.Tensor) -> bool:
    # Between the noise of other kernels for another shape and what a token or a place more does to the answer.
    allowed = 4 * torch.finfo(model.dtype).eps ** 0.75 * max(1.0, float(a.abs().max()))
    return not float((a - b).abs().max()) > allowed


def _first_logits(model: TextModel, ids: list[int]) -> torch.Tensor:
    """Return the logits at the first two of some tokens, shape (2, vocabulary)."""
    network: Any = model.model
    row, source = (torch.tensor([part], device=model.device) for part in (ids, ids[:2]))
    batch = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if network.config.is_encoder_decoder:
        batch = {f"decoder_{name}": tensor for name, tensor in batch.items()}
        batch |= {"input_ids": source, "attention_mask": torch.ones_like(source)}
    options = {"use_cache": False} if "use_cache" in model.accepts else {}
    with model.evaluating(), torch.inference_mode():
        found: torch.Tensor = network(**batch, **options).logits[0, :2]
    return found if found.dtype == torch.float64 else found.float()


def _read(model: TextModel, rows: Sequence[Row]) -> torch.Tensor:
    encodings, ids, readouts = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    kind = type(readouts[0])
    with model.evaluating(), torch.inference_mode(), model.execution.plainly():
        return kind.read(model, kind.inputs(model, encodings, ids, readouts), readouts)
