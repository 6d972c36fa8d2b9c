"""Whether the installed packages fit together."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

from interpreto_mlops.errors import MissingDependencyError


def check_torchvision() -> None:
    """Refuse a torchvision that was built for another torch, because transformers itself then fails to import.

    Raises:
        MissingDependencyError: torchvision is installed and cannot be imported beside this torch.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, ImportError, OSError) as error:
        raise MissingDependencyError(
            f"the installed torchvision does not fit the installed torch ({error}), and transformers cannot be "
            "imported beside it; text models do not need it: `pip uninstall torchvision`"
        ) from error


_PACKAGES = ("torch", "transformers", "nnsight", "overcomplete", "mlflow", "numpy", "pandas")


def report() -> list[str]:
    """Return a line for each package that matters, its version first; the last line says that all fits.

    Raises:
        MissingDependencyError: a package is missing, or torchvision does not fit.
    """
    check_torchvision()
    lines = []
    for name in _PACKAGES:
        try:
            lines.append(f"{name:14} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            raise MissingDependencyError(
                f"the package {name!r} is not installed; `pip install interpreto-mlops`"
            ) from None
    vision = "is not installed, as it should be" if importlib.util.find_spec("torchvision") is None else "fits torch"
    return [*lines, f"{'torchvision':14} {vision}", "everything fits"]
