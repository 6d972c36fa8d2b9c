"""The TopK autoencoder: finds what was planted, keeps k, revives what is dead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts import TopKSAEConcepts, fit_together, stability
from interpreto_mlops.concepts.sae_learner import AutoencoderLearner, _held_out
from interpreto_mlops.concepts.training import DataFacts, as_rows
from interpreto_mlops.errors import InputError

WIDTH, N_PLANTED, K = 32, 48, 3


def planted(n_rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse non-negative mixtures of unit directions, far from the origin, with noise; and the directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(N_PLANTED, WIDTH, generator=generator), dim=1)
    places = torch.rand(n_rows, N_PLANTED, generator=generator).topk(K, dim=1).indices
    codes = torch.zeros(n_rows, N_PLANTED).scatter_(1, places, torch.rand(n_rows, K, generator=generator) + 0.5)
    noise = 0.02 * torch.randn(n_rows, WIDTH, generator=generator)
    return codes @ directions + 4.0 * torch.randn(WIDTH, generator=generator) + noise, directions


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    return planted(8000)


@pytest.fixture(scope="module")
def pair(data: tuple[torch.Tensor, torch.Tensor]) -> list[TopKSAEConcepts]:
    """Two dictionaries of default training, of different seeds."""
    untrained = [TopKSAEConcepts(n_concepts=N_PLANTED, k=K, seed=seed, n_epochs=25) for seed in range(2)]
    return fit_together(untrained, data[0], progress=False)


def test_planted_directions_are_found(data: tuple[torch.Tensor, torch.Tensor], pair: list[TopKSAEConcepts]) -> None:
    for dictionary in pair:
        cosines = (dictionary.dictionary @ data[1].T).numpy()
        assert cosines[linear_sum_assignment(-cosines)].mean() > 0.95
    assert stability(pair) > 0.95


def test_a_row_holds_at_most_k_concepts(data: tuple[torch.Tensor, torch.Tensor], pair: list[TopKSAEConcepts]) -> None:
    n_active = (pair[0].encode(data[0]) > 0).sum(dim=1)
    assert int(n_active.max()) == K
    assert pair[0].encode(torch.zeros(3, WIDTH)).count_nonzero(dim=1).max() <= K


def test_encoding_is_what_the_formula_says(
    data: tuple[torch.Tensor, torch.Tensor], pair: list[TopKSAEConcepts]
) -> None:
    weights = pair[0].weights
    before = ((data[0][:200] - weights["mean"]) / weights["scale"]) @ weights["encoder"].T + weights["encoder_bias"]
    expected = torch.zeros_like(before)
    for row, values in enumerate(before):
        for place in sorted(range(N_PLANTED), key=lambda j: -float(values[j]))[:K]:
            expected[row, place] = max(0.0, float(values[place]))
    codes = pair[0].encode(data[0][:200])
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=1e-5)
    decoded = weights["scale"] * (codes @ weights["decoder"]) + weights["mean"]
    torch.testing.assert_close(pair[0].decode(codes), decoded, atol=1e-5, rtol=1e-5)


def test_the_history_tells_the_truth(data: tuple[torch.Tensor, torch.Tensor], pair: list[TopKSAEConcepts]) -> None:
    dictionary = pair[0]
    steps = [line["step"] for line in dictionary.history_]
    assert steps == sorted({30 * n for n in range(1, 26)} | {200, 400, 600})
    assert all(
        set(line) == {"step", "train/loss", "train/r2", "train/l0", "train/dead"} for line in dictionary.history_
    )
    first, last = dictionary.history_[0], dictionary.history_[-1]
    assert last["train/loss"] < 0.4 * first["train/loss"]
    assert last["train/dead"] == 0.0
    held_out = data[0][_held_out(data[0], 0.05)]
    assert 0.03 < len(held_out) / len(data[0]) < 0.07
    error = (held_out - dictionary.decode(dictionary.encode(held_out))).square().sum()
    expected = 1 - float(error / (held_out - held_out.mean(dim=0)).square().sum())
    assert last["train/r2"] == pytest.approx(expected, abs=1e-4)


def test_dead_concepts_come_back() -> None:
    """Most concepts start so low that they lose to the ten others; the auxiliary loss lifts them."""
    rows, _ = planted(3000)

    def trained(**parameters: Any) -> float:
        dictionary = TopKSAEConcepts(n_concepts=N_PLANTED, k=K, n_epochs=20, dead_after=1000, **parameters)
        facts = DataFacts(len(rows), as_rows(rows).mean, as_rows(rows).variance)
        learner = dictionary.begin(facts)
        with torch.no_grad():
            learner.architecture.learned["encoder_bias"][10:] = -6.0
        for number in range(learner.n_passes):
            for block in as_rows(rows).batches(500, shuffle=True, seed=number):
                learner.observe(block)
            learner.end_pass()
        return learner.news()[-1]["train/dead"]

    assert trained(aux_coefficient=0.0) > 0.5
    assert trained() < 0.3


def begun(rows: torch.Tensor, **parameters: Any) -> AutoencoderLearner:
    return TopKSAEConcepts(**parameters).begin(DataFacts(len(rows), as_rows(rows).mean, as_rows(rows).variance))


def test_the_auxiliary_loss_is_that_of_the_paper() -> None:
    rows, _ = planted(50)
    learner = begun(rows, n_concepts=8, k=2, k_aux=2, dead_after=100)
    tensors = learner.architecture.learned
    batch, error = (torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    codes = learner.architecture.codes(batch)
    residual = float(error.square().sum() / (5 * WIDTH))
    found = learner.architecture.revival(batch, codes, error, torch.tensor([1, 4, 6]), residual)
    assert found is not None
    before, decoder = batch @ tensors["encoder"].T, tensors["decoder"]
    left = error.clone()
    for row in range(5):
        for concept in sorted([1, 4, 6], key=lambda j: -float(before.detach()[row, j]))[:2]:
            left[row] -= max(0.0, float(before.detach()[row, concept])) * decoder[concept].detach()
    assert float(found.detach()) / 5 == pytest.approx(
        float(left.detach().square().sum() / error.square().sum()), rel=1e-5
    )
    found.backward()
    for name in ("decoder", "encoder", "encoder_bias"):
        gradient = tensors[name].grad
        assert gradient is not None
        assert gradient[[0, 2, 3, 5, 7]].count_nonzero() == 0
        assert gradient[[1, 4, 6]].count_nonzero() > 0
    assert tensors["bias"].grad is None


def test_the_decoder_stays_on_the_sphere_and_its_gradient_is_tangent() -> None:
    rows, _ = planted(64)
    learner = begun(rows, n_concepts=8, k=2, n_epochs=2, validation_share=0.0, batch_size=64)
    before = learner.finish()["decoder"]
    learner._gather(learner._normalised(rows), torch.empty(0, dtype=torch.int64))
    learner.architecture.project()
    gradient = learner.architecture.learned["decoder"].grad
    assert gradient is not None
    assert float(gradient.abs().max()) > 1e-4
    torch.testing.assert_close((gradient * before).sum(dim=1), torch.zeros(8), atol=1e-6, rtol=0)
    learner.observe(rows)
    after = learner.finish()["decoder"]
    assert not torch.equal(before, after)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(8))


def test_rows_are_held_out_by_content_alone() -> None:
    rows, _ = planted(2000)
    chosen = _held_out(rows, 0.1)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_held_out(rows[order], 0.1), chosen[order])
    assert 0.07 < float(chosen.double().mean()) < 0.13
    assert not _held_out(rows, 0.0).any()


def test_nothing_held_out_still_gives_a_curve() -> None:
    rows, _ = planted(300)
    dictionary = TopKSAEConcepts(n_concepts=8, k=2, n_epochs=3, validation_share=0.0).fit(rows, progress=False)
    assert all(line["train/r2"] < 1 for line in dictionary.history_)


def test_fewer_rows_than_a_batch_are_trained_on() -> None:
    rows, _ = planted(60)
    dictionary = TopKSAEConcepts(n_concepts=16, k=2, n_epochs=40).fit(rows, progress=False)
    assert dictionary.history_[-1]["train/loss"] < 0.7 * dictionary.history_[0]["train/loss"]


def test_the_number_of_epochs_follows_the_data() -> None:
    def passes(n_rows: int) -> int:
        facts = DataFacts(n_rows, as_rows(planted(20)[0]).mean, as_rows(planted(20)[0]).variance)
        return TopKSAEConcepts(n_concepts=8, k=2).begin(facts).n_passes

    assert [passes(n) for n in (100, 20_000, 100_000, 10_000_000)] == [60, 15, 3, 3]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, not 0"),
        ({"k": 9}, r"k must be at most n_concepts \(8\), not 9"),
        ({"n_epochs": 0}, "n_epochs must be a whole number of at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number from 0.0 to below inf, not nan"),
        ({"validation_share": 1.0}, "validation_share must be a number from 0.0 to below 1.0, not 1.0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TopKSAEConcepts(**{"n_concepts": 8, "k": 2, **parameters})


def test_equal_rows_are_refused() -> None:
    with pytest.raises(InputError, match="all 50 rows of the activations are equal"):
        TopKSAEConcepts(n_concepts=8, k=2).fit(torch.ones(50, 4), progress=False)


def test_the_number_of_threads_changes_nothing_and_is_put_back() -> None:
    rows, _ = planted(500)
    threads = torch.get_num_threads()
    fitted = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            fitted.append(TopKSAEConcepts(n_concepts=16, k=2, n_epochs=3).fit(rows, progress=False))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(fitted[0].dictionary, fitted[1].dictionary)
