"""Concepts aligned with given labels: planted ones, chance, and scikit-learn's scores of the same codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from interpreto_mlops.concepts import (
    ActivationSet,
    AlignedLabels,
    Label,
    ModelWithSplitPoints,
    PCAConcepts,
    align,
    top_words,
)
from interpreto_mlops.concepts.interpretation.aligned_labels import best_thresholds, f1_at
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.concepts.written_sets import Row, identity, written_set

NAMES = ("food", "service", "noise")


def labelled(folder: Path, n: int = 120, seed: int = 0, *, planted: bool = True) -> tuple[ActivationSet, list[str]]:
    """Texts of three rows and five concepts: concept 2 tells food, 0 service; 3 and 4 are noise, 1 is dead."""
    rng = np.random.default_rng(seed)
    labels = [NAMES[i] for i in rng.integers(0, 3, n)]
    rows: list[Row] = []
    for text, label in enumerate(labels):
        codes = np.abs(rng.normal(0, 1, (3, 5)))
        codes[:, 1] = 0.0
        if planted:
            codes[1, 2] += 6.0 * (label == "food")
            codes[2, 0] += 6.0 * (label == "service")
        rows += [(text, 4 * i, 4 * i + 3, row.tolist()) for i, row in enumerate(codes)]
    return written_set(folder, ["abc def ghi"] * n, rows), labels


def test_planted_labels_are_found_and_scored_on_held_out_texts(tmp_path: Path) -> None:
    activations, labels = labelled(tmp_path)
    found = align(identity(5), activations, labels, threshold=0.9)
    assert found.labels == ("food", "noise", "service")
    assert found.assigned == {2: "food", 0: "service"}
    assert found.place == "text"
    assert found.counts == tuple(labels.count(name) for name in found.labels)
    assert found.n_train + found.n_test == 120
    assert found.auroc[2, 0] > 0.97
    assert found.f1[0, 2] > 0.9
    assert (found.auroc[1] == 0.5).all()
    assert found.p_value == pytest.approx(1 / 101)
    assert found.score > found.chance_interval[1] > found.chance > found.chance_interval[0]
    assert abs(found.chance - 0.5) < 0.05
    label = found.label_of(2)
    assert isinstance(label, Label)
    assert (label.text, label.origin) == ("food", "aligned")
    assert "AUROC" in label.explanation
    assert found.label_of(4) is None
    frame = found.to_frame()
    assert len(frame) == 15
    assert frame[frame["assigned"]]["label"].tolist() == ["service", "food"]
    named = found.named(top_words(identity(5), activations))
    assert [(each.label, each.origin) for each in named][2] == ("food", "aligned")
    assert named[1].origin == "words"


def test_labels_that_nothing_tells_score_at_chance(tmp_path: Path) -> None:
    significant = 0
    for seed in range(12):
        activations, labels = labelled(tmp_path / str(seed), 90, seed, planted=False)
        found = align(identity(5), activations, labels, seed=seed, threshold=0.75)
        assert not found.assigned
        significant += found.p_value <= 0.05
    assert significant <= 3


def test_scores_are_those_of_scikit_learn(tmp_path: Path) -> None:
    activations, labels = labelled(tmp_path, 60)
    for pooling in ("max", "mean"):
        found = align(identity(5), activations, labels, pooling=pooling)
        codes = activations.tensor().numpy().reshape(60, 3, 5)
        codes = codes.max(axis=1) if pooling == "max" else codes.mean(axis=1)
        # The held-out half is not told, but what is scored on it is a function of it: find it by its size and scores.
        rng = np.random.default_rng(0)
        is_test = np.zeros(60, dtype=bool)
        for name in sorted(set(labels)):
            places = np.flatnonzero(np.asarray(labels) == name)
            is_test[places[rng.permutation(len(places))[: len(places) // 2]]] = True
        assert found.n_test == is_test.sum()
        for j, name in enumerate(found.labels):
            truth = np.asarray(labels)[is_test] == name
            for concept in range(5):
                held_out = codes[is_test, concept]
                assert found.auroc[concept, j] == pytest.approx(roc_auc_score(truth, held_out))
                said = held_out >= found.thresholds[concept, j]
                assert found.f1[concept, j] == pytest.approx(f1_score(truth, said))


def test_the_best_threshold_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        codes = rng.integers(0, 6, 40).astype(np.float32)
        flags = rng.random((40, 3)) < 0.4
        thresholds = best_thresholds(codes, flags)
        for j in range(3):
            scores = {float(t): f1_score(flags[:, j], codes >= t, zero_division=0) for t in np.unique(codes)}
            assert scores[thresholds[j]] == pytest.approx(max(scores.values()))
            assert f1_at(codes, flags, thresholds)[j] == pytest.approx(max(scores.values()))


def test_rows_can_be_labelled_and_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations, labels = labelled(tmp_path)
    of_rows = ["start" if span[0] == 0 else None if number % 7 == 0 else "later"
               for number, span in enumerate(activations.spans.tolist())]  # fmt: skip
    whole = align(identity(5), activations, of_rows, assignment="best", threshold=0.5)
    assert whole.place == "row"
    assert sum(whole.counts) == sum(label is not None for label in of_rows)
    monkeypatch.setattr("interpreto_mlops.concepts.interpretation.aligned_labels._BLOCK_NUMBERS", 700)
    monkeypatch.setattr("interpreto_mlops.concepts.base._CHUNK_NUMBERS", 130)
    again = align(identity(5), activations, of_rows, assignment="best", threshold=0.5)
    np.testing.assert_array_equal(again.auroc, whole.auroc)
    np.testing.assert_array_equal(again.f1, whole.f1)
    assert (again.score, again.chance, again.assigned) == (whole.score, whole.chance, whole.assigned)
    assert 1 not in align(identity(5), activations, labels, assignment="best", threshold=0.55).assigned
    few = align(identity(5), activations, labels, most=60, concepts=[2, 0])
    assert few.n_train + few.n_test == 60
    assert few.concepts == (2, 0)
    assert set(few.assigned) <= {2, 0}


def test_hidden_labels_are_hashes(tmp_path: Path) -> None:
    activations, labels = labelled(tmp_path)
    labels[0] = "rare"
    found = align(identity(5), activations, labels)
    assert found.left_out == ("rare",)
    hidden = found.hidden()
    names = {*hidden.labels, *hidden.assigned.values(), *hidden.left_out}
    assert all(name.startswith("sha256:") for name in names)
    assert hidden.label_of(2) is not None


@pytest.mark.parametrize("granularity", ["token", "word", "sentence", "sample", "cls"])
def test_every_granularity_is_aligned(tiny_model: Callable[..., TextModel], granularity: str) -> None:
    texts = [f"the {'food' if i % 2 else 'waiter'} was {'good' if i % 3 else 'slow'} ." for i in range(40)]
    labels = ["food" if i % 2 else "waiter" for i in range(40)]
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    activations = split.get_activations(texts, granularity=granularity, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=4).fit(activations, progress=False)
    found = align(dictionary, activations, labels, n_shuffles=20)
    assert found.auroc.shape == (4, 2)
    assert found.auroc.max() > 0.9


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    activations, labels = labelled(tmp_path, 30)
    with pytest.raises(InputError, match="30 texts or 90 rows need as many labels, not 29"):
        align(identity(5), activations, labels[1:])
    with pytest.raises(InputError, match="need as many labels, not 30"):
        align(identity(5), activations, labels, place="row")
    with pytest.raises(InputError, match="a list of labels, not one string"):
        align(identity(5), activations, "food")
    with pytest.raises(DataError, match="no label has 2 texts"):
        align(identity(5), activations, ["same"] * 30)
    with pytest.raises(UnknownNameError, match="unknown assignment 'greedy'"):
        AlignedLabels(assignment="greedy")
    with pytest.raises(InputError, match="threshold must be"):
        AlignedLabels(threshold=0.2)
    with pytest.raises(InputError, match="needs labels="):
        AlignedLabels()(identity(5), activations)
    same = written_set(tmp_path / "same", ["a b", ""], [(0, 0, 1, [1.0]), (0, 2, 3, [2.0])])
    with pytest.raises(InputError, match="2 texts and as many rows; say place="):
        align(identity(1), same, ["x", "y"])
