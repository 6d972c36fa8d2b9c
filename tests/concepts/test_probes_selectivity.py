"""Cross-validated scores, control tasks and their intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interpreto_mlops.concepts import METRICS, PROBES, ModelWithSplitPoints, cross_validate
from interpreto_mlops.concepts.probes.dividing import folds_of
from interpreto_mlops.errors import DataError, InputError

N_TEXTS, PER_TEXT, WIDTH = 120, 5, 16


@pytest.fixture(scope="module")
def groups() -> np.ndarray:
    return np.repeat(np.arange(N_TEXTS), PER_TEXT)


@pytest.fixture(scope="module")
def words() -> np.ndarray:
    """The word of each row: forty of them."""
    return np.random.default_rng(2).integers(0, 40, N_TEXTS * PER_TEXT)


@pytest.fixture(scope="module")
def rows(words: np.ndarray) -> torch.Tensor:
    """Each word has a vector; the first dimension of it says whether its number is even; and there is noise."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, WIDTH))
    vectors[:, 0] = np.where(np.arange(40) % 2 == 0, 2.0, -2.0)
    return torch.from_numpy(vectors[words] + 0.5 * rng.standard_normal((len(words), WIDTH))).float()


@pytest.fixture(scope="module")
def even(words: np.ndarray) -> np.ndarray:
    return words % 2 == 0


def test_scores_are_scikit_learns_on_the_same_folds(rows: torch.Tensor, even: np.ndarray, groups: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    noisy = even ^ (rng.random(len(even)) < 0.2)
    found = cross_validate(PROBES.get("logistic")(), rows, noisy, groups=groups, repeats=1, seed=3)
    state = np.random.RandomState(np.random.MT19937(3))
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    expected = []
    for train, held in StratifiedGroupKFold(5, shuffle=True, random_state=state).split(rows, noisy, groups):
        pipeline.fit(rows[train].double().numpy(), noisy[train])
        scores = pipeline.decision_function(rows[held].double().numpy())
        truth, said = noisy[held], scores > 0
        measures = (accuracy_score(truth, said), balanced_accuracy_score(truth, said), roc_auc_score(truth, scores))
        expected.append(measures)
    assert np.allclose(found.scores[0], expected, atol=1e-3)
    assert found.accuracy.shape == (1, 5)


def test_rows_of_a_text_are_never_on_both_sides_and_shares_are_alike(groups: np.ndarray, even: np.ndarray) -> None:
    seen = []
    for train, held in folds_of(even, groups, 5, seed=0):
        assert not set(groups[train]) & set(groups[held])
        assert abs(even[held].mean() - even.mean()) < 0.1
        seen += held.tolist()
    assert sorted(seen) == list(range(len(groups)))


def test_what_is_known_is_selective_and_what_is_learned_by_heart_is_not(rows: Any, words: Any, groups: Any) -> None:
    """Evenness is in one dimension; labels dealt to words must be learned word by word, as a control task is."""
    even = words % 2 == 0
    probe = PROBES.get("logistic")()
    known = cross_validate(probe, rows, even, groups=groups, types=words, repeats=3)
    dealt = (np.random.default_rng(7).random(40) < 0.5)[words]
    by_heart = cross_validate(probe, rows, dealt, groups=groups, types=words, repeats=3)
    assert known.metrics()["probing/balanced_accuracy"] > 0.97
    # Forty vectors in sixteen dimensions: a probe learns part of a random labelling by heart, and that is the control.
    assert 0.55 < known.metrics()["probing/control"] < 0.9
    assert known.metrics()["probing/selectivity"] > 0.15
    assert abs(by_heart.metrics()["probing/selectivity"]) < 0.15
    low, high = known.interval("selectivity")
    assert known.interval("accuracy")[1] <= 1.0
    assert low < known.metrics()["probing/selectivity"] < high
    assert low > 0


def test_dealt_out_labels_are_at_chance(rows: torch.Tensor, even: np.ndarray, groups: np.ndarray) -> None:
    found = cross_validate(PROBES.get("mean_difference")(), rows, even, groups=groups, repeats=4).metrics()
    assert found["probing/balanced_accuracy_random"] == pytest.approx(0.5, abs=0.05)
    assert found["probing/auroc_random"] == pytest.approx(0.5, abs=0.05)
    assert found["probing/auroc"] > 0.95


def test_several_concepts_each_with_the_rows_that_have_a_label(rows: Any, even: Any, groups: Any) -> None:
    labels = np.stack([even, ~even], axis=1).astype(float)
    labels[:200, 1] = np.nan
    found = cross_validate(PROBES.get("ridge")(), rows, labels, groups=groups, names=("even", "odd"), repeats=1)
    assert found.n_rows == (600, 400)
    assert found.n_texts == (120, 80)
    alone = cross_validate(PROBES.get("ridge")(), rows[200:], ~even[200:], groups=groups[200:], repeats=1)
    assert np.allclose(found.scores[1], alone.scores[0])
    frame = found.to_frame()
    assert set(frame["concept"]) == {"even", "odd"}
    assert (frame["low"] <= frame["high"]).all()
    assert found.metrics().keys() == {
        *(f"probing/{name}" for name in ("accuracy", "balanced_accuracy", "auroc", "control", "selectivity")),
        *(f"probing/{name}_random" for name in ("accuracy", "balanced_accuracy", "auroc")),
    }
    assert METRICS.get("probing/selectivity")(found) == found.metrics()["probing/selectivity"]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Rows with a known overlap: Φ(1) of them are told right, whatever the sample."""
    truth, held = 0.8413, 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        holds = np.arange(300) % 2 == 0
        x = torch.from_numpy(rng.standard_normal((300, 1)) + np.where(holds, 1.0, -1.0)[:, None]).float()
        low, high = cross_validate(PROBES.get("mean_difference")(), x, holds, repeats=1, seed=seed).interval("accuracy")
        held += low <= truth <= high
    assert held >= 21


def test_words_of_an_activation_set_are_the_types(tiny_model: Callable, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model(), [0])
    rows = split.get_activations(texts * 6, progress=False)[0]
    said = [rows.texts[t][a:b].lower() for t, (a, b) in zip(rows.text_ids, rows.spans, strict=True)]
    labels = np.asarray([word in {"was", "is", "the", "a"} for word in said])
    found = cross_validate(PROBES.get("logistic")(), rows, labels, per="row", repeats=2)
    assert found.metrics()["probing/balanced_accuracy"] > 0.9
    # Each text is there six times and every word is in all folds, so that labels of words can be learned by heart.
    assert found.metrics()["probing/control"] > 0.6
    texts_alone = split.get_activations(
        [f"{a} {b}" for a in texts for b in texts], granularity="sample", progress=False
    )[0]
    by_text = cross_validate(PROBES.get("logistic")(), texts_alone, np.arange(25) % 2, folds=3, repeats=10)
    # A text that is there once cannot be learned by heart.
    assert by_text.metrics()["probing/control"] == pytest.approx(0.5, abs=0.12)


def test_what_cannot_be_divided_is_refused(rows: torch.Tensor, even: np.ndarray) -> None:
    probe = PROBES.get("ridge")()
    with pytest.raises(DataError, match="5 folds need 5 texts with the concept and 5 without, and there are only 3"):
        cross_validate(probe, rows, np.arange(600) < 3)
    with pytest.raises(InputError, match="folds"):
        cross_validate(probe, rows, even, folds=1)
    with pytest.raises(InputError, match="as many names"):
        cross_validate(probe, rows, even, names=("a", "b"))
    assert not probe.is_fitted
