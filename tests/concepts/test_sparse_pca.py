"""Sparse PCA: scikit-learn's components and codes, though only moments are kept of the rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import SparsePCA

from interpreto_mlops.concepts import PCAConcepts, SparsePCAConcepts, evaluate
from interpreto_mlops.errors import InputError


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of three disjoint groups of dimensions that vary together, and the groups' directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.zeros(3, 12)
    for group in range(3):
        directions[group, 4 * group : 4 * group + 4] = 0.5
    codes = torch.randn(500, 3, generator=generator) * torch.tensor([3.0, 2.6, 2.2])
    return codes @ directions + 0.3 * torch.randn(500, 12, generator=generator) + 20.0, directions


def scikit_learns(rows: torch.Tensor, alpha: float, n_concepts: int = 3) -> SparsePCA:
    unit = rows.double().std(dim=0, correction=0).median() * len(rows) ** 0.5
    solver = SparsePCA(n_concepts, alpha=alpha * float(unit), max_iter=1000, tol=1e-10, method="lars", random_state=0)
    return solver.fit(rows.double().numpy())


@pytest.mark.parametrize("alpha", [0.02, 0.3])
def test_it_is_scikit_learns(planted: tuple[torch.Tensor, torch.Tensor], alpha: float) -> None:
    rows = planted[0]
    theirs = scikit_learns(rows, alpha)
    ours = SparsePCAConcepts(n_concepts=3, alpha=alpha, tol=1e-10).fit(rows, progress=False)
    signs = np.sign((ours.dictionary.numpy() * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.dictionary.numpy(), theirs.components_ * signs[:, None], atol=1e-4)
    codes = theirs.transform(rows.double().numpy())
    np.testing.assert_allclose(ours.encode(rows).numpy(), codes * signs, atol=1e-4 * np.abs(codes).max())
    np.testing.assert_allclose(ours.decode(ours.encode(rows)).numpy(), theirs.inverse_transform(codes), atol=1e-3)


def test_planted_sparse_directions_are_found(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows, directions = planted
    dictionary = SparsePCAConcepts(n_concepts=3, alpha=0.3).fit(rows, progress=False)
    torch.testing.assert_close(dictionary.dictionary, directions, atol=0.05, rtol=0)
    assert torch.equal(dictionary.dictionary != 0.0, directions != 0.0)
    assert evaluate(dictionary, rows)["reconstruction/r2"] > 0.9


def test_without_a_penalty_it_explains_what_pca_does(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = planted[0]
    sparse = SparsePCAConcepts(n_concepts=3, alpha=0.0, ridge=0.0).fit(rows, progress=False)
    pca = PCAConcepts(n_concepts=3).fit(rows, progress=False)
    torch.testing.assert_close(sparse.decode(sparse.encode(rows)), pca.decode(pca.encode(rows)), atol=1e-3, rtol=0)


def test_the_unit_and_the_number_of_the_rows_do_not_matter(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = planted[0]
    once = SparsePCAConcepts(n_concepts=3, alpha=0.1).fit(rows, progress=False)
    other = SparsePCAConcepts(n_concepts=3, alpha=0.1).fit(1000.0 * torch.cat([rows, rows]), progress=False)
    torch.testing.assert_close(once.dictionary, other.dictionary, atol=1e-4, rtol=0)


def test_components_without_an_entry_are_reported(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.warns(UserWarning, match=r"3 of 3 sparse components are zero everywhere; lower alpha \(50\.0\)"):
        SparsePCAConcepts(n_concepts=3, alpha=50.0).fit(planted[0], progress=False)


def test_what_does_not_converge_is_said_in_one_sentence(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.warns(UserWarning, match="sparse PCA stopped after 1 iterations before it converged") as found:
        SparsePCAConcepts(n_concepts=3, max_iter=1).fit(planted[0], progress=False)
    assert len(found) == 1


def test_more_components_than_dimensions_are_refused(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="sparse PCA of activations of width 12 has no more components than that"):
        SparsePCAConcepts(n_concepts=13).fit(planted[0], progress=False)
    with pytest.raises(InputError, match=r"alpha must be a number from 0\.0"):
        SparsePCAConcepts(n_concepts=3, alpha=-1.0)
