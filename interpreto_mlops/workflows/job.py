"""What every job has: a store, a model, a data set, one suite for its runs, and somebody to report to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pydantic import BaseModel

from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.store import Store

DEFAULT_STORE = "sqlite:///interpreto-runs/mlflow.db"
"""Where runs go when nobody says so, nor `MLFLOW_TRACKING_URI`."""


@dataclass
class Console:
    """Says what goes on: lines, tables, and the time that each stage took.

    Arguments:
        quiet: say nothing, and show no bars unless told to.
        write: what takes a line.
        bars: whether progress bars are shown; None for when the output is a terminal, and not when quiet.
    """

    quiet: bool = False
    write: Any = print
    bars: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=list, repr=False)

    @property
    def progress(self) -> bool | None:
        """What progress bars are told."""
        return self.bars if self.bars is not None or not self.quiet else False

    def say(self, line: str = "") -> None:
        """Print a line."""
        if not self.quiet:
            self.write(line)

    def table(self, frame: pd.DataFrame) -> None:
        """Print a table."""
        self.say(frame.to_string(index=False, float_format=lambda value: f"{value:.4g}", na_rep="–"))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what a stage inside it takes counts for that one alone."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
            if self._inner:
                self._inner[-1] += took


@dataclass(frozen=True)
class Job:
    """One job's surroundings.

    Arguments:
        store: where the runs go.
        model: the explained model.
        dataset: the texts.
        suite: the tag that holds the job's runs together.
        command: what repeats the job.
        console: where it reports.
    """

    store: Store
    model: TextModel
    dataset: TextDataset
    suite: str
    command: str
    console: Console

    def tags(self) -> dict[str, str | None]:
        """Return the tags of each run of the job."""
        return {
            schema.TAG_COMMAND: self.command,
            schema.TAG_MODEL_URI: self.model.uri,
            schema.TAG_MODEL_FINGERPRINT: self.model.fingerprint,
            schema.TAG_MODEL_ID: self.model.model_id,
        }

    def cell(self, config: Mapping[str, Any]) -> str:
        """Return the hash of a cell's full configuration, the model's content and the data's included."""
        where = {"model": self.model.fingerprint, "data": self.dataset.digest}
        return schema.cell_hash({**where, **config})


def new_suite(name: str) -> str:
    """Return a tag for the runs of one job, readable and unique."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def plain(recipe: BaseModel, **narrowed: Any) -> dict[str, Any]:
    """Return a recipe as plain values, narrowed to one cell where values are given."""
    return {**recipe.model_dump(mode="json", exclude_none=True), **narrowed}
