"""What a model folder holds, by sha256: MLflow lets anybody overwrite the files of a registered version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from interpreto_mlops.errors import IntegrityError

# MLflow itself writes this file into a folder that it loads.
_NOT_CONTENT = {"registered_model_meta"}


def manifest_of(folder: str | Path) -> dict[str, str]:
    """Return the sha256 of every file under a folder, by its path in it."""
    root = Path(folder)
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name not in _NOT_CONTENT)
    return {path.relative_to(root).as_posix(): _sha256(path) for path in files}


def parse_manifest(text: str, what: str) -> dict[str, str]:
    """Read a manifest that was kept as JSON.

    Raises:
        IntegrityError: it is not one; the message names `what` it belongs to.
    """
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise IntegrityError(f"the manifest of {what} is no JSON: it was changed since it was logged") from error
    if not isinstance(manifest, dict) or not all(isinstance(value, str) for value in manifest.values()):
        raise IntegrityError(
            f"the manifest of {what} is no map from files to hashes: it was changed since it was logged"
        )
    return manifest


def differences(folder: str | Path, manifest: Mapping[str, str]) -> dict[str, str]:
    """Return what is not as the manifest says, by path: `missing`, `changed` or `added`."""
    there = manifest_of(folder)
    found = {name: "missing" for name in manifest if name not in there}
    found |= {name: "changed" for name, sha256 in manifest.items() if there.get(name, sha256) != sha256}
    return found | {name: "added" for name in there if name not in manifest}


def digest_of(manifest: Mapping[str, str]) -> str:
    """Return the sha256 of a manifest."""
    return hashlib.sha256(json.dumps(dict(manifest), sort_keys=True).encode()).hexdigest()


def verify(folder: str | Path, manifest: Mapping[str, str], what: str) -> None:
    """Compare the files of a folder with a manifest; files that it does not name may have been added since.

    Raises:
        IntegrityError: a file is missing or was changed; the message names it and `what` it belongs to.
    """
    for name, expected in manifest.items():
        path = Path(folder) / name
        if not path.is_file():
            raise IntegrityError(f"the file {name!r} of {what} is missing")
        if _sha256(path) != expected:
            raise IntegrityError(f"the file {name!r} of {what} was changed since it was logged")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
