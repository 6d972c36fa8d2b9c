"""Sparse probes find the concepts that tell a class, and nothing where there is nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts
from interpreto_mlops.concepts import metrics as m
from interpreto_mlops.concepts.metrics.probing import sparse_1, sparse_5
from interpreto_mlops.errors import DataError, InputError
from interpreto_mlops.models.text_model import TextModel

GENERATOR = torch.Generator().manual_seed(0)
LABELS = ["<b>", "plain", "other"] * 60
NUMBERS = torch.tensor([0, 1, 2] * 60)


def planted() -> torch.Tensor:
    """Concept 3 says <b>, concept 7 says plain; two concepts together say other; the rest is noise."""
    codes = torch.rand(180, 12, generator=GENERATOR)
    codes[:, 3] = (NUMBERS == 0) * 2.0 + 0.1 * codes[:, 3]
    codes[:, 7] = (NUMBERS == 1) * 2.0 + 0.1 * codes[:, 7]
    return codes


def test_the_planted_concepts_are_found() -> None:
    result = m.sparse_probing(planted(), LABELS)
    names = list(result.classes)
    assert result.concepts[names.index("<b>"), 0] == 3
    assert result.concepts[names.index("plain"), 0] == 7
    assert set(result.concepts[names.index("other"), :2]) == {3, 7}
    assert result.accuracy[0, names.index("<b>")] == 1.0
    # One concept cannot tell the third class, two can.
    assert result.accuracy[0, names.index("other")] < 0.9
    assert result.accuracy[1, names.index("other")] == 1.0
    assert result.dense_accuracy.min() > 0.95
    assert (result.n_train, result.n_test) == (126, 54)


def test_noise_gives_chance() -> None:
    codes = torch.rand(600, 12, generator=GENERATOR)
    values = [sparse_1(codes, ["a", "b"] * 300, seed=seed) for seed in range(6)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.05)


def test_the_metrics_are_means_over_classes_and_repeat() -> None:
    codes = planted()
    result = m.sparse_probing(codes, LABELS)
    assert sparse_1(codes, LABELS) == pytest.approx(result.accuracy[0].mean())
    assert sparse_5(codes, LABELS) == pytest.approx(result.accuracy[1].mean())
    again = m.sparse_probing(codes.numpy(), LABELS)
    np.testing.assert_array_equal(again.accuracy, result.accuracy)
    # Scaling a concept changes nothing.
    scaled = m.sparse_probing(codes * torch.linspace(0.01, 100, 12), LABELS)
    np.testing.assert_array_equal(scaled.concepts, result.concepts)


def test_texts_are_probed_by_their_mean_codes(tiny_model: Callable[..., TextModel]) -> None:
    good, bad = ["the food was great .", "we loved it !"], ["the food was awful .", "we hated it !"]
    texts, labels = (good + bad) * 6 + [""], ([1, 1, 0, 0] * 6) + [None]
    activations = ModelWithSplitPoints(tiny_model("bert"), [0]).get_activations(texts)[0]
    dictionary = PCAConcepts(n_concepts=8).fit(activations, progress=False)
    values = m.probe_texts(dictionary, activations, labels)
    assert set(values) == {"probing/sparse_1", "probing/sparse_5", "probing/dense"}
    assert values["probing/dense"] == 1.0
    codes = torch.stack(
        [
            dictionary.encode(activations.tensor()[torch.from_numpy(activations.text_ids == i)]).mean(0)
            for i in range(24)
        ]
    )
    assert values["probing/sparse_1"] == pytest.approx(sparse_1(codes, labels[:24]))


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="180 rows of codes need as many labels, not 3"):
        m.sparse_probing(planted(), ["a", "b", "c"])
    with pytest.raises(DataError, match=r"two classes of at least four rows each, not \{'a': 180\}"):
        m.sparse_probing(planted(), ["a"] * 180)
    with pytest.raises(InputError, match=r"sizes of probes must be whole numbers of at least 1, not \[0\]"):
        m.sparse_probing(planted(), LABELS, sizes=[0])
    with pytest.raises(InputError, match=r"test_share must be above 0 and below 1, not 1\.5"):
        m.sparse_probing(planted(), LABELS, test_share=1.5)
    bad = planted()
    bad[5, 2] = float("inf")
    with pytest.raises(InputError, match="row 5 of the codes is NaN or infinite"):
        m.sparse_probing(bad, LABELS)
