"""Data sets as inputs of runs: a name, our own digest over every row, where the rows came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag

from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.hiding import texts_are_hidden

_MAX_NAME = 500
_CONTEXT = "mlflow.data.context"


@dataclass(frozen=True)
class DataReference:
    """A data set as evidence names it; the texts themselves are not needed.

    Arguments:
        name: groups the metrics in the MLflow UI.
        digest: at most 36 characters, over every row.
        source: a path or a readable origin.
        rows: how many texts.
        labelled: whether the texts have labels.
    """

    name: str
    digest: str
    source: str = ""
    rows: int = 0
    labelled: bool = False

    @classmethod
    def of(cls, dataset: TextDataset | DataReference) -> DataReference:
        """Return the reference to a data set."""
        if isinstance(dataset, DataReference):
            return dataset
        return cls(dataset.name, dataset.digest, dataset.source, len(dataset), dataset.labels is not None)

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any]) -> DataReference | None:
        """Return the data that a dictionary says it was fitted on, or None where it does not say."""
        data = provenance.get("data") or {}
        if not data.get("name") or not data.get("digest"):
            return None
        return cls(data["name"], data["digest"], data.get("source") or "", int(data.get("n_texts") or 0))

    def to_input(self, context: str) -> DatasetInput:
        """Return the entity that a run takes as input, under a context such as `explained` or `fitted`."""
        columns = ["text", "label"] if self.labelled else ["text"]
        specs = [{"type": "string", "name": column, "required": True} for column in columns]
        kind, source = self._source()
        dataset = Dataset(
            name=self.name[:_MAX_NAME],
            digest=self.digest[:36],
            source_type=kind,
            source=json.dumps(source),
            schema=json.dumps({"mlflow_colspec": specs}),
            profile=json.dumps({"num_rows": self.rows}),
        )
        return DatasetInput(dataset, [InputTag(_CONTEXT, context)])

    def _source(self) -> tuple[str, dict[str, Any]]:
        if texts_are_hidden():
            # A source may be a description, such as a query, and quote what it selects.
            return "code", {"tags": {}}
        path = Path(self.source) if self.source else None
        if path is not None and path.is_file():
            return "local", {"uri": str(path.absolute())}
        return "code", {"tags": {"source": self.source}}
