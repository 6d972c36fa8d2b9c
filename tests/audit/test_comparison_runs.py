"""Which runs count as evidence: finished ones; what is left out, broken or of another experiment is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from interpreto_mlops.audit.comparison import compare_evidence
from interpreto_mlops.errors import InputError
from interpreto_mlops.tracking import run, write_attributions
from interpreto_mlops.tracking.store import connect
from tests.audit.test_comparison_evidence import DATA, explain, register


class World:
    """A store with two versions of a model, each explained once."""

    def __init__(self, store):
        self.store = store
        self.models = [register(store, seed) for seed in (0, 1)]
        self.runs = [explain(store, model, suite=f"job-{place}") for place, model in enumerate(self.models)]
        self.ids = [run_id for run_id, _, _ in self.runs]


@pytest.fixture
def world(migrated, tmp_path):
    """Evidence of the test's own."""
    shutil.copy(migrated, tmp_path / "mlflow.db")
    return World(connect(f"sqlite:///{tmp_path}/mlflow.db", "tests"))


def killed(world, suite="job-0"):
    """Begin a run that is just like the first, and leave it as a killed process does; return its id."""
    client = world.store.client
    first = client.get_run(world.ids[0])
    tags = {**first.data.tags, "interpreto.suite": suite}
    run_id = client.create_run(world.store.experiment_id, tags=tags).info.run_id
    for name, value in first.data.params.items():
        client.log_param(run_id, name, value)
    client.log_inputs(run_id, datasets=first.inputs.dataset_inputs)
    return run_id


def test_a_run_that_was_killed_hides_no_older_evidence_and_is_named(world):
    uris = ["models:/reviews/1", "models:/reviews/2"]
    before = compare_evidence(world.store, uris, log=False)
    assert not any("not finished" in note for note in before.notes)
    killed(world)
    world.store.client.set_terminated(killed(world), "KILLED")
    for given, label in ((uris, "reviews v1"), (["job-0", "job-1"], "job-0")):
        found = compare_evidence(world.store, given, log=False)
        assert found.groups["run"].tolist() == world.ids
        assert found.pairs["difference"].tolist() == before.pairs["difference"].tolist()
        (said,) = (note for note in found.notes if "not finished" in note)
        assert said.startswith(f"{label}: runs that are not finished were left out (1 KILLED, 1 RUNNING)")


def test_a_run_without_its_artifacts_hides_no_older_evidence(world):
    world.store.client.set_terminated(killed(world))
    found = compare_evidence(world.store, ["models:/reviews/1", "models:/reviews/2"], log=False)
    assert found.groups["run"].tolist() == world.ids


def test_where_nothing_is_finished_the_error_says_so(world):
    run_id = killed(world, suite="dead")
    with pytest.raises(InputError, match=r"the suite 'dead' holds neither .*not finished were left out \(1 RUNNING\)"):
        compare_evidence(world.store, ["dead", "job-1"])
    with pytest.raises(InputError, match=rf"the run 'runs:/{run_id}' holds neither"):
        compare_evidence(world.store, [f"runs:/{run_id}", "job-1"])


def test_a_password_in_the_command_is_in_no_file_and_in_no_tag(world, tmp_path):
    command = "interpreto-mlops compare … --tracking-uri postgresql://me:secretpw@host/evidence"
    found = compare_evidence(world.store, ["job-0", "job-1"], command=command)
    there = tmp_path / "report"
    there.mkdir()
    folder = Path(world.store.client.download_artifacts(found.report_run_id, "", str(there)))
    kept = {file.name: file.read_text(encoding="utf-8") for file in folder.rglob("*") if file.is_file()}
    assert "postgresql://***@host/evidence" in kept["compare.html"]
    assert not [name for name, text in kept.items() if "secretpw" in text]
    assert "secretpw" not in str(world.store.client.get_run(found.report_run_id).to_dictionary())


def test_a_logged_model_is_linked_in_its_own_experiment(world):
    elsewhere = connect(world.store.tracking_uri, "elsewhere")
    found = compare_evidence(elsewhere, [f"models:/{model.model_id}" for model in world.models], log=False)
    assert elsewhere.experiment_id != world.store.experiment_id
    for subject, model in zip(found.subjects, world.models, strict=True):
        assert f"/experiments/{world.store.experiment_id}/models/{model.model_id}" in subject["link"]


def test_the_users_own_open_run_can_be_compared_by_its_id(world):
    _, found, scores = world.runs[0]
    with run(world.store, kind="attributions", name="open") as log:
        write_attributions(log, found, metrics=scores, model=world.models[0], dataset=DATA, draw=False)
        compared = compare_evidence(world.store, [f"runs:/{log.run_id}", f"runs:/{world.ids[0]}"], log=False)
    assert compared.pairs["difference"].tolist() == [0.0, 0.0]
    assert sum("the run is RUNNING, not FINISHED" in note for note in compared.notes) == 1


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_failed_is_compared_by_its_id_and_said_to_have_failed(world, status):
    uris = [f"runs:/{run_id}" for run_id in world.ids]
    assert not any("the run is" in note for note in compare_evidence(world.store, uris, log=False).notes)
    world.store.client.set_terminated(world.ids[1], status)
    found = compare_evidence(world.store, uris, log=False)
    label = found.subjects[1]["label"]
    said = f"{label}: the run is {status}, not FINISHED, and may hold only a part of its evidence."
    assert [note for note in found.notes if "the run is" in note] == [said]
