"""What the families that scikit-learn solves for have in common."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.exceptions import ConvergenceWarning

MOST_ROWS = 100_000
"""How many rows an iterative solver sees by default: an even sample that takes seconds to minutes."""


def random_state(seed: int) -> np.random.RandomState:
    """Return a generator of its own for scikit-learn, from a seed of any size."""
    return np.random.RandomState(np.random.MT19937(seed))


@contextmanager
def noting_convergence() -> Iterator[list[str]]:
    """Keep scikit-learn's warnings of solvers that have not converged; they are in the list when the block ends."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    for entry in caught:
        if issubclass(entry.category, ConvergenceWarning):
            messages.append(str(entry.message))
        else:
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)
