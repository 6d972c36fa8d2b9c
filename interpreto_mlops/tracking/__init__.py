"""MLflow: stores, runs by one schema, data sets, artifacts, the dictionary flavor, the registry, the evaluator.

The names below are loaded when they are first used: MLflow imports this package when it lists its evaluators.
"""

from typing import TYPE_CHECKING

from interpreto_mlops.lazy import lazily

if TYPE_CHECKING:
    from interpreto_mlops.tracking.attribution_evidence import write_attributions as write_attributions
    from interpreto_mlops.tracking.autologging import autolog as autolog
    from interpreto_mlops.tracking.concept_evidence import register_dictionary as register_dictionary
    from interpreto_mlops.tracking.concept_evidence import training_listener as training_listener
    from interpreto_mlops.tracking.concept_evidence import write_dictionary as write_dictionary
    from interpreto_mlops.tracking.dictionary_flavor import load_dictionary as load_dictionary
    from interpreto_mlops.tracking.evidence import LoggedDictionary as LoggedDictionary
    from interpreto_mlops.tracking.evidence import live_training as live_training
    from interpreto_mlops.tracking.evidence import log_attributions as log_attributions
    from interpreto_mlops.tracking.evidence import log_dictionary as log_dictionary
    from interpreto_mlops.tracking.links import run_url as run_url
    from interpreto_mlops.tracking.links import ui_command as ui_command
    from interpreto_mlops.tracking.loading import load_model as load_model
    from interpreto_mlops.tracking.resolving import find_registered as find_registered
    from interpreto_mlops.tracking.runs import RunLog as RunLog
    from interpreto_mlops.tracking.runs import run as run
    from interpreto_mlops.tracking.store import Store as Store
    from interpreto_mlops.tracking.store import connect as connect
    from interpreto_mlops.tracking.text_models import LoggedTextModel as LoggedTextModel
    from interpreto_mlops.tracking.text_models import log_text_model as log_text_model

_HOMES = {
    "LoggedDictionary": "interpreto_mlops.tracking.evidence",
    "LoggedTextModel": "interpreto_mlops.tracking.text_models",
    "RunLog": "interpreto_mlops.tracking.runs",
    "Store": "interpreto_mlops.tracking.store",
    "autolog": "interpreto_mlops.tracking.autologging",
    "connect": "interpreto_mlops.tracking.store",
    "find_registered": "interpreto_mlops.tracking.resolving",
    "live_training": "interpreto_mlops.tracking.evidence",
    "load_dictionary": "interpreto_mlops.tracking.dictionary_flavor",
    "load_model": "interpreto_mlops.tracking.loading",
    "log_attributions": "interpreto_mlops.tracking.evidence",
    "log_dictionary": "interpreto_mlops.tracking.evidence",
    "log_text_model": "interpreto_mlops.tracking.text_models",
    "register_dictionary": "interpreto_mlops.tracking.concept_evidence",
    "run": "interpreto_mlops.tracking.runs",
    "run_url": "interpreto_mlops.tracking.links",
    "training_listener": "interpreto_mlops.tracking.concept_evidence",
    "ui_command": "interpreto_mlops.tracking.links",
    "write_attributions": "interpreto_mlops.tracking.attribution_evidence",
    "write_dictionary": "interpreto_mlops.tracking.concept_evidence",
}

__all__ = [
    "LoggedDictionary",
    "LoggedTextModel",
    "RunLog",
    "Store",
    "autolog",
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


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
