"""The head of a language model: single logits from its rows, without a product with the whole vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from interpreto_mlops.models.text_model import TextModel

_PROBE_TOKENS = 8


def find_plain_head(model: TextModel) -> torch.nn.Linear | None:
    """Return the head of a decoder when the logits are that linear layer of the last hidden states, else None.

    Some models scale, cap or shift their logits; it is tried on a few tokens.
    """
    head, body = model.model.get_output_embeddings(), model.model.base_model
    if type(head) is not torch.nn.Linear or body is model.model or model.model.config.is_encoder_decoder:
        return None
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None] * 7919 % model.embedding.weight.shape[0]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    places = torch.arange(_PROBE_TOKENS)[None]
    with model.evaluating(), torch.inference_mode(), model.execution.plainly():
        try:
            logits = model.logits_at(batch, places)[0].float()
            rows = head_rows(head, model.hidden_at(batch, places), ids)[0].float()
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
            return None
    wanted = logits[torch.arange(_PROBE_TOKENS), ids[0].to(logits.device)]
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 2e-2
    agrees = (rows.to(wanted.device) - wanted).abs().max() <= tolerance * logits.abs().max()
    # An infinite logit agrees with nothing, and the whole vocabulary's must be read to find it.
    return head if bool(agrees) and bool(torch.isfinite(logits).all()) else None


def head_rows(head: torch.nn.Linear, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of single tokens from hidden states, shapes (rows, k, width) and (rows, k) to (rows, k)."""
    index = ids.to(head.weight.device)
    wide = torch.promote_types(head.weight.dtype, torch.float32)
    logits = (hidden.to(index.device, wide) * head.weight.detach()[index].to(wide)).sum(-1)
    return logits if head.bias is None else logits + head.bias.detach()[index].to(wide)
