"""The MLflow flavor of concept dictionaries: safetensors and JSON, the base model named by reference and content hash.

Loaded as a pyfunc model it takes a frame with the column `activations` (a row of the layer's width each) or `text`, and
returns codes, shape (n, n_concepts). A text's code is, for each concept, the largest over the text's rows; with the
parameter `pooling="mean"` it is their mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME, ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from interpreto_mlops.concepts.base import CARD_FILE, ConceptDictionary
from interpreto_mlops.errors import ModelLoadError
from interpreto_mlops.tracking import _mlflow_private as private
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.dictionary_pyfunc import POOLINGS, DictionaryModel
from interpreto_mlops.tracking.environment import requirements
from interpreto_mlops.tracking.logged_models import log_folder, register
from interpreto_mlops.tracking.resolving import ResolvedModel, fetched, flavor_of, is_model_uri, part_of, resolve
from interpreto_mlops.tracking.store import Store, current_store, current_store_for

FLAVOR_NAME = "interpreto_mlops"
FORMAT_VERSION = 1

_DATA = "dictionary"
_LOADER = "interpreto_mlops.tracking.dictionary_flavor"


def get_default_pip_requirements() -> list[str]:
    """Return what a loaded dictionary needs, pinned to what is installed."""
    return requirements("interpreto-mlops", "mlflow", "numpy", "pandas", "safetensors", "torch", "transformers")


def signature_of(dictionary: ConceptDictionary) -> ModelSignature:
    """Return the signature: two optional columns in, codes of shape (n, n_concepts) out."""
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "text", required=False),
                ColSpec(Array(DataType.double), "activations", required=False),
            ]
        ),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, dictionary.n_concepts))]),
        params=ParamSchema([ParamSpec("pooling", DataType.string, POOLINGS[0])]),
    )


def example_of(dictionary: ConceptDictionary) -> list[dict[str, list[float]]]:
    """Return an input example that holds nothing of the data: the directions of the first two concepts."""
    return [{"activations": row} for row in dictionary.dictionary[:2].detach().cpu().float().tolist()]


def flavor_facts(dictionary: ConceptDictionary) -> dict[str, Any]:
    """Return the flavor's entry in `MLmodel`: what the dictionary is of, and how it was made."""
    provenance = dictionary.provenance
    model: Mapping[str, Any] = provenance.get("model") or {}
    return {
        "format_version": FORMAT_VERSION,
        "method": dictionary.name,
        "n_concepts": dictionary.n_concepts,
        "width": dictionary.width,
        "base_model": model.get("uri"),
        "base_model_id": model.get("model_id"),
        "base_model_sha256": model.get("fingerprint"),
        "layer": provenance.get("layer"),
        "granularity": provenance.get("granularity"),
        "data_digest": (provenance.get("data") or {}).get("digest"),
    }


def save_model(
    dictionary: ConceptDictionary,
    path: str | os.PathLike[str],
    conda_env: dict[str, Any] | str | None = None,
    code_paths: list[str] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | None = None,
    input_example: Any = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a dictionary as an MLflow model folder.

    Arguments:
        dictionary: fitted.
        path: of the folder, which must not be there or be empty.
        conda_env: the environment, instead of requirements.
        code_paths: local code to put beside the model.
        mlflow_model: the model that this flavor is added to.
        signature: by default that of `signature_of`.
        input_example: by default that of `example_of`.
        pip_requirements: by default those of `get_default_pip_requirements`.
        extra_pip_requirements: in addition to those.
        metadata: free facts for `MLmodel`.

    Raises:
        NotFittedError: the dictionary is not fitted.
    """
    facts = flavor_facts(dictionary)
    private.validate_environment_arguments(conda_env, pip_requirements, extra_pip_requirements)
    root = Path(path).absolute()
    private.prepare_save_path(str(root))
    code = private.copy_code_paths(code_paths, str(root))
    model = Model() if mlflow_model is None else mlflow_model
    private.save_example(model, example_of(dictionary) if input_example is None else input_example, str(root))
    model.signature = signature_of(dictionary) if signature is None else signature
    if metadata is not None:
        model.metadata = metadata
    dictionary.save(root / _DATA)
    environment = {"conda_env": private.CONDA_ENV_FILE, "python_env": private.PYTHON_ENV_FILE}
    add_pyfunc: Callable[..., Any] = pyfunc.add_to_model
    add_pyfunc(model, loader_module=_LOADER, data=_DATA, code=code, **environment)
    model.add_flavor(FLAVOR_NAME, data=_DATA, code=code, **facts)
    if size := private.total_file_size(str(root)):
        model.model_size_bytes = size
    model.save(str(root / MLMODEL_FILE_NAME))
    _write_environment(root, conda_env, pip_requirements, extra_pip_requirements)


def _write_environment(root: Path, conda_env: Any, pip_requirements: Any, extra: Any) -> None:
    if conda_env is None:
        default = get_default_pip_requirements() if pip_requirements is None else None
        conda, pip, constraints = private.process_pip_requirements(default, pip_requirements, extra)
    else:
        conda, pip, constraints = private.process_conda_env(conda_env)
    (root / private.CONDA_ENV_FILE).write_text(yaml.safe_dump(conda, default_flow_style=False), encoding="utf-8")
    if constraints:
        private.write_text(str(root / private.CONSTRAINTS_FILE), "\n".join(constraints))
    private.write_text(str(root / private.REQUIREMENTS_FILE), "\n".join(pip))
    private.write_python_env(str(root / private.PYTHON_ENV_FILE))


def log_model(
    dictionary: ConceptDictionary,
    name: str = "dictionary",
    *,
    registered_model_name: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
    **arguments: Any,
) -> ModelInfo:
    """Log a dictionary to the user's open run, or outside of any run, and register it when asked.

    Arguments:
        dictionary: fitted.
        name: of the logged model.
        registered_model_name: makes it the next version of that registered model.
        params: of the logged model.
        tags: of the logged model and its version.
        run_id: another run than the open one.
        arguments: of `save_model`.

    Raises:
        NotFittedError: the dictionary is not fitted.
        TrackingError: the store fails.
    """
    store, open_run = current_store_for(run_id)
    texts = {key: schema.param_text(value) for key, value in (params or {}).items()}
    logged = log_folder(
        store,
        name,
        lambda path, model: save_model(dictionary, path, mlflow_model=model, **arguments),
        model_type=schema.DICTIONARY_KIND,
        run_id=run_id or open_run,
        params=texts,
        tags={**dictionary_tags(dictionary), **(tags or {})},
    )
    if registered_model_name is not None:
        version = register(store, logged, registered_model_name, tags={**dictionary_tags(dictionary), **(tags or {})})
        logged.info.registered_model_version = version.version
    return logged.info


def dictionary_tags(dictionary: ConceptDictionary) -> dict[str, str]:
    """Return the tags by which logged and registered dictionaries are searched."""
    facts = flavor_facts(dictionary)
    named = {
        schema.TAG_KIND: schema.DICTIONARY_KIND,
        schema.TAG_METHOD: facts["method"],
        schema.TAG_LAYER: facts["layer"],
        schema.TAG_MODEL_URI: facts["base_model"],
        schema.TAG_MODEL_ID: facts["base_model_id"],
        schema.TAG_MODEL_FINGERPRINT: facts["base_model_sha256"],
        schema.TAG_DATA: facts["data_digest"],
    }
    return {key: str(value) for key, value in named.items() if value is not None}


def load_dictionary(source: str | Path, *, store: Store | None = None) -> ConceptDictionary:
    """Load a concept dictionary with its labels and history; its files are compared with their logged hashes.

    Arguments:
        source: `models:/name@alias`, `models:/name/1`, `models:/m-…`, `runs:/<run id>/<name>`, or a folder: an MLflow
            model's, or one that `ConceptDictionary.save` wrote.
        store: where MLflow addresses are looked up; by default where MLflow's own functions would.

    Raises:
        ModelLoadError: nothing there, or a model that is no dictionary.
        IntegrityError: a file was changed.
        TrackingError: the store does not answer.
    """
    text = str(source)
    if is_model_uri(text):
        store = store or current_store()
        found = resolve(store, text)
        with fetched(store, found) as folder:
            return _load_saved(found, folder)
    folder = Path(source)
    if not folder.is_dir():
        raise ModelLoadError(f"there is no dictionary folder {text!r}")
    if (folder / CARD_FILE).is_file():
        return ConceptDictionary.load(folder)
    return _load_saved(ResolvedModel(text, text, text, folder.name), folder)


def _load_saved(found: ResolvedModel, folder: Path) -> ConceptDictionary:
    entry = flavor_of(found, folder, FLAVOR_NAME)
    return ConceptDictionary.load(part_of(found, folder, entry.get("data")))


def load_model(model_uri: str, dst_path: str | None = None) -> ConceptDictionary:
    """Load a dictionary by its address: `load_dictionary` under the name that MLflow's flavors use.

    Arguments:
        model_uri: see `load_dictionary`.
        dst_path: not used; MLflow passes it.
    """
    return load_dictionary(model_uri)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> DictionaryModel:
    """Return what `mlflow.pyfunc.load_model` wraps; `path` is the dictionary's own folder."""
    return DictionaryModel(ConceptDictionary.load(path))
