"""The BatchTopK autoencoder: k a row on average, by a threshold that makes each row's codes its own affair."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interpreto_mlops.concepts import BatchTopKSAEConcepts, ConceptDictionary, TopKSAEConcepts
from interpreto_mlops.concepts.dictionaries.batchtopk_sae import _BatchTopK
from interpreto_mlops.errors import InputError

WIDTH, N_CONCEPTS, K = 24, 64, 4


def rows_of(n_rows: int, seed: int) -> torch.Tensor:
    """Rows of which some hold many directions and some hold one, off the origin."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(48, WIDTH, generator=torch.Generator().manual_seed(7))
    share = torch.where(torch.rand(n_rows, 1, generator=generator) < 0.3, 0.2, 0.03)
    present = torch.rand(n_rows, 48, generator=generator) < share
    return (present * (torch.rand(n_rows, 48, generator=generator) + 0.5)) @ directions + 3.0


@pytest.fixture(scope="module")
def fitted() -> BatchTopKSAEConcepts:
    return BatchTopKSAEConcepts(n_concepts=N_CONCEPTS, k=K, n_epochs=20).fit(rows_of(6000, 0), progress=False)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_new_rows_hold_k_concepts_on_average(k: int) -> None:
    dictionary = BatchTopKSAEConcepts(n_concepts=N_CONCEPTS, k=k, n_epochs=20).fit(rows_of(6000, 0), progress=False)
    l0 = (dictionary.encode(rows_of(4000, 1)) > 0).sum(dim=1).double()
    assert float(l0.mean()) == pytest.approx(k, rel=0.08)
    assert float(l0.std()) > 0.3 * k


def test_it_explains_more_than_k_for_every_row(fitted: BatchTopKSAEConcepts) -> None:
    topk = TopKSAEConcepts(n_concepts=N_CONCEPTS, k=K, n_epochs=20).fit(rows_of(6000, 0), progress=False)
    new = rows_of(4000, 1)
    errors = [float((new - each.decode(each.encode(new))).square().sum()) for each in (fitted, topk)]
    assert errors[0] < errors[1]


def test_codes_are_those_above_the_threshold(fitted: BatchTopKSAEConcepts) -> None:
    rows, weights = rows_of(50, 2), fitted.weights
    before = ((rows - weights["mean"]) / weights["scale"]) @ weights["encoder"].T + weights["encoder_bias"]
    assert float(fitted.threshold) > 0
    expected = before * (before > fitted.threshold)
    torch.testing.assert_close(fitted.encode(rows), expected, rtol=1e-4, atol=1e-4)


def test_the_threshold_travels_with_the_weights(fitted: BatchTopKSAEConcepts, tmp_path: Path) -> None:
    loaded = ConceptDictionary.load(fitted.save(tmp_path))
    assert torch.equal(loaded.weights["threshold"], fitted.threshold)


def test_a_batch_keeps_its_largest_outputs_and_remembers_the_least_of_them() -> None:
    made = BatchTopKSAEConcepts(n_concepts=10, k=2).architecture(WIDTH)
    assert isinstance(made, _BatchTopK)
    least = []
    for seed in range(3):
        before = torch.randn(6, 10, generator=torch.Generator().manual_seed(seed))
        places = made.select(before)
        expected = before.flatten().topk(12)
        assert places.flat.tolist() == sorted(expected.indices.tolist())
        assert torch.equal(before[places.flat // 10, places.concepts], before.flatten()[places.flat])
        assert places.offsets.diff().tolist() == [int(((places.flat // 10) == row).sum()) for row in range(6)]
        least.append(float(expected.values.min()))
    assert float(made.kept["threshold"]) == pytest.approx(sum(least) / 3, rel=1e-5)


def test_fewer_positive_outputs_than_places_need_no_threshold() -> None:
    made = BatchTopKSAEConcepts(n_concepts=10, k=5).architecture(WIDTH)
    assert isinstance(made, _BatchTopK)
    made.select(-torch.rand(6, 10, generator=torch.Generator().manual_seed(0)))
    assert float(made.kept["threshold"]) == 0.0


def test_a_k_that_is_too_large_is_refused() -> None:
    with pytest.raises(InputError, match=r"k must be at most n_concepts \(8\), not 9"):
        BatchTopKSAEConcepts(n_concepts=8, k=9)
