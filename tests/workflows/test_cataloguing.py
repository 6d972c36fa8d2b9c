"""Jobs and registrations write the catalogue and its log, and a catalogue that fails takes nothing with it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient

import interpreto_mlops as im
from interpreto_mlops.attributions import Occlusion
from interpreto_mlops.audit.catalogue import Catalogue, rebuilding
from interpreto_mlops.cli import main
from interpreto_mlops.concepts import PCAConcepts
from interpreto_mlops.errors import CatalogueError, ModelOutputError
from interpreto_mlops.tracking import dictionary_flavor, log_text_model
from interpreto_mlops.tracking.store import connect
from interpreto_mlops.workflows import concept_runs
from interpreto_mlops.workflows.compare import compare_methods
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.job import Console
from interpreto_mlops.workflows.recipes import parse_recipe


def recipe(kind, model_folder, data_file, uri, **more):
    common = {"model": str(model_folder), "data": str(data_file), "text_column": "review", "label_column": "stars"}
    if kind == "concepts":
        more = {"layers": [0], "n_concepts": [6], "methods": ["pca"], "effect_texts": 0, "seeds": 1, **more}
    else:
        more = {"methods": ["occlusion"], "metrics": ["deletion"], "max_texts": 6, "n_random": 2, **more}
    return parse_recipe({"kind": kind, **common, "tracking_uri": uri, "experiment": "jobs", **more})


def beside(uri):
    """The catalogue's file beside a SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).parent / "catalogue.db"


@pytest.fixture
def locked(database, monkeypatch):
    """The catalogue beside the store, held by another writer that does not let go."""
    Catalogue.connect(store=connect(database)).close()
    monkeypatch.setattr("interpreto_mlops.audit.catalogue.database.WAIT_SECONDS", 0.2)
    other = sqlite3.connect(beside(database), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    yield other
    other.close()


def test_a_job_of_attributions_is_in_the_catalogue_without_a_download(database, model_folder, data_file, monkeypatch):
    read = []
    monkeypatch.setattr(rebuilding, "read_explanations", lambda _, run_id: read.append(run_id) or [])
    outcome = execute(recipe("attribute", model_folder, data_file, database), command="…")
    assert read == []
    monkeypatch.undo()
    with Catalogue.connect(store=outcome.store) as book:
        word = outcome.attributions[0].explanations[0]
        best = word.elements[word.ranking(0)[0]]
        fingerprint = outcome.store.client.get_run(outcome.report_run_id).data.tags["interpreto.model.fingerprint"]
        found = book.ask("texts_with_word", word=best, version=fingerprint, k=1)
        assert word.text in set(found["text"])
        before = _content(book)
        assert before["catalogue_run"] == 2
        assert book.entries() == []
        # What was taken from memory is what the artifacts hold.
        rows = _rows(book)
        book.rebuild(outcome.store)
        assert _rows(book) == rows


def _content(book):
    tables = ("catalogue_run", "catalogue_dictionary", "catalogue_version")
    with book.database.reading() as connection:
        return {name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar() for name in tables}


def _rows(book):
    skipped = {"id", "run"}
    with book.database.reading() as connection:
        found = {}
        for name in ("catalogue_run", "catalogue_sample", "catalogue_attribution", "catalogue_score"):
            rows = connection.exec_driver_sql(f"SELECT * FROM {name}").mappings()
            found[name] = sorted(repr({k: v for k, v in row.items() if k not in skipped}) for row in rows)
        return found


def test_every_registration_of_a_job_is_an_entry_of_the_log(database, model_folder, data_file):
    outcome = execute(recipe("concepts", model_folder, data_file, database, layers=[0, 1]), command="…")
    with Catalogue.connect(store=outcome.store) as book:
        entries = book.entries()
        registered = {"models:/{}/{}".format(*cell.registered) for cell in outcome.concepts if cell.registered}
        assert len(registered) == 2
        assert {entry.object for entry in entries} == registered
        assert {entry.action for entry in entries} == {"register"}
        assert {entry.after["run"] for entry in entries} == {cell.run_id for cell in outcome.concepts}
        assert book.verify_log().ok
        assert _content(book) == {"catalogue_run": 3, "catalogue_dictionary": 2, "catalogue_version": 2}


@pytest.mark.parametrize("off", [{"catalogue": False}, {"catalogue_uri": "none"}, "INTERPRETO_CATALOGUE_URI"])
def test_no_catalogue_is_made_where_none_is_wanted(database, model_folder, data_file, monkeypatch, off):
    if isinstance(off, str):
        monkeypatch.setenv(off, "none")
        off = {}
    execute(recipe("concepts", model_folder, data_file, database, **off), command="…")
    assert not beside(database).exists()


def test_the_catalogue_can_be_elsewhere(database, model_folder, data_file, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERPRETO_CATALOGUE_URI", f"sqlite:///{tmp_path}/by-environment.db")
    execute(recipe("attribute", model_folder, data_file, database), command="…")
    given = f"sqlite:///{tmp_path}/given.db"
    execute(recipe("attribute", model_folder, data_file, database, catalogue_uri=given), command="…")
    assert not beside(database).exists()
    for name in ("by-environment", "given"):
        with Catalogue.connect(f"sqlite:///{tmp_path}/{name}.db") as book:
            assert _content(book)["catalogue_run"] == 2


def test_an_address_that_cannot_be_one_is_refused_before_anything_runs(database, model_folder, data_file):
    job = recipe("attribute", model_folder, data_file, database, catalogue_uri="mysql://me:secret@host/db")
    with pytest.raises(CatalogueError, match=r"mysql://\*\*\*@host/db"):
        execute(job, command="…")
    client = MlflowClient(database)
    assert client.search_runs([client.get_experiment_by_name("jobs").experiment_id]) == []


def test_a_locked_catalogue_leaves_the_runs_finished_and_is_told_of(locked, database, model_folder, data_file):
    with pytest.warns(RuntimeWarning, match="2 finished runs are not in the catalogue.*locked.*rebuild") as told:
        outcome = execute(recipe("attribute", model_folder, data_file, database), command="…")
    assert len(told) == 1
    assert {outcome.store.client.get_run(run_id).info.status for run_id, _ in outcome.runs} == {"FINISHED"}
    locked.rollback()
    with Catalogue.connect(store=outcome.store) as book:
        assert book.rebuild(outcome.store).runs == 2


@pytest.mark.filterwarnings("default::RuntimeWarning")
def test_a_registration_that_the_log_does_not_tell_of_is_exit_code_one(locked, database, model_folder, data_file):
    arguments = ["--model", model_folder, "--data", data_file, "--text-column", "review", "--tracking-uri", database]
    job = ["concepts", "--layers", "0", "--methods", "pca", "--n-concepts", "6", "--seeds", "1", "--quiet"]
    done = CliRunner().invoke(main, [*job, *map(str, arguments)])
    assert done.exit_code == 1
    assert "warning: 2 finished runs are not in the catalogue" in done.output
    name = "tiny-classifier.bert-encoder-layer-0.pca"
    assert f"Error: models:/{name}/1 is registered but not in the log: the catalogue at" in done.output
    client = MlflowClient(database, registry_uri=database)
    assert client.get_model_version(name, "1").status == "READY"
    runs = client.search_runs([client.get_experiment_by_name("interpreto").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}

    # The remedy that the message names.
    locked.rollback()
    command = ["catalogue", "note", f"models:/{name}/1", "--tracking-uri", database]
    assert f"register models:/{name}/1" in CliRunner().invoke(main, command).output
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "already" in again.output
    command[2] = f"models:/{name}/001"
    assert f"of 'models:/{name}/1' already" in CliRunner().invoke(main, command).output
    with Catalogue.connect(store=connect(database)) as book:
        assert [entry.object for entry in book.entries()] == [f"models:/{name}/1"]


@pytest.mark.filterwarnings("ignore:2 finished runs are not in the catalogue:RuntimeWarning")
def test_a_catalogue_of_another_store_takes_nothing(database, migrated, model_folder, data_file, tmp_path, tiny_model):
    shutil.copy(migrated, tmp_path / "other.db")
    other = connect(f"sqlite:///{tmp_path}/other.db", "tests")
    log_text_model(other, None, tiny_model(), name="tiny", registered_model_name="tiny")
    given = f"sqlite:///{tmp_path}/catalogue.db"
    with pytest.raises(CatalogueError, match="is registered but not in the log: this catalogue holds"):
        execute(recipe("concepts", model_folder, data_file, database, catalogue_uri=given), command="…")
    with Catalogue.connect(given) as book:
        assert [entry.object for entry in book.entries()] == ["models:/tiny/1"]
    client = MlflowClient(database, registry_uri=database)
    runs = client.search_runs([client.get_experiment_by_name("jobs").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_job_that_fails_later_still_tells_of_the_missing_entry(
    locked, database, model_folder, data_file, monkeypatch
):
    register = concept_runs.register_dictionary

    def fail(*args, **kwargs):
        register(*args, **kwargs)
        raise ModelOutputError("no more")

    monkeypatch.setattr(concept_runs, "register_dictionary", fail)
    with pytest.warns(RuntimeWarning, match="is registered but not in the log"), pytest.raises(ModelOutputError):
        execute(recipe("concepts", model_folder, data_file, database), command="…")


def test_what_python_registers_is_in_the_log(database, tiny_model):
    store = connect(database, "tests")
    log_text_model(store, None, tiny_model(), name="tiny", registered_model_name="tiny")
    dictionary = PCAConcepts(n_concepts=2).fit(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)))
    mlflow.set_tracking_uri(database)
    logged = im.log_dictionary(dictionary, registered_model_name="directions")
    dictionary_flavor.log_model(dictionary, registered_model_name="directions")
    with Catalogue.connect(store=store) as book:
        entries = book.entries()
    assert [entry.object for entry in entries] == [
        f"models:/{name}" for name in ("tiny/1", "directions/1", "directions/2")
    ]
    assert entries[1].after["run"] == logged.run_id


def test_a_warning_tells_of_what_python_registered_without_an_entry(locked, database, tiny_model):
    store = connect(database, "tests")
    with pytest.warns(
        RuntimeWarning, match="models:/tiny/1 is registered but not in the log.*catalogue note models:/tiny/1"
    ):
        logged = log_text_model(store, None, tiny_model(), name="tiny", registered_model_name="tiny")
    assert logged.uri == "models:/tiny/1"


def test_methods_compared_from_python_are_in_the_catalogue(database, tiny_model, texts):
    model = tiny_model()
    comparison = compare_methods(
        model, texts, [Occlusion(model)], ["deletion"], n_random=2, tracking_uri=database, experiment="jobs"
    )
    with Catalogue.connect(store=connect(database, "jobs")) as book:
        assert _content(book)["catalogue_run"] == 2
    assert comparison.report_run_id


@pytest.mark.slow
def test_a_command_shows_no_bars_of_what_the_catalogue_reads(database, model_folder, data_file):
    arguments = ["--model", model_folder, "--data", data_file, "--text-column", "review", "--tracking-uri", database]
    job = ["concepts", "--layers", "0", "--methods", "pca", "--n-concepts", "6", "--seeds", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    del environment["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
    command = [sys.executable, "-m", "interpreto_mlops", *job, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert beside(database).exists()
    assert "%|" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_server_has_no_catalogue_unless_one_is_configured(server, model_folder, data_file, tmp_path, monkeypatch):
    said = []
    job = recipe("concepts", model_folder, data_file, server)
    execute(job, command="…", console=Console(write=said.append))
    assert [line for line in said if line.startswith("no catalogue: --catalogue-uri, or INTERPRETO_CATALOGUE_URI")]
    assert list(Path.cwd().iterdir()) == []
    given = f"sqlite:///{tmp_path}/given.db"
    execute(recipe("concepts", model_folder, data_file, server, catalogue_uri=given), command="…")
    with Catalogue.connect(given) as book:
        assert len(book.entries()) == 1
        assert book.entries()[0].store == server
