"""Text models inside of pyfuncs: a checkpoint among the artifacts, or a pipeline in what a user has loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.pyfunc import PyFuncModel
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from interpreto_mlops.errors import CodeNeededError, ModelLoadError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.resolving import ResolvedModel, part_of

_PYFUNC = "python_function"
_OF_A_PYTHON_MODEL = {"artifacts", "python_model", "model_code_path"}
_ALLOWED = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"),
    *("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "source.spm"),
)


def is_wrapper(flavors: Mapping[str, Any]) -> bool:
    """Return whether a model is a user's own `PythonModel` rather than one of a library's flavors."""
    entry: Mapping[str, Any] = flavors.get(_PYFUNC) or {}
    return bool(_OF_A_PYTHON_MODEL & entry.keys())


def checkpoints(found: ResolvedModel, folder: Path, flavors: Mapping[str, Any]) -> list[Path]:
    """Return the folder of the network among a pyfunc's artifacts, and that of its tokenizer if it is another one.

    The network may be a checkpoint that transformers has written or an MLflow model; nothing of it is executed.

    Returns:
        No folder where no artifact holds a network.

    Raises:
        ModelLoadError: several artifacts hold one, or several a tokenizer for it.
    """
    artifacts: Mapping[str, Any] = flavors[_PYFUNC].get("artifacts") or {}
    paths = {name: str(entry.get("path")) for name, entry in artifacts.items()}
    places = {name: part_of(found, folder, path) for name, path in paths.items() if (folder / path).is_dir()}
    network = _only(found, "network", {name: place for name, place in places.items() if _is_network(place)})
    if network is None:
        return []
    if has_tokenizer(network) or (network / MLMODEL_FILE_NAME).is_file():
        return [network]
    others = {name: place for name, place in places.items() if place != network and has_tokenizer(place)}
    tokenizer = _only(found, "tokenizer", others)
    return [network] if tokenizer is None else [network, tokenizer]


def _only(found: ResolvedModel, what: str, places: Mapping[str, Path]) -> Path | None:
    if len(places) > 1:
        names = ", ".join(repr(name) for name in places)
        raise ModelLoadError(
            f"the model {found.given!r} holds more than one {what} among its artifacts: {names}; log the one to "
            "explain as a model of its own"
        )
    return next(iter(places.values()), None)


def _is_network(place: Path) -> bool:
    return (place / "config.json").is_file() or (place / MLMODEL_FILE_NAME).is_file()


def has_tokenizer(place: Path) -> bool:
    """Return whether a folder holds files of a tokenizer: without any, transformers makes up an empty one."""
    return any((place / name).is_file() for name in _TOKENIZER_FILES)


def run_code_of(found: ResolvedModel, folder: Path, *, allowed: bool | None = None) -> PyFuncModel:
    """Load a pyfunc by its own code or pickle, where that is allowed: by the environment, if nobody else says it.

    Raises:
        CodeNeededError: it is not.
        ModelLoadError: the code fails.
    """
    if not (os.environ.get(_ALLOWED, "").lower() in {"true", "1"} if allowed is None else allowed):
        raise CodeNeededError(
            f"the model {found.given!r} is a pyfunc without a checkpoint among its artifacts; what it wraps is "
            "known to its own code or pickle alone, which is not run here: log it with mlflow.transformers or with the "
            "folder of save_pretrained as an artifact, give load_model what mlflow.pyfunc.load_model returns, or set "
            f"{_ALLOWED}=true"
        )
    try:
        loaded: PyFuncModel = mlflow.pyfunc.load_model(str(folder))
    except Exception as error:
        # A user's code may raise anything.
        raise ModelLoadError(f"the pyfunc {found.given!r} cannot be loaded: {first_line(error)}") from error
    return loaded


def of_pyfunc(
    loaded: PyFuncModel, name: str | None, options: Mapping[str, Any], found: ResolvedModel | None = None
) -> TextModel:
    """Return the text model that a loaded pyfunc wraps, on the device and in the dtype that it has there.

    Arguments:
        loaded: what `mlflow.pyfunc.load_model` returned: of the transformers flavor, or of a `PythonModel` that holds a
            pipeline, or a model and its tokenizer, as attributes.
        name: how runs call it.
        options: of `TextModel`.
        found: where it was loaded from; by default the logged model that it says it is.

    Raises:
        ModelLoadError: it holds none, or more than one.
    """
    model_id = loaded.model_id if found is None else found.model_id
    uri = found.uri if found is not None else (f"models:/{model_id}" if model_id else None)
    called = repr(uri or "given")
    network, tokenizer = network_in(loaded, called)
    run = {key: value for key, value in options.items() if key != "dtype"}
    model = TextModel(network, tokenizer, name=name, uri=uri, model_id=model_id, **run)
    dtype = model.arithmetic["dtype"]
    if options.get("dtype", dtype) != dtype:
        raise ModelLoadError(f"the pyfunc {called} has its network in {dtype}, not in {options['dtype']!r}")
    return model


def network_in(loaded: object, called: str) -> tuple[Any, Any]:
    """Return the network and the tokenizer that a loaded pyfunc holds.

    Raises:
        ModelLoadError: it holds none, or more than one; the message calls the pyfunc what `called` says.
    """
    held = list(_held(_raw(loaded)))
    pipelines = _distinct(held, Pipeline)
    networks: list[Any] = [pipeline.model for pipeline in pipelines] or _distinct(held, PreTrainedModel)
    tokenizers: list[Any] = [pipeline.tokenizer for pipeline in pipelines] or _distinct(held, PreTrainedTokenizerBase)
    if len(networks) != 1 or len(tokenizers) != 1 or tokenizers[0] is None:
        raise ModelLoadError(
            f"the pyfunc {called} must hold one pipeline, or one model and one tokenizer, as attributes; it holds "
            f"{len(networks)} and {sum(each is not None for each in tokenizers)}: wrap what you mean in "
            "TextModel(model, tokenizer)"
        )
    return networks[0], tokenizers[0]


def _raw(loaded: object) -> object:
    """Return the library's own object or the user's `PythonModel`; what is neither, a function for instance, itself."""
    for unwrap in ("unwrap_python_model", "get_raw_model"):
        try:
            return getattr(loaded, unwrap)()
        except (AttributeError, MlflowException, NotImplementedError):
            continue
    return loaded


def _held(raw: object) -> Iterator[object]:
    """Yield the object, its attributes, and what is in those that are dictionaries."""
    yield raw
    if isinstance(raw, Pipeline | PreTrainedModel):
        return
    for value in vars(raw).values() if hasattr(raw, "__dict__") else ():
        yield value
        if isinstance(value, dict):
            yield from value.values()


def _distinct(held: list[object], kind: Any) -> list[Any]:
    return list({id(each): each for each in held if isinstance(each, kind)}.values())
