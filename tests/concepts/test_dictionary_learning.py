"""Dictionary learning: scikit-learn's updates, over the whole stream; codes are the lasso's, held to its optimality."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import MiniBatchDictionaryLearning, sparse_encode
from sklearn.linear_model import Lasso

from interpreto_mlops.concepts import DictionaryLearningConcepts, evaluate
from interpreto_mlops.concepts.lasso import lasso_codes
from interpreto_mlops.concepts.training import DataFacts
from interpreto_mlops.errors import InputError

N, WIDTH = 24, 16


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of few of more directions than dimensions, far from the origin, and the directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(N, WIDTH, generator=generator))
    codes = (0.5 + torch.rand(2560, N, generator=generator)) * (torch.rand(2560, N, generator=generator) < 0.06)
    noise = 0.01 * torch.randn(2560, WIDTH, generator=generator)
    return codes @ directions + noise + 10.0, directions


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_codes_are_the_lassos(positive: bool, alpha: float) -> None:
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((40, 12)) / 12**0.5
    rows = rng.standard_normal((200, 12))
    theirs = sparse_encode(rows, directions, algorithm="lasso_lars", alpha=alpha, positive=positive)
    ours = lasso_codes(torch.from_numpy(rows), torch.from_numpy(directions), alpha, positive=positive)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=5e-6)
    # What makes a code the best one: the error's product with a direction is alpha where it is used, else at most that.
    pull = (torch.from_numpy(rows) - ours @ torch.from_numpy(directions)) @ torch.from_numpy(directions).T
    used = ours != 0.0
    torch.testing.assert_close(pull[used], alpha * ours[used].sign(), atol=1e-7, rtol=0)
    assert float((pull if positive else pull.abs())[~used].max()) <= alpha + 1e-7


def test_without_a_penalty_codes_are_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    directions, rows = (torch.randn(n, 9, generator=generator, dtype=torch.float64) for n in (4, 30))
    expected = torch.linalg.lstsq(directions.T, rows.T).solution.T
    torch.testing.assert_close(lasso_codes(rows, directions, 0.0), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("positive", [True, False])
def test_directions_are_scikit_learns(
    planted: tuple[torch.Tensor, torch.Tensor], positive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # scikit-learn 1.7 stops at a duality gap of 1e-4, which moves its directions by up to 0.04; 1.9 at 1e-8.
    monkeypatch.setattr("sklearn.decomposition._dict_learning.Lasso", partial(Lasso, tol=1e-8))
    rows = planted[0]
    facts = DataFacts(len(rows), rows.double().mean(0).numpy(), rows.double().var(0, correction=0).numpy())
    parameters = DictionaryLearningConcepts(n_concepts=N, n_epochs=2, positive=positive, alpha=0.1, seed=5)
    learner = parameters.begin(facts)
    unit = facts.scale * WIDTH**0.5
    centred = (rows.double().numpy() - facts.mean) / unit
    chosen = np.random.default_rng([5, 0]).choice(len(rows), N, replace=False)
    theirs = MiniBatchDictionaryLearning(
        N, alpha=0.1, max_iter=2, batch_size=256, fit_algorithm="cd", positive_code=positive, shuffle=False, tol=0.0,
        dict_init=centred[chosen] / np.linalg.norm(centred[chosen], axis=1, keepdims=True),
        max_no_improvement=None, random_state=0, transform_max_iter=10_000,
    ).fit(centred)  # fmt: skip
    for _ in range(2):
        learner.observe(rows)
        learner.end_pass()
    found = learner.finish()["decoder"].numpy()
    expected = theirs.components_ / np.linalg.norm(theirs.components_, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(theirs.components_, axis=1), 1.0, atol=1e-6)


def test_planted_directions_are_found(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows, directions = planted
    dictionary = DictionaryLearningConcepts(n_concepts=N, n_epochs=20).fit(rows, progress=False)
    cosines = (dictionary.dictionary @ directions.T).numpy()
    matched = cosines[linear_sum_assignment(cosines, maximize=True)]
    # Most are found almost exactly; some share a direction for good, for nothing moves one that is used.
    assert np.median(matched) > 0.97
    assert matched.mean() > 0.85
    scores = evaluate(dictionary, rows)
    assert scores["reconstruction/r2"] > 0.85
    assert scores["complexity/l0"] < 4.0
    assert [line["step"] for line in dictionary.history_] == list(range(1, 21))
    assert dictionary.history_[-1]["train/loss"] < dictionary.history_[0]["train/loss"]
    assert dictionary.history_[-1]["train/r2"] == pytest.approx(scores["reconstruction/r2"], abs=0.02)
    assert dictionary.history_[-1]["train/l0"] == pytest.approx(scores["complexity/l0"], abs=0.3)


def test_signed_codes_are_said_to_be(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    free, bound = (
        DictionaryLearningConcepts(n_concepts=N, n_epochs=1, positive=positive) for positive in (False, True)
    )
    assert free.signed
    assert not bound.signed
    assert bool((free.fit(planted[0], progress=False).encode(planted[0]) < 0.0).any())


def test_an_unused_direction_starts_again_at_a_row() -> None:
    rows = 1.0 + torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    facts = DataFacts(64, np.zeros(5), np.ones(5))
    parameters = DictionaryLearningConcepts(n_concepts=3, batch_size=64)
    learner, other = parameters.begin(facts), parameters.begin(facts)
    other.observe(rows)
    state = other.state()
    state["directions"][1] = -torch.ones(5) / 5**0.5  # all products with it are negative
    learner.restore({**state, "squares": torch.zeros(3, 3).double(), "products": torch.zeros(3, 5).double()})
    learner.observe(rows)
    found = learner.finish()["decoder"][1]
    assert float((torch.nn.functional.normalize(rows.double()) @ found).max()) == pytest.approx(1.0)


def test_fewer_rows_than_a_batch_are_learned_from(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    dictionary = DictionaryLearningConcepts(n_concepts=8).fit(planted[0][:50], progress=False)
    assert len(dictionary.history_) == 30
    assert evaluate(dictionary, planted[0][:50])["reconstruction/r2"] > 0.2


def test_bad_parameters_are_refused() -> None:
    for name, value in {"alpha": -0.1, "positive": 1, "n_epochs": 0, "batch_size": 0}.items():
        with pytest.raises(InputError, match=rf"{name} must be .*, not {value}"):
            DictionaryLearningConcepts(n_concepts=3, **{name: value})
