"""For methods that need no more of the rows than their mean and covariance: exact, in one pass over any number."""

from __future__ import annotations

from collections.abc import Callable

import torch

from interpreto_mlops.concepts.training import DataFacts, Learner, State
from interpreto_mlops.errors import InputError


class Moments:
    """The mean and the covariance of rows that stream by, in float64.

    Arguments:
        facts: the data's size, mean and variance.
    """

    def __init__(self, facts: DataFacts) -> None:
        # The mean that is known beforehand keeps the sums small; the rows' own mean then makes them exact.
        self._near_mean = torch.from_numpy(facts.mean)
        self.count = 0
        self._sum = torch.zeros(facts.width, dtype=torch.float64)
        self._products = torch.zeros(facts.width, facts.width, dtype=torch.float64)

    def add(self, block: torch.Tensor) -> None:
        """Take the next rows, shape (rows, width)."""
        centred = block.double() - self._near_mean
        self.count += len(block)
        self._sum += centred.sum(dim=0)
        self._products.addmm_(centred.T, centred)

    @property
    def mean(self) -> torch.Tensor:
        """The mean of the rows, shape (width,), float64."""
        return self._near_mean + self._sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """The population covariance, shape (width, width), float64."""
        shift = self._sum / self.count
        return self._products / self.count - torch.outer(shift, shift)

    @property
    def noise(self) -> float:
        """The largest variance that rounding rows to float32 can make."""
        squares = self.mean.square() + self.covariance.diagonal()
        return float(squares.max()) * torch.finfo(torch.float32).eps ** 2

    def state(self) -> State:
        """Return the sums so far."""
        return {"count": torch.tensor(self.count), "sum": self._sum.clone(), "products": self._products.clone()}

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        self.count = int(state["count"])
        self._sum, self._products = state["sum"].clone(), state["products"].clone()


class MomentsLearner(Learner):
    """Gathers the moments in one pass and solves for the dictionary at its end.

    Arguments:
        facts: the data's size, mean and variance.
        solve: from the moments to the fitted tensors.
    """

    def __init__(self, facts: DataFacts, solve: Callable[[Moments], State]) -> None:
        self._moments = Moments(facts)
        self._solve = solve

    def observe(self, block: torch.Tensor) -> None:
        """Add the next rows to the moments."""
        self._moments.add(block)

    def state(self) -> State:
        """Return the sums so far."""
        return self._moments.state()

    def restore(self, state: State) -> None:
        """Go on from what `state` returned."""
        self._moments.restore(state)

    def finish(self) -> State:
        """Solve for the dictionary."""
        return self._solve(self._moments)


def leading_directions(matrix: torch.Tensor, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalues of a symmetric matrix and their eigenvectors, in descending order.

    The largest entry of each eigenvector is positive, as in scikit-learn.

    Arguments:
        matrix: shape (width, width), positive semi-definite.
        number: how many.

    Returns:
        Eigenvalues, shape (number,), not negative, and eigenvectors, shape (number, width).
    """
    # Eigenvalues ascend, and eigenvectors are columns.
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors.T.flip(0)[:number]
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return values.flip(0)[:number].clamp(min=0.0), rows * largest.sign()


def check_within_width(method: str, n_concepts: int, facts: DataFacts) -> None:
    """Refuse more concepts than dimensions, for a method whose concepts are independent directions.

    Raises:
        InputError: there are more.
    """
    if n_concepts > facts.width:
        raise InputError(
            f"{method} of activations of width {facts.width} has no more components than that, not {n_concepts}"
        )
