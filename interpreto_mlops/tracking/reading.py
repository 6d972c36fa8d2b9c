"""What evidence a store holds, read back: the runs that explain a model, their attributions and their scores."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
from mlflow.entities import Run

from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.errors import DataError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.resolving import ResolvedModel, quoted
from interpreto_mlops.tracking.store import Store

SCORE_COLUMNS = ("text_index", "metric", "value", "random", "better_than_random", "higher_is_better")
_SCORES = (schema.ATTRIBUTIONS_SCORES, schema.ATTRIBUTIONS_METRICS)
_FILES = tuple(PurePosixPath(path).name for path in (*schema.ATTRIBUTIONS_FILES, *_SCORES))
_PAGE = 200


@dataclass(frozen=True)
class Explanations:
    """What a run holds of one attribution method.

    Arguments:
        label: the method, or, in a run of several methods, the folder of this one.
        explanations: of all texts.
        scores: how faithful each text's are, a row for each text and metric, by the columns `SCORE_COLUMNS`; empty
            where nothing was scored, and NaN where a metric does not judge a text.
    """

    label: str
    explanations: AttributionSet = field(repr=False)
    scores: pd.DataFrame = field(repr=False)


def runs_that_explain(store: Store, model: ResolvedModel, kinds: Collection[str] = ()) -> list[Run]:
    """Return the runs of any experiment whose tags name a model, by its id or by its pinned address, oldest first.

    Arguments:
        store: where to look.
        model: the explained model.
        kinds: of `schema.KINDS`; all by default. A run in which several kinds were logged is of each of them.

    Raises:
        TrackingError: the store fails.
    """
    wanted = {schema.TAG_MODEL_URI: model.uri}
    if model.model_id is not None:
        wanted[schema.TAG_MODEL_ID] = model.model_id
    runs: dict[str, Run] = {}
    for tag, value in wanted.items():
        for run in search_runs(store, f"tags.`{tag}` = {quoted(value)}"):
            if not kinds or set(kinds) & set(kinds_of(run)):
                runs[run.info.run_id] = run
    return sorted(runs.values(), key=lambda run: (int(run.info.start_time), str(run.info.run_id)))


def search_runs(store: Store, condition: str) -> Iterator[Run]:
    """Yield the runs of all experiments that meet a condition of MLflow's search.

    Raises:
        TrackingError: the store fails.
    """
    experiments = [each.experiment_id for each in pages(store, store.client.search_experiments)]
    yield from pages(store, store.client.search_runs, experiment_ids=experiments, filter_string=condition)


def pages(store: Store, search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    """Yield what a search of the store's client finds, on all of its pages.

    Raises:
        TrackingError: the store fails.
    """
    token = None
    while True:
        with store.guarded("be searched"):
            page = search(max_results=_PAGE, page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def kinds_of(run: Run) -> list[str]:
    """Return the kinds of evidence that a run holds; a run that the user shares may hold several."""
    return [kind for kind in run.data.tags.get(schema.TAG_KIND, "").split(",") if kind in schema.KINDS]


def fingerprint_of(store: Store, model: ResolvedModel) -> str | None:
    """Return the sha256 of a model's content as its version's or logged model's tags have it, or None.

    Raises:
        TrackingError: the store fails.
    """
    tags: dict[str, str] = {}
    if model.model_id is not None:
        model_id = model.model_id
        logged = store.if_there("read a logged model", lambda: store.client.get_logged_model(model_id))
        tags |= {} if logged is None else dict(logged.tags)
    if model.version is not None:
        version = model.version
        found = store.if_there("read a version", lambda: store.client.get_model_version(model.name, version))
        tags |= {} if found is None else dict(found.tags)
    return tags.get(schema.TAG_MODEL_FINGERPRINT)


def read_explanations(store: Store, run_id: str) -> list[Explanations]:
    """Return the attributions among a run's artifacts, those of each method; none where there are none.

    Raises:
        DataError: they cannot be read.
        TrackingError: the store fails.
    """
    with store.guarded(f"list the artifacts of the run {run_id!r}"):
        listed = store.client.list_artifacts(run_id, schema.ATTRIBUTIONS)
    folders = [schema.ATTRIBUTIONS, *(each.path for each in listed if each.is_dir)]
    found = [_read(store, run_id, folder) for folder in folders]
    return [explanations for explanations in found if explanations is not None]


def _read(store: Store, run_id: str, folder: str) -> Explanations | None:
    what = f"the attributions of the run {run_id!r}"
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        with store.guarded(f"fetch {what}"):
            there = {PurePosixPath(each.path).name: each.path for each in store.client.list_artifacts(run_id, folder)}
            # Pictures and pages stay where they are.
            wanted = [there[name] for name in _FILES if name in there]
            if len(wanted) < 2:
                return None
            local = [Path(store.client.download_artifacts(run_id, path, scratch)) for path in wanted]
        try:
            explanations = AttributionSet.load(local[0].parent)
            scores = _scores(local[0].parent)
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read {what}: {type(error).__name__}: {first_line(error)}") from error
    label = explanations.method if folder == schema.ATTRIBUTIONS else PurePosixPath(folder).name
    return Explanations(label, explanations, scores)


def _scores(folder: Path) -> pd.DataFrame:
    table, details = (folder / PurePosixPath(path).name for path in _SCORES)
    if not table.is_file() or not details.is_file():
        return pd.DataFrame(columns=list(SCORE_COLUMNS))
    scores, said = pd.read_parquet(table), json.loads(details.read_text(encoding="utf-8"))
    scores["higher_is_better"] = [bool(said[name]["higher_is_better"]) for name in scores["metric"]]
    return scores[list(SCORE_COLUMNS)]
