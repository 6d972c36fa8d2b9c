"""The MLflow flavor of concept dictionaries: safetensors and JSON, the base model named by reference and content hash.

Loaded as a pyfunc model it takes a frame with the column `activations` (a row of the layer's width each) or `text`, and
returns codes, shape (n, n_concepts). Its parameters: `pooling`, by which a text's code is for each concept the largest
over the text's rows (`max`) or their mean (`mean`); `top_k`, by which the strongest concepts come with their labels.

`mlflow.pyfunc.load_model(uri, model_config={"base_model": address})`, and the variable `MLFLOW_PYFUNC_INFERENCE_CONFIG`
of a server, take the base model from another place than its pinned one; its content is compared all the same.

`mlflow.pyfunc.spark_udf` takes a struct of the column, `udf(struct("text"))`: columns by their place are filled up with
NaN, which MLflow's own check of the schema refuses.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.dictionary_card import write_card
from interpreto_mlops.tracking.dictionary_facts import FAMILY, dictionary_tags, flavor_facts, keepable
from interpreto_mlops.tracking.dictionary_pyfunc import POOLINGS, DictionaryModel
from interpreto_mlops.tracking.environment import requirements
from interpreto_mlops.tracking.logged_models import check_name, log_folder, register
from interpreto_mlops.tracking.resolving import ResolvedModel, fetched, flavor_of, is_model_uri, part_of, resolve
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.tracking.store import Store, current_store, current_store_for

if TYPE_CHECKING:
    from interpreto_mlops.concepts.importance import ConceptImportance

FLAVOR_NAME = "interpreto_mlops"

_DATA = "dictionary"
_BASE_MODEL = "base_model"
_LOADER = "interpreto_mlops.tracking.dictionary_flavor"


def get_default_pip_requirements() -> list[str]:
    """Return what a loaded dictionary needs, pinned to what is installed."""
    return requirements("interpreto-mlops", "mlflow", "numpy", "pandas", "safetensors", "torch", "transformers")


def signature_of(dictionary: ConceptDictionary) -> ModelSignature:
    """Return the signature: two optional columns in, codes of shape (n, n_concepts) out."""
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "text", required=False),
        ColSpec(Array(DataType.double), "activations", required=False),
    ]
    return ModelSignature(Schema(columns), _codes_of(dictionary), _params())


def array_signature(dictionary: ConceptDictionary) -> ModelSignature:
    """Return the signature of a model that takes activations alone, as a float32 array of shape (n, width)."""
    rows = Schema([TensorSpec(np.dtype(np.float32), (-1, dictionary.width))])
    return ModelSignature(rows, _codes_of(dictionary), _params())


def _codes_of(dictionary: ConceptDictionary) -> Schema:
    return Schema([TensorSpec(np.dtype(np.float32), (-1, dictionary.n_concepts))])


def _params() -> ParamSchema:
    return ParamSchema(
        [ParamSpec("pooling", DataType.string, POOLINGS[0]), ParamSpec("top_k", DataType.long, 0)],
    )


def example_of(dictionary: ConceptDictionary) -> list[dict[str, list[float]]]:
    """Return an input example that holds nothing of the data: the directions of the first two concepts."""
    return [{"activations": row} for row in dictionary.dictionary[:2].detach().cpu().float().tolist()]


def save_model(
    dictionary: ConceptDictionary,
    path: str | os.PathLike[str],
    conda_env: dict[str, Any] | str | None = None,
    code_paths: list[str] | None = None,
    mlflow_model: Model | None = None,
    signature: ModelSignature | Literal[False] | None = None,
    input_example: Any = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    importance: ConceptImportance | None = None,
) -> None:
    """Write a dictionary as an MLflow model folder, with a model card, and labels and metrics where there are any.

    Arguments:
        dictionary: fitted.
        path: of the folder, which must not be there or be empty.
        conda_env: the environment, instead of requirements.
        code_paths: local code to put beside the model: MLflow has it on the path when it loads the model as a pyfunc,
            and a dictionary of a family of your own is then found in it. `load_model` runs none of it.
        mlflow_model: the model that this flavor is added to.
        signature: by default that of `signature_of`; `array_signature` for a model that takes arrays; False for none.
        input_example: by default that of `example_of`, where the signature is the default one.
        pip_requirements: by default those of `get_default_pip_requirements`.
        extra_pip_requirements: in addition to those.
        metadata: free facts for `MLmodel`.
        metrics: by the run schema's keys, such as `reconstruction/r2`.
        importance: of the concepts for the model's classes, for the card.

    Raises:
        NotFittedError: the dictionary is not fitted.
    """
    dictionary = keepable(dictionary)
    facts = flavor_facts(dictionary)
    private.validate_environment_arguments(conda_env, pip_requirements, extra_pip_requirements)
    root = Path(path).absolute()
    private.prepare_save_path(str(root))
    code = private.copy_code_paths(code_paths, str(root))
    model = Model() if mlflow_model is None else mlflow_model
    if signature is None and input_example is None:
        input_example = example_of(dictionary)
    private.save_example(model, input_example, str(root))
    if signature is not False:
        model.signature = signature or signature_of(dictionary)
    if metadata is not None:
        model.metadata = metadata
    dictionary.save(root / _DATA)
    write_card(root, dictionary, facts, metrics, importance)
    _add_flavors(model, facts, code)
    if size := private.total_file_size(str(root)):
        model.model_size_bytes = size
    model.save(str(root / MLMODEL_FILE_NAME))
    _write_environment(root, conda_env, pip_requirements, extra_pip_requirements)


def _add_flavors(model: Model, facts: Mapping[str, Any], code: str | None) -> None:
    environment = {"conda_env": private.CONDA_ENV_FILE, "python_env": private.PYTHON_ENV_FILE}
    # Who loads it may override only what is configured here.
    config = {_BASE_MODEL: None}
    add_pyfunc: Callable[..., Any] = pyfunc.add_to_model
    add_pyfunc(model, loader_module=_LOADER, data=_DATA, code=code, model_config=config, **environment)
    model.add_flavor(FLAVOR_NAME, data=_DATA, code=code, **facts)


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
    conda_env: dict[str, Any] | str | None = None,
    code_paths: list[str] | None = None,
    registered_model_name: str | None = None,
    signature: ModelSignature | Literal[False] | None = None,
    input_example: Any = None,
    pip_requirements: list[str] | str | None = None,
    extra_pip_requirements: list[str] | str | None = None,
    metadata: dict[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    model_type: str = schema.DICTIONARY_KIND,
    step: int = 0,
    model_id: str | None = None,
    run_id: str | None = None,
    metrics: Mapping[str, float] | None = None,
    importance: ConceptImportance | None = None,
) -> ModelInfo:
    """Log a dictionary to the user's open run, or outside of any run, and register it when asked.

    Metrics that the run holds already are not copied, which asks the store for each of them; log those of the
    dictionary with its `model_id`, or give them as `metrics`.

    Arguments:
        dictionary: fitted.
        name: of the logged model; what MLflow refuses in it becomes `-`.
        registered_model_name: makes it the next version of that registered model.
        params: of the logged model, beside the run's.
        tags: of the logged model and its version.
        model_type: by which logged models are searched.
        step: of the run at which it was made, for one of several checkpoints.
        model_id: an existing logged model to put it into, instead of a new one.
        run_id: another run than the open one.
        metrics: by the run schema's keys; kept in the model's folder and, in a run, logged there and on the model.

    The other arguments: `save_model`.

    Raises:
        NotFittedError: the dictionary is not fitted.
        InputError: a name that MLflow cannot register, or parameters that the model of `model_id` has otherwise.
        TrackingError: the store fails.
    """
    flavor_facts(dictionary)
    if registered_model_name is not None:
        check_name(registered_model_name)
    store, open_run = current_store_for(run_id)
    run = None if run_id is None and open_run is None else RunLog(store, run_id or str(open_run), shared_as="concepts")
    own = {key: schema.param_text(value) for key, value in (params or {}).items()}
    named = {**dictionary_tags(dictionary), **(tags or {})}
    logged = log_folder(
        store,
        name,
        lambda path, model: save_model(
            dictionary,
            path,
            conda_env,
            code_paths,
            model,
            signature,
            input_example,
            pip_requirements,
            extra_pip_requirements,
            metadata,
            metrics=metrics,
            importance=importance,
        ),
        model_type=model_type,
        run_id=None if run is None else run.run_id,
        params={**({} if run is None else run.found_params), **own},
        tags=named,
        step=step,
        model_id=model_id,
    )
    if metrics and run is not None:
        data = DataReference.from_provenance(dictionary.provenance)
        run.metrics(metrics, model_id=logged.model_id, dataset=data, step=step)
    if registered_model_name is not None:
        version = register(store, logged, registered_model_name, tags=named)
        logged.info.registered_model_version = version.version
    return logged.info


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
    return _load(source, store, None)


def load_model(model_uri: str, dst_path: str | None = None) -> ConceptDictionary:
    """Load a dictionary by its address: `load_dictionary` under the name and arguments that MLflow's flavors have.

    Arguments:
        model_uri: see `load_dictionary`.
        dst_path: a folder to keep the model's files in, beside what is there.
    """
    return _load(model_uri, None, dst_path)


def _load(source: str | Path, store: Store | None, keep_in: str | None) -> ConceptDictionary:
    text = str(source)
    if is_model_uri(text):
        store = store or current_store()
        found = resolve(store, text)
        with fetched(store, found) as folder:
            if keep_in is not None:
                shutil.copytree(folder, keep_in, dirs_exist_ok=True)
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


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> DictionaryModel:
    """Return what `mlflow.pyfunc.load_model` wraps; `path` is the dictionary's own folder."""
    folder = Path(path)
    entry = Model.load(str(folder.parent)).flavors[FLAVOR_NAME]
    # MLflow has put the model's own code on the path by now; without any, nothing but this package is imported.
    if entry.get("code") and entry.get(FAMILY):
        importlib.import_module(entry[FAMILY])
    return DictionaryModel(ConceptDictionary.load(folder), base_model=(model_config or {}).get(_BASE_MODEL))
