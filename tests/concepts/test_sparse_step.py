"""The sparse products and their gradients are those of the dense formulas."""

from __future__ import annotations

import pytest
import torch

from interpreto_mlops.concepts.dictionaries.topk_sae import TopKSAEConcepts
from interpreto_mlops.concepts.overcomplete_import import overcomplete_module
from interpreto_mlops.concepts.sae_architecture import SelectingEncoder
from interpreto_mlops.concepts.sparse_step import Places, largest, weighted_sums, weighted_sums_by_concept

WIDTH, N_CONCEPTS, N_ROWS, K = 24, 70, 33, 5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(5, 1), (5, 5), (70, 5), (2048, 32), (2051, 1), (5000, 100), (4099, 4000)])
def test_the_largest_are_those_of_a_full_sort(n: int, k: int, dtype: torch.dtype) -> None:
    values = draw(7, n).to(dtype)
    found = largest(values, k)
    assert found.shape == (7, k)
    assert all(len(set(row.tolist())) == k for row in found)
    # Which of two equal entries is taken is free, so values are compared.
    expected = values.sort(dim=1, descending=True).values[:, :k]
    assert torch.equal(values.gather(1, found).sort(dim=1, descending=True).values, expected)


def test_places_of_a_batch_may_leave_rows_and_concepts_out() -> None:
    flat = torch.tensor([29, 3, 4, 12])
    places = Places.of_batch(flat, n_rows=4, n_concepts=10)
    assert places.concepts.tolist() == [3, 4, 2, 9]
    assert places.offsets.tolist() == [0, 2, 3, 4, 4]
    assert places.flat.tolist() == [3, 4, 12, 29]
    values, table, rows = draw(4), draw(10, WIDTH, seed=1), draw(4, WIDTH, seed=2)
    codes = torch.zeros(4, 10)
    codes.view(-1)[places.flat] = values
    torch.testing.assert_close(weighted_sums(places, values, table), codes @ table)
    torch.testing.assert_close(weighted_sums_by_concept(places, values, rows), codes.T @ rows)


def architecture(seed: int = 0) -> SelectingEncoder:
    """One whose tensors are anything, not what training starts from."""
    made = TopKSAEConcepts(n_concepts=N_CONCEPTS, k=K, seed=seed).architecture(WIDTH)
    with torch.no_grad():
        for i, (name, tensor) in enumerate(made.learned.items()):
            if name != "decoder":
                tensor.copy_(draw(*tensor.shape, seed=10 + i))
    return made


def test_the_gradients_are_autograds_of_the_dense_formula() -> None:
    rows, pull = draw(N_ROWS, WIDTH), draw(N_ROWS, WIDTH, seed=1)
    sparse, dense = architecture(), architecture().learned
    codes = sparse.codes(rows)
    decoded = codes.decode(sparse.decoder())
    (decoded * pull).sum().backward()

    before = (rows - dense["bias"]) @ dense["encoder"].T + dense["encoder_bias"]
    best = before.topk(K, dim=1)
    expected = torch.zeros_like(before).scatter(1, best.indices, best.values.relu())
    (expected @ dense["decoder"] * pull).sum().backward()

    torch.testing.assert_close(decoded, expected @ dense["decoder"])
    assert torch.equal(codes.fired().long(), (expected > 0).sum(dim=0))
    for name, tensor in dense.items():
        torch.testing.assert_close(sparse.learned[name].grad, tensor.grad, msg=name)
        assert tensor.grad is not None
        assert float(tensor.grad.abs().max()) > 0.1


def test_rows_with_fewer_positive_outputs_than_k_have_no_gradient_there() -> None:
    made = architecture()
    with torch.no_grad():
        made.learned["encoder_bias"].fill_(-1e3)
    codes = made.codes(draw(N_ROWS, WIDTH))
    codes.decode(made.decoder()).sum().backward()
    assert not codes.values.any()
    for tensor in made.learned.values():
        assert tensor.grad is None or not tensor.grad.any()


def test_the_forward_pass_is_overcompletes() -> None:
    """Its encoder sees the rows as they are and its decoder has no bias, so ours is 0 here."""
    made = architecture()
    sae = overcomplete_module("sae").TopKSAE(WIDTH, N_CONCEPTS, top_k=K, device="cpu")
    with torch.no_grad():
        made.learned["bias"].zero_()
        sae.dictionary._weights.copy_(made.learned["decoder"])
        sae.encoder.final_block[0].weight.copy_(made.learned["encoder"])
        sae.encoder.final_block[0].bias.copy_(made.learned["encoder_bias"])
    rows = draw(N_ROWS, WIDTH, seed=3)
    _, theirs = sae.encode(rows)
    ours = made.codes(rows)
    as_matrix = torch.zeros(N_ROWS, N_CONCEPTS)
    as_matrix.view(-1)[ours.places.flat] = ours.values.detach()
    torch.testing.assert_close(as_matrix, theirs.detach())
    torch.testing.assert_close(ours.decode(made.decoder()), sae.decode(theirs))


def test_low_precision_is_near_and_leaves_float32_gradients() -> None:
    rows = draw(N_ROWS, WIDTH)
    low = TopKSAEConcepts(n_concepts=N_CONCEPTS, k=K, precision="bfloat16").architecture(WIDTH)
    full = TopKSAEConcepts(n_concepts=N_CONCEPTS, k=K).architecture(WIDTH)
    decoded = [made.codes(rows).decode(made.decoder()) for made in (low, full)]
    error = (decoded[0] - decoded[1]).square().sum() / decoded[1].square().sum()
    assert 0 < float(error.detach()) < 0.01
    decoded[0].sum().backward()
    for tensor in low.learned.values():
        assert tensor.dtype == torch.float32
        assert tensor.grad is None or tensor.grad.dtype == torch.float32
