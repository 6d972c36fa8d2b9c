"""No test here depends on a store that the machine has configured, nor leaves one behind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(autouse=True)
def _nobody(nobody: None) -> None:
    """See `nobody`."""


@pytest.fixture
def model_folder(tiny_model, tmp_path):
    """A tiny classifier as a user has it: a folder."""
    model = tiny_model()
    folder = tmp_path / "tiny-classifier"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data_file(texts, tmp_path):
    """Sixty reviews, a different number of words in each."""
    rng = np.random.default_rng(0)
    words = " ".join(texts).split()
    rows = [" ".join(rng.choice(words, size=4 + i % 12)) for i in range(60)]
    path = tmp_path / "reviews.csv"
    pd.DataFrame({"review": rows, "stars": ["1", "5"] * 30}).to_csv(path, index=False)
    return path
