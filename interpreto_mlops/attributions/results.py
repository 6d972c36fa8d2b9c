"""What attribution methods and their metrics return, and how it is kept: parquet for numbers, JSON for the rest."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pandas as pd

from interpreto_mlops.errors import DataError
from interpreto_mlops.models.objectives import Target as Target
from interpreto_mlops.text.granularity import Spans
from interpreto_mlops.text.hiding import PREFIX, hidden, hidden_name, hidden_word, sha256_of

Floats = npt.NDArray[np.float64]

_TABLE, _HEADER = "attributions.parquet", "attributions.json"
_FORMAT = "attribution-set/2"
UNTOLD = -1
"""The id of a target that a language model wrote, where texts are hidden."""
_SHOWN = 60  # characters of a text


@dataclass(frozen=True, repr=False)
class Attribution:
    """The scores of one text's elements for its targets.

    Arguments:
        text: the raw text; with the continuation of a prompt at its end, or two texts with a line break between.
        index: its place in the data set.
        elements: the scored pieces, slices of the raw text; length n.
        spans: their character spans, shape (n, 2).
        scores: signed scores, shape (targets, n); higher speaks for the target. NaN where an element holds the target
            itself or anything after it.
        targets: what each row of `scores` explains.
        output: the model's score of each target on the text, shape (targets,).
        baseline_output: the same with every element replaced, shape (targets,).
        standard_error: of each score where the estimator has one, shape (targets, n), else None.
        method: the registry name of the method.
        parameters: what the method was given, and what `auto` resolved to.
        checks: the result's own checks: gaps, nodes, whether the estimate is exact.
        truncated: whether the text was longer than the model takes; elements cover the kept part only.
        ids: the token ids that the model was given, shape (tokens,); of an encoder-decoder those of the source, then
            the decoder's.
        of_token: the element of each token, -1 for none; one more than `ids` with a continuation, whose last token the
            model is not given.
        boundary: the character at which the continuation, or the second text of a pair, starts; else None.
        prompt_tokens: how many of the ids belong to the prompt or source; None without a continuation.
        is_hidden: whether hashes stand for the text, the elements and what is text in the targets; see `hidden`.
        prompt_sha256: the sha256 of the prompt of a hidden text with a continuation, else None; None, too, where an
            earlier version hid it.
    """

    text: str
    index: int
    elements: tuple[str, ...]
    spans: Spans
    scores: Floats
    targets: tuple[Target, ...]
    output: Floats
    baseline_output: Floats
    standard_error: Floats | None
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, float] = field(default_factory=dict)
    truncated: bool = False
    ids: npt.NDArray[np.int64] | None = None
    of_token: npt.NDArray[np.int64] | None = None
    boundary: int | None = None
    prompt_tokens: int | None = None
    is_hidden: bool = False
    prompt_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.elements)

    def __repr__(self) -> str:
        named = ", ".join(target.title for target in self.targets[:3]) + (", …" if len(self.targets) > 3 else "")
        short = self.text if len(self.text) <= _SHOWN else self.text[:_SHOWN] + "…"
        return f"Attribution({short!r}: {len(self)} elements, {self.method} of {named or 'nothing'})"

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which cells of `scores` are numbers, shape (targets, n)."""
        return ~np.isnan(self.scores)

    @property
    def continuation(self) -> str | None:
        """The text that follows the prompt, or None; it is not kept where texts are hidden."""
        return None if self.prompt_tokens is None or self.is_hidden else self.text[self.boundary :]

    @property
    def text_sha256(self) -> str:
        """The sha256 of the raw text, by which the same text is found again, hidden or not."""
        return self.text.removeprefix(PREFIX) if self.is_hidden else sha256_of(self.text)

    def hidden(self) -> Attribution:
        """Return the same scores without the text: `sha256:…` stands for it, for each element and for what was written.

        An element's hash is that of the word without space around it and in folded case (`text.hiding.hidden_word`), so
        that who knows a word finds it. Of a text with a continuation the hash of the prompt is kept beside that of the
        whole, so that it is found again whatever was written after it. Classes keep their names. Spans, and with them
        the lengths of words, are kept; token ids, from which the text could be put together, are not.
        """
        if self.is_hidden:
            return self
        return replace(
            self,
            text=hidden(self.text),
            elements=tuple(hidden_word(element) for element in self.elements),
            targets=tuple(_hidden_target(target) for target in self.targets),
            ids=None,
            of_token=None,
            is_hidden=True,
            prompt_sha256=None if self.prompt_tokens is None else sha256_of(self.text[: self.boundary]),
        )

    def ranking(self, target: int = 0) -> npt.NDArray[np.int64]:
        """Return the elements that have a score, the highest first, ties by position, shape (up to n,)."""
        order: npt.NDArray[np.int64] = np.argsort(-self.scores[target], kind="stable")
        kept: npt.NDArray[np.int64] = order[self.valid[target][order]]
        return kept

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Attribution):
            return NotImplemented
        return self._header() == other._header() and all(
            _same(getattr(self, name), getattr(other, name))
            for name in ("spans", "scores", "output", "baseline_output", "standard_error", "ids", "of_token")
        )

    __hash__ = None  # type: ignore[assignment]

    def _header(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "index": self.index,
            "elements": list(self.elements),
            "targets": [asdict(target) for target in self.targets],
            "output": _numbers(self.output),
            "baseline_output": _numbers(self.baseline_output),
            "has_standard_error": self.standard_error is not None,
            "method": self.method,
            "parameters": self.parameters,
            "checks": self.checks,
            "truncated": self.truncated,
            "ids": None if self.ids is None else self.ids.tolist(),
            "of_token": None if self.of_token is None else self.of_token.tolist(),
            "boundary": self.boundary,
            "prompt_tokens": self.prompt_tokens,
            "is_hidden": self.is_hidden,
            "prompt_sha256": self.prompt_sha256,
        }


class AttributionSet(Sequence[Attribution]):
    """The attributions of many texts by one method, in the order of the texts.

    Arguments:
        items: one `Attribution` a text.
        seconds: how long they took.
        counters: what the engine did for them (`EngineCounters.as_dict()`).
    """

    def __init__(
        self, items: Iterable[Attribution], *, seconds: float = 0.0, counters: dict[str, float] | None = None
    ) -> None:
        self._items = tuple(items)
        self.seconds = seconds
        self.counters = dict(counters or {})

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Attribution: ...
    @overload
    def __getitem__(self, index: slice) -> AttributionSet: ...
    def __getitem__(self, index: int | slice) -> Attribution | AttributionSet:
        if isinstance(index, slice):
            return AttributionSet(self._items[index], seconds=self.seconds, counters=self.counters)
        return self._items[index]

    def __iter__(self) -> Iterator[Attribution]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttributionSet) and self._items == other._items

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"AttributionSet({len(self)} texts by {self.method or 'no method'})"

    @property
    def method(self) -> str:
        """The registry name of the method, or an empty string for an empty set."""
        return self._items[0].method if self._items else ""

    @property
    def parameters(self) -> dict[str, Any]:
        """What the method was given."""
        return dict(self._items[0].parameters) if self._items else {}

    @property
    def layer(self) -> str | None:
        """The layer whose concepts are explained; None where it is what the model puts out."""
        return next((target.layer for item in self._items for target in item.targets), None)

    @property
    def n_truncated(self) -> int:
        """How many texts were longer than the model takes."""
        return sum(item.truncated for item in self._items)

    def hidden(self) -> AttributionSet:
        """Return the set with hashes in the place of texts; see `Attribution.hidden`."""
        return AttributionSet((item.hidden() for item in self), seconds=self.seconds, counters=self.counters)

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each (text, target, element).

        Columns: text_index, target_index, target_id, target, element_index, element, start, end, score, standard_error.
        """
        return _frame(self._items)

    def save(self, folder: str | Path) -> Path:
        """Write the set to `folder` (created) as `attributions.parquet` and `attributions.json`; return the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Sets that were joined may have an index twice; the place in the set is unique.
        places = np.repeat(np.arange(len(self._items)), [item.scores.size for item in self._items])
        _frame(self._items).assign(place=places.astype(np.int64)).to_parquet(folder / _TABLE, index=False)
        header = {
            "format": _FORMAT,
            "seconds": self.seconds,
            "counters": self.counters,
            "texts": [item._header() for item in self._items],
        }
        # Without an indent json's fast encoder writes it, in a tenth of the time.
        (folder / _HEADER).write_text(json.dumps(header, ensure_ascii=True, allow_nan=False), encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> AttributionSet:
        """Read what `save` wrote.

        Raises:
            DataError: the folder has no such set, or one of another format.
        """
        folder = Path(folder)
        if not (folder / _HEADER).is_file() or not (folder / _TABLE).is_file():
            raise DataError(f"there is no attribution set in {str(folder)!r}")
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        if header.get("format") != _FORMAT:
            raise DataError(f"{str(folder)!r} has the format {header.get('format')!r}, not {_FORMAT!r}")
        groups = dict(iter(pd.read_parquet(folder / _TABLE).groupby("place", sort=False)))
        items = [_restore(entry, groups.get(place)) for place, entry in enumerate(header["texts"])]
        return cls(items, seconds=header["seconds"], counters=header["counters"])

    def _repr_html_(self) -> str:
        return str(_visuals("attributions_html").render_fragment(self))

    def plot(self, index: int = 0, target: int | None = None) -> Any:
        """Draw the scores of one text as a matplotlib figure.

        Arguments:
            index: of the text in this set.
            target: the row of its scores to draw as bars; by default a matrix of all where there are several.
        """
        item, figures = self._items[index], _visuals("figures")
        several = target is None and len(item.targets) > 1
        return figures.matrix_figure(item) if several else figures.attribution_figure(item, target or 0)


def _hidden_target(target: Target) -> Target:
    """A class has a name that somebody gave it; other names hold words of texts."""
    if not target.is_text:
        return target
    if not target.ids:
        return replace(target, name=hidden_name(target.name))
    against = None if target.contrast_name is None else hidden_name(target.contrast_name)
    return replace(target, id=UNTOLD, name=hidden_name(target.name), ids=(), contrast=(), contrast_name=against)


def _visuals(module: str) -> Any:
    # Drawing lives a layer above: a result finds it by name, and only when somebody wants to look at it.
    return importlib.import_module(f"interpreto_mlops.visuals.{module}")


def _frame(items: Sequence[Attribution]) -> pd.DataFrame:
    shapes = [(len(item.targets), len(item)) for item in items]
    rows, columns = ([axis.ravel() for axis in axes] for axes in _axes(shapes))
    sizes = [targets * elements for targets, elements in shapes]
    errors = [
        np.full(shape, np.nan) if item.standard_error is None else item.standard_error
        for item, shape in zip(items, shapes, strict=True)
    ]
    ids = [np.asarray([target.id for target in item.targets], dtype=np.int64) for item in items]
    return pd.DataFrame(
        {
            "text_index": np.repeat(np.asarray([item.index for item in items], dtype=np.int64), sizes),
            "target_index": _joined(rows, np.int64),
            "target_id": _joined([found[row] for found, row in zip(ids, rows, strict=True)], np.int64),
            "target": pd.Series(
                [target.name for item in items for target in item.targets for _ in item.elements], dtype="str"
            ),
            "element_index": _joined(columns, np.int64),
            "element": pd.Series(
                [element for item in items for _ in item.targets for element in item.elements], dtype="str"
            ),
            "start": _joined([item.spans[column, 0] for item, column in zip(items, columns, strict=True)], np.int64),
            "end": _joined([item.spans[column, 1] for item, column in zip(items, columns, strict=True)], np.int64),
            "score": _joined([item.scores.ravel() for item in items], np.float64),
            "standard_error": _joined([error.ravel() for error in errors], np.float64),
        }
    )


def _axes(shapes: Sequence[tuple[int, int]]) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    found = [np.indices(shape) for shape in shapes]
    return [axes[0] for axes in found], [axes[1] for axes in found]


def _joined(parts: Sequence[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=kind), *parts]).astype(kind, copy=False)


def _restore(entry: dict[str, Any], frame: pd.DataFrame | None) -> Attribution:
    shape = (len(entry["targets"]), len(entry["elements"]))
    frame = _frame([]) if frame is None else frame
    first = frame[frame["target_index"] == 0]
    error = frame["standard_error"].to_numpy(dtype=np.float64).reshape(shape)
    return Attribution(
        text=entry["text"],
        index=entry["index"],
        elements=tuple(entry["elements"]),
        spans=first[["start", "end"]].to_numpy(dtype=np.int64).reshape(-1, 2),
        scores=frame["score"].to_numpy(dtype=np.float64).reshape(shape),
        targets=tuple(_target(target) for target in entry["targets"]),
        output=np.asarray(entry["output"], dtype=np.float64),
        baseline_output=np.asarray(entry["baseline_output"], dtype=np.float64),
        standard_error=error if entry["has_standard_error"] else None,
        method=entry["method"],
        parameters=entry["parameters"],
        checks=entry["checks"],
        truncated=entry["truncated"],
        ids=_integers(entry["ids"]),
        of_token=_integers(entry["of_token"]),
        boundary=entry["boundary"],
        prompt_tokens=entry["prompt_tokens"],
        # Files of earlier versions do not say.
        is_hidden=bool(entry.get("is_hidden", False)),
        prompt_sha256=entry.get("prompt_sha256"),
    )


def _target(entry: dict[str, Any]) -> Target:
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
    return Target(**plain)


def _integers(values: list[int] | None) -> npt.NDArray[np.int64] | None:
    return None if values is None else np.asarray(values, dtype=np.int64)


def _numbers(values: Floats) -> list[float | None]:
    """Numbers as JSON knows them, which has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(a, b, equal_nan=True))
