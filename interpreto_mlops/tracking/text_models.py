"""Text models into MLflow, by its own transformers flavor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.transformers
import transformers
from huggingface_hub import ModelCard
from mlflow.models import Model, infer_signature

from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.environment import requirements
from interpreto_mlops.tracking.logged_models import check_name, log_folder, register
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.tracking.store import Store


@dataclass(frozen=True)
class LoggedTextModel:
    """A text model in MLflow.

    Arguments:
        uri: its pinned address: of the registered version where there is one.
        model_id: of the logged model.
        name: it was registered by, or None.
        version: of the registered model, or None.
    """

    uri: str
    model_id: str
    name: str | None = None
    version: str | None = None


def log_text_model(
    store: Store,
    run: RunLog | None,
    text_model: TextModel,
    *,
    name: str,
    registered_model_name: str | None = None,
    task: str = "text-classification",
    params: Mapping[str, Any] | None = None,
    description: str | None = None,
) -> LoggedTextModel:
    """Log a model with its tokenizer, weights included, and register it when asked.

    Arguments:
        store: where.
        run: the run that made it, or None.
        text_model: on any device; it is left as it is.
        name: of the logged model.
        registered_model_name: makes it the next version of that registered model.
        task: of the transformers pipeline.
        params: of the logged model, beside the run's.
        description: of the registered version.

    Raises:
        InputError: a name that MLflow cannot register.
        TrackingError: the store fails.
    """
    if registered_model_name is not None:
        check_name(registered_model_name)
    own = {key: schema.param_text(value) for key, value in (params or {}).items()}
    tags = {schema.TAG_MODEL_FINGERPRINT: text_model.fingerprint}
    logged = log_folder(
        store,
        name,
        lambda path, model: _save(text_model, task, path, model),
        model_type="transformers",
        run_id=None if run is None else run.run_id,
        params={**({} if run is None else run.logged_params), **own},
        tags=tags,
    )
    if registered_model_name is None:
        return LoggedTextModel(logged.uri, logged.model_id)
    version = register(store, logged, registered_model_name, tags=tags, description=description)
    uri = f"models:/{registered_model_name}/{version.version}"
    return LoggedTextModel(uri, logged.model_id, registered_model_name, str(version.version))


def _save(text_model: TextModel, task: str, path: Path, model: Model) -> None:
    with _own_configuration(text_model), text_model.evaluating():
        make: Callable[..., Any] = transformers.pipeline
        pipeline = make(task, model=text_model.model, tokenizer=text_model.tokenizer, device=text_model.device)
        mlflow.transformers.save_model(
            pipeline,
            str(path),
            mlflow_model=model,
            model_card=_card(text_model),
            signature=infer_signature(["text"], None),
            pip_requirements=requirements("mlflow", "numpy", "safetensors", "tokenizers", "torch", "transformers"),
        )
    # MLflow writes here where on the hub the licence of the model would be, which is not known.
    (path / "LICENSE.txt").unlink(missing_ok=True)


@contextmanager
def _own_configuration(text_model: TextModel) -> Iterator[None]:
    """Let pipelines and `save_pretrained` write into copies, and MLflow find no hub name to ask the hub about."""
    network: Any = text_model.model
    kept = {name: getattr(network, name, None) for name in ("config", "generation_config", "name_or_path")}
    network.config = copy.deepcopy(kept["config"])
    network.config._name_or_path = network.name_or_path = ""
    if kept["generation_config"] is not None:
        network.generation_config = copy.deepcopy(kept["generation_config"])
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is not None:
                setattr(network, name, value)


def _card(text_model: TextModel) -> ModelCard:
    labels = ", ".join(text_model.labels) if text_model.task == "classification" else "none"
    facts = {"task": text_model.task, "labels": labels, "sha256": text_model.fingerprint}
    lines = "\n".join(f"- {name}: {schema.markdown(value)}" for name, value in facts.items())
    return ModelCard(f"---\nlicense: unknown\n---\n# {schema.markdown(text_model.name)}\n\n{lines}\n")
