"""Which tokens of a text make up each of its rows of activations, and how they become one row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.text.granularity import NO_ELEMENT, Granularity, visible_spans

GRANULARITIES = ("token", "all_tokens", "word", "sentence", "cls", "sample")
"""What a row of activations can be."""

AGGREGATIONS = ("mean", "max", "min", "sum", "signed_max", "first", "last")
"""How the tokens of a row become one vector, number by number."""

TEXT_GRANULARITIES = ("cls", "sample")
"""What a row can be where a layer puts out one vector for each text."""

ONE_TOKEN = frozenset({"token", "all_tokens", "cls"})
"""What a row is where it is a single token, which no aggregation changes."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowPlan:
    """The rows of one text.

    Arguments:
        encoding: the text.
        of_token: the row to which each token goes, or `NO_ELEMENT`, shape (tokens,).
        positions: the first token of each row, shape (rows,).
        spans: the characters that each row stands for, shape (rows, 2).
    """

    encoding: Encoding
    of_token: Integers
    positions: Integers
    spans: Integers

    def __len__(self) -> int:
        return len(self.positions)


def plan_rows(encoding: Encoding, granularity: str) -> RowPlan:
    """Say which tokens of a text make up each of its rows."""
    if granularity in ONE_TOKEN:
        kept = ~encoding.special if granularity == "token" else np.ones(len(encoding), dtype=bool)
        if granularity == "cls":
            kept[1:] = False
        of_token = np.where(kept, np.cumsum(kept) - 1, NO_ELEMENT)
        spans = _whole(encoding, int(kept.sum())) if granularity == "cls" else _token_spans(encoding)[kept]
        return RowPlan(encoding, of_token, np.flatnonzero(kept), spans)
    if granularity == "sample":
        of_token = np.where(encoding.special, NO_ELEMENT, 0)
        positions = np.flatnonzero(~encoding.special)[:1]
        return RowPlan(encoding, of_token, positions, _whole(encoding, len(positions)))
    elements = encoding.elements(Granularity.parse(granularity))
    return RowPlan(encoding, elements.of_token, elements.ends()[0].astype(np.int64), elements.spans)


def columns_of(plans: list[RowPlan]) -> dict[str, npt.NDArray[np.int32]]:
    """Return what leads back from the rows of some texts: `text_ids`, `positions`, `token_ids` and `spans`."""
    columns = {
        "text_ids": np.repeat([plan.encoding.index for plan in plans], [len(plan) for plan in plans]),
        "positions": np.concatenate([plan.positions for plan in plans]),
        "token_ids": np.concatenate([plan.encoding.ids[plan.positions] for plan in plans]),
        "spans": np.concatenate([plan.spans for plan in plans]),
    }
    return {name: column.astype(np.int32) for name, column in columns.items()}


def _whole(encoding: Encoding, rows: int) -> Integers:
    return np.asarray([(0, len(encoding.text))] * rows, dtype=np.int64).reshape(-1, 2)


def _token_spans(encoding: Encoding) -> Integers:
    """Return where each token lies in the text, without outer white space; (0, 0) for special tokens."""
    if encoding.offsets is None:
        return np.zeros((len(encoding), 2), dtype=np.int64)
    spans = visible_spans(encoding.text, encoding.offsets)
    spans[encoding.special | (spans[:, 0] >= spans[:, 1])] = 0
    return spans


class BatchRows:
    """The rows of the texts of one padded batch, and how to gather them from what a layer puts out.

    Arguments:
        plans: the texts' rows, each text with at least one.
        starts: the place of each text's first row among all rows, shape (texts,).
        tokens: the tokens of a padded row of the batch.
        aggregation: one of `AGGREGATIONS`.
    """

    def __init__(self, plans: list[RowPlan], starts: Integers, tokens: int, aggregation: str) -> None:
        self.plans, self.aggregation = plans, aggregation
        sizes = np.asarray([len(plan) for plan in plans])
        self.targets = torch.from_numpy(np.concatenate([s + np.arange(n) for s, n in zip(starts, sizes, strict=True)]))
        self._texts = torch.from_numpy(np.repeat(np.arange(len(plans)), sizes))
        kept = [np.flatnonzero(plan.of_token != NO_ELEMENT) for plan in plans]
        source = np.concatenate([i * tokens + places for i, places in enumerate(kept)])
        first = np.cumsum(sizes) - sizes
        row = np.concatenate([f + p.of_token[k] for f, p, k in zip(first, plans, kept, strict=True)])
        if (np.diff(row) < 0).any():
            order = np.argsort(row, kind="stable")
            source, row = source[order], row[order]
        self._counts = torch.from_numpy(np.bincount(row, minlength=int(sizes.sum())))
        self._source = torch.from_numpy(source)

    @cached_property
    def runs(self) -> list[tuple[int, int, int, int]] | None:
        """For rows of one token each, side by side: text, first token, count, place among all rows; else None."""
        counts = [len(plan) for plan in self.plans]
        if len(self._source) != len(self._texts) or not all(_side_by_side(plan) for plan in self.plans):
            return None
        places = self.targets[np.cumsum(counts) - counts].tolist()
        firsts = [int(plan.positions[0]) for plan in self.plans]
        return list(zip(range(len(counts)), firsts, counts, places, strict=True))

    def chosen(self, output: torch.Tensor) -> torch.Tensor:
        """Return the vectors that make up the rows, in their order, in float32.

        Arguments:
            output: what a layer puts out, shape (texts, tokens, width), or (texts, width).
        """
        if output.dim() == 2:
            return output.index_select(0, self._texts.to(output.device)).float()
        return output.flatten(0, 1).index_select(0, self._source.to(output.device)).float()

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return the rows, shape (rows, width), of what `chosen` has returned."""
        if len(chosen) == len(self._texts):
            return chosen
        return aggregate(chosen, self._counts.to(chosen.device), self.aggregation)

    def of_tokens(self, output: torch.Tensor) -> torch.Tensor:
        """Return the rows, shape (rows, width), float32, from a layer's output, shape (texts, tokens, width)."""
        return self.rows(self.chosen(output))

    def plan_of(self, place: int, count: int) -> RowPlan:
        """Return the text of one of the `count` chosen vectors."""
        row = place if count == len(self._texts) else int(torch.searchsorted(self._counts.cumsum(0), place, right=True))
        return self.plans[int(self._texts[row])]


def _side_by_side(plan: RowPlan) -> bool:
    first = int(plan.positions[0])
    return bool((plan.of_token[first : first + len(plan)] == np.arange(len(plan))).all())


def aggregate(tokens: torch.Tensor, counts: torch.Tensor, aggregation: str) -> torch.Tensor:
    """Make one row of several tokens, number by number.

    Arguments:
        tokens: shape (tokens, width), those of the first row first.
        counts: how many tokens each row has, at least one; shape (rows,).
        aggregation: one of `AGGREGATIONS`; `signed_max` is the value that is largest without its sign, of two equal
            ones the positive.

    Returns:
        Shape (rows, width).
    """
    if len(counts) == len(tokens):
        return tokens
    if aggregation in {"first", "last"}:
        ends = counts.cumsum(0)
        return tokens.index_select(0, ends - counts if aggregation == "first" else ends - 1)
    if aggregation == "signed_max":
        most, least = (aggregate(tokens, counts, name) for name in ("max", "min"))
        return torch.where(-least > most, least, most)
    return torch.segment_reduce(tokens, aggregation, lengths=counts, axis=0)
