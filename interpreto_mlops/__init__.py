"""Explains HuggingFace text models and keeps every explanation as MLflow evidence.

The names below are loaded when they are first used, so that `import interpreto_mlops` costs nothing.
"""

from typing import TYPE_CHECKING

from interpreto_mlops.lazy import lazily

if TYPE_CHECKING:
    from interpreto_mlops.models.text_model import TextModel as TextModel
    from interpreto_mlops.tracking.autologging import autolog as autolog
    from interpreto_mlops.tracking.dictionary_flavor import load_dictionary as load_dictionary
    from interpreto_mlops.tracking.evidence import live_training as live_training
    from interpreto_mlops.tracking.evidence import log_attributions as log_attributions
    from interpreto_mlops.tracking.evidence import log_dictionary as log_dictionary
    from interpreto_mlops.tracking.loading import load_model as load_model
    from interpreto_mlops.workflows.compare import compare_methods as compare_methods

__version__ = "0.1.0"

_HOMES = {
    "TextModel": "interpreto_mlops.models.text_model",
    "autolog": "interpreto_mlops.tracking.autologging",
    "compare_methods": "interpreto_mlops.workflows.compare",
    "live_training": "interpreto_mlops.tracking.evidence",
    "load_dictionary": "interpreto_mlops.tracking.dictionary_flavor",
    "load_model": "interpreto_mlops.tracking.loading",
    "log_attributions": "interpreto_mlops.tracking.evidence",
    "log_dictionary": "interpreto_mlops.tracking.evidence",
}

__all__ = [
    "TextModel",
    "__version__",
    "autolog",
    "compare_methods",
    "live_training",
    "load_dictionary",
    "load_model",
    "log_attributions",
    "log_dictionary",
]


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
