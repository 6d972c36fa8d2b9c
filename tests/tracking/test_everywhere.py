"""The same evidence in every kind of store: SQLite, PostgreSQL, and servers on both that serve the artifacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

import interpreto_mlops as im
from interpreto_mlops.attributions import Saliency
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.concepts import PCAConcepts
from interpreto_mlops.errors import IntegrityError
from interpreto_mlops.tracking.lineage import lineage
from interpreto_mlops.tracking.reading import read_explanations, runs_that_explain
from interpreto_mlops.tracking.resolving import fetched, resolve
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.tracking.verification import Verification, verify_evidence
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import parse_recipe
from tests.audit.evidence import Evidence, make_evidence
from tests.conftest import TEXTS
from tests.mlflow_stores import global_state, serving
from tests.postgres import fresh_database

PLACES = ("sqlite", "postgresql", "server on sqlite", "server on postgresql")
MODEL = "models:/reviews@champion"
DICTIONARY = "models:/tiny.layer-1.pca@champion"


@dataclass(frozen=True)
class Place:
    """A store with evidence in it.

    Arguments:
        evidence: a classifier, its attributions by two methods, and two versions of a dictionary of it.
        catalogue: where a catalogue may be: beside MLflow's tables where they are on PostgreSQL.
    """

    evidence: Evidence
    catalogue: str

    @property
    def store(self) -> Store:
        return self.evidence.store

    @property
    def uri(self) -> str:
        return self.store.tracking_uri


@pytest.fixture(scope="module", autouse=True)
def _no_pickle() -> Iterator[None]:
    """MLflow may load nothing that was pickled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        yield


@pytest.fixture(
    scope="module", params=[PLACES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in PLACES[1:])]
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    with ExitStack() as stack:
        if "postgresql" in request.param:
            server, like = (request.getfixturevalue(name) for name in ("postgres_server", "migrated_postgres"))
            database = catalogue = stack.enter_context(fresh_database(server, like=like))
        else:
            shutil.copy(migrated, folder / "mlflow.db")
            database, catalogue = f"sqlite:///{folder}/mlflow.db", f"sqlite:///{folder}/catalogue.db"
        if "server" in request.param:
            uri = stack.enter_context(serving(database, folder))
        else:
            uri = database
            MlflowClient(uri).create_experiment("everywhere", artifact_location=(folder / "artifacts").as_uri())
        store = connect(uri, "everywhere")
        found = make_evidence(store)
        for name in ("reviews", found.dictionary_name):
            store.client.set_registered_model_alias(name, "champion", 1)
        yield Place(found, catalogue)


@pytest.fixture
def user(place: Place) -> Place:
    """The user has set MLflow up for themself."""
    mlflow.set_tracking_uri(place.uri)
    mlflow.set_experiment(experiment_id=place.store.experiment_id)
    return place


@pytest.fixture
def job(place: Place, tmp_path: Path) -> dict[str, Any]:
    """What every recipe here has; its experiment is there, with a place for its artifacts."""
    pd.DataFrame({"text": TEXTS * 3}).to_csv(tmp_path / "data.csv", index=False)
    if place.store.client.get_experiment_by_name("jobs") is None:
        location = place.store.client.get_experiment(place.store.experiment_id).artifact_location
        local = f"{location} of jobs" if location.startswith("file:") else None
        place.store.client.create_experiment("jobs", artifact_location=local)
    where = {"tracking_uri": place.uri, "experiment": "jobs", "data": str(tmp_path / "data.csv"), "text_column": "text"}
    return {"model": MODEL, **where}


def test_models_and_dictionaries_are_loaded_by_alias(user: Place) -> None:
    made, before = user.evidence, global_state()
    model, dictionary = im.load_model(MODEL), im.load_dictionary(DICTIONARY)
    assert global_state() == before
    assert (model.fingerprint, model.uri) == (made.model.fingerprint, "models:/reviews/1")
    assert Saliency(model)(TEXTS) == made.attributions[_run_of(made, "saliency")]
    assert {each.concept: each.label for each in dictionary.descriptions} == made.labels[0]
    rows = torch.randn(7, dictionary.width, generator=torch.Generator().manual_seed(0))
    wrapped = mlflow.pyfunc.load_model(DICTIONARY)
    codes = wrapped.predict(pd.DataFrame({"activations": list(rows.double().numpy())}))
    np.testing.assert_allclose(codes, dictionary.encode(rows).numpy(), rtol=1e-5, atol=1e-5)
    assert wrapped.predict(pd.DataFrame({"text": list(TEXTS)})).shape == (len(TEXTS), 4)


def _run_of(made: Evidence, method: str) -> str:
    return next(run_id for run_id, found in made.attributions.items() if found.method == method)


def test_attributions_are_read_back_as_they_were(place: Place) -> None:
    made = place.evidence
    found = runs_that_explain(place.store, resolve(place.store, MODEL), ["attributions"])
    assert set(made.attributions) <= {run.info.run_id for run in found}
    for run_id, written in made.attributions.items():
        (read,) = read_explanations(place.store, run_id)
        assert read.explanations == written
        assert set(read.scores["metric"]) == ({"deletion"} if written.method == "occlusion" else set())


def test_lineage_goes_both_ways(place: Place) -> None:
    made = place.evidence
    up = lineage(place.store, DICTIONARY)
    by_relation = {child.relation: child for child in up.children}
    assert up.facts == {"layer": "bert.encoder.layer.1", "method": "pca", "alias": "champion"}
    assert by_relation["learned from"].uri == "models:/reviews/1"
    assert by_relation["made by"].uri == f"runs:/{made.dictionary_runs[0]}"
    assert by_relation["fitted on"].title == "reviews"
    down = lineage(place.store, MODEL)
    runs = {child.uri: child for child in down.children if child.relation == "explained by"}
    assert {f"runs:/{run_id}" for run_id in (*made.attributions, *made.dictionary_runs)} <= set(runs)
    made_by = [each for child in runs[f"runs:/{made.dictionary_runs[1]}"].children for each in child.children]
    assert [each.uri for each in made_by] == [f"models:/{made.dictionary_name}/2"]


def test_what_nobody_touched_is_intact(place: Place) -> None:
    made = place.evidence
    runs = [f"runs:/{run_id}" for run_id in (*made.attributions, *made.dictionary_runs)]
    for uri in (MODEL, DICTIONARY, f"models:/{made.model.model_id}", *runs):
        found = verify_evidence(place.store, uri)
        assert (found.verdict, found.n_files >= 2) == ("intact", True), (uri, found.findings)


def test_a_changed_byte_and_replaced_labels_are_found(place: Place, tmp_path: Path) -> None:
    """Through the store's own client, as whoever may write there would do it."""
    client, name, run_id = place.store.client, place.evidence.dictionary_name, place.evidence.dictionary_runs[1]
    uri = f"models:/{name}/2"
    model_id = client.get_model_version(name, "2").source.removeprefix("models:/")
    with fetched(place.store, resolve(place.store, uri)) as folder:
        shutil.copytree(folder, tmp_path / "model")
    card = tmp_path / "model" / "dictionary" / "dictionary.json"
    content = card.read_bytes()
    card.write_bytes(content.replace(b'"label"', b'"lapel"', 1))
    assert card.read_bytes() != content
    client.log_model_artifacts(model_id, str(card.parents[1]))
    broken = verify_evidence(place.store, uri)
    assert _said(broken, "changed") == ["the file 'dictionary/dictionary.json' was changed since it was logged"]
    with pytest.raises(IntegrityError, match=r"dictionary\.json"):
        im.load_dictionary(uri, store=place.store)
    card.write_bytes(content)
    client.log_model_artifacts(model_id, str(card.parents[1]))
    assert verify_evidence(place.store, uri).verdict == "intact"

    labels = Path(client.download_artifacts(run_id, "concepts/labels.json", str(tmp_path)))
    content = labels.read_bytes()
    labels.write_text(json.dumps({"columns": ["concept"], "data": [["harmless"]]}))
    client.log_artifact(run_id, str(labels), "concepts")
    for each in (uri, f"runs:/{run_id}"):
        found = verify_evidence(place.store, each)
        assert _said(found, "changed") == ["the file 'concepts/labels.json' was changed since it was logged"]
    labels.write_bytes(content)
    client.log_artifact(run_id, str(labels), "concepts")
    assert verify_evidence(place.store, f"runs:/{run_id}").verdict == "intact"


def _said(found: Verification, verdict: str) -> list[str]:
    return [finding.detail for finding in found.findings if finding.verdict == verdict]


def test_the_catalogue_is_made_of_it_and_answers(place: Place) -> None:
    made = place.evidence
    with Catalogue.connect(place.catalogue) as catalogue:
        rebuilt = catalogue.rebuild(place.store)
        assert rebuilt.skipped == {}
        assert rebuilt.runs >= 4
        found = catalogue.ask("texts_with_word", word="service", version="models:/reviews/1", k=20, method="saliency")
        expected = _for_the_word(made, "service")
        assert len(expected) > 0
        assert dict(zip(found["text_index"], found["score"], strict=True)) == pytest.approx(expected)
        changed = catalogue.ask(
            "changed_labels", before=f"models:/{made.dictionary_name}/1", after=f"models:/{made.dictionary_name}/2"
        )
        assert list(changed["concept"]) == [2]
        catalogue.move_alias(place.store, made.dictionary_name, "champion", 1, actor="ann")
        assert catalogue.verify_log().ok
        moves = catalogue.ask("alias_moves", name=made.dictionary_name, alias="champion")
        assert list(moves["actor"]) == ["ann"]


def _for_the_word(made: Evidence, word: str) -> dict[int, float]:
    """The positive scores of a word by text, from the explanations themselves."""
    found = {}
    for item in made.attributions[_run_of(made, "saliency")]:
        scores = [float(score) for name, score in zip(item.elements, item.scores[0], strict=True) if name == word]
        if scores and max(scores) > 0:
            found[item.index] = max(scores)
    return found


@pytest.mark.filterwarnings("ignore:The inplace keyword in", "ignore:Starting with pandas version 4.0")
def test_mlflows_own_evaluation_writes_to_the_versions_model(user: Place) -> None:
    frame = pd.DataFrame({"text": TEXTS})
    result = mlflow.models.evaluate(
        MODEL,
        mlflow.data.from_pandas(frame, name="few", digest="d" * 32),
        model_type="text-classifier",
        evaluators="interpreto",
        evaluator_config={"methods": ["occlusion"], "metrics": ["deletion"], "n_random": 2},
    )
    logged = user.store.client.get_logged_model(str(user.evidence.model.model_id))
    linked = {each.key: each.value for each in logged.metrics if each.dataset_name == "few"}
    assert linked["faithfulness/deletion"] == pytest.approx(result.metrics["faithfulness/deletion"])


def test_evidence_goes_into_the_users_open_run(user: Place) -> None:
    model = im.load_model(MODEL)
    with mlflow.start_run() as active:
        before = global_state()
        im.log_attributions(user.evidence.attributions[_run_of(user.evidence, "saliency")], model=model)
        rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        logged = im.log_dictionary(PCAConcepts(n_concepts=2).fit(rows))
        assert global_state() == before
    found = user.store.client.get_run(active.info.run_id)
    assert (found.info.status, logged.run_id) == ("FINISHED", active.info.run_id)
    assert found.data.tags["interpreto.kind"] == "attributions,concepts"
    assert verify_evidence(user.store, f"runs:/{active.info.run_id}").verdict == "intact"


def test_a_job_of_attributions_leaves_sealed_runs(place: Place, job: dict[str, Any]) -> None:
    outcome = execute(
        parse_recipe({**job, "kind": "attribute", "methods": ["saliency"], "metrics": ["deletion"], "n_random": 2}),
        command="…",
    )
    runs = [cell.run_id for cell in outcome.attributions]
    assert [verify_evidence(place.store, f"runs:/{each}").verdict for each in (*runs, outcome.report_run_id)] == [
        "intact",
        "intact",
    ]
    explained = runs_that_explain(place.store, resolve(place.store, MODEL), ["attributions"])
    assert set(runs) <= {run.info.run_id for run in explained}


def test_a_job_of_concepts_registers_what_it_learned(place: Place, job: dict[str, Any]) -> None:
    recipe = {**job, "kind": "concepts", "layers": [0], "methods": ["pca"], "n_concepts": [3], "seeds": 1}
    (cell,) = execute(parse_recipe(recipe), command="…").concepts
    assert cell.registered is not None
    uri = "models:/{}/{}".format(*cell.registered)
    assert torch.equal(im.load_dictionary(uri, store=place.store).dictionary, cell.dictionary.dictionary)
    assert verify_evidence(place.store, uri).verdict == "intact"
