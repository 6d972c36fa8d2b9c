"""Runs written through a client with explicit ids: many threads can write, and the user's own run is not touched."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import yaml
from mlflow.entities import LoggedModelInput, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from interpreto_mlops.errors import InputError, InterpretoError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.hiding import texts_are_hidden
from interpreto_mlops.tracking import _mlflow_private, schema
from interpreto_mlops.tracking.addresses import first_line, redact
from interpreto_mlops.tracking.batching import Batch
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.environment import environment, version_of
from interpreto_mlops.tracking.manifest import digest_of, manifest_of
from interpreto_mlops.tracking.plain_json import finite, plain
from interpreto_mlops.tracking.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

_log = logging.getLogger(__name__)
_MAX_TAG = 8000
_NOT_ALLOWED = {"PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "UNAUTHENTICATED"}


class RunLog:
    """One run that is being written: every method goes to the server at once and raises `TrackingError` when it fails.

    Arguments:
        store: where the run is.
        run_id: of an existing run.
        shared_as: the kind of what is written, for a run that belongs to the user: what they logged is kept.
        found: the run as the store has just returned it; by default it is read.
    """

    def __init__(self, store: Store, run_id: str, *, shared_as: str | None = None, found: Run | None = None) -> None:
        self.store = store
        self.run_id = run_id
        self.shared_as = shared_as
        self._client = store.client
        self._lock = threading.Lock()
        self._part: str | None = None
        if found is None:
            with store.guarded(f"read the run {run_id!r}"):
                found = self._client.get_run(run_id)
        self.experiment_id = str(found.info.experiment_id)
        self.found_params: dict[str, str] = dict(found.data.params)
        self.found_tags: dict[str, str] = dict(found.data.tags)
        self.logged_params: dict[str, str] = {}
        self._written: dict[str, str] = {}
        self._tables: list[dict[str, str]] = json.loads(self.found_tags.get(schema.TAG_TABLES, "[]"))
        self._batch = Batch(store, run_id)
        self._points: dict[str, set[tuple[int, float]]] = {}

    @property
    def own(self) -> bool:
        """Whether the run was opened for what is written, and is nobody else's."""
        return self.shared_as is None

    def part(self, name: str) -> RunLog:
        """Return the same run where curves and artifacts are written under a name, beside those of other parts."""
        part = copy.copy(self)
        part._part = name
        return part

    def gathered(self) -> AbstractContextManager[None]:
        """Gather the tags, parameters, metrics and curves that are written inside, and send them together at its end.

        After an error inside, what came before it is sent all the same. What goes to the explained model, inputs and
        artifacts do not wait.
        """
        return self._batch.gathered()

    def tags(self, values: Mapping[str, str | None]) -> None:
        """Set tags; None is left out, credentials in addresses are hidden, and long ones are cut with a mark."""
        texts = {name: _cut(redact(value), _MAX_TAG) for name, value in values.items() if value is not None}
        self._batch.add("set tags", tags=texts)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; what the user's own run holds with another value goes under its kind (`concepts.method`)."""
        texts = {name: redact(schema.param_text(value)) for name, value in values.items()}
        named = {f"{self.shared_as}.{name}" if self._taken(name, text) else name: text for name, text in texts.items()}
        self._batch.add("log parameters", params=named)
        self.logged_params |= texts

    def _taken(self, name: str, text: str) -> bool:
        return not self.own and self.found_params.get(name, text) != text

    def metrics(
        self,
        values: Mapping[str, float],
        *,
        model_id: str | None = None,
        dataset: TextDataset | DataReference | None = None,
        step: int = 0,
    ) -> None:
        """Log metrics in one call, tied to a logged model and a data set, so that the model's page shows them, too.

        Arguments:
            values: by the schema's keys; NaN says that a metric could not be computed.
            model_id: of the logged model.
            dataset: what they were computed on.
            step: at which they were computed.
        """
        self._batch.add("log metrics", metrics=self._entities(values, model_id, dataset, step))

    def explained(
        self, values: Mapping[str, float], model_id: str, dataset: TextDataset | DataReference | None = None
    ) -> bool:
        """Log `explain/…` metrics on the explained model, where its owner lets us; return whether that was so."""
        named = {schema.explain_key(name): value for name, value in values.items()}
        return self._if_allowed(
            "log metrics on the explained model",
            lambda: self._client.log_batch(self.run_id, metrics=self._entities(named, model_id, dataset)),
        )

    def _entities(
        self,
        values: Mapping[str, float],
        model_id: str | None,
        dataset: TextDataset | DataReference | None,
        step: int = 0,
    ) -> list[Metric]:
        now = _now()
        data = None if dataset is None else DataReference.of(dataset)
        name, digest = (None, None) if data is None else (data.name[:500], data.digest[:36])
        return [
            Metric(
                schema.key(key),
                float(value),
                now,
                step,
                model_id=model_id,
                dataset_name=name,
                dataset_digest=digest,
                run_id=self.run_id,
            )
            for key, value in values.items()
        ]

    def curve(self, key: str, steps: Sequence[int], values: Sequence[float]) -> None:
        """Log a metric by step, which the UI draws as a line.

        Raises:
            InputError: steps that are not whole numbers, or not as many as values.
        """
        if len(steps) != len(values) or any(int(step) != step for step in steps):
            raise InputError(f"the curve {key!r} needs a whole number as step for each of its {len(values)} values")
        self._add_points("log a curve", {schema.metric_of_part(key, self._part): list(zip(steps, values, strict=True))})

    def point(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each of some curves, while something goes on."""
        self._add_points("log metrics", {key: [(step, value)] for key, value in values.items()})

    def _add_points(self, action: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        now, metrics = _now(), list[Metric]()
        for name, points in curves.items():
            key = schema.key(name)
            metrics += [Metric(key, float(value), now, int(step)) for step, value in points]
            self._points.setdefault(key, set()).update((int(step), float(value)) for step, value in points)
        self._batch.add(action, metrics=metrics)

    def points(self, keys: Iterable[str]) -> dict[str, set[tuple[int, float]]]:
        """Return the (step, value) pairs that curves have; the store is asked only for those that others wrote."""
        named = {key: schema.key(key) for key in keys}
        found = {key: self._points.get(name, set()) for key, name in named.items()}
        if not all(found.values()):
            with self.store.guarded("read a curve"):
                there = self._client.get_run(self.run_id).data.metrics
                for key in [key for key, name in named.items() if not found[key] and name in there]:
                    history = self._client.get_metric_history(self.run_id, named[key])
                    found[key] = {(int(each.step), float(each.value)) for each in history}
        return found

    def text(self, path: str, content: str) -> None:
        """Write a text file among the run's artifacts."""
        self._file(path, lambda file: file.write_text(content, encoding="utf-8"))

    def dict(self, path: str, content: Any) -> None:
        """Write plain data as a JSON or, by the ending of `path`, YAML file."""
        if path.endswith((".yaml", ".yml")):
            self.text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        else:
            self.text(path, json.dumps(finite(content), indent=1, ensure_ascii=False))

    def frame(self, path: str, frame: pd.DataFrame) -> None:
        """Write a frame as Parquet."""
        self._file(path, lambda file: frame.to_parquet(file, index=False))

    def table(self, path: str, frame: pd.DataFrame) -> None:
        """Write a frame as a `.json` table that the UI opens once `seal` has listed it; one tag lists a run's few."""
        rows = [[plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
        columns = [str(column) for column in frame.columns]
        self.text(path, json.dumps({"columns": columns, "data": rows}, ensure_ascii=False))
        entry = {"path": schema.artifact_of_part(path, self._part), "type": "table"}
        with self._lock:
            if entry not in self._tables:
                self._tables.append(entry)

    def figure(self, path: str, figure: Figure) -> None:
        """Write a matplotlib figure, in the format of the ending of `path`."""
        kind = PurePosixPath(path).suffix.lstrip(".")
        self._file(path, lambda file: figure.savefig(file, format=kind, dpi=144))

    def folder(self, local: str | Path, path: str | None = None) -> None:
        """Upload what is in a local folder into the artifact folder `path`."""
        place = None if path is None else schema.artifact_of_part(f"{path}/", self._part).rstrip("/")
        with self.store.guarded("write artifacts"):
            self._client.log_artifacts(self.run_id, str(local), place)
        self._written |= {f"{place}/{name}" if place else name: value for name, value in manifest_of(local).items()}

    def _file(self, path: str, write: Callable[[Path], object]) -> None:
        place = PurePosixPath(schema.artifact_of_part(path, self._part))
        if place.is_absolute() or ".." in place.parts or not place.name:
            raise InputError(f"an artifact's path must lie inside the run, not {path!r}")
        with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
            local = Path(scratch) / place.name
            write(local)
            parent = str(place.parent)
            with self.store.guarded(f"write the artifact {path!r}"):
                self._client.log_artifact(self.run_id, str(local), None if parent == "." else parent)
            self._written[str(place)] = manifest_of(scratch)[local.name]

    def input(self, dataset: TextDataset | DataReference, context: str) -> None:
        """Log a data set as input, under a context such as `explained` or `fitted`."""
        self.inputs({context: dataset})

    def inputs(self, datasets: Mapping[str, TextDataset | DataReference]) -> None:
        """Log data sets as inputs, by their context."""
        named = [DataReference.of(dataset).to_input(context) for context, dataset in datasets.items()]
        with self.store.guarded("log the data set"):
            self._client.log_inputs(self.run_id, datasets=named)

    def input_model(self, model_id: str) -> bool:
        """Log a logged model as input where its owner lets us (tags name it anyway); return whether it was."""

        def link() -> None:
            self._client.get_logged_model(model_id)
            self._client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])

        return self._if_allowed("name the model as input", link)

    def _if_allowed(self, action: str, call: Callable[[], object]) -> bool:
        try:
            with self.store.guarded(action):
                call()
        except InterpretoError as error:
            cause = error.__context__
            if isinstance(cause, MlflowException) and cause.error_code in _NOT_ALLOWED:
                _log.info("%s; the run's tags name the model instead", error)
                return False
            raise
        return True

    def summary(self, markdown: str) -> None:
        """Set the description that the UI shows at the head of the run; a user's own description is kept."""
        if self.own or not self.found_tags.get(schema.TAG_NOTE):
            self.tags({schema.TAG_NOTE: markdown})

    def write_environment(self) -> None:
        """Write `environment.json`: interpreter, packages, machine, code version."""
        self.dict(schema.ENVIRONMENT, environment())

    def write_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Write `recipe.yaml`, from which the run can be repeated."""
        self.dict(schema.RECIPE, json.loads(redact(json.dumps(dict(recipe)))))

    def seal(self) -> None:
        """Write the sha256 of every artifact written here into `manifest.json`; tags hold its own and the tables.

        What is written again later, or into a run that the user shares, is sealed anew by whoever writes it.
        """
        if not self._written:
            return
        sealed = {**self._sealed(), **self._written}
        self.dict(schema.RUN_MANIFEST, sealed)
        del self._written[schema.RUN_MANIFEST]
        tables = json.dumps(self._tables) if self._tables else None
        self.tags({schema.TAG_SHA256: digest_of(sealed), schema.TAG_TABLES: tables})

    def _sealed(self) -> Mapping[str, str]:
        """Return what an earlier writer sealed."""
        if schema.TAG_SHA256 not in self.found_tags:
            return {}
        with self.store.guarded(f"read {schema.RUN_MANIFEST}"), tempfile.TemporaryDirectory() as scratch:
            path = self._client.download_artifacts(self.run_id, schema.RUN_MANIFEST, scratch)
            sealed: Mapping[str, str] = json.loads(Path(path).read_text(encoding="utf-8"))
            return sealed


@contextmanager
def run(
    store: Store,
    *,
    kind: str | None,
    name: str,
    suite: str | None = None,
    cell: str | None = None,
    tags: Mapping[str, str | None] | None = None,
    params: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    gathered: bool = False,
) -> Iterator[RunLog]:
    """Open a flat run for one cell, and close it as FINISHED, FAILED on an error, or KILLED on Ctrl-C.

    Arguments:
        store: where.
        kind: one of `schema.KINDS`; None for a run that explains nothing, such as the training of a model.
        name: of the run, as the UI lists it.
        suite: holds all runs of one job together.
        cell: hash of the cell's full configuration (`schema.cell_hash`), by which an interrupted job goes on.
        tags: further tags.
        params: parameters, as `schema.params` makes them.
        run_id: an existing run to go on with (that of `mlflow run`), instead of a new one.
        gathered: whether tags, parameters and metrics go to the store in one request at the end.

    Raises:
        UnknownNameError: an unknown kind.
        TrackingError: the store fails.
    """
    fixed = {
        schema.TAG_KIND: None if kind is None else schema.check_kind(kind),
        schema.TAG_SUITE: suite,
        schema.TAG_CELL: cell,
        schema.TAG_VERSION: version_of("interpreto-mlops"),
    }
    every = {**fixed, **(tags or {})}
    given = {key: _cut(redact(value), _MAX_TAG) for key, value in every.items() if value is not None}
    with store.guarded("open a run"):
        identifier, opened = _open(store, run_id, name, given)
    try:
        log = RunLog(store, identifier, found=opened)
        with log.gathered() if gathered else nullcontext():
            if params:
                log.params(params)
            yield log
            log.seal()
        with store.guarded("close the run"):
            _mlflow_private.end_run(store.client, identifier, "FINISHED")
    except BaseException as error:
        _close(store, identifier, error)
        raise


def abandon(store: Store, run_id: str) -> bool:
    """Mark a run KILLED whose process has gone and left it RUNNING; return whether it was so.

    Raises:
        TrackingError: the store fails. A run that is not there is nothing to close.
    """
    found = store.if_there("read a run", lambda: store.client.get_run(run_id))
    if found is None or found.info.status != "RUNNING":
        return False
    with store.guarded("close a run"):
        store.client.set_tag(run_id, schema.TAG_NOTE, "Its process was killed; another run went on with the work.")
        _mlflow_private.end_run(store.client, run_id, "KILLED")
    return True


def _open(store: Store, run_id: str | None, name: str, tags: dict[str, str]) -> tuple[str, Run | None]:
    if run_id is None:
        tags = {**{key: redact(str(value)) for key, value in _mlflow_private.context_tags().items()}, **tags}
        opened = store.client.create_run(store.experiment_id, tags=tags, run_name=name)
        return str(opened.info.run_id), opened
    store.client.update_run(run_id, status="RUNNING", name=name)
    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return run_id, None


def _close(store: Store, run_id: str, error: BaseException) -> None:
    killed = isinstance(error, KeyboardInterrupt)
    why = "Stopped by the user." if killed else f"Failed: {schema.markdown(type(error).__name__)}{_reason(error)}"
    try:
        store.client.set_tag(run_id, schema.TAG_NOTE, why)
        _mlflow_private.end_run(store.client, run_id, "KILLED" if killed else "FAILED")
    except (MlflowException, RequestException) as closing:
        # The first error is what the user must see; this one often has the same cause.
        _log.warning("could not mark the run %s as failed: %s", run_id, first_line(closing))


def _reason(error: BaseException) -> str:
    # A message may quote a text; whoever runs the job sees it.
    return ", whose message is not kept." if _texts_hidden() else f": {schema.markdown(first_line(error)[:500])}"


def _texts_hidden() -> bool:
    try:
        return texts_are_hidden()
    except InputError:
        # What the variable says cannot be read, and may be why the run has failed.
        return True


def _cut(text: str, most: int) -> str:
    mark = f" … (cut from {len(text)} characters)"
    return text if len(text) <= most else text[: most - len(mark)] + mark


def _now() -> int:
    return int(time.time() * 1000)
