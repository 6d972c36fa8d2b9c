"""Jobs of concepts that are killed, ask for what there is not, or leave something out: nothing goes silently."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient

from interpreto_mlops.errors import InputError, IntegrityError, UnknownNameError
from interpreto_mlops.tracking.store import connect
from interpreto_mlops.workflows import concepts as workflow
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.job import Console
from interpreto_mlops.workflows.recipes import parse_recipe
from interpreto_mlops.workflows.workspace import Workspace

DIES_WHILE_SCORING = """
import os, sys
from interpreto_mlops.workflows import concepts
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import load_recipe
score, calls = concepts.score, []
def dies_at_the_second_layer(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
        os._exit(9)
    return score(*args, **kwargs)
concepts.score = dies_at_the_second_layer
execute(load_recipe(sys.argv[1]), command="…")
"""


@pytest.fixture
def asked(model_folder, data_file, database):
    """A function that makes a small recipe."""

    def make(**more):
        values = {
            "kind": "concepts",
            "model": str(model_folder),
            "data": str(data_file),
            "text_column": "review",
            "label_column": "stars",
            "tracking_uri": database,
            "experiment": "jobs",
            "layers": [0, 1],
            "methods": ["topk_sae"],
            "n_concepts": [8],
            "seeds": 1,
            "options": {"topk_sae": {"k": 3, "n_epochs": 2}},
        }
        return {**values, **more}

    return make


@pytest.fixture
def runs(database):
    """A function that returns all runs of the store."""

    def find():
        client = MlflowClient(database, registry_uri=database)
        experiment = client.get_experiment_by_name("jobs")
        return [] if experiment is None else client.search_runs([experiment.experiment_id])

    return find


def test_a_job_that_was_killed_goes_on_without_learning_again(asked, runs, tmp_path, monkeypatch):
    values = asked(workspace=str(tmp_path / "work"))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    killed = subprocess.run([sys.executable, "-c", DIES_WHILE_SCORING, str(file)], check=False, capture_output=True)
    assert killed.returncode == 9, killed.stderr.decode()
    left = {run.info.run_id: run.info.status for run in runs()}
    assert sorted(left.values()) == ["FINISHED", "RUNNING", "RUNNING"]

    def learns_again(*args, **kwargs):
        raise AssertionError("what was learned is in the workspace")

    # Another store has nothing to close, and forgets nothing.
    elsewhere = connect(f"sqlite:///{tmp_path}/elsewhere.db", "jobs")
    assert Workspace(tmp_path / "work").close_abandoned(elsewhere) == 0
    lines = []
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "fit_together", learns_again)
        outcome = execute(parse_recipe(values), command="…", console=Console(write=lines.append))
    assert "  2 runs that a killed job left open in this workspace are marked KILLED" in lines
    now = {run.info.run_id: run for run in runs()}
    assert {run.info.status for run in now.values()} == {"FINISHED", "KILLED"}
    for run_id, status in left.items():
        assert now[run_id].info.status == {"RUNNING": "KILLED"}.get(status, status)
    assert all("train/loss" in now[cell.run_id].data.metrics for cell in outcome.concepts)

    undisturbed = execute(parse_recipe(asked()), command="…")
    for one, other in zip(outcome.concepts, undisturbed.concepts, strict=True):
        assert torch.equal(one.dictionary.dictionary, other.dictionary.dictionary)
        assert one.metrics["reconstruction/r2"] == other.metrics["reconstruction/r2"]


def test_what_a_workspace_holds_is_not_taken_when_damaged_or_asked_otherwise(asked, tmp_path):
    work = tmp_path / "work"
    one = execute(parse_recipe(asked(workspace=str(work), layers=[0])), command="…")
    other = execute(parse_recipe(asked(workspace=str(work), layers=[0], first_seed=1)), command="…")
    assert not torch.equal(one.concepts[0].dictionary.dictionary, other.concepts[0].dictionary.dictionary)
    for weights in work.glob("dictionaries/*/*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(IntegrityError, match="changed or damaged"):
        execute(parse_recipe(asked(workspace=str(work), layers=[0])), command="…")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        execute(parse_recipe(asked(workspace=str(file))), command="…")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"target": "nice"}, UnknownNameError, "unknown class 'nice'"),
        ({"contrast": "nice"}, UnknownNameError, "unknown class 'nice'"),
        ({"inference_mode": "probability"}, InputError, "probability"),
        ({"importance": "shapley", "options": {"shapley": {"n_permutations": 0}}}, InputError, "n_permutations"),
        (
            {"target": "LABEL_0", "granularity": "word", "aggregation": "max"},
            InputError,
            "concepts get no importance: rows that are the 'max' of their tokens",
        ),
    ],
)
def test_what_importance_cannot_be_asked_is_refused_before_anything_is_learned(
    asked, runs, monkeypatch, change, error, words
):
    def harvests(*args, **kwargs):
        raise AssertionError("the texts went through the model")

    monkeypatch.setattr(workflow, "_activations", harvests)
    with pytest.raises(error, match=words):
        execute(parse_recipe(asked(**change)), command="…")
    assert {run.data.tags["interpreto.kind"] for run in runs()} <= {"report"}


def test_what_is_left_out_is_said(asked, tmp_path):
    data = tmp_path / "some.csv"
    words = ["good food . " * 30, "", "  ", *(f"bad soup {i} and the good view" for i in range(40))]
    pd.DataFrame({"review": words, "stars": ["1"] * len(words)}).to_csv(data, index=False)
    lines = []
    values = asked(data=str(data), granularity="word", aggregation="max", layers=[0], holdout=0.0)
    outcome = execute(parse_recipe(values), command="…", console=Console(write=lines.append))
    assert "  concepts: 1 of 43 texts cut at 32 tokens; 2 of 43 texts have no rows and are skipped" in lines
    assert any(line.startswith("  concepts get no importance: rows that are the 'max'") for line in lines)
    assert any(line.startswith("  no effect on the model") for line in lines)
    (cell,) = outcome.concepts
    assert cell.importance is None
    assert not any(name.startswith("effect/") for name in cell.metrics)


def test_a_run_that_fails_says_what_it_was(asked, runs):
    with pytest.raises(InputError, match="negative"):
        execute(parse_recipe(asked(methods=["nmf"], layers=[0], options={}, holdout=0.3)), command="…")
    (cell,) = (run for run in runs() if run.data.tags["interpreto.kind"] == "concepts")
    assert cell.info.status == "FAILED"
    known = {
        "method": "nmf",
        "n_concepts": "8",
        "aggregation": "mean",
        "holdout": "0.3",
        "layer": cell.data.params["layer"],
    }
    assert known.items() <= cell.data.params.items()
    assert cell.data.tags["interpreto.method"] == "nmf"


def test_neurons_are_the_measure_of_the_others_and_not_the_best(asked, runs):
    outcome = execute(parse_recipe(asked(methods=["neurons", "topk_sae"], layers=[0])), command="…")
    assert [cell.dictionary.name for cell in outcome.concepts if cell.registered] == ["topk_sae"]
    assert any(run.info.run_name.startswith("neurons at ") for run in runs())
    alone = execute(parse_recipe(asked(methods=["neurons"], layers=[0], options={})), command="…")
    assert alone.concepts[0].registered is not None
