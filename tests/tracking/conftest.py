"""No test here depends on a store that the machine has configured, nor leaves one behind."""

from __future__ import annotations

from collections.abc import Callable

import mlflow
import pytest

from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import LoggedTextModel, log_text_model
from interpreto_mlops.tracking.store import Store


@pytest.fixture(autouse=True)
def _nobody(nobody: None) -> None:
    """See `nobody`."""


@pytest.fixture
def user(store: Store) -> Store:
    """The user has set MLflow up for themself."""
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    return store


@pytest.fixture
def model(tiny_model: Callable[..., TextModel]) -> TextModel:
    """A tiny classifier."""
    return tiny_model()


@pytest.fixture
def logged(user: Store, model: TextModel) -> LoggedTextModel:
    """The same, registered as `reviews`."""
    return log_text_model(user, None, model, name="reviews", registered_model_name="reviews")
