"""How far a harvest has come, on disk: after a crash it goes on from the last entry, and ends at the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interpreto_mlops.concepts.activations import ActivationWriter
from interpreto_mlops.errors import InputError, IntegrityError

_FILE = "harvest.json"


class Journal:
    """The state of a harvest in a folder: what it is of, how many texts are done, and the state of each layer's writer.

    An entry is complete or not there: the rows that fill no shard yet go into files of their own, and the journal that
    names them is renamed into its place last.

    Arguments:
        folder: of the harvest.
        identity: what decides the numbers; another harvest does not go on from this one's entries.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder, self.identity = folder, json.loads(json.dumps(identity))

    def read(self) -> dict[str, Any] | None:
        """Return the last entry, or None where there is none.

        Raises:
            InputError: it is of another harvest; the message says what differs.
            IntegrityError: it cannot be read.
        """
        file = self.folder / _FILE
        if not file.is_file():
            return None
        try:
            entry: dict[str, Any] = json.loads(file.read_text(encoding="ascii"))
            found = entry["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"the journal {str(file)!r} of a harvest is damaged: {error!r}") from error
        refuse_other(found, self.identity, f"an unfinished harvest in {str(self.folder)!r}")
        return entry

    def write(self, number: int, facts: Mapping[str, Any], writers: Mapping[str, ActivationWriter]) -> None:
        """Make an entry, and remove what the one before it needed."""
        layers = {layer: writer.suspend(number) for layer, writer in writers.items()}
        partial = self.folder / f"{_FILE}.partial"
        entry = {"identity": self.identity, "number": number, **facts, "layers": layers}
        partial.write_text(json.dumps(entry), encoding="ascii")
        partial.replace(self.folder / _FILE)
        for writer in writers.values():
            writer.forget_suspended(number)

    def remove(self) -> None:
        """Remove the journal: the harvest is finished, or given up."""
        for name in (_FILE, f"{_FILE}.partial"):
            (self.folder / name).unlink(missing_ok=True)


def refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Refuse to go on from something else.

    Raises:
        InputError: a fact differs; the message names the first.
    """
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"there is {what} of another {name} ({_short(found.get(name))}, not {_short(wanted.get(name))}); give "
                "another directory"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
