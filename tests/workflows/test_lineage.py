"""What a real job leaves in real stores, followed both ways and compared with its hashes, whole and tampered with."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from interpreto_mlops.cli import main
from interpreto_mlops.errors import IntegrityError, ModelLoadError, TrackingError
from interpreto_mlops.tracking import dictionary_flavor
from interpreto_mlops.tracking.dictionary_flavor import load_dictionary
from interpreto_mlops.tracking.lineage import lineage
from interpreto_mlops.tracking.store import connect, existing_store
from interpreto_mlops.tracking.text_models import log_text_model
from interpreto_mlops.tracking.verification import verify_evidence
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import parse_recipe


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def uri(request):
    """A database, and a real server with artifacts through it."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "server")


@pytest.fixture
def learned(tiny_model, data_file, request):
    """A function that registers a model in a store and learns a dictionary of it; both versions' names are fresh."""

    def learn(uri):
        store = connect(uri, "jobs")
        name = f"reviews-{abs(hash(request.node.name)) % 10**8}"
        log_text_model(store, None, tiny_model(), name="reviews", registered_model_name=name)
        store.client.set_registered_model_alias(name, "champion", 1)
        common = {"model": f"models:/{name}@champion", "data": str(data_file), "text_column": "review"}
        common |= {"tracking_uri": uri, "experiment": "jobs", "max_texts": 20}
        concepts = {"kind": "concepts", "layers": [0], "methods": ["pca"], "n_concepts": [4], "seeds": 1}
        outcome = execute(parse_recipe({**common, **concepts}), command="…")
        attributions = {"kind": "attribute", "methods": ["occlusion"], "metrics": ["deletion"], "max_texts": 2}
        explained = execute(parse_recipe({**common, **attributions}), command="…")
        return store, name, outcome.concepts[0], explained

    return learn


def files_of(store, model_id):
    """The folder where a SQLite store keeps a logged model's files."""
    return local(store.client.get_logged_model(model_id).artifact_location)


def local(uri):
    """The folder of a file address."""
    return Path(unquote(urlsplit(uri).path))


def found(verification, verdict):
    return [finding for finding in verification.findings if finding.verdict == verdict]


def test_evidence_is_followed_both_ways_and_is_intact(uri, learned):
    store, name, cell, explained = learned(uri)
    dictionary = "models:/{}/{}".format(*cell.registered)

    up = lineage(store, dictionary)
    assert (up.kind, up.facts["layer"], up.facts["method"]) == ("dictionary", "bert.encoder.layer.0", "pca")
    by_relation = {child.relation: child for child in up.children}
    assert by_relation["learned from"].uri == f"models:/{name}/1"
    assert by_relation["made by"].uri == f"runs:/{cell.run_id}"
    assert by_relation["fitted on"].title == "reviews"
    assert cell.run_id in by_relation["made by"].link

    down = lineage(store, f"models:/{name}@champion")
    assert down.facts["alias"] == "champion"
    runs = {child.uri: child for child in down.children if child.relation == "explained by"}
    assert f"runs:/{cell.run_id}" in runs
    assert f"runs:/{explained.attributions[0].run_id}" in runs
    (made,) = (child for child in runs[f"runs:/{cell.run_id}"].children if child.relation == "made")
    assert [child.title for child in made.children] == [dictionary]

    run = lineage(store, f"runs:/{cell.run_id}")
    assert {"explains", "made", "evaluated on", "fitted on"} <= {child.relation for child in run.children}
    text = "\n".join(down.lines())
    assert "├─ explained by: run occlusion" in text or "└─ explained by: run occlusion" in text
    assert json.loads(json.dumps(down.to_dict()))["children"]

    for each in (dictionary, f"models:/{name}/1", f"models:/{cell.logged.model_id}", f"runs:/{cell.run_id}"):
        intact = verify_evidence(store, each)
        assert (intact.verdict, intact.findings) == ("intact", ()), each
        assert intact.n_files > 3
    with pytest.raises(ModelLoadError, match="there is no run"):
        lineage(store, f"runs:/{'0' * 32}")
    with pytest.raises(ModelLoadError, match="there is no model"):
        verify_evidence(store, "models:/nothing/1")


def test_every_kind_of_tampering_is_found(database, learned):
    store, name, cell, explained = learned(database)
    dictionary = "models:/{}/{}".format(*cell.registered)
    folder = files_of(store, cell.logged.model_id)

    card = folder / "dictionary" / "dictionary.json"
    kept = card.read_bytes()
    card.write_bytes(kept.replace(b'"descriptions"', b'"descriptionz"'))
    (folder / "extra.py").write_text("print()")
    broken = verify_evidence(store, dictionary)
    assert broken.verdict == "broken"
    assert [finding.detail.split("'")[1] for finding in found(broken, "changed")] == ["dictionary/dictionary.json"]
    assert "'extra.py' was added" in found(broken, "added")[0].detail
    card.write_bytes(kept)
    (folder / "extra.py").unlink()
    assert verify_evidence(store, dictionary).verdict == "intact"

    # A file is changed together with the version's manifest: the logged model's own and the sha256 tell.
    tag = "interpreto.manifest"
    version = store.client.get_model_version(*cell.registered)
    changed = json.loads(version.tags[tag]) | {"MLmodel": "0" * 64}
    store.client.set_model_version_tag(*cell.registered, tag, json.dumps(changed))
    assert "its manifest is not the one" in found(verify_evidence(store, dictionary), "changed")[0].detail
    store.client.set_model_version_tag(*cell.registered, tag, version.tags[tag])

    run = store.client.get_run(cell.run_id)
    labels = local(run.info.artifact_uri) / "concepts" / "labels.json"
    good = labels.read_bytes()
    labels.write_text('{"columns": ["concept"], "data": [["harmless"]]}')
    for each in (dictionary, f"runs:/{cell.run_id}"):
        assert "'concepts/labels.json' was changed" in found(verify_evidence(store, each), "changed")[0].detail
    labels.unlink()
    assert "'concepts/labels.json' is missing" in found(verify_evidence(store, dictionary), "missing")[0].detail
    labels.write_bytes(good)

    store.client.set_registered_model_alias(name, "champion", 1)
    other = local(store.client.get_run(explained.attributions[0].run_id).info.artifact_uri)
    (other / "manifest.json").write_text("{}")
    assert verify_evidence(store, f"runs:/{explained.attributions[0].run_id}").verdict == "broken"


def test_a_base_model_that_moved_changed_or_went_is_said(database, learned, tiny_model):
    store, name, cell, _ = learned(database)
    dictionary = "models:/{}/{}".format(*cell.registered)
    log_text_model(store, None, tiny_model(seed=1), name="reviews", registered_model_name=name)
    store.client.set_registered_model_alias(name, "champion", 2)
    moved = verify_evidence(store, dictionary)
    assert moved.verdict == "intact"
    assert "alias 'champion' points to version 2, and this explains version 1" in found(moved, "note")[0].detail

    base = store.client.get_model_version(name, "1").source.removeprefix("models:/")
    weights = next(files_of(store, base).rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    assert "the base model was changed: " in found(verify_evidence(store, dictionary), "changed")[0].detail
    shutil.rmtree(files_of(store, base))
    assert found(verify_evidence(store, dictionary), "gone")[0].subject == f"models:/{name}/1"


def test_a_logged_model_that_was_collected_under_its_version_is_gone(database, learned):
    store, _, cell, _ = learned(database)
    dictionary = "models:/{}/{}".format(*cell.registered)
    store.client.delete_logged_model(cell.logged.model_id)
    collect = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", database, "--tracking-uri", database]
    done = subprocess.run(collect, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    gone = verify_evidence(store, dictionary)
    assert gone.verdict == "broken"
    assert found(gone, "gone")[0].subject == f"models:/{cell.logged.model_id}"


def test_verifying_runs_no_code_of_the_store_whatever_the_environment_says(database, learned, monkeypatch, tmp_path):
    store, _, cell, _ = learned(database)
    (tmp_path / "evil.py").write_text(
        "import pathlib, mlflow\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Evil(mlflow.pyfunc.PythonModel):\n"
        "    def predict(self, context, model_input: list[str]) -> list[str]:\n"
        "        return model_input\n"
        "mlflow.models.set_model(Evil())\n"
    )
    mlflow.set_tracking_uri(database)
    evil = mlflow.pyfunc.log_model(name="evil", python_model=str(tmp_path / "evil.py"), pip_requirements=["mlflow"])
    (tmp_path / "ran").unlink()  # logging it runs it, too
    store.client.set_model_version_tag(*cell.registered, "interpreto.model.uri", f"models:/{evil.model_id}")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    undecided = verify_evidence(store, "models:/{}/{}".format(*cell.registered))
    assert not (tmp_path / "ran").exists()
    assert undecided.verdict == "undecided"
    assert "only its own code could load it" in found(undecided, "unknown")[0].detail


def test_what_is_untouched_is_intact_however_it_was_registered_or_computed(database, learned, tiny_model, data_file):
    store, name, cell, _ = learned(database)
    mlflow.set_tracking_uri(database)
    again = mlflow.register_model(f"models:/{cell.logged.model_id}", "by-hand")
    later = verify_evidence(store, f"models:/by-hand/{again.version}")
    assert (later.verdict, later.findings) == ("intact", ())
    assert later.n_files > 3
    values = {"kind": "concepts", "model": f"models:/{name}/1", "data": str(data_file), "text_column": "review"}
    values |= {"tracking_uri": database, "experiment": "jobs", "max_texts": 20, "dtype": "bfloat16", "effect_texts": 0}
    values |= {"layers": [0], "methods": ["pca"], "n_concepts": [4], "seeds": 1}
    half = execute(parse_recipe(values), command="…").concepts[0]
    assert verify_evidence(store, "models:/{}/{}".format(*half.registered)).verdict == "intact"
    with mlflow.start_run() as run:
        info = dictionary_flavor.log_model(cell.dictionary, run_id=run.info.run_id)
    mine = verify_evidence(store, f"models:/{info.model_id}")
    assert (mine.verdict, [finding.verdict for finding in mine.findings]) == ("intact", ["note"])


@pytest.mark.parametrize("manifest", ["x", "[1]", '{"MLmodel": 1}', "{}"])
def test_a_manifest_that_is_none_is_a_verdict_and_no_traceback(database, learned, manifest):
    store, _, cell, explained = learned(database)
    dictionary = "models:/{}/{}".format(*cell.registered)
    store.client.set_model_version_tag(*cell.registered, "interpreto.manifest", manifest)
    assert verify_evidence(store, dictionary).verdict == "broken"
    if manifest != "{}":
        with pytest.raises(IntegrityError, match=r"the manifest of .* was changed"):
            load_dictionary(dictionary, store=store)
    run_id = explained.attributions[0].run_id
    (local(store.client.get_run(run_id).info.artifact_uri) / "manifest.json").write_text(manifest)
    assert verify_evidence(store, f"runs:/{run_id}").verdict == "broken"


def test_a_deleted_run_is_gone(database, learned):
    store, _, cell, _ = learned(database)
    store.client.delete_run(cell.run_id)
    for each in ("models:/{}/{}".format(*cell.registered), f"runs:/{cell.run_id}"):
        gone = found(verify_evidence(store, each), "gone")
        assert [(finding.subject, finding.detail) for finding in gone] == [
            (f"runs:/{cell.run_id}", "the run was deleted")
        ]


def test_a_server_that_goes_away_is_not_evidence_that_is_gone(server, learned):
    store, _, cell, _ = learned(server)
    dead = dataclasses.replace(store, client=MlflowClient("http://127.0.0.1:9", "http://127.0.0.1:9"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingError, match="could not read the run"):
            verify_evidence(dead, f"runs:/{cell.run_id}")


def test_names_stay_on_their_line_and_quotes_are_searched_for(database, learned, tiny_model):
    store, name, cell, _ = learned(database)
    store.client.set_tag(cell.run_id, "mlflow.runName", "x\n└─ registered as: version models:/forged/9\x1b[31m")
    lines = list(lineage(store, f"models:/{name}/1").lines())
    assert not any(line.startswith("└─ registered as") for line in lines)
    assert not any("\x1b" in line for line in lines)
    log_text_model(store, None, tiny_model(), name="quoted", registered_model_name="it's")
    assert lineage(store, "models:/it's/1").uri is None


def test_what_was_never_sealed_is_not_called_intact(store):
    run = store.client.create_run(store.experiment_id)
    found_run = verify_evidence(store, f"runs:/{run.info.run_id}")
    assert found_run.verdict == "undecided"
    with pytest.raises(ModelLoadError, match="cannot read the model address"):
        verify_evidence(store, "reviews")


def test_the_commands_answer_by_text_json_and_exit_code(database, learned):
    store, name, cell, _ = learned(database)
    dictionary = "models:/{}/{}".format(*cell.registered)
    where = ["--tracking-uri", database]
    told = CliRunner().invoke(main, ["lineage", dictionary, *where])
    assert told.exit_code == 0, told.output
    assert f"learned from: model models:/{name}/1" in told.output
    tree = json.loads(CliRunner().invoke(main, ["lineage", dictionary, *where, "--json"]).output)
    assert tree["kind"] == "dictionary"
    good = CliRunner().invoke(main, ["verify", dictionary, *where])
    assert (good.exit_code, good.output.splitlines()[-1].split(":")[0]) == (0, "models")
    assert " is intact: " in good.output
    (files_of(store, cell.logged.model_id) / "MLmodel").unlink()
    bad = CliRunner().invoke(main, ["verify", dictionary, *where, "--json"])
    assert bad.exit_code == 1
    assert json.loads(bad.output)["verdict"] == "broken"
    run = store.client.create_run(store.experiment_id)
    assert CliRunner().invoke(main, ["verify", f"runs:/{run.info.run_id}", *where]).exit_code == 2


def test_reading_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match="there is no MLflow database"):
        existing_store(f"sqlite:///{tmp_path}/none.db", default="")
    assert not (tmp_path / "none.db").exists()


def test_a_run_of_the_users_own_is_sealed_with_what_is_ours(unchanged_run):
    """See the fixture: what the user wrote is theirs, and may change."""
    store, run_id, folder = unchanged_run
    assert verify_evidence(store, f"runs:/{run_id}").verdict == "intact"
    (folder / "mine.txt").write_text("changed by me")
    assert verify_evidence(store, f"runs:/{run_id}").verdict == "intact"
    (folder / "attributions" / "attributions.html").write_text("changed by somebody")
    assert verify_evidence(store, f"runs:/{run_id}").verdict == "broken"


@pytest.fixture
def unchanged_run(database, tiny_model, texts, tmp_path):
    """A run that the user opened, with a file of theirs and attributions of ours."""
    import interpreto_mlops as im
    from interpreto_mlops.attributions import Occlusion

    mlflow.set_tracking_uri(database)
    mlflow.set_experiment("mine")
    with mlflow.start_run() as run:
        mlflow.log_text("mine", "mine.txt")
        im.log_attributions(Occlusion(tiny_model())(texts[:2]))
    client = MlflowClient(database)
    folder = local(client.get_run(run.info.run_id).info.artifact_uri)
    return existing_store(database, default=""), run.info.run_id, folder
