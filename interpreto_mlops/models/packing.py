"""Rows of different lengths into batches of like lengths."""

from __future__ import annotations

from collections.abc import Sequence


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
