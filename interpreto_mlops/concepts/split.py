"""Texts through a model to activations on disk: all layers in one pass, memory bounded whatever the number of texts."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from interpreto_mlops.concepts.activations import ActivationSet, ActivationWriter, remove_with
from interpreto_mlops.concepts.row_plans import GRANULARITIES, RowPlan, plan_rows
from interpreto_mlops.errors import DataError, InputError, ModelOutputError, OutOfMemoryError, UnknownNameError
from interpreto_mlops.models.budgets import DEFAULT_TOKEN_BUDGET
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import NO_ELEMENT

_ACCELERATOR_TOKENS = 16384

# Texts of like length meet in a window; its rows, of all layers, are in memory until they are in order.
_WINDOW_BATCHES = 16
_WINDOW_BYTES = 256 * 2**20


class ModelWithSplitPoints(Splitter):
    """A model that is split at some of its layers, for concepts: see `Splitter` for its arguments.

    Example:
        split = ModelWithSplitPoints(model, split_points=[2, 4])
        activations = split.get_activations(texts)
        activations[4].tensor()
    """

    def get_activations(
        self,
        texts: Iterable[str] | TextDataset,
        *,
        granularity: str = "token",
        directory: str | Path | None = None,
        dtype: str = "float32",
        token_budget: int | None = None,
        progress: bool | None = None,
    ) -> dict[int | str, ActivationSet]:
        """Run texts through the model once and write the activations of all split points to disk.

        Arguments:
            texts: the texts; a generator is read as it goes.
            granularity: what a row is. `token`: each token that is not special; `all_tokens`: special ones, too;
                `word`, `sentence`, `sample` (the text): the mean over its tokens that are not special; `cls`: the first
                token, which says something about the text only where attention goes both ways.
            directory: where to put a folder for each layer; None for a temporary one that lives as long as its set.
            dtype: how numbers are stored: `float32`, or half of the space with `float16` or `bfloat16`.
            token_budget: the most tokens of a batch, padding included; by default 1024 on a CPU, where more is
                slower, and 16384 elsewhere.
            progress: show a bar; None shows it on a terminal only.

        Returns:
            A set for each split point, by what the split point was called on construction. Rows are in the order of the
            texts, whatever the batches were.

        Raises:
            InputError: an argument that cannot be used, or a directory with activations in it.
            DataError: no text has a token.
            ModelOutputError: the model puts out NaN or infinity; the message names the text.
            OutOfMemoryError: a single text does not fit in memory.
        """
        if granularity not in GRANULARITIES:
            raise UnknownNameError("granularity", granularity, GRANULARITIES)
        if token_budget is None:
            token_budget = DEFAULT_TOKEN_BUDGET if self.model.device.type == "cpu" else _ACCELERATOR_TOKENS
        if token_budget < 1:
            raise InputError(f"the token budget must be at least 1, not {token_budget!r}")
        with _Harvest(self, granularity, token_budget, progress) as harvest:
            for path in self.split_points:
                harvest.open(path, None if directory is None else Path(directory), dtype)
            harvest.run(texts)
            sets = harvest.finish(texts)
        return {given: sets[path] for given, path in self.points.items()}


class _Harvest:
    """One pass over the texts."""

    def __init__(self, split: Splitter, granularity: str, token_budget: int, progress: bool | None) -> None:
        self.split = split
        self.granularity = granularity
        self.token_budget = token_budget
        self.progress = progress
        self.writers: dict[str, ActivationWriter] = {}
        self.temporary: set[Path] = set()
        self.digest = hashlib.sha256()
        self.n_texts = 0
        self.n_truncated = 0
        self.finished = False

    def __enter__(self) -> _Harvest:
        self._stack = ExitStack()
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="interpreto-texts-"))
        self.texts_file = Path(scratch) / "texts.jsonl"
        self._lines = self._stack.enter_context(self.texts_file.open("w", encoding="ascii"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if not self.finished:
            for writer in self.writers.values():
                writer.discard()
            for folder in self.temporary:
                shutil.rmtree(folder, ignore_errors=True)

    def open(self, layer: str, directory: Path | None, dtype: str) -> None:
        """Begin the set of one layer."""
        if directory is None:
            folder = Path(tempfile.mkdtemp(prefix="interpreto-activations-"))
            self.temporary.add(folder)
        else:
            folder = directory / re.sub(r"[^\w.-]", "_", layer)
        width = self.split.widths[layer]
        self.writers[layer] = ActivationWriter(folder, layer, self.granularity, width, dtype)

    def run(self, texts: Iterable[str] | TextDataset) -> None:
        """Write the rows of all texts."""
        source = texts.texts if isinstance(texts, TextDataset) else texts
        total = len(source) if isinstance(source, Sequence) else None
        quiet = None if self.progress is None else not self.progress
        with tqdm(total=total, desc="activations", unit="text", disable=quiet) as bar:
            for window in self._windows(self._noted(self.split.model.encode(source))):
                self._write([plan_rows(encoding, self.granularity) for encoding in window], bar)

    def _noted(self, encodings: Iterable[Encoding]) -> Iterator[Encoding]:
        for encoding in encodings:
            self._lines.write(json.dumps(encoding.text) + "\n")
            # The digest of a data set without labels (TextDataset.digest).
            self.digest.update(json.dumps((encoding.text, None)).encode() + b"\n")
            self.n_texts += 1
            self.n_truncated += encoding.truncated
            yield encoding

    def _windows(self, encodings: Iterable[Encoding]) -> Iterator[list[Encoding]]:
        numbers = sum(self.split.widths.values())
        room = min(_WINDOW_BATCHES * self.token_budget, max(self.token_budget, _WINDOW_BYTES // (4 * numbers)))
        window: list[Encoding] = []
        tokens = 0
        for encoding in encodings:
            window.append(encoding)
            tokens += max(1, len(encoding))
            if tokens >= room:
                yield window
                window, tokens = [], 0
        if window:
            yield window

    def _write(self, plans: list[RowPlan], bar: Any) -> None:
        """Capture the rows of a window, and write them in the order of its texts."""
        starts = np.cumsum([0, *map(len, plans)])
        rows = {path: torch.zeros((int(starts[-1]), width)) for path, width in self.split.widths.items()}
        wanted = [i for i, plan in enumerate(plans) if len(plan)]
        for batch in pack([len(plans[i].encoding) for i in wanted], self.token_budget):
            places = [wanted[place] for place in batch]
            self._capture([plans[i] for i in places], starts[places], rows)
            bar.update(len(places))
        bar.update(len(plans) - len(wanted))
        if starts[-1]:
            columns = _columns(plans)
            counts = torch.from_numpy(_counts(plans)).unsqueeze(1)
            for path, writer in self.writers.items():
                writer.add(rows[path].div_(counts), columns)

    def _capture(self, plans: list[RowPlan], starts: npt.NDArray[np.int64], rows: dict[str, torch.Tensor]) -> None:
        """Add the activations of a batch to its rows' sums."""
        inputs = self.split.model.inputs([plan.encoding for plan in plans])
        try:
            outputs = self.split.capture(inputs)
        except torch.OutOfMemoryError as error:
            if len(plans) == 1:
                encoding = plans[0].encoding
                message = f"text {encoding.index} with {len(encoding)} tokens does not fit in memory"
                raise OutOfMemoryError(message) from error
            half = len(plans) // 2
            self._capture(plans[:half], starts[:half], rows)
            self._capture(plans[half:], starts[half:], rows)
            return
        tokens = inputs["input_ids"].shape[1]
        kept = [np.flatnonzero(plan.of_token != NO_ELEMENT) for plan in plans]
        source = torch.from_numpy(np.concatenate([i * tokens + places for i, places in enumerate(kept)]))
        target = torch.from_numpy(
            np.concatenate([start + p.of_token[k] for start, p, k in zip(starts, plans, kept, strict=True)])
        )
        for path, output in outputs.items():
            chosen = output.flatten(0, 1).index_select(0, source.to(output.device)).float().cpu()
            _check_finite(chosen, path, plans, kept)
            rows[path].index_add_(0, target, chosen)

    def finish(self, texts: Iterable[str] | TextDataset) -> dict[str, ActivationSet]:
        """Write the indices and open the sets.

        Raises:
            DataError: there are no rows.
        """
        if not any(writer.n_rows for writer in self.writers.values()):
            raise DataError(f"none of the {self.n_texts} texts has a token, so there are no activations")
        self._lines.close()
        sets: dict[str, ActivationSet] = {}
        for path, writer in self.writers.items():
            writer.close(self.texts_file, self._provenance(texts, path, writer))
        self.finished = True
        for path, writer in self.writers.items():
            sets[path] = ActivationSet.open(writer.path)
            if writer.path in self.temporary:
                remove_with(sets[path], writer.path)
        return sets

    def _provenance(self, texts: Iterable[str] | TextDataset, layer: str, writer: ActivationWriter) -> dict[str, Any]:
        model = self.split.model
        data = {"name": "texts", "digest": self.digest.hexdigest()[:32], "source": "given as Python objects"}
        if isinstance(texts, TextDataset):
            data = {"name": texts.name, "digest": texts.digest, "source": texts.source}
        return {
            "model": {
                "name": model.name,
                "uri": model.uri,
                "fingerprint": model.fingerprint,
                "model_id": model.model_id,
            },
            "layer": layer,
            "granularity": self.granularity,
            "width": self.split.widths[layer],
            "data": {**data, "n_texts": self.n_texts},
            "n_rows": writer.n_rows,
            "n_truncated": self.n_truncated,
        }


def _counts(plans: list[RowPlan]) -> npt.NDArray[np.float32]:
    """Return how many tokens each row is the mean of, shape (rows,)."""
    kept = (plan.of_token[plan.of_token != NO_ELEMENT] for plan in plans)
    counts = [np.bincount(rows, minlength=len(plan)) for rows, plan in zip(kept, plans, strict=True)]
    return np.concatenate(counts).astype(np.float32)


def _columns(plans: list[RowPlan]) -> dict[str, npt.NDArray[np.int32]]:
    columns = {
        "text_ids": np.concatenate([np.full(len(plan), plan.encoding.index) for plan in plans]),
        "positions": np.concatenate([plan.positions for plan in plans]),
        "token_ids": np.concatenate([plan.encoding.ids[plan.positions] for plan in plans]),
        "spans": np.concatenate([plan.spans for plan in plans]),
    }
    return {name: column.astype(np.int32) for name, column in columns.items()}


def _check_finite(chosen: torch.Tensor, path: str, plans: list[RowPlan], kept: list[npt.NDArray[np.int64]]) -> None:
    finite = chosen.isfinite().all(dim=1)
    if bool(finite.all()):
        return
    place = int(finite.int().argmin())
    ends = np.cumsum([len(places) for places in kept])
    encoding = plans[int(np.searchsorted(ends, place, side="right"))].encoding
    raise ModelOutputError(
        f"the layer {path!r} puts out NaN or infinity for text {encoding.index}: {encoding.text[:60]!r}"
    )
