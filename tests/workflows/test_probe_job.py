"""Jobs of probes: one run for each layer, method and label, a report, and nothing goes silently."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient

from interpreto_mlops.cli import main
from interpreto_mlops.concepts import LogisticProbe, Probe
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.tracking import load_dictionary
from interpreto_mlops.workflows import probe as workflow
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.job import Console
from interpreto_mlops.workflows.recipes import load_recipe, parse_recipe
from tests.conftest import WORDS
from tests.workflows.writer import save_writer

DIES_AT_THE_THIRD_RUN = """
import os, sys
from interpreto_mlops.workflows import probe
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import load_recipe
validate, calls = probe.cross_validate, []
def dies(*args, **kwargs):
    calls.append(1)
    if len(calls) == 3:
        os._exit(9)
    return validate(*args, **kwargs)
probe.cross_validate = dies
execute(load_recipe(sys.argv[1]), command="…")
"""
SCORES = ("accuracy", "balanced_accuracy", "auroc", "control", "selectivity")


@pytest.fixture
def labelled(tmp_path):
    """Reviews with two columns of labels: whether the first word is praise, and a value dealt at random."""
    rng = np.random.default_rng(0)
    words = [word for word in WORDS if word.isalpha()]
    rows = [" ".join(rng.choice(words, 7)) for _ in range(90)]
    praise = ["yes" if {"great", "good", "fine", "loved"} & set(row.split()) else "no" for row in rows]
    kind = rng.choice(["zzqa", "zzqb", "zzqc"], 90).tolist()
    kind[:2] = ["zzqrare", ""]
    path = tmp_path / "reviews.csv"
    pd.DataFrame({"review": rows, "praise": praise, "kind": kind}).to_csv(path, index=False)
    return path


@pytest.fixture
def asked(model_folder, labelled, database):
    """A function that makes a small recipe."""

    def make(**more):
        values = {
            "kind": "probe",
            "model": str(model_folder),
            "data": str(labelled),
            "text_column": "review",
            "tracking_uri": database,
            "experiment": "jobs",
            "layers": [0, 1],
            "methods": ["logistic", "squared_distance"],
            "label_columns": ["praise"],
            "repeats": 1,
        }
        return {**values, **more}

    return make


@pytest.fixture
def runs(database):
    """A function that returns all runs of the store of a kind."""

    def find(kind=None):
        client = MlflowClient(database, registry_uri=database)
        experiment = client.get_experiment_by_name("jobs")
        found = [] if experiment is None else client.search_runs([experiment.experiment_id])
        return [run for run in found if kind in (None, run.data.tags.get("interpreto.kind"))]

    return find


def test_each_layer_method_and_label_is_a_run_with_its_scores(asked, runs, database):
    lines = []
    recipe = parse_recipe(asked(label_columns=["praise", "kind"], register_best=True))
    outcome = execute(recipe, command="repeat <me>", console=Console(write=lines.append))
    assert len(outcome.probes) == len(runs("probe")) == 2 * 2 * 2
    assert "  1 of 4 values of 'kind' have too few texts for a probe" in lines
    for cell, run in zip(outcome.probes, reversed(runs("probe")), strict=True):
        assert run.info.run_id == cell.run_id
        assert run.info.status == "FINISHED"
        for score in SCORES:
            assert run.data.metrics[f"probing/{score}"] == pytest.approx(cell.metrics[f"probing/{score}"])
        assert {f"probing/{score}_random" for score in SCORES[:3]} <= run.data.metrics.keys()
        assert run.data.params["label"] == cell.label
        assert run.data.params["layer"] == run.data.tags["interpreto.layer"] == cell.path
        assert run.data.params["method"] == cell.probe.name
        assert run.data.params["folds"] == "5"
        assert run.data.tags["interpreto.cell"] == cell.hash
    # A random model keeps what it reads: praise is known, and what was dealt at random is not.
    best = {cell.label: cell for cell in outcome.probes if cell.probe.name == "logistic"}
    assert best["praise"].metrics["probing/balanced_accuracy"] > 0.75
    assert abs(best["kind"].metrics["probing/selectivity"]) < 0.25
    assert best["kind"].probe.names == ("kind=zzqa", "kind=zzqb", "kind=zzqc")
    assert len({cell.hash for cell in outcome.probes}) == 8
    names = {cell.registered[0] for cell in outcome.probes if cell.registered}
    assert len(names) == 2
    for cell in outcome.probes:
        if cell.registered:
            mlflow.set_tracking_uri(database)
            loaded = load_dictionary(f"models:/{cell.registered[0]}/{cell.registered[1]}")
            assert isinstance(loaded, Probe)
            rows = torch.randn(4, 32)
            assert torch.equal(loaded.encode(rows), cell.probe.encode(rows))
    _the_report_shows_the_layers(outcome, runs)


def _the_report_shows_the_layers(outcome, runs):
    (report,) = runs("report")
    page = mlflow.artifacts.load_text(f"runs:/{outcome.report_run_id}/report/report.html")
    for words in ("praise", "kind=zzqa", "squared_distance", "selectivity", "repeat &lt;me&gt;", "is known best at"):
        assert words in page
    picture = mlflow.artifacts.download_artifacts(f"runs:/{outcome.report_run_id}/report/probing.png")
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert "| layer | label | method |" in report.data.tags["mlflow.note.content"]
    table = json.loads(mlflow.artifacts.load_text(f"runs:/{outcome.probes[0].run_id}/probing/scores.json"))
    assert table["columns"] == ["concept", "score", "mean", "low", "high", "random", "texts"]
    assert len(table["data"]) == 5


def test_a_run_can_be_repeated_by_its_own_recipe(asked, database):
    recipe = parse_recipe(asked(options={"logistic": {"calibration": "platt", "c": 0.1}}, layers=[1], seed=3))
    first = execute(recipe, command="…")
    mlflow.set_tracking_uri(database)
    path = mlflow.artifacts.download_artifacts(f"runs:/{first.probes[0].run_id}/recipe.yaml")
    again = execute(load_recipe(path), command="…")
    (cell,) = again.probes
    assert cell.hash == first.probes[0].hash
    assert torch.equal(cell.probe.dictionary, first.probes[0].probe.dictionary)
    assert cell.metrics["probing/auroc"] == first.probes[0].metrics["probing/auroc"]
    assert isinstance(cell.probe, LogisticProbe)
    assert (cell.probe.calibration, cell.probe.c) == ("platt", 0.1)


def test_the_tokens_of_a_language_model_are_probed_with_words_as_control(asked, tmp_path, labelled):
    save_writer(tmp_path, ["the food was"])
    values = asked(
        model=str(tmp_path / "writer"), layers=["transformer.wte", 1], methods=["ridge"], granularity="token"
    )
    outcome = execute(parse_recipe(values), command="…")
    first, last = outcome.probes
    # What a text says somewhere is in each of its tokens only after tokens have looked at each other.
    assert last.metrics["probing/auroc"] > first.metrics["probing/auroc"]
    assert first.known.n_rows == (630,)
    assert first.known.n_texts == (90,)


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on_without_learning_again(asked, runs, tmp_path, monkeypatch):
    values = asked(workspace=str(tmp_path / "work"))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    killed = subprocess.run([sys.executable, "-c", DIES_AT_THE_THIRD_RUN, str(file)], check=False, capture_output=True)
    assert killed.returncode == 9, killed.stderr.decode()
    left = {run.info.run_id: run.info.status for run in runs()}
    assert sorted(left.values()) == ["FINISHED", "FINISHED", "RUNNING", "RUNNING"]
    learned = []
    fit = LogisticProbe.fit

    def noting(self, rows, *args, **kwargs):
        learned.append(len(rows))
        return fit(self, rows, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(
            LogisticProbe, "fit", lambda self, rows, *a, **k: (learned.append(len(rows)), fit(self, rows, *a, **k))[1]
        )
        outcome = execute(parse_recipe(values), command="…")
    assert 90 not in learned  # folds are learned anew; what was fitted on all texts is in the workspace
    assert {run.info.status for run in runs() if run.info.run_id in left} == {"FINISHED", "KILLED"}
    undisturbed = execute(parse_recipe(asked()), command="…")
    for one, other in zip(outcome.probes, undisturbed.probes, strict=True):
        assert one.hash == other.hash
        assert torch.equal(one.probe.dictionary, other.probe.dictionary)
        assert one.metrics["probing/selectivity"] == other.metrics["probing/selectivity"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"label_columns": ["stars"]}, DataError, "no column 'stars'"),
        ({"label_columns": ["review"]}, DataError, "have 90 values"),
        ({"label_columns": ["praise", "praise"]}, InputError, "'praise' is given twice"),
        ({"label_column": "praise"}, InputError, r"given by 'label_columns', as in \['praise'\]"),
        ({"methods": ["svm"]}, UnknownNameError, "unknown probe 'svm'"),
        ({"folds": 60}, DataError, "no value of the labels 'praise' has 60 texts with it"),
        ({"select_by": "reconstruction/r2"}, UnknownNameError, "probing/selectivity"),
        ({"options": {"logistic": {"seed": 1}}}, InputError, "'seed'"),
        ({"options": {"logistic": {"alpha": 1}}}, UnknownNameError, "'alpha'"),
        ({"data": "library_docs", "label_columns": ["stars"]}, InputError, r"no others: not \['stars'\]"),
    ],
)
def test_what_cannot_be_probed_is_refused_before_anything_runs(asked, runs, monkeypatch, change, error, words):
    def harvests(*args, **kwargs):
        raise AssertionError("the texts went through the model")

    monkeypatch.setattr(workflow.ModelWithSplitPoints, "get_activations", harvests)
    with pytest.raises(error, match=words):
        execute(parse_recipe(asked(**change)), command="…")
    assert not runs()


def test_a_run_that_fails_says_what_it_was(asked, runs, monkeypatch):
    def fails(*args, **kwargs):
        raise InputError("no more")

    monkeypatch.setattr(workflow, "cross_validate", fails)
    with pytest.raises(InputError, match="no more"):
        execute(parse_recipe(asked()), command="…")
    (cell,) = runs("probe")
    assert cell.info.status == "FAILED"
    assert {"label": "praise", "method": "logistic", "granularity": "sample"}.items() <= cell.data.params.items()


def test_hidden_texts_leave_no_words_nor_values_of_labels(asked, database, tmp_path, labelled):
    outcome = execute(
        parse_recipe(asked(label_columns=["kind"], layers=[1], hide_texts=True, register_best=True)), command="…"
    )
    assert len(outcome.probes) == 2
    found = [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and path != labelled and "tiny-classifier" not in path.parts
    ]
    assert any(path.name == "dictionary.json" for path in found)
    for path in found:
        assert b"zzq" not in path.read_bytes(), path


def test_the_command_writes_the_catalogue_and_says_the_table(asked, database, runs, model_folder, labelled):
    options = ["--model", str(model_folder), "--data", str(labelled), "--text-column", "review", "--experiment", "jobs"]
    options += ["--label-columns", "praise", "--layers", "0,1", "--methods", "ridge", "--repeats", "1"]
    options += ["--tracking-uri", database, "--register-best", "--option", "ridge.alpha=2"]
    done = CliRunner().invoke(main, ["probe", *options])
    assert done.exit_code == 0, done.output
    assert "balanced accuracy" in done.output
    assert "tiny-classifier.bert-encoder-layer-" in done.output
    assert {run.data.params["method.alpha"] for run in runs("probe")} == {"2"}
    path = Path(database.removeprefix("sqlite:///")).parent / "catalogue.db"
    with sqlite3.connect(path) as book:
        tables = [name for (name,) in book.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        held = " ".join(str(book.execute(f'SELECT * FROM "{name}"').fetchall()) for name in tables)
    assert all(run.info.run_id in held for run in runs("probe"))
    assert "probing/selectivity" in held
    refused = CliRunner().invoke(main, ["probe", *options, "--methods", "oracle"])
    assert refused.exit_code == 1
    assert "unknown probe 'oracle'" in refused.output
