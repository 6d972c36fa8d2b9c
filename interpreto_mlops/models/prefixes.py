"""Rows that begin as their text does: a causal model computes the common beginning once.

The text itself and the rows that share least of it run first, as they are; from then on the keys and values of the text
stand for the beginning of the other rows, and only what follows goes through the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from transformers import DynamicCache

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.readouts import SourceTokenScores, TokenScores
from interpreto_mlops.models.requests import Readout, ScoreRequest
from interpreto_mlops.models.text_model import TextModel

Layers = list[tuple[torch.Tensor, torch.Tensor]]

_WORTH = 0.85  # of the tokens may be computed, at most, for reuse to pay
_BATCH_TOKENS = 32  # what a further batch costs, in tokens
_PROBE_TOKENS = 8


class Row(Protocol):
    """A row that waits for the model."""

    @property
    def ids(self) -> Ids:
        """Its token ids."""

    @property
    def readout(self) -> Readout:
        """What to read for it."""


@dataclass(frozen=True, eq=False)
class PrefixBatch:
    """Rows that run together.

    Arguments:
        start: how many of the text's tokens they take over.
        rows: the rows.
        lengths: how many tokens of each are computed; one more than rows when the text itself runs along.
    """

    start: int
    rows: list[Row]
    lengths: list[int]


class PrefixGroup:
    """The rows of one text that wait.

    Arguments:
        encoding: the text.
        readout: what is read for the text, when it is not among the rows; of a row of which tokens are taken out it
            will do, too: only what stands at the same place in both is taken over.
        rows: its rows.
    """

    def __init__(self, encoding: Encoding, readout: TokenScores, rows: Sequence[Row]) -> None:
        self.own = next((row for row in rows if np.array_equal(row.ids, encoding.ids)), None)
        readout = readout if self.own is None else cast(TokenScores, self.own.readout)
        self.encoding, self.readout = encoding, readout
        starts = [common_start(readout, encoding.ids, cast(TokenScores, row.readout), row.ids) for row in rows]
        order = sorted(range(len(rows)), key=lambda k: starts[k])
        self.rows = [rows[k] for k in order]
        self.starts = [starts[k] for k in order]
        self.layers: Layers | None = None
        self.known: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the rows have."""
        return sum(len(row.ids) for row in self.rows)

    def next_batch(self, budget: int) -> PrefixBatch:
        """Return the next rows to run: those that share least beside the text, or those that share most."""
        if self.layers is None:
            return self._opening(budget)
        return self._following(self.rows, self.starts, budget)

    def _opening(self, budget: int) -> PrefixBatch:
        length = max([len(self.encoding), *(len(row.ids) for row in self.rows)])
        count = max(0, budget // length - 1)
        rows = [] if self.own is None else [self.own]
        rows += [row for row in self.rows if row is not self.own][:count]
        text = [] if self.own is not None else [len(self.encoding)]
        return PrefixBatch(0, rows, [*text, *(len(row.ids) for row in rows)])

    @staticmethod
    def _following(rows: Sequence[Row], starts: Sequence[int], budget: int) -> PrefixBatch:
        longest, count = 0, 0
        for row, start in zip(reversed(rows), reversed(starts), strict=True):
            longest = max(longest, len(row.ids))
            if count and (count + 1) * (longest - start) > budget:
                break
            count += 1
        first = len(rows) - count
        chosen = list(rows[first:])
        return PrefixBatch(starts[first], chosen, [len(row.ids) - starts[first] for row in chosen])

    def cost(self, budget: int) -> int:
        """Return what running the group would cost, in tokens."""
        opening = self._opening(budget)
        cost = len(opening.lengths) * max(opening.lengths) + _BATCH_TOKENS
        rows, starts = self._without(opening)
        while rows:
            batch = self._following(rows, starts, budget)
            cost += len(batch.lengths) * max(batch.lengths) + _BATCH_TOKENS
            rows, starts = rows[: -len(batch.rows)], starts[: -len(batch.rows)]
        return cost

    def read(self, model: TextModel, batch: PrefixBatch) -> torch.Tensor:
        """Run a batch, shape (rows, width)."""
        if self.layers is None:
            return self._read_opening(model, batch)
        assert self.known is not None
        readouts = [_after(cast(TokenScores, row.readout), batch.start) for row in batch.rows]
        inputs = _inputs(model, [self.encoding] * len(batch.rows), [row.ids for row in batch.rows], batch.start)
        if batch.start:
            inputs["past_key_values"] = _expanded(self.layers, batch.start, len(batch.rows))
        read = type(self.readout).read(model, inputs, readouts)
        values = self.known.repeat(len(batch.rows), 1)
        per_token = values.shape[1] // len(self.readout.ids)
        for value, new, row in zip(values.unflatten(1, (-1, per_token)), read, batch.rows, strict=True):
            late = [position >= batch.start for position in cast(TokenScores, row.readout).positions]
            value[late] = new.unflatten(0, (-1, per_token))[: sum(late)]
        return values

    def _read_opening(self, model: TextModel, batch: PrefixBatch) -> torch.Tensor:
        readouts = [row.readout for row in batch.rows]
        ids = [row.ids for row in batch.rows]
        added = len(batch.lengths) - len(batch.rows)
        if added:
            readouts, ids = [self.readout, *readouts], [self.encoding.ids, *ids]
        inputs: dict[str, Any] = type(self.readout).inputs(model, [self.encoding] * len(ids), ids, readouts)
        cache = inputs["past_key_values"] = DynamicCache()
        read = type(self.readout).read(model, inputs, readouts)
        self.known = read[:1]
        self.layers = _kept(cache, len(self.encoding))
        return read[added:]

    def remove(self, batch: PrefixBatch) -> None:
        """Forget rows that have run."""
        self.rows, self.starts = self._without(batch)

    def _without(self, batch: PrefixBatch) -> tuple[list[Row], list[int]]:
        gone = set(map(id, batch.rows))
        left = [k for k, row in enumerate(self.rows) if id(row) not in gone]
        return [self.rows[k] for k in left], [self.starts[k] for k in left]


class PrefixReuse:
    """Whether and when the beginning of a text is computed once for its rows.

    Arguments:
        model: the model.
        wanted: `auto` for where it pays, True for wherever it can be done, False for never.

    Raises:
        InputError: `wanted` is something else.
    """

    def __init__(self, model: TextModel, wanted: bool | str) -> None:
        if wanted != "auto" and not isinstance(wanted, bool):
            raise InputError(f"prefix_reuse must be 'auto', True or False, not {wanted!r}")
        self.model, self.wanted = model, wanted
        self._works: bool | None = None

    def group(self, request: ScoreRequest, readout: Readout, rows: Sequence[Row], budget: int) -> PrefixGroup | None:
        """Return the rows as a group, or None when they had better run like any others.

        Arguments:
            request: what the program asked for.
            readout: what would be read for the text itself.
            rows: those of its rows that must run.
            budget: the most tokens of a batch.
        """
        if len(rows) < 2:
            return None
        tokens = sum(len(row.ids) for row in rows)
        if self.wanted == "auto" and tokens <= budget:
            return None
        group = PrefixGroup(request.encoding, cast(TokenScores, readout), rows)
        if self.wanted == "auto" and group.cost(budget) > _WORTH * tokens:
            return None
        return group if self.works else None

    def fits(self, request: ScoreRequest, readout: Readout) -> bool:
        """Whether rows of this request can be grouped at all."""
        # Segments would have to be cut, too.
        return (
            self.wanted is not False
            and isinstance(readout, TokenScores)
            and not isinstance(readout, SourceTokenScores)
            and request.encoding.token_type_ids is None
            and len(request.encoding) > 1
        )

    @property
    def works(self) -> bool:
        """Whether the model gives the same with and without reuse: tried once, on a few tokens."""
        if self._works is None:
            try:
                with self.model.evaluating(), torch.inference_mode(), self.model.execution.plainly():
                    self._works = _agrees(self.model)
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                # Models with a state of another kind than keys and values refuse in their own ways.
                self._works = False
        return self._works


def common_start(readout: TokenScores, ids: Ids, other: TokenScores, row: Ids) -> int:
    """Return how many tokens a row can take over from its text.

    At least one token is left, and no target lies before that place which is read elsewhere in the text.

    Arguments:
        readout: what is read for the text.
        ids: the text's, shape (tokens,).
        other: what is read for the row.
        row: its ids, shape (other tokens,).
    """
    shortest = min(len(ids), len(row))
    differs = np.flatnonzero(ids[:shortest] != row[:shortest])
    start = int(differs[0]) if len(differs) else shortest
    moved = [min(a, b) for a, b in zip(readout.positions, other.positions, strict=True) if a != b]
    return min([start, len(row) - 1, max(other.positions), *moved])


def _after(readout: TokenScores, start: int) -> TokenScores:
    """Return the same question about the tokens from `start` on."""
    late = [k for k, position in enumerate(readout.positions) if position >= start]
    positions = tuple(readout.positions[k] - start for k in late)
    return replace(readout, positions=positions, ids=tuple(readout.ids[k] for k in late))


def _inputs(model: TextModel, encodings: Sequence[Encoding], rows: Sequence[Ids], start: int) -> dict[str, Any]:
    inputs: dict[str, Any] = model.inputs(encodings, [row[start:] for row in rows])
    new = inputs["attention_mask"]
    inputs["attention_mask"] = torch.cat([new.new_ones(len(rows), start), new], dim=1)
    if "position_ids" in model.accepts:
        inputs["position_ids"] = torch.arange(start, start + new.shape[1], device=new.device).expand(len(rows), -1)
    return inputs


def _kept(cache: DynamicCache, tokens: int) -> Layers:
    # Copies, so that the keys and values of the other rows are given back.
    layers: list[Any] = cache.layers
    return [(layer.keys[:1, :, :tokens].clone(), layer.values[:1, :, :tokens].clone()) for layer in layers]


def _expanded(layers: Layers, start: int, rows: int) -> DynamicCache:
    """Return a cache of its own, for a call changes the one that it is given."""
    cache = DynamicCache()
    for number, parts in enumerate(layers):
        keys, values = (part[:, :, :start].expand(rows, -1, -1, -1) for part in parts)
        cache.update(keys, values, number)
    return cache


def _agrees(model: TextModel) -> bool:
    ids = np.random.default_rng(0).integers(0, model.embedding.weight.shape[0], size=(3, _PROBE_TOKENS))
    ids[:, : _PROBE_TOKENS // 2] = ids[0, : _PROBE_TOKENS // 2]
    places = (_PROBE_TOKENS // 2 - 1, _PROBE_TOKENS - 2, _PROBE_TOKENS - 1)
    text = Encoding("", 0, ids[0], np.zeros(_PROBE_TOKENS, dtype=bool), (), None)
    readout = TokenScores(places, tuple(int(i) for i in ids[0, :3]), 1)
    rows = [_ProbeRow(row, readout) for row in ids]
    plain = TokenScores.read(model, model.inputs([text] * 3, list(ids)), [readout] * 3)
    group = PrefixGroup(text, readout, rows)
    read: list[torch.Tensor] = []
    ran: list[Any] = []
    for budget in (1, 3 * _PROBE_TOKENS):
        batch = group.next_batch(budget)
        read.append(group.read(model, batch))
        group.remove(batch)
        ran += batch.rows
    found, wanted = torch.cat(read), plain[[rows.index(row) for row in ran]]
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


@dataclass(frozen=True, eq=False)
class _ProbeRow:
    ids: Ids
    readout: Readout
