"""Texts that a dictionary is not fitted on."""

from __future__ import annotations

import hashlib

from interpreto_mlops.text.datasets import TextDataset

_FEW_TEXTS = 10


def hold_out(dataset: TextDataset, share: float) -> tuple[TextDataset, TextDataset]:
    """Split texts by their hash, so that the same text is always on the same side.

    Returns:
        The texts to fit on and those to score on; both are the whole data set when it has under ten texts, when the
        share is 0, or when a side would be empty.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for place, text in enumerate(dataset.texts):
        # With a prefix of its own: a data set may have been split by the hash of its texts already.
        digest = hashlib.sha256(b"holdout:" + text.encode("utf-8", "surrogatepass")).digest()
        number = int.from_bytes(digest[:8], "big")
        sides[number < share * 2**64].append(place)
    if len(dataset) < _FEW_TEXTS or not all(sides):
        return dataset, dataset
    fit, score = (_subset(dataset, places) for places in sides)
    return fit, score


def _subset(dataset: TextDataset, places: list[int]) -> TextDataset:
    labels = None if dataset.labels is None else tuple(dataset.labels[i] for i in places)
    return TextDataset(dataset.name, tuple(dataset.texts[i] for i in places), labels, dataset.source)
