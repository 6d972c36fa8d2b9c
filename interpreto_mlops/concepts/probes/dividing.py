"""Dividing rows so that those of one text are never on both sides."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from interpreto_mlops.errors import DataError

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Division = tuple[Integers, Integers]
"""The places of the rows to learn from, and of those held out."""


def folds_of(holds: Bools, groups: Integers, n_folds: int, seed: int) -> Iterator[Division]:
    """Yield divisions in each of which another part is held out, with about the same share of the concept.

    Arguments:
        holds: whether each row holds the concept, shape (rows,).
        groups: of the rows; those of one group are always together.
        n_folds: how many parts, at least two.
        seed: of the division.

    Raises:
        DataError: a part would hold out no row with the concept, or none without, or leave none to learn from.
    """
    fewest = _fewest(holds, groups)
    if fewest < n_folds:
        raise DataError(
            f"{n_folds} folds need {n_folds} texts with the concept and {n_folds} without, and there are only {fewest} "
            "of one kind"
        )
    maker = StratifiedGroupKFold(n_folds, shuffle=True, random_state=np.random.RandomState(np.random.MT19937(seed)))
    with warnings.catch_warnings():
        # It counts rows and speaks of the fewest; what matters is checked here.
        warnings.simplefilter("ignore", UserWarning)
        divisions = list(maker.split(np.zeros((len(holds), 1)), holds, groups))
    for train, held in divisions:
        for part in (train, held):
            if holds[part].all() or not holds[part].any():
                raise DataError(
                    f"the texts cannot be divided into {n_folds} parts that all have rows with the concept and "
                    "without; give more texts, or fewer folds"
                )
        yield train, held


def divided(holds: Bools, groups: Integers, share: float, seed: int) -> Division:
    """Return one division, in which about a share of the rows is held out: more, up to a half, where one kind is rare.

    Raises:
        DataError: fewer than two groups of a kind, or as for `folds_of`.
    """
    if (fewest := _fewest(holds, groups)) < 2:
        raise DataError(
            f"calibration holds out texts, and needs 2 with the concept and 2 without; there are only {fewest} of one "
            "kind; give more texts, or calibration='none'"
        )
    return next(folds_of(holds, groups, max(2, min(round(1 / share), fewest)), seed))


def _fewest(holds: Bools, groups: Integers) -> int:
    """Return how many groups have rows of the rarer kind."""
    return min(len(np.unique(groups[holds])), len(np.unique(groups[~holds])))
