"""Content hashes of models: the same weights, configuration and tokenizer give the same fingerprint anywhere."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What saving, moving and loading changes without changing what the model computes.
_INCIDENTAL = {"_name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype", "architectures"}
_INCIDENTAL |= {"_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset"}


def fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 over configuration, weights (names, dtypes, shapes, bytes) and tokenizer, in hex."""
    digest = hashlib.sha256()
    digest.update(_config_text(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(hashlib.sha256(_bytes(_present(model, name, tensor))).digest())
    digest.update(_tokenizer_text(tokenizer).encode())
    return digest.hexdigest()


def config_sha256(model: PreTrainedModel) -> str:
    """Return the sha256 of the configuration alone, in hex."""
    return hashlib.sha256(_config_text(model).encode()).hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the tokenizer alone, in hex."""
    return hashlib.sha256(_tokenizer_text(tokenizer).encode()).hexdigest()


def _config_text(model: PreTrainedModel) -> str:
    config = {key: value for key, value in model.config.to_dict().items() if key not in _INCIDENTAL}
    return json.dumps(config, sort_keys=True, default=str)


def _present(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the model's state; if accelerate has offloaded it, from where it is kept."""
    if tensor.device.type != "meta":
        return tensor
    owner, _, own_name = name.rpartition(".")
    hook: Any = getattr(model.get_submodule(owner), "_hf_hook", None)
    return hook.weights_map[own_name]  # type: ignore[no-any-return]


def _bytes(tensor: torch.Tensor) -> bytes:
    # bfloat16 has no numpy type, so every tensor is hashed through its bytes.
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    state = json.loads(backend.to_str())
    # Truncation and padding are set anew by every call.
    return json.dumps(
        {key: value for key, value in state.items() if key not in {"truncation", "padding"}}, sort_keys=True
    )
