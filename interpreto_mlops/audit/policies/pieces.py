"""What evidence is made of: the explanations of a version, their metrics, and the runs that do not count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pandas as pd

from interpreto_mlops.tracking import schema


@dataclass(frozen=True)
class Metric:
    """A metric as sealed files tell it.

    Arguments:
        value: NaN where it could not be computed.
        random: of random rankings or directions, where there is one.
        higher_is_better: its direction, where one end is better.
        parameters: what the metric was given.
        n_texts: how many different texts have a value, of attributions.
    """

    value: float
    random: float | None = None
    higher_is_better: bool | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    n_texts: int | None = None


@dataclass(frozen=True)
class Piece:
    """One explanation of a version: one method's attributions, or one dictionary.

    Arguments:
        run_id: of its run.
        kind: `attributions` or `concepts`.
        method: the registry name.
        label: the folder of a method in a run of several, else the method.
        began: when the run did, which opening it again does not change.
        data: digests of the data sets that were explained, or that it was fitted or scored on.
        n_texts: how many different texts have a score, or, of a dictionary, how many texts its data set says it has.
        metrics: by their keys, without the label.
        parameters: of the method.
        seal: the sha256 of the run's manifest.
        files: the paths that this manifest names.
        layer: of a dictionary.
        size: how many concepts.
        scores: of each text, of attributions: as they were logged, with the text's sha256 beside it.
        part: the folder of these attributions in a run of several methods, else None.
        inputs: digests of all data sets that its run names.
    """

    run_id: str
    kind: str
    method: str
    label: str
    began: datetime
    data: tuple[str, ...]
    n_texts: int
    metrics: Mapping[str, Metric] = field(repr=False)
    parameters: Mapping[str, Any] = field(repr=False)
    seal: str
    files: frozenset[str] = field(repr=False)
    layer: str | None = None
    size: int | None = None
    scores: pd.DataFrame | None = field(default=None, repr=False)
    part: str | None = None
    inputs: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """What a rule can call its method: a folder's name, which anybody chooses, only where the method begins it."""
        return frozenset({self.method, self.label} if self.label.startswith(self.method) else {self.method})

    @property
    def title(self) -> str:
        """What sentences call it."""
        at = "" if self.layer is None else f" at {self.layer!r}"
        size = "" if self.size is None else f" of {self.size} concepts"
        return f"{self.label!r}{size}{at} (run {self.run_id})"

    @property
    def group(self) -> tuple[object, ...]:
        """What a later explanation has in common with the one in whose place it comes."""
        same = (self.parameters.get(name) for name in ("granularity", "inference_mode", "seed"))
        own = same if self.kind == "concepts" else list(same)[:2]
        return (self.kind, self.method, self.label, self.layer, self.size, self.data, self.inputs, *own)

    def place(self, path: str = "") -> str:
        """Return the address of its run, or of a file of its own there."""
        return f"runs:/{self.run_id}/{schema.artifact_of_part(path, self.part)}".rstrip("/")


@dataclass(frozen=True)
class SetAside:
    """A run that names the version and is no evidence of it.

    Arguments:
        run_id: of the run.
        why: a sentence without its dot.
        broken: whether it is not as it was logged.
        unsealed: whether that cannot be told.
    """

    run_id: str
    why: str
    broken: bool = False
    unsealed: bool = False
