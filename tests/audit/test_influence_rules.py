"""Forbidden words and concepts, and integrity: each passes, fails, and is undecided where nothing was tested."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from interpreto_mlops.attributions import AttributionSet
from interpreto_mlops.audit.catalogue.texts import hidden, hidden_word
from interpreto_mlops.audit.policies import judge, parse_policy
from interpreto_mlops.audit.policies.evidence import gather
from interpreto_mlops.concepts import ConceptImportance, ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import word_spans
from interpreto_mlops.tracking import register_dictionary, run, write_dictionary
from interpreto_mlops.tracking.resolving import resolve
from tests.audit.explained import attribution, register
from tests.audit.test_policy_rules import one
from tests.conftest import TEXTS as REVIEWS
from tests.visuals.hostile import HOSTILE


@pytest.fixture
def version(store):
    return register(store)


class TestWords:
    RULE: ClassVar = {"rule": "words", "words": ["she", "he"], "top": 2}

    def test_a_word_among_the_first_ones_fails_and_is_named_with_its_texts(self, version):
        texts = ["she cooked well today", "the soup was cold", "a cold soup she made", "SHE left"]
        run_id = version.explain(texts, scores={"she": 0.9})
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "failed"
        assert "'she' (in 3), in 3 of 4 texts of 'occlusion'" in found.detail
        assert f"(run {run_id}), where 0.0% are allowed: the texts 0, 2, 3" in found.detail
        assert f"runs:/{run_id}/attributions/attributions.parquet" in found.evidence
        hits = found.facts[0]["hits"]
        assert [(hit["word"], hit["text_index"], hit["rank"], hit["class_name"]) for hit in hits] == [
            ("she", 0, 1, "positive"),
            ("she", 2, 1, "positive"),
            ("she", 3, 1, "positive"),
        ]

    def test_a_word_that_weighs_less_or_speaks_against_passes(self, version):
        version.explain(["the soup she made was cold"], scores={"she": 0.001, "soup": 0.5, "the": 0.4})
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "passed"
        assert "1 of the 2 words stand in none of its texts, 'he' for one" in found.detail
        version.explain(["she cooked"], scores={"she": -0.9, "cooked": -0.1})
        assert one(version.evidence(), self.RULE).verdict == "passed"
        assert one(version.evidence(), {**self.RULE, "top": 50}).verdict == "failed"

    def test_a_share_of_the_texts_can_be_allowed(self, version):
        texts = ["she cooked", *[f"he left number {i}" for i in range(9)]]
        version.explain(texts, scores={"she": 0.9, "number": 0.5, "left": 0.4})
        assert one(version.evidence(), {**self.RULE, "allowed_share": 0.1}).verdict == "passed"
        assert one(version.evidence(), {**self.RULE, "allowed_share": 0.09}).verdict == "failed"

    def test_the_class_decides(self, version):
        version.explain(["she won", "she lost"], classes=["good", "bad"], scores={"she": 0.9})
        both = one(version.evidence(), self.RULE)
        assert both.facts[0]["texts_of_class"] == {"good": 1, "bad": 1}
        version.explain(["he won", "she lost"], classes=["good", "bad"], scores={"she": 0.9, "won": 0.5, "he": -1})
        rule = {**self.RULE, "words": ["she"]}
        assert one(version.evidence(), {**rule, "classes": ["bad"]}).verdict == "failed"
        unknown = one(version.evidence(), {**rule, "words": ["won"], "classes": ["neutral"]})
        assert unknown.verdict == "undecided"
        assert "explains no text of the class 'neutral'; it explains none" in unknown.detail

    def test_words_that_stand_in_no_text_of_the_class_were_not_tested(self, version):
        version.explain(["the soup", "she lost"], classes=["good", "bad"], scores={"lost": 0.9, "she": -1})
        assert one(version.evidence(), self.RULE).verdict == "passed"
        found = one(version.evidence(), {**self.RULE, "classes": ["good"]})
        assert found.verdict == "undecided"
        assert "one of the words stands in 0 of the texts" in found.detail
        assert one(version.evidence(), {**self.RULE, "occurs_in": 2}).verdict == "undecided"

    def test_every_run_counts_not_only_the_last(self, version):
        version.explain(["she won"], scores={"she": 0.9})
        version.explain(["she won"], scores={"won": 0.9, "she": -1})
        assert one(version.evidence(), self.RULE).verdict == "failed"

    @pytest.mark.parametrize(
        ("text", "word", "verdict"),
        [
            ("SHE won", "she", "failed"),
            ("“she” won", "She", "failed"),
            ("shepherd won", "she", "undecided"),
            ("the STRASSE won", "straße", "failed"),
            ("a trans-woman won", "trans-woman", "failed"),
            ("a trans woman won", "trans woman", "failed"),
            ("a woman won", "trans woman", "undecided"),
            ("她 won 女性", "女性", "failed"),
            ("cafe\u0301 won", "caf\u00e9", "failed"),
            ("s\u200dhe won", "she", "failed"),
            ("SHE\u2019s won", "she", "failed"),
        ],
    )
    def test_whole_words_in_any_case_and_punctuation(self, version, text, word, verdict):
        version.explain([text])
        assert one(version.evidence(), {"rule": "words", "words": [word], "top": 50}).verdict == verdict

    def test_pieces_of_words_stand_for_the_word_that_they_are_in(self, version):
        text = "the waiter won"
        pieces = [[(0, 3), (4, 8), (8, 10), (11, 14)]]
        version.explain([text], scores={"er": 0.9}, elements=pieces, parameters={"granularity": "token"})
        found = one(version.evidence(), {"rule": "words", "words": ["waiter"], "top": 1})
        assert found.verdict == "failed"
        assert one(version.evidence(), {"rule": "words", "words": ["wait"], "top": 9}).verdict == "undecided"

    def test_whole_sentences_say_nothing_of_a_word(self, version):
        version.explain(["she won"], elements=[[(0, 7)]], parameters={"granularity": "sentence"})
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "undecided"
        assert "no attribution of words or tokens" in found.detail

    def test_what_was_cut_off_was_not_tested(self, version):
        version.explain(["the food was fine she said"], elements=[[(0, 3), (4, 8), (9, 12)]])
        assert one(version.evidence(), self.RULE).verdict == "undecided"

    @pytest.mark.parametrize(
        ("word", "verdict"), [("She", "failed"), ("trans-woman", "failed"), ("soup", "passed"), ("he", "undecided")]
    )
    def test_words_of_hidden_texts_are_found_by_their_hashes(self, version, word, verdict):
        hide(version, "she won the soup", "a trans-woman won", scores={"she": 0.9, "trans": 0.9})
        assert one(version.evidence(), {"rule": "words", "words": [word], "top": 1}).verdict == verdict

    def test_pieces_of_hidden_texts_say_nothing(self, version):
        hide(version, "she won", parameters={"granularity": "token"})
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "undecided"
        assert "1 texts of 'occlusion' (run" in found.detail
        assert "are hidden" in found.detail

    def test_without_runs_or_texts_it_is_undecided(self, version):
        assert one(version.evidence(), self.RULE).verdict == "undecided"
        version.explain(["", "  "])
        assert one(version.evidence(), self.RULE).verdict == "undecided"

    def test_hostile_texts_and_classes_are_only_read(self, version):
        texts = [text for text in HOSTILE if "\ud800" not in text]
        version.explain(texts, classes=[f"class {place} {text[:200]}" for place, text in enumerate(texts)])
        found = one(version.evidence(), {"rule": "words", "words": ["script", "waiter"], "top": 1000})
        assert found.verdict == "failed"
        assert all(character.isprintable() for character in found.detail)

    def test_agrees_with_a_plain_search(self, version):
        """Brute force over the table that the run holds."""
        rng = np.random.default_rng(0)
        vocabulary = ["she", "he", "soup", "cold", "great", "waiter", "the"]
        texts = [" ".join(rng.choice(vocabulary, size=6)) for _ in range(40)]
        scores = {word: float(rng.normal()) for word in vocabulary}
        version.explain(texts, scores=scores)
        expected = set()
        for place, text in enumerate(texts):
            words = text.split()
            best = sorted(range(6), key=lambda i: (-scores[words[i]], i))[:3]
            if any(words[i] in ("she", "he") and scores[words[i]] > 0 for i in best):
                expected.add(place)
        found = one(version.evidence(), {**self.RULE, "top": 3})
        assert {hit["text_index"] for hit in found.facts[0]["hits"]} == expected
        assert expected


def learn(version, *, register_as=None, importance=True, labels=True, metrics=None, values=None, seed=0):
    """Write the run of a real dictionary of the version."""
    split = ModelWithSplitPoints(version.model, [1])
    activations = split.get_activations(TextDataset("reviews", REVIEWS), progress=False)[1]
    fitted = PCAConcepts(n_concepts=4, seed=seed).fit(activations)
    if labels:
        fitted.descriptions = top_words(fitted, activations)
    weights = np.asarray(values if values is not None else [[4.0, 3.0, 2.0, 1.0], [-1.0, -2.0, -3.0, -4.0]])
    weighed = ConceptImportance(("good", "bad"), weights, (3, 2)) if importance else None
    with run(version.store, kind="concepts", name="pca") as log:
        logged = write_dictionary(log, fitted, metrics=metrics, importance=weighed, draw=False)
    if register_as is not None:
        register_dictionary(version.store, logged, fitted, name=register_as, metrics=metrics)
    return log.run_id, [each.label for each in fitted.descriptions or ()]


class TestConcepts:
    def test_a_concept_among_the_first_ones_fails_and_is_named(self, version):
        run_id, labels = learn(version)
        word = labels[1].split(", ")[0]
        found = one(version.evidence(), {"rule": "concepts", "concepts": [word.upper()], "top": 2})
        assert found.verdict == "failed"
        assert f"concept 1 {labels[1]!r}, rank 2 for 'good'" in found.detail
        assert set(found.evidence) == {
            f"runs:/{run_id}/concepts/labels.json",
            f"runs:/{run_id}/concepts/importance.parquet",
        }

    def test_one_that_matters_less_or_speaks_against_passes(self, version):
        _, labels = learn(version)
        rule = {"rule": "concepts", "concepts": ["zebra"]}
        assert one(version.evidence(), rule).verdict == "passed"
        last = [word for word in labels[3].split(", ") if not any(word in other for other in labels[:3])]
        if last:
            assert one(version.evidence(), {**rule, "concepts": last, "top": 3}).verdict == "passed"
        assert one(version.evidence(), {**rule, "concepts": [labels[0]], "classes": ["bad"]}).verdict == "passed"

    @pytest.mark.parametrize(
        ("given", "rule", "words"),
        [
            ({"labels": False}, {}, "no dictionary with labels"),
            ({"importance": False}, {}, "no dictionary with labels"),
            ({}, {"classes": ["neutral"]}, "says of no concept how much it speaks for the class 'neutral'"),
            ({}, {"layers": ["elsewhere"]}, "for the layer 'elsewhere'"),
            ({"values": np.full((2, 4), np.nan)}, {}, "speaks for any class"),
            ({"values": [[1, 1, 1, 1], [np.nan] * 4]}, {"classes": ["good", "bad"]}, "speaks for the class 'bad'"),
        ],
    )
    def test_what_is_missing_leaves_it_undecided(self, version, given, rule, words):
        learn(version, **given)
        found = one(version.evidence(), {"rule": "concepts", "concepts": ["zebra"], **rule})
        assert found.verdict == "undecided"
        assert words in found.detail

    def test_labels_that_are_hidden_say_nothing(self, version, monkeypatch):
        monkeypatch.setattr(
            "interpreto_mlops.concepts.interpretation.ConceptDescription.label", property(lambda each: hidden("she"))
        )
        learn(version)
        found = one(version.evidence(), {"rule": "concepts", "concepts": ["zebra"]})
        assert found.verdict == "undecided"
        assert "or one that is hidden" in found.detail

    def test_labels_that_were_replaced_are_no_evidence(self, version, tmp_path):
        run_id, _ = learn(version)
        (tmp_path / "labels.json").write_text(json.dumps({"columns": ["concept", "label"], "data": [[0, "fine"]]}))
        version.store.client.log_artifact(run_id, str(tmp_path / "labels.json"), "concepts")
        assert one(version.evidence(), {"rule": "concepts", "concepts": ["zebra"]}).verdict == "undecided"

    def test_importance_put_beside_a_run_without_one_is_no_evidence(self, version, tmp_path):
        run_id, _ = learn(version, importance=False)
        frame = pd.DataFrame({"class": ["good"], "concept": [0], "importance": [1.0]})
        frame.to_parquet(tmp_path / "importance.parquet")
        version.store.client.log_artifact(run_id, str(tmp_path / "importance.parquet"), "concepts")
        found = version.evidence()
        assert "was added since the run was sealed" in found.set_aside[0].why


class TestStability:
    RULE: ClassVar = {"rule": "stability", "min": 0.7, "over_random": 0.2}

    @pytest.mark.parametrize(
        ("stability", "random", "verdict"),
        [(0.9, 0.3, "passed"), (0.6, 0.3, "failed"), (0.9, 0.8, "failed"), (np.nan, 0.3, "undecided")],
    )
    def test_goes_by_both(self, version, stability, random, verdict):
        learn(version, metrics={"stability/stability": stability, "stability/stability_random": random})
        assert one(version.evidence(), self.RULE).verdict == verdict

    def test_a_dictionary_that_was_fitted_once_leaves_it_undecided(self, version):
        learn(version, metrics={"stability/stability": 0.9, "stability/stability_random": 0.1})
        assert one(version.evidence(), self.RULE).verdict == "passed"
        learn(version, metrics={"reconstruction/r2": 0.9}, seed=1)
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "undecided"
        assert "was not scored by stability/stability" in found.detail

    def test_the_layer_can_be_chosen(self, version):
        learn(version, metrics={"stability/stability": 0.9})
        rule = {"rule": "stability", "min": 0.7}
        assert (
            one(version.evidence(), {**rule, "layers": ["bert.encoder.layer.1"], "methods": ["pca"]}).verdict
            == "passed"
        )
        assert one(version.evidence(), {**rule, "layers": ["bert.encoder.layer.2"]}).verdict == "undecided"

    def test_a_stability_that_was_logged_anew_is_no_evidence(self, version):
        run_id, _ = learn(version, metrics={"stability/stability": 0.2})
        version.store.client.log_metric(run_id, "stability/stability", 0.9)
        found = version.evidence()
        assert (found.pieces, found.set_aside[0].broken) == ([], True)

    def test_without_a_random_baseline_its_margin_is_undecided(self, version):
        learn(version, metrics={"stability/stability": 0.9})
        assert one(version.evidence(), self.RULE).verdict == "undecided"


def hide(version, *texts, scores=None, parameters=None):
    """Write a run whose texts are hidden: hashes stand for them and for their words, spans are kept."""
    items = [
        attribution(
            text, place, "positive", scores or {}, "occlusion", {"granularity": "word", **(parameters or {})}, spans
        )
        for place, text in enumerate(texts)
        for spans in [word_spans(text)]
    ]
    hashed = [
        replace(item, text=hidden(item.text), elements=tuple(hidden_word(each) for each in item.elements))
        for item in items
    ]
    with run(version.store, kind="attributions", name="hidden") as log:
        log.tags({"interpreto.model.uri": version.uri})
        with TemporaryDirectory() as folder:
            log.folder(AttributionSet(hashed).save(folder), "attributions")


def overwrite(store, model_id, tmp_path, name, content):
    """Write over a file of a logged model, as anybody may who may write to it."""
    folder = tmp_path / "overwrites"
    folder.mkdir()
    (folder / name).write_text(content)
    store.client.log_model_artifacts(model_id, str(folder))


class TestDictionaries:
    """A dictionary's version is judged by its own run."""

    def evidence(self, version, name="reviews.pca"):
        found = resolve(version.store, f"models:/{name}/1")
        return gather(version.store, found, version.store.client.get_model_version(name, "1").tags)

    def test_by_its_metrics_stability_and_integrity(self, version):
        metrics = {"stability/stability": 0.9, "reconstruction/r2": 0.8}
        run_id, _ = learn(version, register_as="reviews.pca", metrics=metrics)
        learn(version, metrics={"stability/stability": 0.1, "reconstruction/r2": 0.1}, seed=1)
        evidence = self.evidence(version)
        assert evidence.is_dictionary
        for rule in (
            {"rule": "stability", "min": 0.7},
            {"rule": "threshold", "metric": "reconstruction/r2", "min": 0.7},
            {"rule": "evidence", "methods": ["pca"], "metrics": ["reconstruction/r2"], "within_days": 1},
            {"rule": "integrity"},
        ):
            found = one(evidence, rule)
            assert (found.verdict, run_id in str(found.evidence)) == ("passed", True), found
        assert one(evidence, {"rule": "threshold", "metric": "reconstruction/r2", "min": 0.81}).verdict == "failed"
        assert one(evidence, {"rule": "words", "words": ["she"]}).verdict == "undecided"

    def test_integrity_fails_where_a_file_of_it_was_changed(self, version, tmp_path):
        learn(version, register_as="reviews.pca", metrics={"reconstruction/r2": 0.1})
        found = resolve(version.store, "models:/reviews.pca/1")
        overwrite(version.store, found.model_id, tmp_path, "metrics.json", '{"reconstruction/r2": 0.99}')
        evidence = self.evidence(version)
        assert one(evidence, {"rule": "integrity"}).verdict == "failed"
        assert one(evidence, {"rule": "threshold", "metric": "reconstruction/r2", "min": 0.7}).verdict == "undecided"

    def test_one_whose_run_is_gone_has_no_evidence(self, version):
        run_id, _ = learn(version, register_as="reviews.pca", metrics={"reconstruction/r2": 0.9})
        version.store.client.delete_run(run_id)
        evidence = self.evidence(version)
        assert one(evidence, {"rule": "threshold", "metric": "reconstruction/r2", "min": 0.7}).verdict == "undecided"
        assert one(evidence, {"rule": "integrity"}).verdict == "failed"


class TestIntegrity:
    RULE: ClassVar = {"rule": "integrity"}

    def test_passes_where_version_and_runs_are_as_they_were(self, version):
        run_id = version.explain()
        found = one(version.evidence(), self.RULE)
        assert (found.verdict, found.evidence) == ("passed", (version.uri, f"runs:/{run_id}"))

    def test_without_a_run_it_is_undecided(self, version):
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "undecided"
        assert "no finished and sealed run" in found.detail

    def test_fails_where_a_file_of_the_version_was_changed(self, version, tmp_path):
        version.explain()
        overwrite(version.store, version.model.model_id, tmp_path, "requirements.txt", "another")
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "failed"
        assert "the file 'requirements.txt' was changed" in found.detail

    def test_fails_where_a_run_was_changed_though_others_were_not(self, version, tmp_path):
        version.explain()
        run_id = version.explain()
        (tmp_path / "attributions.html").write_text("another")
        version.store.client.log_artifact(run_id, str(tmp_path / "attributions.html"), "attributions")
        found = one(version.evidence(), self.RULE)
        assert (found.verdict, found.evidence) == ("failed", (f"runs:/{run_id}",))
        assert "'attributions/attributions.html' was changed" in found.detail

    def test_is_undecided_where_a_run_has_no_seal(self, version):
        version.explain()
        run_id = version.explain()
        version.store.client.delete_tag(run_id, "interpreto.sha256")
        assert one(version.evidence(), self.RULE).verdict == "undecided"

    def test_fails_where_the_logged_model_is_gone(self, version):
        version.explain()
        version.store.client.delete_logged_model(version.model.model_id)
        found = one(version.evidence(), self.RULE)
        assert found.verdict == "failed"
        assert "was deleted" in found.detail


def test_evidence_that_cannot_be_read_any_more_leaves_a_rule_undecided(version):
    version.explain(["she won"])
    evidence = version.evidence()
    policy = parse_policy('rules: [{rule: words, words: ["she"]}, {rule: evidence}]')
    broken = copy.copy(evidence)
    broken.pieces = [piece.__class__(**{**vars(piece), "label": "elsewhere"}) for piece in evidence.pieces]
    words, there = judge(policy, broken)
    assert (words.verdict, there.verdict) == ("undecided", "passed")
    assert "are gone meanwhile" in words.detail
