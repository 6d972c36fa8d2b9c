"""What a run was made with: interpreter, packages, machine and code version; no environment variables, no host name."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "interpreto-mlops",
    "mlflow",
    "nnsight",
    "numpy",
    "overcomplete",
    "pandas",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
)


@functools.cache
def version_of(package: str) -> str | None:
    """Return the installed version of a package, or None where it has none; what is installed later is not seen."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requirements(*packages: str) -> list[str]:
    """Return the packages pinned to what is installed, without a build's local label that no index has."""
    pins = ((package, version_of(package)) for package in packages)
    return [package if version is None else f"{package}=={version.split('+')[0]}" for package, version in pins]


def environment() -> dict[str, Any]:
    """Return what `environment.json` holds."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name)) is not None},
        "git": _git(str(Path.cwd())),
    }


@functools.cache
def _git(_folder: str) -> dict[str, Any] | None:
    """Return the state of the code in the working directory, as it was when this process first asked."""
    commit = _ask("rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(_ask("status", "--porcelain", "--untracked-files=no"))}


def _ask(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
