"""Metrics of dictionaries: against slow references, and the laws that their names promise."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from interpreto_mlops.concepts import METRICS, PCAConcepts, TopKSAEConcepts, evaluate, stability, stability_random
from interpreto_mlops.concepts import metrics as m
from interpreto_mlops.concepts.metrics import matching, statistics_of
from interpreto_mlops.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(300, 6, generator=GENERATOR) @ torch.randn(6, 6, generator=GENERATOR) + 3.0
HAT = ROWS + 0.3 * torch.randn(300, 6, generator=GENERATOR) + 0.1
CODES = torch.randn(300, 9, generator=GENERATOR).relu() * (torch.arange(9) != 4)


def stats(rows: torch.Tensor, reconstructions: torch.Tensor, codes: torch.Tensor = CODES) -> m.CodeStatistics:
    return statistics_of(rows, reconstructions, codes)


def test_mse_is_the_mean_over_rows_and_dimensions() -> None:
    expected = np.mean([(float(a) - float(b)) ** 2 for a, b in zip(ROWS.flatten(), HAT.flatten(), strict=True)])
    assert m.mse(stats(ROWS, HAT)) == pytest.approx(expected, rel=1e-6)


def test_mse_and_r2_do_not_depend_on_the_number_of_rows() -> None:
    once, twice = stats(ROWS, HAT), stats(ROWS.repeat(2, 1), HAT.repeat(2, 1), CODES.repeat(2, 1))
    for metric in (m.mse, m.r2, m.l0, m.sparsity, m.sparsity_ratio, m.dead, m.wasserstein, m.fid):
        assert metric(twice) == pytest.approx(metric(once), abs=1e-9)


def test_r2_of_the_mean_predictor_is_zero_far_from_the_origin() -> None:
    rows = ROWS + 1000.0
    mean = rows.double().mean(dim=0).expand_as(rows).double()
    assert m.r2(stats(rows, mean)) == pytest.approx(0.0, abs=1e-9)
    assert m.r2(stats(rows, rows)) == 1.0
    assert m.r2(stats(rows, torch.zeros_like(rows))) < -1000


def test_r2_against_a_slow_reference() -> None:
    rows, hat = ROWS.double().numpy(), HAT.double().numpy()
    error = sum(float(np.sum((a - b) ** 2)) for a, b in zip(rows, hat, strict=True))
    spread = sum(float(np.sum((rows[:, j] - rows[:, j].mean()) ** 2)) for j in range(6))
    assert m.r2(stats(ROWS, HAT)) == pytest.approx(1 - error / spread, rel=1e-9)


def test_r2_of_equal_rows() -> None:
    rows = torch.ones(5, 3)
    codes = torch.ones(5, 2)
    assert m.r2(statistics_of(rows, rows, codes)) == 1.0
    assert m.r2(statistics_of(rows, rows + 1, codes)) == -np.inf


def test_fid_is_the_frechet_distance() -> None:
    rows, hat = ROWS.double().numpy(), HAT.double().numpy()
    first, second = np.cov(rows.T, bias=True), np.cov(hat.T, bias=True)
    cross = sqrtm(first @ second).real
    expected = np.sum((rows.mean(0) - hat.mean(0)) ** 2) + np.trace(first + second - 2 * cross)
    assert m.fid(stats(ROWS, HAT)) == pytest.approx(expected, rel=1e-6)


def test_fid_of_the_same_rows_is_zero_even_with_fewer_rows_than_dimensions() -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * 10
    assert 0.0 <= m.fid(stats(rows, rows, CODES[:5])) < 1e-6
    assert m.fid(stats(rows, rows + 1, CODES[:5])) == pytest.approx(40.0, rel=1e-6)


def test_fid_sees_correlations_and_wasserstein_does_not() -> None:
    shuffled = torch.stack(
        [column[torch.randperm(300, generator=torch.Generator().manual_seed(j))] for j, column in enumerate(ROWS.T)], 1
    )
    assert m.wasserstein(stats(ROWS, shuffled)) == 0.0
    assert m.fid(stats(ROWS, shuffled)) > 0.1


def test_wasserstein_against_scipy() -> None:
    expected = np.mean([wasserstein_distance(ROWS[:, j].numpy(), HAT[:, j].numpy()) for j in range(6)])
    assert m.wasserstein(stats(ROWS, HAT)) == pytest.approx(expected, rel=1e-5)


def test_wasserstein_of_many_rows_uses_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpreto_mlops.concepts.code_statistics.SAMPLE_ROWS", 100)
    statistics = m.CodeStatistics(300)
    for start in range(0, 300, 7):
        part = slice(start, start + 7)
        statistics.add(ROWS[part], HAT[part], CODES[part])
    assert torch.equal(statistics.sample[0], ROWS[::3])
    assert torch.equal(statistics.sample[1], HAT[::3])


def test_complexity_by_counting() -> None:
    per_row = [sum(1 for code in row if code != 0) for row in CODES.tolist()]
    statistics = stats(ROWS, HAT)
    assert m.l0(statistics) == pytest.approx(np.mean(per_row))
    assert m.sparsity(statistics) == pytest.approx(np.mean([1 - n / 9 for n in per_row]))
    assert m.sparsity_ratio(statistics) == pytest.approx(np.mean(per_row) / 9)
    assert m.dead(statistics) == pytest.approx(1 / 9)


def test_the_order_and_size_of_the_chunks_change_nothing() -> None:
    whole = stats(ROWS, HAT)
    parts = m.CodeStatistics(300)
    for part in torch.randperm(300, generator=torch.Generator().manual_seed(3)).split(37):
        parts.add(ROWS[part], HAT[part], CODES[part])
    for metric in (m.mse, m.r2, m.fid, m.l0, m.dead, m.wasserstein):
        assert metric(parts) == pytest.approx(metric(whole), rel=1e-9, abs=1e-9)


@pytest.fixture(scope="module")
def sae() -> TopKSAEConcepts:
    return TopKSAEConcepts(n_concepts=20, k=3, n_epochs=5).fit(ROWS, progress=False)


def test_evaluate_is_the_metrics_of_encode_and_decode(sae: TopKSAEConcepts) -> None:
    codes = sae.encode(ROWS)
    statistics = statistics_of(ROWS, sae.decode(codes), codes)
    scores = evaluate(sae, ROWS)
    assert set(scores) == {
        "reconstruction/mse",
        "reconstruction/r2",
        "reconstruction/fid",
        "reconstruction/wasserstein",
        "complexity/l0",
        "complexity/sparsity",
        "complexity/sparsity_ratio",
        "complexity/dead",
    }
    for name, value in scores.items():
        metric = METRICS.get(name)
        assert metric.name == name
        assert value == pytest.approx(metric.compute(statistics), rel=1e-6, abs=1e-9)
        assert metric.bounds[0] <= value <= metric.bounds[1]
        assert metric.description
    with pytest.raises(InputError, match="at least one row"):
        evaluate(sae, ROWS[:0])


def altered(dictionary: TopKSAEConcepts, decoder: torch.Tensor) -> TopKSAEConcepts:
    clone = copy.deepcopy(dictionary)
    clone.weights["decoder"] = decoder
    return clone


def test_stability_ignores_order_scale_and_dead_rows(sae: TopKSAEConcepts) -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    rows = sae.dictionary[order] * torch.linspace(0.1, 5, 20)[:, None]
    padded = altered(sae, torch.cat([torch.zeros(3, 6), rows, torch.zeros(2, 6)]))
    assert stability([sae, padded]) == pytest.approx(1.0)
    pairs, cosines = matching(sae, padded)
    np.testing.assert_allclose(cosines, 1.0, atol=1e-6)
    assert {(int(a), int(b)) for a, b in pairs} == {(int(order[i]), i + 3) for i in range(20)}


def test_stability_of_a_negated_dictionary_depends_on_whether_it_is_signed(sae: TopKSAEConcepts) -> None:
    pca = PCAConcepts(n_concepts=5).fit(ROWS, progress=False)
    flipped = copy.deepcopy(pca)
    flipped.weights["decoder"] = -pca.dictionary.flip(0)
    assert stability([pca, flipped]) == pytest.approx(1.0)
    assert stability([sae, altered(sae, -sae.dictionary)]) < 0.9


def test_stability_of_what_shares_nothing_is_zero() -> None:
    pca = PCAConcepts(n_concepts=6).fit(ROWS, progress=False)
    first, second = copy.deepcopy(pca), copy.deepcopy(pca)
    first.weights["decoder"], second.weights["decoder"] = torch.eye(6)[:2], torch.eye(6)[2:]
    assert stability([first, second]) == 0.0


def test_stability_is_the_best_assignment_and_the_mean_of_pairs(sae: TopKSAEConcepts) -> None:
    from itertools import permutations

    three = [altered(sae, torch.randn(n, 6, generator=torch.Generator().manual_seed(n))) for n in (4, 5, 6)]
    values = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = (torch.nn.functional.normalize(three[k].dictionary.double(), dim=1) for k in (i, j))
        cosines = a @ b.T
        best = max(sum(float(cosines[r, c]) for r, c in enumerate(p)) for p in permutations(range(len(b)), len(a)))
        values.append(best / len(a))
    assert stability(three) == pytest.approx(np.mean(values))


def test_the_random_baseline_is_what_random_dictionaries_reach(sae: TopKSAEConcepts) -> None:
    random = [altered(sae, torch.randn(20, 6, generator=torch.Generator().manual_seed(seed))) for seed in range(6)]
    assert stability_random([sae, sae]) == pytest.approx(stability(random), abs=0.06)
    assert stability_random([sae, sae]) == stability_random([sae, sae])


def test_what_cannot_be_compared_is_refused(sae: TopKSAEConcepts) -> None:
    with pytest.raises(InputError, match="at least two dictionaries, not 1"):
        stability([sae])
    with pytest.raises(InputError, match=r"different widths \[4, 6\]"):
        stability([sae, altered(sae, torch.ones(20, 4))])
    with pytest.raises(InputError, match="all of whose rows are zero"):
        stability([sae, altered(sae, torch.zeros(20, 6))])
    with pytest.raises(InputError, match="do not belong together"):
        statistics_of(ROWS, HAT[:10], CODES)
