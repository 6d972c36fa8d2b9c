"""Probes of the aspects of restaurant reviews foresee what people's edits of them do to a classifier."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interpreto_mlops.concepts import ModelWithSplitPoints
from interpreto_mlops.errors import TextWarning
from interpreto_mlops.models.text_model import TextModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from benchmarks import cebab_probes


def test_agreement_knows_its_parts() -> None:
    """Estimates that are right but for what differs within a direction, and the other way round."""
    rng = np.random.default_rng(0)
    edits = pd.DataFrame(
        {"aspect": ["food", "noise"] * 60, "was": ["Negative"] * 60 + ["Positive"] * 60, "is": "unknown"}
    )
    group = edits.groupby(["aspect", "was"]).ngroup().to_numpy() * 2.0
    own = rng.standard_normal(120)
    means = cebab_probes.agreement(group + 0.01 * rng.standard_normal(120), group + own, edits)
    assert means["means"] > 0.99
    assert abs(means["within"]) < 0.3
    within = cebab_probes.agreement(own, 3 * own, edits)
    assert within["within"] == pytest.approx(1)
    assert within["slope"] == pytest.approx(3)


@pytest.mark.slow
def test_estimated_effects_are_those_of_edits_and_of_no_other_labels(
    shared: Path, cebab_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cebab_probes, "FAMILIES", ("mean_difference",))
    folder = shared / "data" / "cebab"
    train = cebab_probes.reviews(folder, "train_inclusive").head(3000)
    edits = cebab_probes.pairs(cebab_probes.reviews(folder, "test")).head(400)
    split = ModelWithSplitPoints(cebab_model, [cebab_probes.EDITED_LAYER])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        rows = split.get_activations(train.description.tolist(), granularity="sample", progress=False)
        records, aspects = cebab_probes.effects(split, rows[cebab_probes.EDITED_LAYER], train, edits)
    found = {(each["probe"], each["way"]): each for each in records}
    assert found["mean_difference", "shift"]["pearson"] > 0.5
    assert found["mean_difference", "shift"]["means"] > 0.8
    assert abs(found["mean_difference, labels dealt out", "shift"]["pearson"]) < 0.4
    assert sum(each["edits"] for each in aspects) == 400
