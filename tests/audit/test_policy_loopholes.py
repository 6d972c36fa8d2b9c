"""What must not make a rule pass: evidence that hides, spoils or stands in for other evidence."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

import mlflow
import numpy as np
import pytest
from mlflow.entities import DatasetInput
from mlflow.utils.file_utils import local_file_uri_to_path

from interpreto_mlops.attributions import AttributionSet
from interpreto_mlops.attributions.results import Target
from interpreto_mlops.audit.catalogue.texts import hidden
from interpreto_mlops.audit.policies import parse_policy
from interpreto_mlops.audit.policies.evidence import gather
from interpreto_mlops.errors import InputError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import word_spans
from interpreto_mlops.tracking import run, schema, write_attributions
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.manifest import digest_of
from interpreto_mlops.tracking.resolving import resolve
from interpreto_mlops.tracking.verification import verify_evidence
from tests.audit.explained import TEXTS, attribution, register
from tests.audit.test_influence_rules import hide, learn
from tests.audit.test_policy_rules import one


@pytest.fixture
def version(store):
    return register(store)


THRESHOLD = {"rule": "threshold", "metric": "deletion", "max": 0.5}
MARGIN = {"rule": "margin", "metric": "deletion"}
NO_SCORES = dict.fromkeys(["the", "food", "was", "great", "number", "it"], float("nan"))
CHAMPION = {"rule": "champion", "metric": "deletion", "by": 0.05}


class TestARunWithoutScores:
    """It comes in the place of no run that was scored."""

    @pytest.mark.parametrize("rule", [THRESHOLD, MARGIN])
    def test_hides_no_failing_metric(self, version, rule):
        failing = version.explain(metrics={"deletion": 0.9})
        version.explain(method="saliency", metrics={"deletion": 0.2})
        assert one(version.evidence(), rule).verdict == "failed"
        version.explain()
        found = one(version.evidence(), rule)
        assert (found.verdict, found.evidence) == ("failed", (f"runs:/{failing}",))

    def test_hides_nothing_from_the_champion(self, store):
        old, new = register(store), register(store, seed=1)
        old.explain(metrics={"deletion": 0.3})
        old.explain()
        new.explain(metrics={"deletion": 0.9})
        new.explain(method="saliency", metrics={"deletion": 0.2})
        old.explain(method="saliency", metrics={"deletion": 0.2})
        new.explain()
        assert one(new.evidence(), CHAMPION, old.evidence()).verdict == "failed"


class TestASpoiltRun:
    """What it said is not known any more: no rule on what must not be found passes without it."""

    WORDS: ClassVar = {"rule": "words", "words": ["she"]}
    CONCEPTS: ClassVar = {"rule": "concepts", "concepts": ["zebra"]}

    @pytest.fixture
    def spoilt(self, version):
        run_id = version.explain(["she won"] * 3, scores={"she": 0.9}, metrics={"deletion": 0.3})
        version.explain(["she won"] * 3, scores={"she": -0.9}, method="saliency")
        assert one(version.evidence(), self.WORDS).verdict == "failed"
        return run_id

    def test_whose_metric_was_logged_anew(self, version, spoilt):
        version.store.client.log_metric(spoilt, "faithfulness/deletion", 0.1)
        found = one(version.evidence(), self.WORDS)
        assert (found.verdict, found.evidence) == ("undecided", (f"runs:/{spoilt}",))
        assert f"the run {spoilt} is no evidence" in found.detail

    def test_whose_seal_is_gone(self, version, spoilt):
        version.store.client.delete_tag(spoilt, "interpreto.sha256")
        assert one(version.evidence(), self.WORDS).verdict == "undecided"

    def test_does_not_excuse_what_another_run_found(self, version, spoilt):
        version.store.client.log_metric(spoilt, "faithfulness/deletion", 0.1)
        version.explain(["she won"], scores={"she": 0.9})
        assert one(version.evidence(), self.WORDS).verdict == "failed"

    def test_of_a_dictionary(self, version, tmp_path):
        learn(version)
        assert one(version.evidence(), self.CONCEPTS).verdict == "passed"
        run_id, _ = learn(version, seed=1)
        (tmp_path / "labels.json").write_text("{}")
        version.store.client.log_artifact(run_id, str(tmp_path / "labels.json"), "concepts")
        found = one(version.evidence(), self.CONCEPTS)
        assert (found.verdict, run_id in found.detail) == ("undecided", True)


class TestTheChampion:
    @pytest.mark.parametrize("by_id", [True, False])
    def test_is_not_the_version_itself_under_another_name(self, version, by_id):
        version.explain(metrics={"deletion": 0.9})
        client, other = version.store.client, f"models:/{version.model.model_id}"
        if not by_id:
            client.create_registered_model("copied")
            client.copy_model_version(version.uri, "copied")
            other = "models:/copied/1"
        champion = gather(version.store, resolve(version.store, other), {})
        found = one(version.evidence(), CHAMPION, champion)
        assert found.verdict == "undecided"
        assert f"{version.uri!r} was to be compared with itself, under {other!r}" in found.detail


class TestASanityCheck:
    """Its best value is 0, and -1 is as bad as 1."""

    def test_of_a_champion_is_compared_by_the_distance_from_0(self, store):
        old, new = register(store), register(store, seed=1)
        old.explain(metrics={"sanity_check": 0.05}, random=0.0)
        new.explain(metrics={"sanity_check": -0.95}, random=0.0)
        rule = {"rule": "champion", "metric": "sanity_check", "by": 0.1}
        found = one(new.evidence(), rule, old.evidence())
        assert (found.verdict, found.facts[0]["difference"]) == ("failed", pytest.approx(-0.9))
        assert one(old.evidence(), rule, new.evidence()).verdict == "passed"

    @pytest.mark.parametrize("more", [{}, {"confidence": 0.95}])
    def test_has_no_margin_over_permutations_whose_signed_mean_is_0_as_well(self, version, more):
        version.explain(metrics={"sanity_check": -0.95}, random=0.0)
        found = one(version.evidence(), {"rule": "margin", "metric": "sanity_check", **more})
        assert found.verdict == "undecided"
        assert "is best at 0" in found.detail


class TestTooFewTexts:
    def test_a_metric_of_two_texts_is_not_one_of_thirty(self, version):
        values = np.full(30, np.nan)
        values[:2] = 0.1
        version.explain(metrics={"deletion": values})
        rule = {"rule": "evidence", "metrics": ["deletion"]}
        found = one(version.evidence(), {**rule, "min_texts": 30})
        assert found.verdict == "undecided"
        assert "was scored by it on 2 texts, and 30 are asked for" in found.detail
        assert one(version.evidence(), {**rule, "min_texts": 2}).verdict == "passed"
        sure = one(version.evidence(), {**MARGIN, "confidence": 0.95})
        assert sure.verdict == "undecided"
        assert "on 2 texts, and 6 are needed to say how sure" in sure.detail

    def test_one_text_many_times_is_one(self, version):
        version.explain(["the food was great"] * 30, metrics={"deletion": 0.1})
        few = one(version.evidence(), {"rule": "evidence", "min_texts": 2})
        assert few.verdict == "failed"
        assert "explains 1 texts, and 2 are asked for" in few.detail
        assert one(version.evidence(), {**MARGIN, "confidence": 0.95}).verdict == "undecided"

    def test_a_text_that_is_there_twice_makes_nothing_surer(self, version):
        values = np.linspace(0.1, 0.6, 12)
        version.explain([*TEXTS[:12]], metrics={"deletion": values})
        rule = {**MARGIN, "confidence": 0.95}
        once = one(version.evidence(), rule)
        version.explain([*TEXTS[:12]] * 20, metrics={"deletion": [*values] * 20})
        twice = one(version.evidence(), rule)
        bounds = [facts["lower_bound"] for facts in twice.facts]
        assert len(bounds) == 2
        assert bounds == pytest.approx([once.facts[0]["lower_bound"]] * 2)

    @pytest.mark.parametrize("rule", [{"rule": "evidence"}, {"rule": "evidence", "min_texts": 30}])
    def test_texts_without_a_score_are_not_explained(self, version, rule):
        version.explain([text.rpartition(" ")[0] + " it" for text in TEXTS], scores=NO_SCORES)
        found = one(version.evidence(), rule)
        assert found.verdict == "undecided"
        assert "explains no text" in found.detail


class TestWhatCannotBeRead:
    """It is told as a verdict, whoever wrote it."""

    def test_ages_that_no_calendar_has_are_refused(self):
        with pytest.raises(InputError, match="within_days"):
            parse_policy("rules: [{rule: evidence, within_days: 10000000000.0}]")
        assert parse_policy("rules: [{rule: evidence, within_days: 36500}]")

    @pytest.mark.parametrize("factor", [10, 10**4, 10**6])
    def test_a_run_that_ends_beyond_all_calendars_is_set_aside(self, version, factor):
        kept, run_id = version.explain(), version.explain()
        version.store.client.set_terminated(run_id, end_time=int(time.time() * 1000) * factor)
        evidence = version.evidence()
        assert [(each.run_id, each.unsealed) for each in evidence.set_aside] == [(run_id, True)]
        assert "in the future" in evidence.set_aside[0].why
        assert one(evidence, {"rule": "evidence"}).evidence == (f"runs:/{kept}",)
        assert one(evidence, {"rule": "words", "words": ["food"], "top": 1}).verdict == "undecided"

    @pytest.mark.parametrize("content", ["a: [b\n", "[" * 3000 + "]" * 3000, "a: 9999-99-99\n"])
    def test_a_forged_dictionary_is_set_aside(self, version, content):
        run_id, _ = learn(version)
        (output,) = version.store.client.get_run(run_id).outputs.model_outputs
        forge(version.store, output.model_id, "MLmodel", content)
        (aside,) = version.evidence().set_aside
        assert (aside.run_id, aside.unsealed) == (run_id, True)

    def test_a_link_to_nowhere_among_the_artifacts_is_a_verdict(self, version):
        run_id = version.explain()
        where = Path(local_file_uri_to_path(version.store.client.get_run(run_id).info.artifact_uri))
        (where / "attributions" / "attributions.html").unlink()
        (where / "attributions" / "attributions.html").symlink_to("/nowhere/at/all")
        found = verify_evidence(version.store, f"runs:/{run_id}")
        assert found.verdict == "undecided"
        assert "cannot be read" in found.findings[0].detail
        assert version.evidence().set_aside[0].unsealed


class TestTheData:
    """Only what a run explained, or was fitted or scored on, is its data; a run may have other inputs."""

    @pytest.mark.parametrize("context", ["training", "compared", None])
    def test_of_attributions_is_what_was_explained(self, version, context):
        run_id = version.explain(data=TextDataset("reviews", TEXTS))
        other = DataReference.of(TextDataset("official", ("never explained",)))
        add_input(version.store, run_id, other, context)
        rule = {"rule": "evidence", "data": other.digest}
        assert one(version.evidence(), rule).verdict == "undecided"
        assert one(version.evidence(), {**rule, "data": TextDataset("reviews", TEXTS).digest}).verdict == "passed"

    def test_of_dictionaries_is_what_they_were_fitted_on(self, version):
        run_id, _ = learn(version)
        before = version.evidence().pieces[0].n_texts
        other = DataReference("official", "f" * 32, rows=10**6)
        add_input(version.store, run_id, other, "explained")
        (piece,) = version.evidence().pieces
        assert piece.n_texts == before < 10**6
        assert one(version.evidence(), {"rule": "evidence", "data": other.digest}).verdict == "undecided"
        assert one(version.evidence(), {"rule": "evidence", "data": piece.data[0]}).verdict == "passed"


class TestAge:
    def test_is_counted_from_the_beginning_which_a_note_does_not_change(self, version):
        """Who opens an old run again to tag it gives it a new end."""
        run_id = version.explain(metrics={"deletion": 0.3})
        client = version.store.client
        began = client.get_run(run_id).info.start_time / 1000
        time.sleep(1.5)
        mlflow.set_tracking_uri(version.store.tracking_uri)
        with mlflow.start_run(run_id=run_id):
            mlflow.set_tag("reviewed", "by alice")
        assert client.get_run(run_id).info.end_time / 1000 > began + 1
        now = datetime.fromtimestamp(began + 1, timezone.utc)
        for rule in ({"rule": "evidence"}, {"rule": "threshold", "metric": "deletion", "max": 0.5}):
            assert one(version.evidence(now=now), {**rule, "within_days": 1.5 / 86400}).verdict == "passed"
            assert one(version.evidence(now=now), {**rule, "within_days": 0.5 / 86400}).verdict != "passed"

    def test_a_run_that_begins_in_the_future_is_set_aside(self, version):
        ahead = int(time.time() * 1000) + 10**9
        ours = version.store.client.create_run(
            version.store.experiment_id,
            start_time=ahead,
            tags={"interpreto.kind": "attributions", "interpreto.model.uri": version.uri},
        )
        version.store.client.set_terminated(ours.info.run_id, end_time=int(time.time() * 1000))
        (aside,) = version.evidence().set_aside
        assert "it begins at" in aside.why
        assert "in the future" in aside.why


class TestAFolder:
    """What it is called is up to who writes it."""

    @pytest.mark.parametrize("rule", [{"rule": "evidence"}, {"rule": "words", "words": ["food"], "top": 1}])
    def test_of_another_method_is_not_the_method_that_it_is_called(self, version, rule):
        self.explain(version, "occlusion", "saliency")
        found = one(version.evidence(), {**rule, "methods": ["occlusion"]})
        assert (found.verdict, "'occlusion'" in found.detail) == ("undecided", True)
        assert one(version.evidence(), {**rule, "methods": ["saliency"]}).verdict != "undecided"

    def test_of_a_method_with_its_options_can_be_named(self, version):
        self.explain(version, "occlusion-word", "occlusion")
        for name in ("occlusion-word", "occlusion"):
            found = one(version.evidence(), {"rule": "evidence", "methods": [name]})
            assert found.verdict == "passed", found.detail

    def explain(self, version, folder, method):
        given = {"granularity": "word", "inference_mode": "logits"}
        items = [
            attribution(text, place, "positive", {}, method, given, word_spans(text))
            for place, text in enumerate(TEXTS)
        ]
        with run(version.store, kind="attributions", name="x") as log:
            write_attributions(log.part(folder), AttributionSet(items), model=version.model, draw=False)


class TestADictionary:
    @pytest.mark.parametrize("more", [{}, {"classes": ["good"]}])
    def test_that_does_not_say_how_much_a_forbidden_concept_weighs_is_undecided(self, version, more):
        _, labels = learn(version, values=[[4.0, np.nan, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0]])
        found = one(version.evidence(), {"rule": "concepts", "concepts": [labels[1]], **more})
        assert found.verdict == "undecided"
        assert f"how much concept 1, {labels[1]!r}, speaks for 'good'" in found.detail
        assert one(version.evidence(), {"rule": "concepts", "concepts": ["zebra"], **more}).verdict == "passed"

    def test_that_says_no_importance_is_not_passed_over_for_another(self, version):
        learn(version)
        rule = {"rule": "concepts", "concepts": ["zebra"]}
        assert one(version.evidence(), rule).verdict == "passed"
        run_id, _ = learn(version, seed=1, importance=False)
        found = one(version.evidence(), rule)
        assert (found.verdict, found.evidence) == ("undecided", (f"runs:/{run_id}",))
        assert "has no labels, or no importance" in found.detail


def test_what_was_generated_is_not_told_where_texts_are_hidden(version):
    """A class has a name that somebody gave it; what a model wrote is text."""
    given = {"granularity": "word", "inference_mode": "logits"}
    spans = word_spans("she won")
    item = attribution("she won", 0, "positive", {"she": 0.9}, "occlusion", given, spans)
    items = [replace(item, targets=(Target(5, "a secret answer", positions=(3,), ids=(5,)),)), item]
    with run(version.store, kind="attributions", name="x") as log:
        write_attributions(log, AttributionSet(items), model=version.model, draw=False)
    evidence = version.evidence()
    evidence.hides_texts = True
    told = {
        "failed": one(evidence, {"rule": "words", "words": ["she"]}),
        "passed": one(evidence, {"rule": "words", "words": ["won"], "top": 1}),
        "undecided": one(evidence, {"rule": "words", "words": ["she"], "classes": ["neutral"]}),
    }
    for verdict, found in told.items():
        assert found.verdict == verdict
        assert "secret" not in json.dumps(found.to_dict())
    assert set(told["passed"].facts[0]["texts_of_class"]) == {"positive", hidden("a secret answer")}
    asked = one(evidence, {"rule": "words", "words": ["she"], "classes": ["a secret answer"]})
    assert asked.verdict == "failed"
    evidence.hides_texts = False
    assert "a secret answer" in one(evidence, {"rule": "words", "words": ["she"]}).detail


class TestHiddenTexts:
    """A word is found by its hash in the forms that people write it in."""

    @pytest.mark.parametrize(
        ("text", "word", "verdict"),
        [
            ("a trans-woman won", "trans woman", "failed"),
            ("a trans woman won", "trans-woman", "failed"),
            ("a \u201ctrans\u201d / woman won", "trans woman", "failed"),
            ("trans and woman won", "trans woman", "undecided"),
            ("the cafe\u0301 won", "caf\u00e9", "failed"),
            ("the CAF\u00c9 won", "cafe\u0301", "failed"),
            ("\uff33\uff28\uff25 won", "she", "failed"),
            ("she won", "\uff33\uff28\uff25", "failed"),
            ("won", "caf\u00e9", "undecided"),
        ],
    )
    def test_in_any_form(self, version, text, word, verdict):
        hide(version, text, "the soup was cold")
        assert one(version.evidence(), {"rule": "words", "words": [word], "top": 50}).verdict == verdict

    def test_of_words_beyond_ascii_it_cannot_be_told_that_none_is_there(self, version):
        hide(version, "the soup was cold", scores={"soup": -1.0})
        rule = {"rule": "words", "words": ["soup"], "top": 50}
        assert one(version.evidence(), rule).verdict == "passed"
        found = one(version.evidence(), {**rule, "words": ["soup", "caf\u00e9"]})
        assert found.verdict == "undecided"
        assert "'caf\u00e9' can be written in several ways" in found.detail


def add_input(store, run_id, data, context):
    """Log a data set as input of a run that is finished, as its owner may."""
    given = data.to_input(context or "")
    store.client.log_inputs(run_id, datasets=[DatasetInput(given.dataset, given.tags if context else [])])


def forge(store, model_id, name, content):
    """Write over a file of a logged model, and its manifest, as who may write to the store can do."""
    model = store.client.get_logged_model(model_id)
    (Path(local_file_uri_to_path(model.artifact_location)) / name).write_text(content)
    manifest = {
        **json.loads(model.tags[schema.TAG_MANIFEST]),
        name: hashlib.sha256(content.encode()).hexdigest(),
    }
    tags = {schema.TAG_MANIFEST: json.dumps(manifest), schema.TAG_SHA256: digest_of(manifest)}
    store.client.set_logged_model_tags(model_id, tags)
