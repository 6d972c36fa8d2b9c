"""What the catalogue needs of MLflow's artifacts, read file by file: a dictionary's weights stay where they are."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from reprlib import repr as short
from typing import Any

import mlflow.artifacts
import numpy as np
import yaml
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from requests.exceptions import RequestException

from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.concepts.base import CARD_FILE
from interpreto_mlops.concepts.interpretation import FROM_WORDS, ConceptDescription, Context
from interpreto_mlops.errors import DataError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.dictionary_flavor import FLAVOR_NAME
from interpreto_mlops.tracking.store import Store

_TEXT_FACTS = ("method", "layer", "base_model", "base_model_id", "base_model_sha256", "data_digest")
_NUMBER_FACTS = ("n_concepts", "width")

_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    yaml.YAMLError,
)

# What the columns of the two kinds of whole numbers hold.
_INTEGER, _BIG = 2**31 - 1, 2**63 - 1


@dataclass(frozen=True)
class Concept:
    """A concept as artifacts tell of it.

    Arguments:
        number: in its dictionary.
        label: as people read it.
        origin: where the label is from: `words`, or what the labels' own table says.
        density: share of the rows on which it is active.
        max_activation: its largest code.
        contexts: its strongest places.
        is_hidden: whether label and contexts hold hashes already.
    """

    number: int
    label: str
    origin: str = FROM_WORDS
    density: float | None = None
    max_activation: float | None = None
    contexts: tuple[Context, ...] = ()
    is_hidden: bool = False


@dataclass(frozen=True)
class ReadDictionary:
    """A dictionary as its model's files tell of it.

    Arguments:
        facts: the flavor's entry in `MLmodel`.
        concepts: in order; empty where it has no labels.
    """

    facts: Mapping[str, Any]
    concepts: tuple[Concept, ...]


def checked(explanations: Iterable[Attribution], run_id: str) -> list[Attribution]:
    """Return explanations of a run's artifacts if they are as this package writes them, and a database takes them.

    Raises:
        DataError: they are not.
    """
    found = list(explanations)
    with _readable(f"the attributions of the run {run_id!r}"):
        for item in found:
            _check(item)
    return found


def read_dictionary(store: Store, model: LoggedModel) -> ReadDictionary:
    """Return what a logged dictionary's files say, with the labels of its run.

    Raises:
        DataError: they cannot be read.
        TrackingError: the store fails.
    """
    what = f"the dictionary {model.model_id!r}"
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch, _readable(what):
        entry = yaml.safe_load(_fetch(store, model, MLMODEL_FILE_NAME, scratch).read_text(encoding="utf-8"))
        facts = _facts(entry["flavors"][FLAVOR_NAME])
        card = json.loads(_fetch(store, model, f"{facts['data']}/{CARD_FILE}", scratch).read_text(encoding="utf-8"))
        described = _by_number(_described(ConceptDescription.from_dict(each)) for each in card["descriptions"] or ())
    return ReadDictionary(facts, _labelled(list(described.values()), _read_labels(store, model.source_run_id)))


def _facts(given: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {name: _text(given[name], name) for name in _TEXT_FACTS if given.get(name) is not None}
    facts |= {name: _whole(given[name], name) for name in _NUMBER_FACTS if given.get(name) is not None}
    folder = PurePosixPath(_text(given["data"], "data"))
    if folder.is_absolute() or ".." in folder.parts:
        raise DataError(f"the model's folder of data is {str(folder)!r}, which is outside of the model")
    return {**facts, "data": str(folder)}


def _fetch(store: Store, model: LoggedModel, path: str, scratch: str) -> Path:
    try:
        local = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{model.artifact_location}/{path}",
            dst_path=scratch,
            tracking_uri=store.tracking_uri,
            registry_uri=store.registry_uri,
        )
    except (MlflowException, RequestException, OSError) as error:
        raise DataError(f"cannot fetch {path!r} of the model {model.model_id!r}: {first_line(error)}") from None
    return Path(local)


def _described(description: ConceptDescription) -> Concept:
    return Concept(
        _whole(description.concept, "concept"),
        _text(description.label, "label"),
        _text(description.origin, "origin"),
        _finite(description.density, "density"),
        _finite(description.max_activation, "max_activation"),
        tuple(_context(each) for each in description.contexts),
        description.hidden_label is not None,
    )


def _context(context: Context) -> Context:
    for name in ("before", "word", "after"):
        _text(getattr(context, name), name)
    _whole(context.text_index, "text_index", _BIG)
    return replace(context, activation=_finite(context.activation, "activation"))


def _by_number(concepts: Iterable[Concept]) -> dict[int, Concept]:
    found: dict[int, Concept] = {}
    for each in concepts:
        if found.setdefault(each.number, each) is not each:
            raise DataError(f"the concept {each.number!r} is there twice")
    return found


def _check(item: Attribution) -> None:
    for name, value in (("text", item.text), ("method", item.method), *(("element", each) for each in item.elements)):
        _text(value, name)
    for target in item.targets:
        _text(target.name, "target")
    _whole(item.index, "index", _BIG)
    if np.isinf(item.scores).any():
        raise DataError(f"a score of the text {item.index!r} is infinite")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} must be text, not {short(value)}")
    return value


def _whole(value: object, name: str, most: int = _INTEGER) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise DataError(f"{name} must be a whole number from 0 to {most}, not {short(value)}")
    return value


def _finite(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise DataError(f"{name} must be a finite number, not {short(value)}")
    return float(value)


def _read_labels(store: Store, run_id: str | None) -> dict[int, Concept]:
    """Return the labels in a run's table, or none where there is no such table, or no such run any more."""
    if not run_id:
        return {}
    try:
        listed = store.client.list_artifacts(run_id, str(PurePosixPath(schema.CONCEPTS_LABELS).parent))
    except MlflowException:
        return {}
    if schema.CONCEPTS_LABELS not in [each.path for each in listed]:
        return {}
    what = f"the labels of the run {run_id!r}"
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        with store.guarded(f"fetch {what}"):
            path = store.client.download_artifacts(run_id, schema.CONCEPTS_LABELS, scratch)
        with _readable(what):
            table = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
            return _by_number(_of_table(row) for row in rows)


def _of_table(row: Mapping[str, Any]) -> Concept:
    density, largest = (
        None if row.get(name) is None else _finite(row[name], name) for name in ("density", "max_activation")
    )
    origin = _text(row.get("origin") or FROM_WORDS, "origin")
    return Concept(_whole(row["concept"], "concept"), _text(row["label"], "label"), origin, density, largest)


def _labelled(described: list[Concept], table: Mapping[int, Concept]) -> tuple[Concept, ...]:
    """Return the concepts with the table's labels; those of a dictionary without descriptions are the table's."""
    if not described:
        return tuple(table[number] for number in sorted(table))
    told = [(each, table.get(each.number, each)) for each in described]
    return tuple(replace(each, label=by_table.label, origin=by_table.origin) for each, by_table in told)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"cannot read {what}: {error}") from error
    except _UNREADABLE as error:
        raise DataError(f"cannot read {what}: {type(error).__name__}: {first_line(error)}") from error
