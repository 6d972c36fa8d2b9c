"""Sparse principal components as concepts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.decomposition import dict_learning

from interpreto_mlops.concepts.base import DICTIONARIES, check_enough_rows, check_integer, check_number
from interpreto_mlops.concepts.linear import LinearDictionary, linear_state
from interpreto_mlops.concepts.moments import Moments, MomentsLearner, check_within_width, leading_directions
from interpreto_mlops.concepts.scikit import noting_convergence, random_state
from interpreto_mlops.concepts.training import DataFacts, State


@DICTIONARIES.register("sparse_pca")
@dataclass(kw_only=True, eq=False)
class SparsePCAConcepts(LinearDictionary):
    """Components that are zero in many dimensions of the layer: scikit-learn's `SparsePCA`, from moments alone.

    Its objective sees the rows only through their covariance (a rotation of the rows changes nothing), so that one pass
    over any number of rows is exact and scikit-learn solves a problem as tall as the layer is wide. Rows are encoded
    by ridge regression on the components. Codes are signed.

    Arguments:
        n_concepts: how many components, at most the width of the layer.
        seed: decides what replaces a component that nothing uses.
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
    max_iter: int = 200
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
        variances, directions = leading_directions(moments.covariance, len(moments.mean))
        spreads = moments.covariance.diagonal().clamp(min=0.0).sqrt()
        unit = spreads[spreads > 0.0].median()
        # As many rows as dimensions, with the covariance of all rows.
        rows = variances.sqrt()[:, None] * directions / unit
        # A regression inside an iteration need not converge; the iterations must.
        with noting_convergence():
            loadings, *_, n_iter = dict_learning(
                rows.T.numpy(),
                self.n_concepts,
                alpha=self.alpha,
                tol=self.tol,
                max_iter=self.max_iter,
                method="cd",
                random_state=random_state(self.seed),
                return_n_iter=True,
            )
        if n_iter == self.max_iter:
            warnings.warn(
                f"sparse PCA stopped after {n_iter} iterations before it converged; raise max_iter or tol", stacklevel=2
            )
        return self._state(moments.mean, torch.from_numpy(loadings).T)

    def _state(self, mean: torch.Tensor, loadings: torch.Tensor) -> State:
        norms = loadings.norm(dim=1, keepdim=True)
        if n_empty := int((norms == 0.0).sum()):
            warnings.warn(
                f"{n_empty} of {len(loadings)} sparse components are zero everywhere; lower alpha ({self.alpha!r})",
                stacklevel=2,
            )
        components = loadings / norms.where(norms > 0.0, 1.0)
        signs = components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()
        components = components * signs.where(signs != 0.0, 1.0)
        gram = components @ components.T + self.ridge * torch.eye(len(components), dtype=torch.float64)
        encoder = torch.linalg.lstsq(gram, components).solution
        return linear_state(mean, 1.0, encoder, torch.zeros(len(components)), components)
