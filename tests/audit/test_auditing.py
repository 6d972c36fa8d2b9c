"""Whole audits on a real store: what is written, what is promoted, what a pipeline sees."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from sqlalchemy import text

from interpreto_mlops.audit.auditing import audit
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.policies import parse_policy
from interpreto_mlops.cli import main
from interpreto_mlops.errors import InputError, ModelLoadError, TrackingError
from interpreto_mlops.tracking.lineage import lineage
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.tracking.verification import verify_evidence
from tests.audit.explained import Version, register
from tests.audit.forbidding import forbidding
from tests.audit.test_influence_rules import learn
from tests.visuals.hostile import PAYLOADS, assert_harmless

POLICY = """\
name: reviews
rules:
  - {rule: evidence, methods: [occlusion], metrics: [deletion], within_days: 30}
  - {rule: threshold, metric: deletion, max: 0.5}
  - {rule: integrity}
"""
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "policy.yaml"


@pytest.fixture
def version(store: Store) -> Version:
    return register(store)


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


def alias_of(store: Store, alias: str = "champion") -> str | None:
    found = store.client.get_registered_model("reviews").aliases.get(alias)
    return None if found is None else str(found)


def runs_of(store: Store) -> list:
    return store.client.search_runs([store.experiment_id], "tags.`interpreto.kind` = 'audit'")


def invoke(store: Store, *arguments: object):
    return CliRunner().invoke(main, ["audit", *map(str, arguments), "--tracking-uri", store.tracking_uri])


def test_an_audit_is_a_sealed_run_with_a_page_tags_and_an_entry(version, policy, small, download, unchanged):
    store = version.store
    evidence = version.explain(metrics={"deletion": 0.3})
    report = audit(
        store, "models:/reviews/latest", policy, catalogue=small, actor="alice", command="interpreto-mlops …"
    )
    assert (report.verdict, report.exit_code, report.promotion) == ("passed", 0, None)
    assert (report.uri, report.pinned) == ("models:/reviews/latest", "models:/reviews/1")
    run = store.client.get_run(report.run_id)
    assert (run.info.status, run.data.tags["interpreto.kind"]) == ("FINISHED", "audit")
    assert run.data.params["subject"] == "models:/reviews/1"
    assert run.data.params["policy_sha256"] == parse_policy(POLICY).sha256
    assert {name: run.data.metrics[f"audit/{name}"] for name in ("passed", "failed", "undecided")} == {
        "passed": 3,
        "failed": 0,
        "undecided": 0,
    }
    assert verify_evidence(store, f"runs:/{report.run_id}").verdict == "intact"
    folder = download(store, report.run_id)
    assert (folder / "policy.yaml").read_text() == POLICY
    said = json.loads((folder / "report" / "audit.json").read_text())
    assert [rule["verdict"] for rule in said["rules"]] == ["passed"] * 3
    assert said["seals"] == {evidence: store.client.get_run(evidence).data.tags["interpreto.sha256"]}
    page = assert_harmless((folder / "report" / "audit.html").read_text())
    assert any("threshold: faithfulness/deletion" in heading for _, heading in page.find("h2"))
    where = f"experiments/{store.experiment_id}/runs/{evidence}"
    assert any(where in attributes["href"] for attributes, _ in page.find("a"))
    tags = store.client.get_model_version("reviews", "1").tags
    assert (tags["interpreto.audit.status"], tags["interpreto.audit.run"]) == ("passed", report.run_id)
    (entry,) = small.entries()
    assert (entry.action, entry.object, entry.actor, entry.before) == ("audit", "models:/reviews/1", "alice", None)
    assert entry.after == {
        "status": "passed",
        "run": report.run_id,
        "run_sha256": run.data.tags["interpreto.sha256"],
        "policy_sha256": report.policy_sha256,
        "against": None,
    }
    again = audit(store, version.uri, policy, catalogue=small)
    assert small.entries()[-1].before == {"status": "passed", "run": report.run_id}
    assert small.verify_log().ok
    small.rebuild(store)
    assert again.set_aside == ()
    relations = [node.relation for node in lineage(store, version.uri).children]
    assert sorted(relations) == ["audited by", "audited by", "explained by"]


def test_an_alias_is_moved_on_a_pass_and_on_nothing_else(version, policy, small):
    store = version.store
    missing = audit(store, version.uri, policy, promote="champion", catalogue=small)
    assert (missing.verdict, missing.exit_code) == ("undecided", 2)
    assert (alias_of(store), missing.promotion.moved) == (None, False)
    assert missing.promotion.detail == "not promoted: models:/reviews@champion is not there, for the audit is undecided"
    version.explain(metrics={"deletion": 0.3})
    passed = audit(store, version.uri, policy, promote="champion", catalogue=small)
    assert (passed.exit_code, passed.promotion.moved, alias_of(store)) == (0, True, "1")
    assert store.client.get_run(passed.run_id).data.tags["interpreto.audit.promoted"] == "models:/reviews@champion"
    worse = register(store, seed=1)
    worse.explain(metrics={"deletion": 0.9})
    failed = audit(store, worse.uri, policy, against="models:/reviews@champion", promote="champion", catalogue=small)
    assert (failed.exit_code, failed.promotion.moved, alias_of(store)) == (1, False, "1")
    assert failed.against == version.uri
    assert "still names version 1, for the audit is failed" in failed.promotion.detail
    told = [(entry.action, entry.object, (entry.after or {}).get("status")) for entry in small.entries()]
    assert told == [
        ("audit", version.uri, "undecided"),
        ("audit", version.uri, "passed"),
        ("promote", "models:/reviews@champion", None),
        ("audit", worse.uri, "failed"),
    ]
    promotion = small.entries()[2]
    assert promotion.after["audit_run"] == passed.run_id
    assert promotion.after["uri"] == version.uri
    assert small.verify_log().ok


def test_an_alias_is_pinned_at_the_start_and_what_it_named_is_promoted(version, policy, small):
    store = version.store
    version.explain(metrics={"deletion": 0.3})
    store.client.set_registered_model_alias("reviews", "challenger", 1)
    report = audit(store, "models:/reviews@challenger", policy, promote="champion", catalogue=small)
    assert (report.uri, report.pinned, alias_of(store)) == ("models:/reviews@challenger", "models:/reviews/1", "1")


def test_an_alias_that_somebody_moves_meanwhile_is_left_where_it_is(version, policy, small, monkeypatch):
    """Another process promotes version 2 while this one judges version 1."""
    store = version.store
    register(store, seed=1)
    version.explain(metrics={"deletion": 0.3})
    append = small.append

    def overtaken(*given, **named):
        store.client.set_registered_model_alias("reviews", "champion", 2)
        return append(*given, **named)

    monkeypatch.setattr(small, "append", overtaken)
    report = audit(store, version.uri, policy, promote="champion", catalogue=small)
    assert (report.verdict, report.exit_code, alias_of(store)) == ("passed", 1, "2")
    assert "names version 2 since the audit began; audit again" in report.promotion.detail


def test_an_alias_that_somebody_moves_in_the_last_moment_is_left_where_it_is(version, policy, small, monkeypatch):
    """After the audit has looked, and before the log is held."""
    store = version.store
    register(store, seed=1)
    version.explain(metrics={"deletion": 0.3})
    move = small.move_alias

    def overtaken(*given, **named):
        store.client.set_registered_model_alias("reviews", "champion", 2)
        return move(*given, **named)

    monkeypatch.setattr(small, "move_alias", overtaken)
    report = audit(store, version.uri, policy, promote="champion", catalogue=small)
    assert (report.verdict, report.exit_code, alias_of(store)) == ("passed", 1, "2")
    assert "names version 2 now, and named no version before; audit again" in report.promotion.detail
    assert [entry.action for entry in small.entries()] == ["audit"]


def test_a_promotion_that_cannot_be_logged_does_not_come_about_and_says_so(version, policy, small):
    store = version.store
    version.explain(metrics={"deletion": 0.3})
    with small.database.writing() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER no_promotion BEFORE INSERT ON catalogue_log WHEN NEW.action = 'promote' "
                "BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        )
    report = audit(store, version.uri, policy, promote="champion", catalogue=small)
    assert (report.verdict, report.exit_code, alias_of(store)) == ("passed", 1, None)
    assert report.promotion.detail.startswith("not promoted: ")


@pytest.mark.parametrize(
    ("uri", "promote", "words"),
    [
        ("models:/{model_id}", "champion", "only a registered version can be promoted"),
        ("models:/reviews/1", "latest", "unlike 'latest'"),
        ("models:/reviews/1", "v3", "unlike 'v3'"),
        ("models:/reviews/1", "a b", "unlike 'a b'"),
        ("models:/reviews/1", "", "unlike ''"),
        ("models:/reviews/7", None, "there is no model 'models:/reviews/7'"),
        ("models:/reviews@nobody", None, "there is no model 'models:/reviews@nobody'"),
        ("reviews", None, "cannot read the model address 'reviews'"),
    ],
)
def test_what_cannot_be_audited_is_refused_before_anything_is_written(version, policy, uri, promote, words):
    store = version.store
    uri = uri.format(model_id=version.model.model_id)
    with pytest.raises((InputError, ModelLoadError), match=r"."):
        audit(store, uri, policy, promote=promote)
    asked = [] if promote is None else ["--promote", promote]
    result = invoke(store, uri, "--policy", policy, "--experiment", "new", *asked)
    assert (result.exit_code, words in result.output, len(result.output.splitlines())) == (2, True, 1), result.output
    assert runs_of(store) == []
    assert store.client.get_experiment_by_name("new") is None
    with Catalogue.connect(store=store, create=False) as book:
        assert [entry.action for entry in book.entries()] == ["register"]  # of the fixture's model, and no more


def test_a_logged_model_can_be_audited_and_has_no_tags(version, policy, small):
    version.explain(metrics={"deletion": 0.3})
    report = audit(version.store, f"models:/{version.model.model_id}", policy, catalogue=small)
    assert report.verdict == "passed"
    assert "is no registered version" in report.notes[0]


class TestCommand:
    def test_passed_is_0_and_says_why(self, version, policy):
        version.explain(metrics={"deletion": 0.3})
        result = invoke(
            version.store, version.uri, "--policy", policy, "--promote", "champion", "--experiment", "audits"
        )
        assert result.exit_code == 0, result.output
        assert "passed: threshold: faithfulness/deletion: faithfulness/deletion is 0.3 of 'occlusion'" in result.output
        assert "models:/reviews/1: passed (3 passed) by the policy 'reviews'" in result.output
        assert "promoted: models:/reviews@champion names version 1" in result.output
        experiment = version.store.client.get_experiment_by_name("audits")
        assert len(version.store.client.search_runs([experiment.experiment_id])) == 1
        with Catalogue.connect(store=version.store) as book:
            assert [entry.action for entry in book.entries()] == ["register", "audit", "promote"]

    def test_failed_is_1_also_beside_what_is_undecided(self, version, tmp_path):
        version.explain(metrics={"deletion": 0.9})
        path = tmp_path / "p.yaml"
        path.write_text(POLICY + "  - {rule: stability, min: 0.5}\n")
        result = invoke(version.store, version.uri, "--policy", path, "--promote", "champion")
        assert result.exit_code == 1
        assert "models:/reviews/1: failed (2 passed, 1 failed, 1 undecided)" in result.output
        assert "not promoted" in result.output
        assert alias_of(version.store) is None

    def test_undecided_is_2(self, version, policy):
        result = invoke(version.store, version.uri, "--policy", policy)
        assert result.exit_code == 2
        assert "it has no explanation" in result.output

    def test_json_is_the_report(self, version, policy):
        version.explain(metrics={"deletion": 0.9})
        result = invoke(version.store, version.uri, "--policy", policy, "--json")
        said = json.loads(result.stdout)
        assert (said["verdict"], said["exit_code"], result.exit_code) == ("failed", 1, 1)
        assert said["run_id"] == runs_of(version.store)[0].info.run_id
        assert [rule["verdict"] for rule in said["rules"]] == ["passed", "failed", "passed"]

    @pytest.mark.parametrize(
        "content", ["rules: []", "rules: [", "- 1", "rules: [{rule: words, word: [x]}]", "\x00", ""]
    )
    def test_a_policy_that_cannot_be_used_is_2_and_one_sentence(self, version, tmp_path, content):
        (tmp_path / "p.yaml").write_text(content)
        result = invoke(version.store, version.uri, "--policy", tmp_path / "p.yaml")
        assert result.exit_code == 2
        assert len(result.output.splitlines()) == 1
        assert runs_of(version.store) == []

    def test_a_manifest_that_was_destroyed_is_1(self, version, policy):
        version.store.client.set_model_version_tag("reviews", "1", "interpreto.manifest", "nothing")
        result = invoke(version.store, version.uri, "--policy", policy)
        assert result.exit_code == 1
        assert "it was changed since it was logged" in result.output

    def test_a_broken_manifest_of_the_other_version_is_2_for_this_one_is_not_at_fault(self, version, policy):
        version.explain(metrics={"deletion": 0.3})
        other = register(version.store, seed=1)
        version.store.client.set_model_version_tag("reviews", "2", "interpreto.manifest", "nothing")
        result = invoke(version.store, version.uri, "--policy", policy, "--against", other.uri)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
        assert f"cannot compare with {other.uri!r}" in result.output

    def test_what_nobody_thought_of_is_2_and_one_sentence(self, version, policy, monkeypatch):
        def surprised(*_):
            raise RuntimeError("a surprise\nin two lines")

        monkeypatch.setattr("interpreto_mlops.audit.auditing.judge", surprised)
        result = invoke(version.store, version.uri, "--policy", policy)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
        assert "the audit could not be made: RuntimeError: a surprise" in result.output


def test_hostile_names_do_nothing_on_the_page_in_the_note_or_the_terminal(version, small, download):
    classes = [*PAYLOADS, "\x1b[31mred", "\u202eturned"]
    texts = [f"she left number {place}" for place in range(len(classes))]
    version.explain(texts, classes=classes, scores={"she": 0.9})
    rules = [
        {"rule": "words", "words": ["she", "<script>alert(1)</script>"], "name": payload} for payload in PAYLOADS[:3]
    ]
    rules += [{"rule": "threshold", "metric": "<img src=x onerror=alert(1)>", "max": 1.0}]
    policy = parse_policy(yaml.safe_dump({"name": PAYLOADS[0], "rules": rules}))
    report = audit(version.store, version.uri, policy, catalogue=small, command=PAYLOADS[1])
    assert report.verdict == "failed"
    assert_harmless((download(version.store, report.run_id) / "report" / "audit.html").read_text())
    assert all(line.isprintable() for line in report.lines())
    note = version.store.client.get_run(report.run_id).data.tags["mlflow.note.content"]
    assert "script" in note
    assert re.search(r"(?<!\\)[<>]", note) is None
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False).encode("utf-8"))


def test_a_password_in_the_command_is_on_no_page_and_in_no_tag(version, policy, small, download):
    version.explain(metrics={"deletion": 0.3})
    command = "interpreto-mlops audit … --catalogue postgresql://me:secretpw@host/evidence"
    report = audit(version.store, version.uri, policy, catalogue=small, command=command)
    page = (download(version.store, report.run_id) / "report" / "audit.html").read_text()
    assert "postgresql://***@host/evidence" in page
    assert "secretpw" not in page
    assert "secretpw" not in str(version.store.client.get_run(report.run_id).to_dictionary())


def test_where_texts_are_hidden_no_label_is_told(version, tmp_path, download):
    _, labels = learn(version)
    word = labels[0].split(", ")[0]
    with Catalogue.connect(f"sqlite:///{tmp_path}/hiding.db", hide_texts=True) as book:
        policy = parse_policy(json.dumps({"rules": [{"rule": "concepts", "concepts": [word]}]}))
        report = audit(version.store, version.uri, policy, catalogue=book)
    assert report.verdict == "failed"
    folder = download(version.store, report.run_id)
    for written in (folder / "report" / "audit.json", folder / "report" / "audit.html"):
        assert labels[0] not in written.read_text()
    assert "'sha256:" in report.rules[0].detail


def test_the_recipe_is_a_policy_that_works(version, small):
    """What users copy: every kind of rule, each with a verdict and none by an error."""
    rules = yaml.safe_load(RECIPE.read_text())["rules"]
    report = audit(version.store, version.uri, RECIPE, catalogue=small)
    assert len(report.rules) == len(rules)
    assert {rule.rule for rule in report.rules} == {
        *("evidence", "threshold", "margin", "champion", "words", "concepts", "stability", "integrity")
    }
    assert report.verdict == "undecided"


@pytest.mark.slow
def test_a_user_who_may_not_tag_the_version_still_has_the_audit(server, tmp_path):
    """A real server behind a proxy that forbids what somebody with nothing but permission to read may not do."""
    owner = connect(server, "of the owner")
    version = register(owner, "reviews of another")
    version.explain(metrics={"deletion": 0.3})
    own = "name an experiment of your own for audits by --experiment"
    book_at = f"sqlite:///{tmp_path}/book.db"
    with forbidding(server, "runs/create") as address, pytest.raises(TrackingError, match=own):
        audit(connect(address, "of the reader"), version.uri, parse_policy(POLICY), catalogue=book_at)
    with forbidding(server, "model-versions/set-tag", "registered-models/alias") as address:
        reader = connect(address, "of the reader")
        with Catalogue.connect(book_at) as book:
            report = audit(reader, version.uri, parse_policy(POLICY), promote="champion", catalogue=book)
            told = [entry.action for entry in book.entries()]
    assert (report.verdict, report.exit_code) == ("passed", 1)
    assert "the version has no tags of the audit" in report.notes[0]
    assert report.promotion.detail.startswith("not promoted: ")
    assert owner.client.get_registered_model("reviews of another").aliases == {}
    assert "audit" in told
    assert owner.client.get_run(report.run_id).info.status == "FINISHED"
    assert verify_evidence(owner, f"runs:/{report.run_id}").verdict == "intact"


@pytest.mark.slow
def test_an_audit_through_a_server(server, tmp_path):
    store = connect(server, "audited")
    version = register(store, "served reviews")
    version.explain(metrics={"deletion": 0.3})
    with Catalogue.connect(f"sqlite:///{tmp_path}/book.db") as book:
        report = audit(store, version.uri, parse_policy(POLICY), promote="champion", catalogue=book)
    assert report.exit_code == 0
    assert store.client.get_registered_model("served reviews").aliases == {"champion": "1"}


def test_a_dictionary_is_audited_and_promoted(version, small, tmp_path):
    store = version.store
    learn(version, register_as="reviews.pca", metrics={"stability/stability": 0.9, "reconstruction/r2": 0.8})
    rules = "[{rule: stability, min: 0.7}, {rule: threshold, metric: reconstruction/r2, min: 0.7}, {rule: integrity}]"
    uri = "models:/reviews.pca/latest"
    report = audit(store, uri, parse_policy(f"rules: {rules}"), promote="champion", catalogue=small)
    assert (report.subject, report.verdict, report.promotion.moved) == ("dictionary", "passed", True)
    assert str(store.client.get_model_version_by_alias("reviews.pca", "champion").version) == "1"
    assert [entry.action for entry in small.entries()] == ["audit", "promote"]
    worse = audit(store, uri, parse_policy(f"rules: {rules}".replace("0.7", "0.95")), catalogue=small)
    assert (worse.verdict, worse.exit_code) == ("failed", 1)


def test_a_dictionary_that_mlflow_itself_registered_is_one(version, small):
    """`mlflow.register_model` gives a version none of the tags of its logged model."""
    store = version.store
    run_id, _ = learn(version, metrics={"stability/stability": 0.9})
    (output,) = store.client.get_run(run_id).outputs.model_outputs
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.register_model(f"models:/{output.model_id}", "later")
    report = audit(store, "models:/later/1", parse_policy("rules: [{rule: stability, min: 0.5}]"), catalogue=small)
    assert (report.subject, report.verdict) == ("dictionary", "passed")


# MLflow's evaluation, on pandas 3.
@pytest.mark.filterwarnings("ignore:Starting with pandas version 4.0")
@pytest.mark.filterwarnings("ignore:The inplace keyword in")
def test_the_methods_of_one_evaluation_are_judged_each_by_its_own_files(version, small):
    """A run of MLflow's evaluation holds several methods, each in a folder of its own."""
    store = version.store
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    data = pd.DataFrame({"text": ["she loved the soup", "the soup was cold", "he hated the place"], "label": [0, 1, 1]})
    config = {"methods": ["occlusion", "saliency"], "metrics": ["deletion"], "n_random": 3}
    with mlflow.start_run() as opened:
        mlflow.models.evaluate(
            f"models:/{version.model.model_id}",
            data,
            targets="label",
            model_type="text-classifier",
            evaluators="interpreto",
            evaluator_config=config,
        )
    run_id = opened.info.run_id
    policy = parse_policy(
        "rules: [{rule: threshold, metric: deletion, min: 0.0, methods: [occlusion, saliency]},"
        " {rule: words, words: [she, he], top: 50}, {rule: integrity}]"
    )
    report = audit(store, version.uri, policy, catalogue=small)
    threshold, words, integrity = report.rules
    assert (threshold.verdict, integrity.verdict) == ("passed", "passed"), report
    metrics = store.client.get_run(run_id).data.metrics
    values = {facts["method"]: facts["value"] for facts in threshold.facts}
    assert values == {name: pytest.approx(metrics[f"{name}/faithfulness/deletion"]) for name in config["methods"]}
    assert words.verdict == "failed"
    assert f"runs:/{run_id}/attributions/saliency/attributions.parquet" in words.evidence
