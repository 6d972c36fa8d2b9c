"""What a real browser shows of dictionaries in the MLflow UI: their comparison by charts, and where a version leads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import log_text_model, register_dictionary, run, write_dictionary
from interpreto_mlops.tracking.links import logged_models_url, version_url
from interpreto_mlops.tracking.store import Store, connect
from tests.conftest import TEXTS, build, word_tokenizer
from tests.mlflow_stores import serving
from tests.mlflow_ui import shows

pytestmark = pytest.mark.slow
LAYERS = (0, 1, 2)
METRICS = {"reconstruction/r2": 0.5, "complexity/l0": 2.0}


@dataclass(frozen=True)
class Shown:
    """A store behind a server, and what it holds.

    Arguments:
        store: through the server.
        base_id: of the explained logged model.
        names: of the logged dictionaries, a layer each.
        run_ids: of their runs.
        model_ids: of the dictionaries.
    """

    store: Store
    base_id: str
    names: tuple[str, ...]
    run_ids: tuple[str, ...]
    model_ids: tuple[str, ...]


@pytest.fixture(scope="module")
def shown(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    shutil.copy(migrated, folder / "mlflow.db")
    with serving(f"sqlite:///{folder}/mlflow.db", folder) as address:
        store = connect(address, "three layers", timeout=60)
        plain = TextModel(build("bert"), word_tokenizer(), name="tiny")
        base = log_text_model(store, None, plain, name="reviews", registered_model_name="reviews")
        model = TextModel(plain.model, plain.tokenizer, name="reviews", uri=base.uri, model_id=base.model_id)
        layers = ModelWithSplitPoints(model, list(LAYERS)).get_activations(
            TextDataset("few reviews", TEXTS), progress=False
        )
        names, runs, models = [], [], []
        for layer in LAYERS:
            dictionary = PCAConcepts(n_concepts=3).fit(layers[layer])
            metrics = {key: value + layer for key, value in METRICS.items()}
            with run(store, kind="concepts", name=f"layer {layer}", suite="s") as log:
                logged = write_dictionary(log, dictionary, name=f"layer-{layer}-pca", metrics=metrics, draw=False)
            register_dictionary(store, logged, dictionary, metrics=metrics)
            names.append(logged.name)
            runs.append(log.run_id)
            models.append(logged.model_id)
        yield Shown(store, base.model_id, tuple(names), tuple(runs), tuple(models))


def test_charts_compare_the_dictionaries_of_three_layers_on_one_data_set(shown: Shown, page: Any) -> None:
    page.goto(logged_models_url(shown.store))
    for name in shown.names:
        assert shows(page, name)
    page.locator("[data-component-id='mlflow.logged_model.list.view-mode'], label:has([value='CHART'])").last.click()
    # The section of the data set, and in it one chart of bars for each metric.
    assert shows(page, "few reviews")
    for key in METRICS:
        assert shows(page, key.rsplit("/", 1)[-1])
    page.locator(".js-plotly-plot .bars .point").first.wait_for(state="attached")
    drawn = page.evaluate(_BARS)
    for value in METRICS.values():
        expected = {model_id: value + layer for layer, model_id in zip(LAYERS, shown.model_ids, strict=True)}
        assert expected in drawn


# What each chart of bars has drawn: the values by the ids of the models.
_BARS = """() => [...document.querySelectorAll('.js-plotly-plot')]
    .flatMap(plot => plot.data.filter(trace => trace.type === 'bar'))
    .map(trace => Object.fromEntries([...trace.y].map((id, place) => [id, trace.x[place]])))"""


def test_the_version_page_leads_to_run_and_base_model(shown: Shown, page: Any) -> None:
    name = "reviews.bert-encoder-layer-1.pca"
    page.goto(version_url(shown.store, name, 1))
    assert shows(page, "Source Run")
    _leads_to(page, shown.run_ids[1])
    _leads_to(page, shown.model_ids[1])
    # The base model, by its pinned address.
    assert shows(page, "models:/reviews/1")


def test_the_run_page_leads_to_dictionary_and_base_model(shown: Shown, page: Any) -> None:
    page.goto(f"{shown.store.tracking_uri}/#/experiments/{shown.store.experiment_id}/runs/{shown.run_ids[0]}")
    assert shows(page, "layer-0-pca")
    _leads_to(page, shown.model_ids[0])
    _leads_to(page, shown.base_id)


def _leads_to(page: Any, identifier: str) -> None:
    """Find a link whose address names it; a page that never has one fails here, by the browser's time-out."""
    page.locator(f"a[href*='{identifier}']").first.wait_for()
