"""Loading models and tokenizers from folders and from the HuggingFace hub. Nothing of the source is executed."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from interpreto_mlops.errors import InterpretoError, ModelLoadError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel

_HUB_SECONDS = 5.0
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")
_OPTIONS = ("autocast", "compile", "token_budget", "prefix_reuse")

# In the order of preference: the head that a checkpoint was saved with decides.
_HEADS = (
    ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    ("ForTokenClassification", "AutoModelForTokenClassification"),
    ("ForCausalLM", "AutoModelForCausalLM"),
    ("LMHeadModel", "AutoModelForCausalLM"),
    ("ForConditionalGeneration", "AutoModelForSeq2SeqLM"),
)


def load_model(
    source: str | Path,
    *,
    name: str | None = None,
    uri: str | None = None,
    model_id: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    **options: Any,
) -> TextModel:
    """Load a model and its tokenizer from a folder or from the HuggingFace hub.

    A folder is read from the disk alone; a hub id is fetched, or taken from the local cache when the hub is off.

    Arguments:
        source: a folder, or a hub id such as `distilbert-base-uncased-finetuned-sst-2-english`.
        name: how runs call the model; by default the last part of `source`.
        uri: the pinned place to load it from again; by default the source (a hub id with its commit).
        model_id: MLflow's id of the logged model.
        dtype: `float32`, `bfloat16`, `float16` or `float64` for weights in another dtype than the checkpoint's.
        revision: the commit, tag or branch of a hub id; by default its newest commit.
        options: how the model is run: `autocast`, `compile`, `token_budget`, `prefix_reuse`; see `TextModel`.

    Raises:
        InputError: no such dtype or option.
        ModelLoadError: nothing there, no tokenizer, or a checkpoint that cannot be read.
    """
    weights = _dtype(dtype)
    check_options(options)
    text = str(source)
    folder = Path(source).is_dir()
    if not folder and (text.startswith((".", "/", "~")) or text.count("/") > 1):
        raise ModelLoadError(f"there is no model folder {text!r}")
    local = folder or not _hub_answers()
    try:
        # Asked in this order, so that a wrong id fails on the smallest file.
        where = {"local_files_only": local, "trust_remote_code": False, "revision": revision or "main"}
        config = AutoConfig.from_pretrained(text, **where)
        tokenizer = AutoTokenizer.from_pretrained(text, **where)
        network = _auto_class(config.architectures).from_pretrained(
            text, config=config, use_safetensors=True, **where, **weights
        )
    except InterpretoError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelLoadError(_explain(text, folder, error)) from error
    network.eval()
    pinned = uri or _pinned(text, folder, revision)
    name = name or (Path(text).resolve().name if folder else None)
    return TextModel(network, tokenizer, name=name, uri=pinned, model_id=model_id, **options)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of running a model before anything is loaded.

    Raises:
        InputError: an unknown option.
    """
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise UnknownNameError("option", unknown[0], _OPTIONS)


def _dtype(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in _DTYPES:
        raise UnknownNameError("dtype", name, _DTYPES)
    return {"dtype": getattr(torch, name)}


def _hub_answers() -> bool:
    """Whether the hub may and can be asked; where it does not, the client would try again for half a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=_HUB_SECONDS).close()
    except OSError:
        return False
    return True


def _auto_class(architectures: list[str] | None) -> Any:
    for architecture in architectures or []:
        for ending, auto in _HEADS:
            if architecture.endswith(ending):
                return getattr(transformers, auto)
    return transformers.AutoModel


def _pinned(source: str, local: bool, revision: str | None) -> str:
    if local:
        return str(Path(source).resolve())
    # The model itself does not say which commit it is of; the cache that it came through does.
    kept = try_to_load_from_cache(source, "config.json", revision=revision)
    commit = _SNAPSHOT.search(Path(kept).as_posix()) if isinstance(kept, str) else None
    return source if commit is None else f"{source}@{commit[1]}"


def _explain(source: str, folder: bool, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if folder:
        return f"cannot load a model from the folder {source!r}: {first}"
    if constants.HF_HUB_OFFLINE:
        reason = "the HuggingFace hub is switched off (HF_HUB_OFFLINE) and the local cache does not have it"
    elif not _hub_answers():
        reason = f"the HuggingFace hub at {constants.ENDPOINT} cannot be reached and the local cache does not have it"
    else:
        reason = f"the HuggingFace hub did not give it ({first})"
    return f"cannot load the model {source!r}: it is not a folder, and {reason}"
