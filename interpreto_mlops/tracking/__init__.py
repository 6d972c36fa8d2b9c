"""MLflow: stores, runs by one schema, data sets, artifacts, the dictionary flavor, the registry."""

from __future__ import annotations

from interpreto_mlops.tracking.attribution_evidence import write_attributions
from interpreto_mlops.tracking.concept_evidence import register_dictionary, training_listener, write_dictionary
from interpreto_mlops.tracking.dictionary_flavor import load_dictionary
from interpreto_mlops.tracking.evidence import LoggedDictionary, live_training, log_attributions, log_dictionary
from interpreto_mlops.tracking.links import run_url, ui_command
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.resolving import find_registered
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.tracking.text_models import LoggedTextModel, log_text_model

__all__ = [
    "LoggedDictionary",
    "LoggedTextModel",
    "RunLog",
    "Store",
    "connect",
    "find_registered",
    "live_training",
    "load_dictionary",
    "load_model",
    "log_attributions",
    "log_dictionary",
    "log_text_model",
    "register_dictionary",
    "run",
    "run_url",
    "training_listener",
    "ui_command",
    "write_attributions",
    "write_dictionary",
]
