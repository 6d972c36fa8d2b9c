"""overcomplete's sparse autoencoders, without the vision libraries that its package root imports."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import types
from functools import lru_cache

from interpreto_mlops.errors import MissingDependencyError

_NAME = "overcomplete"
_LOCK = threading.Lock()


@lru_cache
def overcomplete_module(name: str) -> types.ModuleType:
    """Import a submodule of overcomplete and leave `sys.modules` as it was.

    The root of overcomplete imports torchvision, timm and OpenCV, which text never uses. An empty package of the same
    name and path stands in for it during the import, and is gone afterwards, so that a user's own `import overcomplete`
    does what it would do without us. A root that is already imported is used as it is.

    Arguments:
        name: the path below the root, as `sae`.

    Raises:
        MissingDependencyError: overcomplete is not installed.
    """
    with _LOCK:
        if _NAME in sys.modules:
            return importlib.import_module(f"{_NAME}.{name}")
        spec = importlib.util.find_spec(_NAME)
        if spec is None or spec.submodule_search_locations is None:
            raise MissingDependencyError(
                "sparse autoencoders need the package overcomplete: `pip install --no-deps overcomplete`"
            )
        root = types.ModuleType(_NAME)
        root.__path__ = list(spec.submodule_search_locations)
        root.__spec__ = spec
        sys.modules[_NAME] = root
        try:
            return importlib.import_module(f"{_NAME}.{name}")
        finally:
            for added in [module for module in sys.modules if module.partition(".")[0] == _NAME]:
                del sys.modules[added]
