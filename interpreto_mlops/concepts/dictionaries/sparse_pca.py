"""Sparse principal components as concepts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.lasso import improve_directions, lasso_codes
from interpreto_mlops.concepts.linear import LinearDictionary, linear_state
from interpreto_mlops.concepts.moments import Moments, MomentsLearner, check_within_width, leading_directions
from interpreto_mlops.concepts.training import DataFacts, State

# A regression inside an iteration need not be as exact as a code.
_TOLERANCE = 1e-7


@DICTIONARIES.register("sparse_pca")
@dataclass(kw_only=True, eq=False)
class SparsePCAConcepts(LinearDictionary):
    """Components that are zero in many dimensions of the layer, from the moments of all rows.

    It is scikit-learn's `SparsePCA`. Its objective sees the rows only through their covariance (a rotation of the
    rows changes nothing), so that one pass over any number of rows suffices, and the problem that is left is as tall
    as the layer is wide. Rows are encoded by ridge regression on the components. Codes are signed, and the largest
    entry of each component is positive.

    Arguments:
        n_concepts: how many components, at most the width of the layer.
        seed: has no influence, for nothing is random; it is there because every family has one.
        alpha: how sparse: the loading (standard deviation times entry) below which an entry becomes zero, where 1 is
            the standard deviation of the layer's median dimension. scikit-learn's `alpha` is this times that deviation
            times √rows.
        ridge: shrinkage of the codes, which keeps them finite when components are nearly parallel.
        max_iter, tol: the most iterations, and the relative improvement that ends them.

    Source: Zou, Hastie and Tibshirani 2006 for the idea; the objective is that of Mairal et al. 2009, sparse in the
    components: ½ ‖X − U V‖² + α ‖V‖₁ with the columns of U no longer than 1.
    """

    signed: ClassVar[bool] = True

    alpha: float = 0.05
    ridge: float = 0.01
    max_iter: int = 1000
    tol: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("max_iter", self.max_iter, 1)
        for name in ("alpha", "ridge", "tol"):
            check_number(name, getattr(self, name), 0.0)

    def begin(self, facts: DataFacts) -> MomentsLearner:
        """Return what gathers the covariance.

        Raises:
            InputError: more components than dimensions or than rows.
        """
        check_within_width("sparse PCA", self.n_concepts, facts)
        check_enough_rows(facts, self.n_concepts)
        return MomentsLearner(facts, self._solve)

    def _solve(self, moments: Moments) -> State:
        loadings = self._loadings(moments.covariance)
        norms = loadings.norm(dim=1, keepdim=True)
        if n_empty := int((norms == 0.0).sum()):
            warnings.warn(
                f"{n_empty} of {self.n_concepts} sparse components are zero everywhere; lower alpha ({self.alpha!r})",
                stacklevel=2,
            )
        components = loadings / norms.where(norms > 0.0, 1.0)
        components *= components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()
        gram = components @ components.T + self.ridge * torch.eye(self.n_concepts, dtype=components.dtype)
        # Eigenvectors, not a least-squares solver: the rounding of those depends on where in memory the numbers lie.
        encoder = torch.linalg.pinv(gram, hermitian=True) @ components
        return linear_state(moments.mean, 1.0, encoder, torch.zeros(self.n_concepts), components)

    def _loadings(self, covariance: torch.Tensor) -> torch.Tensor:
        """Return the components times the deviations along them, shape (n_concepts, width), in the data's unit."""
        variances, axes = leading_directions(covariance, len(covariance))
        deviations = covariance.diagonal().clamp(min=0.0).sqrt()
        unit = deviations[deviations > 0.0].median()
        # Dimensions as rows, of as many numbers as there are dimensions, with the covariance of all rows.
        rows = axes.T * variances.sqrt() / unit
        # The principal components begin: loadings (width, n_concepts), and scores (n_concepts, width) of norm 1.
        loadings = axes[: self.n_concepts].T
        scores = torch.eye(len(rows), dtype=rows.dtype)[: self.n_concepts] * variances.sqrt() / unit
        last = float("inf")
        for _ in range(self.max_iter):
            loadings = lasso_codes(rows, scores, self.alpha, tol=_TOLERANCE, start=loadings)
            unused = improve_directions(scores, loadings.T @ loadings, loadings.T @ rows)
            error = rows - loadings @ scores
            cost = float(0.5 * error.square().sum() + self.alpha * loadings.abs().sum())
            if last - cost < self.tol * cost:
                return loadings.T
            last = cost
            _replace(scores, unused, error)
        warnings.warn(
            f"sparse PCA stopped after {self.max_iter} iterations before it converged; raise max_iter or tol",
            stacklevel=2,
        )
        return loadings.T


def _replace(scores: torch.Tensor, unused: torch.Tensor, error: torch.Tensor) -> None:
    """Let unused scores go on from the dimensions that are explained worst; in place."""
    norms = error.norm(dim=1)
    worst = norms.argsort(descending=True, stable=True)[: int(unused.sum())]
    found = norms[worst] > 0.0
    scores[unused.nonzero().flatten()[found]] = error[worst[found]] / norms[worst[found], None]
