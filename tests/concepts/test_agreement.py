"""Ablation and gradients rank concepts alike, and human edits of an aspect move its concept."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from interpreto_mlops.concepts import ModelWithSplitPoints, TopKSAEConcepts, concept_importance
from interpreto_mlops.errors import TextWarning
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.library_docs import library_docs
from interpreto_mlops.workflows.classifier import train_classifier

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from benchmarks import concept_agreement


def correlations(split: ModelWithSplitPoints, dictionary: TopKSAEConcepts, texts: list[str]) -> list[float]:
    ablated, gradients = (
        concept_importance(split, dictionary, texts, method=method, progress=False).values
        for method in ("ablation", "gradient_x_activation")
    )
    known = [k for k in range(len(ablated)) if np.isfinite(ablated[k]).all()]
    alive = (np.abs(ablated[known]) > 0).any(axis=0)
    return [float(spearmanr(ablated[k, alive], gradients[k, alive]).statistic) for k in known]


def test_on_restaurant_reviews(shared: Path, cebab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_agreement, "FAMILIES", {"topk_sae": {"n_concepts": 64, "k": 8, "n_epochs": 3}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        (record,) = concept_agreement.measure(cebab_folder, shared / "data" / "cebab", most=800)
    assert min(record["correlation"].values()) > 0.9
    assert np.mean([record[aspect] for aspect in concept_agreement.ASPECTS]) > 1.2


@pytest.mark.slow
def test_on_a_model_of_our_own() -> None:
    train, test = library_docs("train"), library_docs("test")
    trained = train_classifier(train.head(600), test, epochs=2)
    split = ModelWithSplitPoints(TextModel(trained.model, trained.tokenizer, name="docs"), [1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        rows = split.get_activations(train.head(300), progress=False)[1]
        dictionary = TopKSAEConcepts(n_concepts=64, k=8, n_epochs=5).fit(rows, progress=False)
        assert np.mean(correlations(split, dictionary, list(test.texts[:60]))) > 0.8
