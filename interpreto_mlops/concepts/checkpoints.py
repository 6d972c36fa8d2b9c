"""Half-done training on disk: what a killed process had learned, for the next one to go on from to the bit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interpreto_mlops.concepts.learner import History, State, Trainable
from interpreto_mlops.concepts.rows import DataFacts, Rows
from interpreto_mlops.errors import InputError, IntegrityError

SCHEMA = "training-checkpoint/1"
INDEX_FILE = "checkpoint.json"

_STATES = "learners-*.safetensors"
_HASHED_ROWS = 4096
_MOST_DIFFERENCES = 3


@dataclass
class Position:
    """How far a training has come, but for what its learners know.

    Arguments:
        passes: how many passes have ended.
        blocks: how many blocks of the next pass all learners have seen.
        active: the learners that take part in that pass.
        histories: each learner's lines of the training curve so far.
    """

    passes: int = 0
    blocks: int = 0
    active: list[int] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)


class Checkpoint:
    """A folder with at most one checkpoint, which is always whole: `checkpoint.json` names the file of the tensors.

    Arguments:
        folder: is made when something is saved; other files in it are left alone.
        training: what is trained, on what, in which order: see `describe`.
    """

    def __init__(self, folder: str | Path, training: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self._training = json.loads(json.dumps(training))

    def load(self) -> tuple[Position, list[State]] | None:
        """Return how far the training was and the state of each learner; None if there is no checkpoint.

        Raises:
            InputError: the checkpoint is of another training; the message says what differs.
            IntegrityError: it is damaged.
        """
        index_file = self.folder / INDEX_FILE
        if not index_file.exists():
            return None
        index = _read_index(index_file)
        differences = _differences(index["training"], self._training)
        if differences:
            raise InputError(
                f"the checkpoint in {str(self.folder)!r} is of another training: {'; '.join(differences)}; "
                "give another folder, or remove it"
            )
        tensors = _read_tensors(self.folder / index["file"], index["sha256"])
        states: list[State] = [{} for _ in index["position"]["histories"]]
        for name, tensor in tensors.items():
            place, _, key = name.partition("/")
            states[int(place)][key] = tensor
        return Position(**index["position"]), states

    def save(self, position: Position, states: Sequence[State]) -> None:
        """Take the place of the last checkpoint, which stays until this one is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        old = list(self.folder.glob(_STATES))
        tensors = {
            f"{place}/{name}": tensor.detach().cpu().contiguous()
            for place, state in enumerate(states)
            for name, tensor in state.items()
        }
        name = f"learners-{position.passes:05d}-{position.blocks:08d}.safetensors"
        digest = _write(self.folder / name, lambda path: save_file(tensors, path))
        index = {
            "schema": SCHEMA,
            "file": name,
            "sha256": digest,
            "training": self._training,
            "position": asdict(position),
        }
        _write(self.folder / INDEX_FILE, lambda path: path.write_text(json.dumps(index, indent=1), encoding="ascii"))
        for file in old:
            if file.name != name:
                file.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the checkpoint, and the folder if nothing else is in it."""
        if not self.folder.is_dir():
            return
        # The index goes first: without it there is no checkpoint.
        for file in [self.folder / INDEX_FILE, *self.folder.glob(_STATES), *self.folder.glob("*.partial")]:
            file.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def describe(
    dictionaries: Sequence[Trainable], rows: Rows, facts: DataFacts, order_seed: int, block_rows: int
) -> dict[str, Any]:
    """Return what makes two trainings the same: families, parameters, data, order."""
    model = rows.provenance.get("model") or {}
    data = rows.provenance.get("data") or {}
    numbers = hashlib.sha256()
    for array in (facts.mean, facts.variance, next(iter(rows.batches(_HASHED_ROWS))).numpy()):
        numbers.update(np.ascontiguousarray(array).tobytes())
    return {
        "dictionaries": [{"method": d.name, "parameters": dict(d.parameters)} for d in dictionaries],
        "activations": {
            "model": model.get("fingerprint"),
            "layer": rows.provenance.get("layer"),
            "granularity": rows.provenance.get("granularity"),
            "data": data.get("digest"),
            "rows": len(rows),
            "width": rows.width,
            "sha256": numbers.hexdigest(),
        },
        "order_seed": order_seed,
        "block_rows": block_rows,
    }


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Name what differs between two descriptions, the first few only."""
    pairs: list[tuple[str, Any, Any]]
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = [(key, there.get(key), here.get(key)) for key in {**there, **here}]
    elif isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            return [f"there are {len(there)} {name} in it and {len(here)} here"]
        pairs = [(str(place), *pair) for place, pair in enumerate(zip(there, here, strict=True))]
    else:
        return [] if there == here else [f"{name} is {there!r} in it and {here!r} here"]
    found = [line for key, one, other in pairs for line in _differences(one, other, f"{name}.{key}".lstrip("."))]
    return found[:_MOST_DIFFERENCES]


def _write(path: Path, write: Callable[[Path], object]) -> str:
    """Write under a temporary name, and rename when every byte is on the disk; return the sha256."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    digest = _sha256(partial)
    partial.replace(path)
    return digest


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
        if index["schema"] == SCHEMA:
            Position(**index["position"])
            Path(index["file"]), index["sha256"], index["training"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the checkpoint {str(path)!r} is damaged: {error!r}; remove it to begin anew") from error
    if index["schema"] != SCHEMA:
        raise IntegrityError(f"the checkpoint {str(path)!r} has the schema {index['schema']!r}, not {SCHEMA!r}")
    return index


def _read_tensors(path: Path, expected: str) -> dict[str, torch.Tensor]:
    try:
        if _sha256(path) != expected:
            raise IntegrityError(f"the checkpoint's file {str(path)!r} was changed or damaged; remove it to begin anew")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"cannot read the checkpoint's file {str(path)!r}: {error}") from error
