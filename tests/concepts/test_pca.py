"""PCA: exact, in one pass, equal to scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from interpreto_mlops.concepts import PCAConcepts, evaluate
from interpreto_mlops.errors import InputError


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(3.0, 0.3, 20)
    return torch.randn(5000, 20, generator=generator) * spread @ torch.randn(20, 20, generator=generator) + 7.0


def test_it_is_scikit_learns(rows: torch.Tensor) -> None:
    theirs = PCA(n_components=6, svd_solver="full").fit(rows.double().numpy())
    ours = PCAConcepts(n_concepts=6).fit(rows, progress=False)
    np.testing.assert_allclose(ours.dictionary.numpy(), theirs.components_, atol=1e-5)
    np.testing.assert_allclose(ours.mean.numpy(), theirs.mean_, atol=1e-5)
    codes = theirs.transform(rows.double().numpy())
    np.testing.assert_allclose(ours.encode(rows).numpy(), codes, atol=1e-5 * np.abs(codes).max())
    np.testing.assert_allclose(ours.decode(ours.encode(rows)).numpy(), theirs.inverse_transform(codes), atol=1e-3)


def test_the_mean_known_beforehand_need_not_be_exact(rows: torch.Tensor) -> None:
    """Statistics gathered before rows were rounded for storage differ a little from those of the stored rows."""

    class Stored:
        width, provenance = 20, {"layer": "x"}
        mean, variance = rows.double().mean(dim=0).numpy() + 0.3, rows.double().var(dim=0).numpy()

        def __len__(self) -> int:
            return len(rows)

        def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, skip: int = 0):  # type: ignore[no-untyped-def]
            return iter(rows.split(size))

    near, exact = PCAConcepts(n_concepts=6).fit(Stored(), progress=False), PCAConcepts(n_concepts=6).fit(rows)
    torch.testing.assert_close(near.dictionary, exact.dictionary)
    torch.testing.assert_close(near.mean, exact.mean)
    assert near.provenance == {"layer": "x"}


def test_the_first_components_do_not_depend_on_their_number_or_the_seed(rows: torch.Tensor) -> None:
    few = PCAConcepts(n_concepts=3, seed=5).fit(rows, progress=False)
    many = PCAConcepts(n_concepts=20).fit(rows, progress=False)
    assert torch.equal(few.dictionary, many.dictionary[:3])
    assert few.history_ == []


def test_all_components_explain_everything(rows: torch.Tensor) -> None:
    scores = evaluate(PCAConcepts(n_concepts=20).fit(rows, progress=False), rows)
    assert scores["reconstruction/r2"] == pytest.approx(1.0, abs=1e-9)
    # A code may by chance be next to nothing beside the largest of its row.
    assert scores["complexity/l0"] == pytest.approx(20.0, abs=0.01)


def test_rows_of_low_rank_still_give_directions(rows: torch.Tensor) -> None:
    flat = rows[:, :1] @ torch.ones(1, 20)
    dictionary = PCAConcepts(n_concepts=5).fit(flat, progress=False)
    torch.testing.assert_close(dictionary.dictionary @ dictionary.dictionary.T, torch.eye(5), atol=1e-5, rtol=0)


def test_more_components_than_dimensions_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(InputError, match="width 20 has no more components than that, not 21"):
        PCAConcepts(n_concepts=21).fit(rows, progress=False)
