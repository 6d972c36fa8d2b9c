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
from interpreto_mlops.concepts.code_statistics import CodeStatistics, ReconstructionStatistics
from interpreto_mlops.concepts.metrics import matching
from interpreto_mlops.errors import InputError, UnknownNameError

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(300, 6, generator=GENERATOR) @ torch.randn(6, 6, generator=GENERATOR) + 3.0
HAT = ROWS + 0.3 * torch.randn(300, 6, generator=GENERATOR) + 0.1
CODES = torch.randn(300, 9, generator=GENERATOR).relu() * (torch.arange(9) != 4)


def test_mse_is_the_mean_over_rows_and_dimensions() -> None:
    expected = np.mean([(float(a) - float(b)) ** 2 for a, b in zip(ROWS.flatten(), HAT.flatten(), strict=True)])
    assert m.mse(ROWS, HAT) == pytest.approx(expected, rel=1e-6)


RECONSTRUCTION = [
    m.mse, m.fvu, m.r2, m.cosine, m.relative_error, m.norm_ratio, m.relative_bias, m.fid, m.wasserstein,
    m.sliced_wasserstein,
]  # fmt: skip
COMPLEXITY = [m.l0, m.l1, m.sparsity, m.sparsity_ratio, m.hoyer, m.dead, m.dense, m.density_max, m.coactivation]


def test_they_do_not_depend_on_the_number_of_rows() -> None:
    for metric in RECONSTRUCTION:
        twice = metric(ROWS.repeat(2, 1), HAT.repeat(2, 1))
        assert twice == pytest.approx(metric(ROWS, HAT), abs=1e-9)
    for metric in COMPLEXITY:
        assert metric(CODES.repeat(2, 1)) == pytest.approx(metric(CODES), abs=1e-9)


def test_r2_of_the_mean_predictor_is_zero_far_from_the_origin() -> None:
    rows = ROWS + 1000.0
    mean = rows.double().mean(dim=0).expand_as(rows).double()
    assert m.r2(rows, mean) == pytest.approx(0.0, abs=1e-9)
    assert m.r2(rows, rows) == 1.0
    assert m.r2(rows, torch.zeros_like(rows)) < -1000


def test_r2_against_a_slow_reference() -> None:
    rows, hat = ROWS.double().numpy(), HAT.double().numpy()
    error = sum(float(np.sum((a - b) ** 2)) for a, b in zip(rows, hat, strict=True))
    spread = sum(float(np.sum((rows[:, j] - rows[:, j].mean()) ** 2)) for j in range(6))
    assert m.r2(ROWS, HAT) == pytest.approx(1 - error / spread, rel=1e-9)


def test_r2_of_equal_rows() -> None:
    rows = torch.ones(5, 3)
    assert m.r2(rows, rows) == 1.0
    assert m.r2(rows, rows + 1) == -np.inf


def test_fid_is_the_frechet_distance() -> None:
    rows, hat = ROWS.double().numpy(), HAT.double().numpy()
    first, second = np.cov(rows.T, bias=True), np.cov(hat.T, bias=True)
    cross = sqrtm(first @ second).real
    expected = np.sum((rows.mean(0) - hat.mean(0)) ** 2) + np.trace(first + second - 2 * cross)
    assert m.fid(ROWS, HAT) == pytest.approx(expected, rel=1e-6)


def test_fid_of_the_same_rows_is_zero_even_with_fewer_rows_than_dimensions() -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * 10
    assert 0.0 <= m.fid(rows, rows) < 1e-6
    assert m.fid(rows, rows + 1) == pytest.approx(40.0, rel=1e-6)


def test_fid_sees_correlations_and_wasserstein_does_not() -> None:
    shuffled = torch.stack(
        [column[torch.randperm(300, generator=torch.Generator().manual_seed(j))] for j, column in enumerate(ROWS.T)], 1
    )
    assert m.wasserstein(ROWS, shuffled) == 0.0
    assert m.fid(ROWS, shuffled) > 0.1


def test_wasserstein_against_scipy() -> None:
    expected = np.mean([wasserstein_distance(ROWS[:, j].numpy(), HAT[:, j].numpy()) for j in range(6)])
    assert m.wasserstein(ROWS, HAT) == pytest.approx(expected, rel=1e-5)


def test_distances_of_many_rows_use_an_even_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpreto_mlops.concepts.code_statistics.SAMPLE_ROWS", 100)
    rows, codes = ReconstructionStatistics(300), CodeStatistics(300)
    for start in range(0, 300, 7):
        part = slice(start, start + 7)
        rows.add(ROWS[part], HAT[part])
        codes.add(CODES[part])
    assert torch.equal(rows.sample[0], ROWS[::3])
    assert torch.equal(rows.sample[1], HAT[::3])
    assert torch.equal(codes.sample, CODES[::3] != 0)


def test_sliced_wasserstein_sees_correlations_and_scales_like_a_distance() -> None:
    shuffled = torch.stack(
        [column[torch.randperm(300, generator=torch.Generator().manual_seed(j))] for j, column in enumerate(ROWS.T)], 1
    )
    assert m.sliced_wasserstein(ROWS, shuffled) > 0.05
    assert m.sliced_wasserstein(ROWS, ROWS.flip(0)) == pytest.approx(0.0, abs=1e-9)
    assert m.sliced_wasserstein(3 * ROWS, 3 * HAT) == pytest.approx(3 * m.sliced_wasserstein(ROWS, HAT))
    # In one dimension every direction is that one.
    expected = wasserstein_distance(ROWS[:, 0].numpy(), HAT[:, 0].numpy())
    assert m.sliced_wasserstein(ROWS[:, :1], HAT[:, :1]) == pytest.approx(expected, rel=1e-6)


def test_fvu_is_about_a_reference_mean_where_one_is_given() -> None:
    assert m.fvu(ROWS, HAT) == pytest.approx(1 - m.r2(ROWS, HAT))
    reference = torch.full((6,), 2.0)
    expected = float((ROWS - HAT).double().square().sum() / (ROWS - reference).double().square().sum())
    assert m.fvu(ROWS, HAT, reference_mean=reference) == pytest.approx(expected, rel=1e-9)
    assert m.fvu(ROWS, reference.expand_as(ROWS), reference_mean=reference) == pytest.approx(1.0)
    with pytest.raises(InputError, match="the reference mean must be 6 finite numbers"):
        m.fvu(ROWS, HAT, reference_mean=torch.zeros(5))


def test_cosines_and_norms_against_loops() -> None:
    pairs = list(zip(ROWS.double().numpy(), HAT.double().numpy(), strict=True))
    norms = [(np.linalg.norm(a), np.linalg.norm(b)) for a, b in pairs]
    cosines = [a @ b / (x * y) for (a, b), (x, y) in zip(pairs, norms, strict=True)]
    assert m.cosine(ROWS, HAT) == pytest.approx(np.mean(cosines), rel=1e-9)
    errors = [np.linalg.norm(a - b) / x for (a, b), (x, _) in zip(pairs, norms, strict=True)]
    assert m.relative_error(ROWS, HAT) == pytest.approx(np.mean(errors), rel=1e-9)
    assert m.norm_ratio(ROWS, HAT) == pytest.approx(np.mean([y / x for x, y in norms]), rel=1e-9)
    assert m.relative_bias(ROWS, 0.5 * ROWS) == pytest.approx(0.5)
    assert m.cosine(torch.zeros(2, 3), torch.zeros(2, 3)) == 1.0
    assert m.cosine(torch.ones(2, 3), torch.zeros(2, 3)) == 0.0


def test_complexity_by_counting() -> None:
    per_row = [sum(1 for code in row if code != 0) for row in CODES.tolist()]
    assert m.l0(CODES) == pytest.approx(np.mean(per_row))
    assert m.l1(CODES) == pytest.approx(np.mean([sum(map(abs, row)) for row in CODES.tolist()]))
    assert m.sparsity(CODES) == pytest.approx(np.mean([1 - n / 9 for n in per_row]))
    assert m.sparsity_ratio(CODES) == pytest.approx(np.mean(per_row) / 9)
    assert m.dead(CODES) == pytest.approx(1 / 9)
    shares = [sum(1 for row in CODES.tolist() if row[j] != 0) / 300 for j in range(9)]
    assert m.density_max(CODES) == pytest.approx(max(shares))
    assert m.dense(CODES) == pytest.approx(sum(share > 0.1 for share in shares) / 9)
    assert m.rows(CODES) == 300


def test_two_of_ten_active() -> None:
    codes = torch.zeros(50, 10)
    codes[:, :2] = 1.0
    assert m.l0(codes) == 2.0
    assert m.sparsity_ratio(codes) == pytest.approx(0.2)
    assert m.sparsity(codes) == pytest.approx(0.8)
    assert m.dead(codes) == pytest.approx(0.8)


def test_hoyer_by_its_formula_and_at_its_ends() -> None:
    nonzero = CODES[(CODES != 0).any(dim=1)].double().numpy()
    values = [(3 - np.abs(row).sum() / np.sqrt((row**2).sum())) / 2 for row in nonzero]
    assert m.hoyer(CODES) == pytest.approx(np.mean(values), rel=1e-6)
    assert m.hoyer(torch.eye(5) * 1e30) == 1.0
    assert m.hoyer(torch.full((3, 5), -2.0)) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(m.hoyer(torch.zeros(3, 5)))


def test_activity_is_relative_to_the_row() -> None:
    codes = torch.tensor([[1.0, 1e-9, 0.0], [1e-12, 1e-12, 0.0]])
    assert m.l0(codes) == 1.5
    assert m.l0(codes, eps=0.0) == 2.0
    assert m.l0(codes * 1e6) == 1.5


def test_coactivation_is_the_largest_jaccard_index() -> None:
    active = (CODES != 0).numpy()[:, [j for j in range(9) if j != 4]]
    largest = []
    for i in range(8):
        others = [(active[:, i] & active[:, j]).sum() / (active[:, i] | active[:, j]).sum() for j in range(8) if j != i]
        largest.append(max(others))
    assert m.coactivation(CODES) == pytest.approx(np.mean(largest))
    assert m.coactivation(torch.eye(4)) == 0.0
    assert m.coactivation(torch.ones(4, 3)) == 1.0


def test_the_density_histogram_counts_every_living_concept_once() -> None:
    density = m.code_density(CODES)
    assert density.counts.sum() == 8
    assert density.n_dead == 1
    np.testing.assert_allclose(density.shares, (CODES != 0).double().mean(dim=0).numpy())
    for low, high, count in zip(density.edges[:-1], density.edges[1:], density.counts, strict=True):
        logs = np.log10(density.shares[density.shares > 0])
        inside = (logs >= low) & ((logs < high) | (high == 0.0))
        assert count == inside.sum()
    frame = density.to_frame()
    assert frame["log10_density"][4] == -np.inf
    assert density.max == m.density_max(CODES)
    assert density.mean == pytest.approx(m.sparsity_ratio(CODES))


def test_the_order_and_size_of_the_chunks_change_nothing() -> None:
    rows, codes = ReconstructionStatistics(300), CodeStatistics(300)
    for part in torch.randperm(300, generator=torch.Generator().manual_seed(3)).split(37):
        rows.add(ROWS[part], HAT[part])
        codes.add(CODES[part])
    for metric in RECONSTRUCTION:
        assert metric.compute(rows) == pytest.approx(metric(ROWS, HAT), rel=1e-9, abs=1e-9)
    for metric in COMPLEXITY:
        assert metric.compute(codes) == pytest.approx(metric(CODES), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("metric", [*RECONSTRUCTION, *COMPLEXITY], ids=lambda metric: metric.name)
def test_values_are_in_their_range_for_strange_rows(metric: m.ConceptMetric) -> None:
    strange = {
        "one row": ROWS[:1], "equal rows": ROWS[:1].repeat(4, 1), "zeros": torch.zeros(3, 6), "tiny": ROWS * 1e-30,
    }  # fmt: skip
    low, high = metric.bounds
    for name, rows in strange.items():
        value = metric(rows, rows) if metric in RECONSTRUCTION else metric(rows)
        if metric is m.hoyer and name == "zeros":
            assert np.isnan(value)
        else:
            assert low <= value <= high, name


def test_bad_numbers_are_named() -> None:
    bad = ROWS.clone()
    bad[17, 2] = float("nan")
    with pytest.raises(InputError, match="row 17 of the reconstructions is NaN or infinite"):
        m.mse(ROWS, bad)
    with pytest.raises(InputError, match="row 17 of the codes is NaN or infinite"):
        m.l0(bad)
    with pytest.raises(InputError, match=r"must have one shape \(rows, width\)"):
        m.mse(ROWS, HAT[:10])
    with pytest.raises(InputError, match="at least one row"):
        m.l0(CODES[:0])
    with pytest.raises(InputError, match=r"eps must be a number from 0 to below 1, not 1\.0"):
        m.l0(CODES, eps=1.0)


@pytest.fixture(scope="module")
def sae() -> TopKSAEConcepts:
    return TopKSAEConcepts(n_concepts=20, k=3, n_epochs=5).fit(ROWS, progress=False)


def test_evaluate_is_the_metrics_of_encode_and_decode(sae: TopKSAEConcepts) -> None:
    codes = sae.encode(ROWS)
    scores = evaluate(sae, ROWS)
    assert set(scores) == {metric.name for metric in [*RECONSTRUCTION, *COMPLEXITY, m.rows, m.redundancy, m.max_cosine]}
    for name, value in scores.items():
        metric = METRICS.get(name)
        given = {"reconstructions": (ROWS, sae.decode(codes)), "codes": (codes,), "dictionary": (sae,)}[metric.needs]
        assert metric.name == name
        assert value == pytest.approx(metric(*given), rel=1e-6, abs=1e-9)
        assert metric.bounds[0] <= value <= metric.bounds[1]
        assert metric.description
    assert evaluate(sae, ROWS, ["complexity/l0"]) == {"complexity/l0": scores["complexity/l0"]}
    with pytest.raises(InputError, match="at least one row"):
        evaluate(sae, ROWS[:0])
    with pytest.raises(UnknownNameError, match="unknown metric of rows 'complexity/l00'; known: 'compl"):
        evaluate(sae, ROWS, ["complexity/l00"])
    with pytest.raises(InputError, match=r"give a list of metrics, as in \['reconstruction/r2'\]"):
        evaluate(sae, ROWS, "reconstruction/r2")


def test_redundancy_finds_near_copies(sae: TopKSAEConcepts) -> None:
    directions = torch.eye(6)[:4]
    assert m.redundancy(altered(sae, directions)) == 0.0
    assert m.max_cosine(altered(sae, directions)) == 0.0
    copied = torch.cat([directions, directions[:1] + 0.1 * directions[1:2], torch.zeros(2, 6)])
    assert m.redundancy(altered(sae, copied)) == pytest.approx(2 / 5)
    assert m.redundancy(altered(sae, torch.cat([directions, -directions[:1]]))) == 0.0
    pca = PCAConcepts(n_concepts=3).fit(ROWS, progress=False)
    pca.weights["decoder"] = torch.cat([directions, -directions[:1]])
    assert m.redundancy(pca) == pytest.approx(2 / 5)


def test_shared_concepts_agree_in_decoder_and_encoder(sae: TopKSAEConcepts) -> None:
    assert m.shared_fraction([sae, sae]) == 1.0
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    permuted = altered(sae, sae.dictionary[order])
    permuted.weights["encoder"] = sae.weights["encoder"][order]
    assert m.shared_fraction([sae, permuted]) == 1.0
    # The same decoder with the encoders of other concepts shares nothing but what happens to look alike.
    scrambled = copy.deepcopy(sae)
    scrambled.weights["encoder"] = sae.weights["encoder"].roll(1, dims=0)
    assert m.shared_fraction([sae, scrambled]) < 0.3


def test_shared_concepts_of_flipped_and_padded_copies() -> None:
    pca = PCAConcepts(n_concepts=5).fit(ROWS, progress=False)
    copied = copy.deepcopy(pca)
    padding = torch.zeros(2, 6)
    for name in ("decoder", "encoder"):
        copied.weights[name] = torch.cat([padding, -pca.weights[name].flip(0)])
    assert m.shared_fraction([pca, copied]) == 1.0
    assert stability([pca, copied]) == pytest.approx(1.0)
    # Zero rows are no concepts, so they are none of the baseline's either.
    assert stability_random([pca, copied]) == stability_random([pca, pca])


def test_shared_fraction_of_what_shares_nothing_is_zero() -> None:
    pca = PCAConcepts(n_concepts=6).fit(ROWS, progress=False)
    first, second = copy.deepcopy(pca), copy.deepcopy(pca)
    for name in ("decoder", "encoder"):
        first.weights[name], second.weights[name] = torch.eye(6)[:3], torch.eye(6)[3:]
    assert m.shared_fraction([first, second]) == 0.0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_coactivation_is_the_same_by_sparse_and_dense_products(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.rand(200, 1100, generator=torch.Generator().manual_seed(5)) * (
        torch.rand(200, 1100, generator=torch.Generator().manual_seed(6)) < 0.03
    )
    active = (codes != 0).double()
    both, counts = active.T @ active, active.sum(dim=0)
    jaccard = both / (counts[:, None] + counts - both).clamp(min=1)
    expected = jaccard.fill_diagonal_(0.0).amax(dim=1)[counts > 0].mean()
    monkeypatch.setattr("interpreto_mlops.concepts.metrics.complexity._SPARSE", share)
    assert m.coactivation(codes) == pytest.approx(float(expected), rel=1e-6)


def test_codes_that_are_all_zero_are_told(sae: TopKSAEConcepts) -> None:
    silent = copy.deepcopy(sae)
    silent.weights["encoder"] = torch.zeros_like(sae.weights["encoder"])
    silent.weights["encoder_bias"] = torch.full_like(sae.weights["encoder_bias"], -1.0)
    with pytest.warns(UserWarning, match="NaN, as no code is other than 0 or there is one concept only: complexity/h"):
        scores = evaluate(silent, ROWS)
    assert np.isnan(scores.pop("complexity/hoyer"))
    assert (scores["complexity/l0"], scores["complexity/dead"], scores["complexity/sparsity"]) == (0.0, 1.0, 1.0)
    assert not np.isnan(list(scores.values())).any()


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


def test_goodness_orders_by_direction_and_takes_nan_for_the_worst() -> None:
    best = {"reconstruction/r2": 0.9, "reconstruction/mse": 0.1}
    for name, value in best.items():
        metric = METRICS.get(name)
        assert max([0.5, float("nan"), value], key=metric.goodness) == value
        assert min([0.5, value, float("nan")], key=metric.goodness) != value
