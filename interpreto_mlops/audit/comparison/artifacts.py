"""Single artifacts of runs, fetched and read; what is broken is an error in one sentence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd

from interpreto_mlops.errors import DataError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.store import Store

T = TypeVar("T")


def read_importance(store: Store, run_id: str) -> pd.DataFrame | None:
    """Return the importance of a run's concepts, with the columns `class`, `concept` and `share`, or None without any.

    Raises:
        DataError: it cannot be read.
        TrackingError: the store fails.
    """
    return read_artifact(store, run_id, schema.CONCEPTS_IMPORTANCE, _importance)


def _importance(file: Path) -> pd.DataFrame:
    found = pd.read_parquet(file)
    missing = [name for name in ("class", "concept", "share") if name not in found]
    if missing:
        raise KeyError(f"it has no column {', '.join(map(repr, missing))}")
    return found.astype({"class": "str", "concept": "int64", "share": "float64"})


def read_artifact(store: Store, run_id: str, path: str, read: Callable[[Path], T]) -> T | None:
    """Return what is read from an artifact of a run, or None where there is none.

    Arguments:
        store: where the run is.
        run_id: of the run.
        path: of the artifact.
        read: what to do with the local file; its errors are those of a file that cannot be read.

    Raises:
        DataError: it cannot be read.
        TrackingError: the store fails.
    """
    folder, what = path.rpartition("/")[0], f"the artifact {path!r} of the run {run_id!r}"
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        with store.guarded(f"fetch {what}"):
            if path not in {each.path for each in store.client.list_artifacts(run_id, folder)}:
                return None
            file = Path(store.client.download_artifacts(run_id, path, scratch))
        try:
            return read(file)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read {what}: {type(error).__name__}: {first_line(error)}") from error
