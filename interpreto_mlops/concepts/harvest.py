"""Texts through a model to activations on disk: all layers in one pass, memory bounded whatever the number of texts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from interpreto_mlops.concepts import activations
from interpreto_mlops.concepts.activations import ActivationSet, ActivationWriter, remove_with
from interpreto_mlops.concepts.journal import Journal, refuse_other
from interpreto_mlops.concepts.row_plans import BatchRows, RowPlan, columns_of, plan_rows
from interpreto_mlops.errors import DataError, InputError, InterpretoError, ModelOutputError, OutOfMemoryError
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.text.datasets import TextDataset

# Texts of like length meet in a window; its rows, of all layers, are in memory until they are in order.
_WINDOW_BATCHES = 16
_WINDOW_BYTES = 256 * 2**20
_VERSIONS = ("torch", "transformers")


@dataclass(frozen=True)
class Plan:
    """What decides the numbers of a harvest, beside the model and the texts.

    Arguments:
        granularity: what a row is.
        aggregation: how several tokens become one row.
        dtype: how numbers are stored.
        token_budget: the most tokens of a batch; other batches give other roundings.
    """

    granularity: str
    aggregation: str
    dtype: str
    token_budget: int


class Harvest:
    """One pass over the texts.

    Arguments:
        split: the split model.
        plan: what is wanted.
        directory: where to put a folder for each layer, or None.
        resume: whether to go on from what is there.
        progress: show a bar; None shows it on a terminal only.
    """

    def __init__(
        self, split: Splitter, plan: Plan, directory: Path | None, *, resume: bool, progress: bool | None
    ) -> None:
        self.split, self.plan, self.directory = split, plan, directory
        self.resume, self.progress = resume, progress
        self.writers: dict[str, ActivationWriter] = {}
        self.temporary: set[Path] = set()
        self.digest = hashlib.sha256()
        self.n_texts = self.n_truncated = self.n_entries = 0
        self.autocast_error: float | None = None
        self.journal: Journal | None = None
        self.finished = self.opened = False
        self._shards_noted = 0
        # The half precision that was asked for is measured on the first batch.
        self._measured = split.model.autocast is None

    def __enter__(self) -> Harvest:
        self._stack = ExitStack()
        scratch = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="interpreto-texts-"))
        self.texts_file = Path(scratch) / "texts.jsonl"
        self._lines = self._stack.enter_context(self.texts_file.open("w", encoding="ascii"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        # Bad input would fail again; after anything else, such as a full disk or an interrupt, it may go on later.
        hopeless = isinstance(error, InterpretoError) and not isinstance(error, OutOfMemoryError)
        going_on = self.journal is not None and not self.opened
        if self.finished or going_on or (self.n_entries and not hopeless):
            return
        for writer in self.writers.values():
            writer.discard()
        for folder in self.temporary:
            shutil.rmtree(folder, ignore_errors=True)
        if self.journal is not None and self.writers:
            self.journal.remove()

    def run(self, texts: Iterable[str] | TextDataset) -> dict[str, ActivationSet]:
        """Write the rows of all texts and return a set for each layer."""
        source = texts.texts if isinstance(texts, TextDataset) else texts
        if (there := self._finished_before(texts)) is not None:
            self.finished = True
            return there
        iterator: Iterator[Any] = iter(_checked(source))
        self._open(iterator)
        total = len(source) if isinstance(source, Sequence) else None
        quiet = None if self.progress is None else not self.progress
        with tqdm(total=total, initial=self.n_texts, desc="activations", unit="text", disable=quiet) as bar:
            encodings = self.split.model.encode(iterator, first=self.n_texts)
            for window in self._windows(self._noted(encodings)):
                self._write([plan_rows(encoding, self._granularity) for encoding in window], bar)
                self._note_progress()
        return self._finish(texts)

    @property
    def _granularity(self) -> str:
        # A place with one vector for each text has one row a text, whatever that is called.
        return "sample" if self.split.per_text else self.plan.granularity

    @property
    def _identity(self) -> dict[str, Any]:
        model = self.split.model
        return {
            **asdict(self.plan),
            "model": model.fingerprint,
            "layers": list(self.split.split_points),
            "engine": self.split.engine,
            "autocast": model.autocast,
            "shard_bytes": activations.SHARD_BYTES,
            **{package: importlib.metadata.version(package) for package in _VERSIONS},
        }

    def _folder(self, layer: str) -> Path:
        assert self.directory is not None
        return self.directory / re.sub(r"[^\w.-]", "_", layer)

    def _finished_before(self, texts: Iterable[str] | TextDataset) -> dict[str, ActivationSet] | None:
        """Return the sets that the same harvest has left, or None where there are none."""
        if self.directory is None:
            return None
        folders = {layer: self._folder(layer) for layer in self.split.split_points}
        done = [layer for layer, folder in folders.items() if (folder / "index.json").is_file()]
        if not done:
            return None
        place = repr(str(folders[done[0]]))
        if not self.resume:
            raise InputError(f"there is an activation set in {place} already; give another directory")
        if len(done) < len(folders):
            # The indices are written one after the other, when all rows are there.
            if (self.directory / "harvest.json").is_file():
                return None
            raise InputError(f"there is an activation set in {place}, but not of all layers; give another directory")
        sets = {layer: ActivationSet.open(folder) for layer, folder in folders.items()}
        for each in sets.values():
            refuse_other(each.provenance.get("harvest") or {}, self._identity, f"an activation set in {place}")
            known = each.provenance["data"]["digest"]
            if (given := _digest_of(texts)) is not None and given != known:
                raise InputError(f"the activation set in {place} is of other texts; give another directory")
            if given is None:
                raise InputError(f"there is an activation set in {place} already; give another directory")
        return sets

    def _open(self, iterator: Iterator[Any]) -> None:
        """Begin a set for each layer, or go on with those of the journal."""
        entry = None
        if self.directory is not None:
            self.journal = Journal(self.directory, self._identity)
            entry = self.journal.read()
            if entry is not None and not self.resume:
                raise InputError(
                    f"there is an unfinished harvest in {str(self.directory)!r}; give another directory, or resume=True"
                )
        if entry is not None:
            self._pass_over(iterator, entry)
        for layer in self.split.split_points:
            state = None if entry is None else entry["layers"][layer]
            if self.directory is None:
                folder = Path(tempfile.mkdtemp(prefix="interpreto-activations-"))
                self.temporary.add(folder)
            else:
                folder = self._folder(layer)
            width = self.split.widths[layer]
            self.writers[layer] = ActivationWriter(
                folder,
                layer,
                self.plan.granularity,
                width,
                self.plan.dtype,
                shard_bytes=activations.SHARD_BYTES,
                resume=state,
            )
        self.opened = True

    def _pass_over(self, iterator: Iterator[Any], entry: dict[str, Any]) -> None:
        """Read the texts that are done, and make sure that they are the same ones."""
        for text in islice(iterator, entry["n_texts"]):
            self._note("\n".join(text) if isinstance(text, tuple) else text)
        if self.n_texts != entry["n_texts"] or self.digest.hexdigest() != entry["digest"]:
            raise InputError(
                f"the unfinished harvest in {str(self.directory)!r} is of other texts; give another directory"
            )
        self.n_truncated, self.n_entries = entry["n_truncated"], entry["number"]
        self.autocast_error = entry["autocast_error"]
        self._measured = True

    def _noted(self, encodings: Iterable[Encoding]) -> Iterator[Encoding]:
        for encoding in encodings:
            self._note(encoding.text)
            self.n_truncated += encoding.truncated
            yield encoding

    def _note(self, text: str) -> None:
        self._lines.write(json.dumps(text) + "\n")
        # The digest of a data set without labels (TextDataset.digest).
        self.digest.update(json.dumps((text, None)).encode() + b"\n")
        self.n_texts += 1

    def _windows(self, encodings: Iterable[Encoding]) -> Iterator[list[Encoding]]:
        numbers = sum(self.split.widths.values())
        budget = self.plan.token_budget
        room = min(_WINDOW_BATCHES * budget, max(budget, _WINDOW_BYTES // (4 * numbers)))
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

    def _note_progress(self) -> None:
        """Make an entry in the journal when a shard was completed since the last one."""
        shards = sum(writer.n_shards for writer in self.writers.values())
        if self.journal is None or shards == self._shards_noted:
            return
        self._shards_noted = shards
        self.n_entries += 1
        facts = {
            "n_texts": self.n_texts,
            "n_truncated": self.n_truncated,
            "digest": self.digest.hexdigest(),
            "autocast_error": self.autocast_error,
        }
        self.journal.write(self.n_entries, facts, self.writers)

    def _write(self, plans: list[RowPlan], bar: Any) -> None:
        """Capture the rows of a window, and write them in the order of its texts."""
        starts = np.cumsum([0, *map(len, plans)])
        wanted = [i for i, plan in enumerate(plans) if len(plan)]
        for writer in self.writers.values():
            writer.reserve(int(starts[-1]))
        for batch in pack([len(plans[i].encoding) for i in wanted], self.plan.token_budget):
            places = [wanted[place] for place in batch]
            self._capture([plans[i] for i in places], starts[places])
            bar.update(len(places))
        bar.update(len(plans) - len(wanted))
        if wanted:
            columns = columns_of(plans)
            for path, writer in self.writers.items():
                _check_finite(
                    writer.reserved, path, lambda row: plans[int(np.searchsorted(starts, row, side="right")) - 1]
                )
                writer.commit(columns)

    def _capture(self, plans: list[RowPlan], starts: npt.NDArray[np.int64]) -> None:
        """Put the rows of a batch in their places; a batch that does not fit in memory goes in halves.

        Raises:
            OutOfMemoryError: one text alone does not fit.
        """
        try:
            self._capture_whole(plans, starts)
            return
        except torch.OutOfMemoryError as error:
            if len(plans) == 1:
                encoding = plans[0].encoding
                message = f"text {encoding.index} with {len(encoding)} tokens does not fit in memory"
                raise OutOfMemoryError(message) from error
        # Out of the handler, whose traceback holds what has filled the memory.
        half = len(plans) // 2
        self._capture(plans[:half], starts[:half])
        self._capture(plans[half:], starts[half:])

    def _capture_whole(self, plans: list[RowPlan], starts: npt.NDArray[np.int64]) -> None:
        inputs = self.split.model.inputs([plan.encoding for plan in plans])
        batch = BatchRows(plans, starts, inputs["input_ids"].shape[1], self.plan.aggregation)
        if not self._measured:
            self._measure(inputs)
        outputs = self.split.capture(inputs, lambda path, output: self._kept(path, output, batch))
        for path, chosen in outputs.items():
            if len(chosen):
                _check_finite(chosen, path, partial(batch.plan_of, count=len(chosen)))
                self.writers[path].put(batch.targets, batch.rows(chosen).cpu())

    def _kept(self, path: str, output: torch.Tensor, batch: BatchRows) -> torch.Tensor:
        """Return the vectors of a batch that make up its rows; none when they are in their places already."""
        writer = self.writers[path]
        if writer.dtype is torch.float32 and output.device.type == "cpu" and output.dim() == 3 and batch.runs:
            writer.put_runs(output, batch.runs)
            return output.new_empty(0)
        return batch.chosen(output)

    def _measure(self, inputs: dict[str, torch.Tensor]) -> None:
        """Compare the first batch in half precision with the same in the model's own."""
        outputs = self.split.capture(inputs)
        with self.split.model.execution.exactly():
            exact = self.split.capture(inputs)
        kept = inputs["attention_mask"].bool()
        errors = []
        for path, output in outputs.items():
            own, half = exact[path].float(), output.float()
            if path not in self.split.per_text:
                own, half = own[kept], half[kept]
            spread = (own - own.mean(dim=0)).norm()
            errors.append(float((own - half).norm() / spread.clamp(min=torch.finfo(torch.float32).tiny)))
        self.autocast_error = max(errors)
        self._measured = True

    def _finish(self, texts: Iterable[str] | TextDataset) -> dict[str, ActivationSet]:
        """Write the indices and open the sets.

        Raises:
            DataError: there are no rows.
        """
        if not any(writer.n_rows for writer in self.writers.values()):
            raise DataError(f"none of the {self.n_texts} texts has a token, so there are no activations")
        self._lines.close()
        for path, writer in self.writers.items():
            writer.flush()
            writer.close(self.texts_file, self._provenance(texts, path, writer))
        self.finished = True
        if self.journal is not None:
            self.journal.remove()
        sets: dict[str, ActivationSet] = {}
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
                "class": type(model.model).__name__,
                "dtype": model.arithmetic["dtype"],
                **model.identity,
            },
            "layer": layer,
            "granularity": self.plan.granularity,
            "aggregation": self.plan.aggregation,
            "width": self.split.widths[layer],
            "data": {**data, "n_texts": self.n_texts, "rows_sha256": writer.rows_sha256},
            "n_rows": writer.n_rows,
            "n_truncated": self.n_truncated,
            "autocast_error": self.autocast_error,
            "store_error": writer.store_error,
            "harvest": self._identity,
        }


def _checked(source: Any) -> Any:
    if isinstance(source, str):
        raise InputError(f"give a list of texts, not one string ({source[:40]!r})")
    return source


def _digest_of(texts: Iterable[str] | TextDataset) -> str | None:
    """Return the digest that a harvest of the texts would have, or None where they can be read only once."""
    if isinstance(texts, TextDataset):
        return texts.digest
    if not isinstance(texts, Sequence):
        return None
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(("\n".join(text) if isinstance(text, tuple) else text, None)).encode() + b"\n")
    return digest.hexdigest()[:32]


def _check_finite(rows: torch.Tensor, path: str, plan_of: Callable[[int], RowPlan]) -> None:
    # A sum is finite unless a term is not (or it overflows, which the exact look then clears).
    if bool(rows.sum(dtype=torch.float32).isfinite()):
        return
    finite = rows.isfinite().all(dim=1)
    if bool(finite.all()):
        return
    encoding = plan_of(int(finite.int().argmin())).encoding
    raise ModelOutputError(
        f"the layer {path!r} puts out NaN or infinity for text {encoding.index}: {encoding.text[:60]!r}"
    )
