"""SVD: exact, in one pass, not centred, equal to scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from interpreto_mlops.concepts import PCAConcepts, SVDConcepts, evaluate
from interpreto_mlops.errors import InputError


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(3.0, 0.3, 20)
    return torch.randn(5000, 20, generator=generator) * spread @ torch.randn(20, 20, generator=generator) + 7.0


def test_it_is_scikit_learns(rows: torch.Tensor) -> None:
    theirs = TruncatedSVD(6, algorithm="arpack", random_state=0).fit(rows.double().numpy())
    ours = SVDConcepts(n_concepts=6).fit(rows, progress=False)
    signs = np.sign((ours.dictionary.numpy() * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.dictionary.numpy(), theirs.components_ * signs[:, None], atol=1e-5)
    codes = theirs.transform(rows.double().numpy())
    np.testing.assert_allclose(ours.encode(rows).numpy(), codes * signs, atol=1e-5 * np.abs(codes).max())
    np.testing.assert_allclose(ours.decode(ours.encode(rows)).numpy(), theirs.inverse_transform(codes), atol=1e-3)


def test_nothing_is_centred(rows: torch.Tensor) -> None:
    dictionary = SVDConcepts(n_concepts=3).fit(rows + 100.0, progress=False)
    assert float(dictionary.encode(torch.zeros(1, 20)).abs().max()) == 0.0
    mean = (rows + 100.0).mean(dim=0)
    assert float(dictionary.dictionary[0] @ mean / mean.norm()) > 0.999
    centred = rows - rows.mean(dim=0)
    there, here = (family(n_concepts=3).fit(centred, progress=False) for family in (PCAConcepts, SVDConcepts))
    torch.testing.assert_close(here.dictionary, there.dictionary, atol=1e-4, rtol=0)


def test_all_components_explain_everything(rows: torch.Tensor) -> None:
    scores = evaluate(SVDConcepts(n_concepts=20).fit(rows, progress=False), rows)
    assert scores["reconstruction/r2"] == pytest.approx(1.0, abs=1e-9)


def test_more_components_than_dimensions_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(InputError, match="SVD of activations of width 20 has no more components than that, not 21"):
        SVDConcepts(n_concepts=21).fit(rows, progress=False)
