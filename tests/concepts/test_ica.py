"""ICA: scikit-learn's sources and mixing matrix, with the mean kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import FastICA

from interpreto_mlops.concepts import ICAConcepts, PCAConcepts, evaluate, fit_together
from interpreto_mlops.concepts.metrics import matching
from interpreto_mlops.errors import InputError

N = 5


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Sources with a long tail on one side, mixed, and their mixing matrix with rows of norm 1."""
    generator = torch.Generator().manual_seed(0)
    sources = torch.rand(4000, N, generator=generator) * (torch.rand(4000, N, generator=generator) < 0.2)
    mixing = torch.randn(N, 12, generator=generator)
    noise = 0.01 * torch.randn(4000, 12, generator=generator)
    return sources @ mixing + noise + 30.0, mixing / mixing.norm(dim=1, keepdim=True)


def test_it_is_scikit_learns(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = planted[0].double().numpy()
    start = np.random.default_rng(3).standard_normal((N, N))
    theirs = FastICA(N, whiten="unit-variance", whiten_solver="eigh", w_init=start, tol=1e-10, max_iter=500).fit(rows)
    ours = ICAConcepts(n_concepts=N, seed=3, tol=1e-10).fit(planted[0], progress=False)
    lengths = np.linalg.norm(theirs.mixing_, axis=0)
    order = np.argsort(-lengths)
    directions = (theirs.mixing_ / lengths).T[order]
    signs = np.sign((directions * ours.dictionary.numpy()).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(ours.dictionary.numpy(), signs * directions, atol=2e-5)
    sources = (theirs.transform(rows) * lengths)[:, order] * signs.T
    np.testing.assert_allclose(ours.encode(planted[0]).numpy(), sources, atol=1e-4 * np.abs(sources).max())
    back = theirs.inverse_transform(theirs.transform(rows))
    np.testing.assert_allclose(ours.decode(ours.encode(planted[0])).numpy(), back, atol=1e-3)


def test_planted_directions_are_found_with_their_signs(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows, mixing = planted
    cosines = ICAConcepts(n_concepts=N).fit(rows, progress=False).dictionary @ mixing.T
    assert float(cosines.amax(dim=1).min()) > 0.99
    assert sorted(cosines.argmax(dim=1).tolist()) == list(range(N))


def test_what_is_decoded_is_the_projection_of_pca(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = planted[0]
    ica, pca = fit_together([ICAConcepts(n_concepts=3), PCAConcepts(n_concepts=3)], rows, progress=False)
    torch.testing.assert_close(ica.decode(ica.encode(rows)), pca.decode(pca.encode(rows)), atol=1e-4, rtol=0)
    assert evaluate(ica, rows)["reconstruction/r2"] > 0.5


def test_concepts_come_in_the_order_of_their_variance(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    codes = ICAConcepts(n_concepts=N).fit(planted[0], progress=False).encode(planted[0]).double()
    variances = codes.var(dim=0)
    assert bool((variances.diff() <= 0.0).all())
    assert bool(((codes - codes.mean(dim=0)).pow(3).mean(dim=0) > 0.0).all())


def test_a_sample_gives_nearly_the_same(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    whole, part = (ICAConcepts(n_concepts=N, max_rows=n).fit(planted[0], progress=False) for n in (4000, 2000))
    assert matching(whole, part)[1].min() > 0.99


def test_what_does_not_converge_is_said_in_one_sentence(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.warns(UserWarning, match="ICA stopped after 1 iterations before it converged; raise max_iter") as found:
        ICAConcepts(n_concepts=N, max_iter=1).fit(planted[0], progress=False)
    assert len(found) == 1


def test_more_components_than_there_are_directions_are_refused(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows = planted[0]
    with pytest.raises(InputError, match="ICA of activations of width 12 has no more components than that, not 13"):
        ICAConcepts(n_concepts=13).fit(rows, progress=False)
    flat = rows[:, :2] @ torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match="vary in 2 directions, so ICA finds no more components than that, not 3"):
        ICAConcepts(n_concepts=3).fit(flat, progress=False)
    with pytest.raises(InputError, match="max_rows must be a whole number of at least 5, not 4"):
        ICAConcepts(n_concepts=5, max_rows=4)
