"""What a job of concepts keeps on disk, so that the same job goes on after a crash instead of beginning anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from interpreto_mlops.concepts import ConceptDictionary
from interpreto_mlops.errors import InputError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.runs import abandon
from interpreto_mlops.tracking.store import Store

_RUNS = "runs.json"


class Workspace:
    """A folder with a job's activations, half-done trainings, fitted dictionaries and open runs.

    Arguments:
        folder: is made when something is kept, and one job at a time works in it; None keeps nothing.

    Raises:
        InputError: the folder is a file.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"the workspace {str(folder)!r} is a file, not a folder")

    def place(self, *parts: str) -> Path | None:
        """Return a path inside, or None where nothing is kept."""
        return None if self.folder is None else self.folder.joinpath(*map(schema.slugify, parts))

    def fitted(self, cell: str) -> ConceptDictionary | None:
        """Return the dictionary that was fitted for a cell, if it was.

        Raises:
            IntegrityError: what was kept of it is damaged.
        """
        folder = self.place("dictionaries", cell)
        return ConceptDictionary.load(folder) if folder is not None and folder.is_dir() else None

    def keep(self, cell: str, dictionary: ConceptDictionary) -> None:
        """Keep a fitted dictionary; whoever looks finds all of it or nothing."""
        folder = self.place("dictionaries", cell)
        if folder is None:
            return
        unfinished = folder.with_name(f"{folder.name}.partial")
        for there in (unfinished, folder):
            shutil.rmtree(there, ignore_errors=True)
        dictionary.save(unfinished)
        unfinished.rename(folder)

    def opened(self, store: Store, run_ids: Sequence[str]) -> None:
        """Note runs that are being written to a store."""
        noted = self._noted()
        self._note({**noted, store.shown: [*noted.get(store.shown, []), *run_ids]})

    def close_abandoned(self, store: Store) -> int:
        """Mark runs KILLED that an earlier process of the job left open in the store; return how many there were."""
        noted = self._noted()
        count = sum(abandon(store, run_id) for run_id in noted.pop(store.shown, []))
        self._note(noted)
        return count

    def _noted(self) -> dict[str, list[str]]:
        """Return the noted runs by the address of their store."""
        try:
            return {} if self.folder is None else dict(json.loads((self.folder / _RUNS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _note(self, run_ids: Mapping[str, list[str]]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"{_RUNS}.partial"
        unfinished.write_text(json.dumps(run_ids, indent=1), encoding="utf-8")
        unfinished.replace(self.folder / _RUNS)
