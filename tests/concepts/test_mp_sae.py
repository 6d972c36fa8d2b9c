"""Matching pursuit: steps as the definition says, gradients through all of them, planted directions found."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts import MPSAEConcepts, evaluate, fit_together
from interpreto_mlops.concepts.matching_pursuit import Pursuit, explain, pursue
from interpreto_mlops.concepts.overcomplete_import import overcomplete_module
from interpreto_mlops.errors import InputError
from tests.concepts.test_topk_sae import N_PLANTED, WIDTH, K, planted


def directions(n: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    drawn = torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).to(dtype)


def some_rows(n: int, width: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_definition(row: torch.Tensor, decoder: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Return codes, what is left, and its norm after each step; differentiable."""
    codes, left, norms = torch.zeros(len(decoder), dtype=row.dtype), row, [float(row.detach().norm())]
    for _ in range(k):
        products = torch.stack([(direction * left).sum() for direction in decoder])
        best = int(products.argmax())
        if products[best] <= 1e-12:
            break
        codes = codes + torch.eye(len(decoder), dtype=row.dtype)[best] * products[best]
        left = left - products[best] * decoder[best]
        norms.append(float(left.detach().norm()))
    return codes, left, norms


@pytest.mark.parametrize(("n_rows", "n_concepts"), [(40, 25), (3, 25), (1, 7), (60, 4)])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_steps_are_those_of_the_definition(n_rows: int, n_concepts: int, k: int) -> None:
    decoder, rows = directions(n_concepts, 5), some_rows(n_rows, 5)
    found = pursue(rows, decoder, k)
    expected = [by_definition(row, decoder, k) for row in rows]
    torch.testing.assert_close(found.codes(n_concepts), torch.stack([codes for codes, _, _ in expected]))
    torch.testing.assert_close(found.residual, torch.stack([left for _, left, _ in expected]))


def test_codes_are_those_of_an_independent_library() -> None:
    decoder, rows = directions(64, 16, dtype=torch.float32), some_rows(100, 16, dtype=torch.float32)
    other = overcomplete_module("sae").MpSAE(16, 64, k=5).train()
    other.dictionary._weights.data = decoder
    with torch.no_grad():
        residual, codes = other.encode(rows)
    found = pursue(rows, decoder, 5)
    torch.testing.assert_close(found.codes(64), codes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.residual, residual, rtol=1e-4, atol=1e-5)


def test_concepts_are_taken_twice_where_that_is_best_and_rows_end_early() -> None:
    decoder, rows = directions(4, 3), some_rows(200, 3)
    found = pursue(rows, decoder, 6)
    taken = found.values > 0
    distinct = (found.codes(4) > 0).sum(dim=1)
    assert bool((distinct < taken.sum(dim=1)).any())
    assert bool((taken.sum(dim=1) < 6).any())
    # Nothing is taken after a step that took nothing.
    assert bool((taken[:, 1:] <= taken[:, :-1]).all())


def test_every_step_leaves_less() -> None:
    decoder, rows = directions(64, 16, dtype=torch.float32), some_rows(300, 16, dtype=torch.float32)
    left = torch.stack([rows.norm(dim=1), *(pursue(rows, decoder, k).residual.norm(dim=1) for k in range(1, 12))])
    assert bool((left[1:] <= left[:-1]).all())
    assert float(left[-1].mean()) < 0.35 * float(left[0].mean())


@pytest.mark.parametrize("low_precision", [False, True])
def test_codes_and_residual_add_up_to_the_rows(low_precision: bool) -> None:
    decoder, rows = directions(64, 16, dtype=torch.float32), some_rows(300, 16, dtype=torch.float32)
    found = pursue(rows, decoder, 5, low_precision=low_precision)
    torch.testing.assert_close(found.codes(64) @ decoder + found.residual, rows, rtol=0, atol=1e-5)


def test_low_precision_chooses_nearly_as_well() -> None:
    decoder, rows = directions(64, 16, dtype=torch.float32), some_rows(300, 16, dtype=torch.float32)
    exact, rough = (pursue(rows, decoder, 5, low_precision=low) for low in (False, True))
    assert 0.9 < float((exact.concepts == rough.concepts).double().mean()) < 1.0
    assert float(rough.residual.norm()) < 1.01 * float(exact.residual.norm())


def test_neither_way_of_keeping_correlations_nor_chunks_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, rows = directions(30, 8), some_rows(50, 8)
    together = pursue(rows, decoder, 5)
    alone = [pursue(row.unsqueeze(0), decoder, 5) for row in rows]  # 30 > 5 · 1: correlations computed anew
    assert torch.equal(together.concepts, torch.cat([found.concepts for found in alone]))
    torch.testing.assert_close(together.values, torch.cat([found.values for found in alone]))
    monkeypatch.setattr("interpreto_mlops.concepts.matching_pursuit._CHUNK_NUMBERS", 7 * 30)
    assert torch.equal(pursue(rows, decoder, 5).concepts, together.concepts)


@pytest.mark.parametrize(("n_rows", "n_concepts", "width"), [(30, 20, 8), (40, 3, 3)])
def test_the_gradient_is_that_of_all_steps(n_rows: int, n_concepts: int, width: int) -> None:
    decoder = directions(n_concepts, width).requires_grad_()
    rows = some_rows(n_rows, width).requires_grad_()
    of_explained = some_rows(n_rows, width, seed=5)
    found = pursue(rows, decoder, 4)
    assert n_concepts > 3 or bool((found.values == 0).any())  # also where a row has ended early
    slow = torch.stack([row - by_definition(row, decoder, 4)[1] for row in rows])
    expected = torch.autograd.grad((slow * of_explained).sum(), (rows, decoder))
    explained = explain(rows, decoder, found)
    torch.testing.assert_close(explained, slow)
    of_rows, of_decoder = torch.autograd.grad((explained * of_explained).sum(), (rows, decoder))
    torch.testing.assert_close((of_rows, of_decoder), expected)


def test_a_concept_taken_twice_fires_once_a_row() -> None:
    from interpreto_mlops.concepts.dictionaries.mp_sae import _PursuitCodes

    concepts = torch.tensor([[2, 0, 2], [1, 1, 1], [0, 2, 2]])
    values = torch.tensor([[1.0, 0.5, 0.1], [0.3, 0.2, 0.0], [0.0, 0.0, 0.0]])
    codes = _PursuitCodes(torch.zeros(3, 4), Pursuit(concepts, values, torch.zeros(3, 4)), 3)
    assert codes.fired().tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    return planted(8000)


@pytest.fixture(scope="module")
def fitted(data: tuple[torch.Tensor, torch.Tensor]) -> MPSAEConcepts:
    return MPSAEConcepts(n_concepts=N_PLANTED, k=K, n_epochs=25).fit(data[0], progress=False)


def test_planted_directions_are_found(data: tuple[torch.Tensor, torch.Tensor], fitted: MPSAEConcepts) -> None:
    cosines = (fitted.dictionary @ data[1].T).numpy()
    assert cosines[linear_sum_assignment(-cosines)].mean() > 0.95


def test_codes_are_those_of_the_pursuit(data: tuple[torch.Tensor, torch.Tensor], fitted: MPSAEConcepts) -> None:
    rows = data[0][:50]
    normalised = ((rows - fitted.mean) / fitted.scale).double()
    expected = torch.stack([by_definition(row, fitted.dictionary.double(), K)[0] for row in normalised]).float()
    torch.testing.assert_close(fitted.encode(rows), expected, rtol=1e-5, atol=1e-5)
    assert int((fitted.encode(data[0]) > 0).sum(dim=1).max()) == K


def test_the_training_curve_says_what_the_dictionary_is_worth(
    data: tuple[torch.Tensor, torch.Tensor], fitted: MPSAEConcepts
) -> None:
    scores, last = evaluate(fitted, data[0]), fitted.history_[-1]
    assert last["train/r2"] == pytest.approx(scores["reconstruction/r2"], abs=0.02)
    assert last["train/l0"] == pytest.approx(scores["complexity/l0"], abs=0.05)
    assert last["train/dead"] == 0.0


def test_dead_concepts_come_back(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    # Far more concepts than were planted, few steps, and data of few directions: many never win.
    parameters = {"n_concepts": 256, "k": 2, "n_epochs": 12, "dead_after": 2000}
    revived, left = fit_together(
        [MPSAEConcepts(**parameters), MPSAEConcepts(**parameters, aux_coefficient=0.0)], data[0], progress=False
    )
    assert revived.history_[-1]["train/dead"] < left.history_[-1]["train/dead"]


def test_concepts_that_resemble_each_other_are_told_apart() -> None:
    """A row of a child and little of its parent: by products alone both children of the parent would be taken."""
    generator = torch.Generator().manual_seed(3)
    decoder = torch.nn.functional.normalize(torch.randn(6, WIDTH, generator=generator), dim=1)
    decoder[1] = torch.nn.functional.normalize(decoder[0] + 0.2 * decoder[1], dim=0)
    row = (1.0 * decoder[0] + 0.3 * decoder[4]).unsqueeze(0)
    selected = (row @ decoder.T).topk(2).indices
    assert selected.tolist() == [[0, 1]] or selected.tolist() == [[1, 0]]
    assert 4 in pursue(row, decoder, 2).concepts.tolist()[0]


def test_bad_steps_are_refused() -> None:
    with pytest.raises(InputError, match="k must be a whole number of at least 1, not 0"):
        MPSAEConcepts(n_concepts=4, k=0)
