"""What the catalogue needs of MLflow's artifacts, read file by file: a dictionary's weights stay where they are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow.artifacts
import yaml
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from requests.exceptions import RequestException

from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.concepts.base import CARD_FILE
from interpreto_mlops.concepts.interpretation import ConceptDescription, Context
from interpreto_mlops.errors import DataError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.dictionary_flavor import FLAVOR_NAME
from interpreto_mlops.tracking.store import Store

FROM_WORDS = "words"


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


def read_attributions(store: Store, run_id: str) -> AttributionSet | None:
    """Return the attributions among a run's artifacts, or None where there are none.

    Raises:
        DataError: they cannot be read.
        TrackingError: the store fails.
    """
    with store.guarded(f"list the artifacts of the run {run_id!r}"):
        paths = [each.path for each in store.client.list_artifacts(run_id, schema.ATTRIBUTIONS)]
    # Pictures and pages stay where they are.
    wanted = [path for path in paths if PurePosixPath(path).stem == schema.ATTRIBUTIONS and not path.endswith(".html")]
    if not wanted:
        return None
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        together = Path(scratch) / "together"
        together.mkdir()
        with store.guarded(f"fetch the attributions of the run {run_id!r}"):
            for path in wanted:
                local = Path(store.client.download_artifacts(run_id, path, scratch))
                local.replace(together / local.name)
        with _readable(f"the attributions of the run {run_id!r}"):
            return AttributionSet.load(together)


def read_dictionary(store: Store, model: LoggedModel) -> ReadDictionary:
    """Return what a logged dictionary's files say, with the labels of its run.

    Raises:
        DataError: they cannot be read.
        TrackingError: the store fails.
    """
    what = f"the dictionary {model.model_id!r}"
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch, _readable(what):
        entry = yaml.safe_load(_fetch(store, model, MLMODEL_FILE_NAME, scratch).read_text(encoding="utf-8"))
        facts: Mapping[str, Any] = entry["flavors"][FLAVOR_NAME]
        card = json.loads(_fetch(store, model, f"{facts['data']}/{CARD_FILE}", scratch).read_text(encoding="utf-8"))
        described = [_described(ConceptDescription.from_dict(each)) for each in card["descriptions"] or ()]
    return ReadDictionary(facts, _labelled(described, _read_labels(store, model.source_run_id)))


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
        description.concept,
        description.label,
        FROM_WORDS,
        description.density,
        description.max_activation,
        description.contexts,
        description.hidden_label is not None,
    )


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
            return {int(row["concept"]): _of_table(row) for row in rows}


def _of_table(row: Mapping[str, Any]) -> Concept:
    return Concept(
        int(row["concept"]),
        str(row["label"]),
        str(row.get("origin") or FROM_WORDS),
        row.get("density"),
        row.get("max_activation"),
    )


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
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"cannot read {what}: {type(error).__name__}: {first_line(error)}") from error
