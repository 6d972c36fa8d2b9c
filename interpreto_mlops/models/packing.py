"""Rows of different lengths into batches of like lengths."""

from __future__ import annotations

from collections.abc import Sequence

_AHEAD = 64  # rows that are looked at to choose a batch; more change little and take time


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put rows into batches by length, longest first, so that little of a batch is padding.

    Arguments:
        lengths: the tokens of each row.
        budget: the most tokens of a batch, padding included; a single longer row still makes a batch.

    Returns:
        For each batch the places of its rows in `lengths`.
    """
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first row of a batch is its longest, to which the others are padded.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def first_batch(lengths: Sequence[int], budget: int, call: float) -> int:
    """Return how many of the first rows to run together, so that all rows cost least.

    A batch of n rows costs what n rows of its longest cost, and a call beside that. Fewer calls mean more padding; the
    best cut of all rows into batches is found by going back from the last.

    Arguments:
        lengths: the tokens of each row, the longest first, at least one.
        budget: the most tokens of a batch, padding included; a single longer row still makes a batch.
        call: what a call costs beside its tokens, in tokens.
    """
    full = max(1, budget // lengths[0])
    if full <= len(lengths) and lengths[full - 1] == lengths[0]:
        return full
    rows = min(len(lengths), max(_AHEAD, 2 * full))
    cost, size = [0.0] * (rows + 1), 1
    for first in reversed(range(rows)):
        longest, least = lengths[first], float("inf")
        for count in range(1, min(rows - first, max(1, budget // longest)) + 1):
            total = count * longest + call + cost[first + count]
            # Of equals the larger batch: rows that come later may fill the next one.
            if total <= least:
                least, size = total, count
        cost[first] = least
    return size
