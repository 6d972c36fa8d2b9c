"""Probes that scikit-learn fits: ridge regression, logistic regression, linear support vector machines."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.svm import LinearSVC

from interpreto_mlops.concepts.base import check_integer, check_number
from interpreto_mlops.concepts.probes.base import PROBES, Bools, Floats, Learned
from interpreto_mlops.concepts.probes.linear import LinearProbe
from interpreto_mlops.concepts.scikit import noting_convergence, random_state


@dataclass(kw_only=True, eq=False)
class _ScikitProbe(LinearProbe):
    normalisation: str = "standardise"
    balanced: bool = True

    @property
    def _class_weight(self) -> str | None:
        return "balanced" if self.balanced else None

    @abstractmethod
    def solver(self) -> Any:
        """Return scikit-learn's classifier, not fitted."""

    def learn(self, rows: Floats, holds: Bools) -> Learned:
        """Return coefficients and intercept."""
        with noting_convergence() as warned:
            found = self.solver().fit(rows, holds)
        if warned:
            warnings.warn(
                f"the probe {self.name!r} stopped before it converged; raise max_iter, or standardise", stacklevel=2
            )
        coefficients, intercept = np.ravel(found.coef_), np.ravel(found.intercept_)[0]
        return {"encoder": coefficients.astype(np.float64), "bias": np.asarray(intercept, np.float64)}


@PROBES.register("ridge")
@dataclass(kw_only=True, eq=False)
class RidgeProbe(_ScikitProbe):
    """Linear regression of +1 and −1 with a ridge: scikit-learn's RidgeClassifier.

    Arguments:
        alpha: the ridge, in units of the normalised rows.
        balanced: whether rows with the concept and without weigh the same in sum.

    The other arguments: as for every probe, but that rows are standardised by default.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, 0.0)

    def solver(self) -> RidgeClassifier:
        """Return scikit-learn's classifier, not fitted."""
        return RidgeClassifier(alpha=self.alpha, class_weight=self._class_weight)


@dataclass(kw_only=True, eq=False)
class _IteratedProbe(_ScikitProbe):
    """A probe whose solver takes steps until its penalised loss no longer falls."""

    c: float = 1.0
    max_iter: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("c", self.c, np.finfo(float).tiny)
        check_integer("max_iter", self.max_iter, 1)


@PROBES.register("logistic")
@dataclass(kw_only=True, eq=False)
class LogisticProbe(_IteratedProbe):
    """Logistic regression with a ridge: scikit-learn's LogisticRegression.

    Arguments:
        c: the inverse of the ridge's weight.
        balanced: whether rows with the concept and without weigh the same in sum.
        max_iter: the most steps of the solver.

    The other arguments: as for every probe, but that rows are standardised by default.
    """

    def solver(self) -> LogisticRegression:
        """Return scikit-learn's classifier, not fitted."""
        return LogisticRegression(C=self.c, class_weight=self._class_weight, max_iter=self.max_iter)


@PROBES.register("linear_svm")
@dataclass(kw_only=True, eq=False)
class LinearSVMProbe(_IteratedProbe):
    """A linear support vector machine with squared hinge loss: scikit-learn's LinearSVC.

    Arguments:
        c: the inverse of the ridge's weight.
        balanced: whether rows with the concept and without weigh the same in sum.
        max_iter: the most steps of the solver.

    The other arguments: as for every probe, but that rows are standardised by default.
    """

    max_iter: int = 10_000

    def solver(self) -> LinearSVC:
        """Return scikit-learn's classifier, not fitted."""
        return LinearSVC(
            C=self.c, class_weight=self._class_weight, max_iter=self.max_iter, random_state=random_state(self.seed)
        )
