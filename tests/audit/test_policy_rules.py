"""Rules on evidence and metrics, on real runs: each passes, fails, and is undecided where there is nothing to go by."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import ClassVar

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from interpreto_mlops.attributions import Occlusion
from interpreto_mlops.attributions.metrics import Deletion
from interpreto_mlops.audit.policies import judge, parse_policy
from interpreto_mlops.audit.policies.threshold_rules import lower_bound
from interpreto_mlops.errors import TrackingError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import run, write_attributions
from tests.audit.explained import TEXTS, register

LATER = datetime.now(timezone.utc) + timedelta(days=10)


def one(evidence, rule, champion=None):
    """The verdict on one rule, given as a mapping."""
    (found,) = judge(parse_policy(json.dumps({"rules": [rule]})), evidence, champion)
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    return found


@pytest.fixture
def version(store):
    return register(store)


RULES = [
    {"rule": "evidence"},
    {"rule": "threshold", "metric": "deletion", "max": 1e9},
    {"rule": "threshold", "metric": "deletion", "min": -1e9},
    {"rule": "margin", "metric": "deletion", "at_least": -1e9},
    {"rule": "stability", "min": -0.99},
]


@pytest.mark.parametrize("rule", RULES)
def test_nothing_passes_where_nothing_was_explained(version, rule):
    found = one(version.evidence(), rule)
    assert found.verdict == "undecided"
    assert "it has no explanation" in found.detail
    assert found.evidence == ()


@pytest.mark.parametrize("rule", RULES)
def test_nothing_passes_by_texts_without_words_or_by_metrics_without_value(version, rule):
    version.explain(["", " "], metrics={"deletion": np.nan})
    assert one(version.evidence(), rule).verdict == "undecided"
    version.explain(metrics={"deletion": np.nan})
    if rule["rule"] != "evidence":
        assert one(version.evidence(), rule).verdict == "undecided"


class TestEvidence:
    def test_passes_by_a_fresh_run_on_the_data_by_the_method_with_the_metric(self, version):
        data = TextDataset("reviews", TEXTS)
        run_id = version.explain(metrics={"deletion": 0.3}, data=data)
        rule = {"rule": "evidence", "methods": ["occlusion"], "data": data.digest, "within_days": 30, "min_texts": 30}
        found = one(version.evidence(), {**rule, "metrics": ["deletion"]})
        assert (found.verdict, found.evidence) == ("passed", (f"runs:/{run_id}",))
        assert "explains 30 texts" in found.detail

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            ({"methods": ["occlusion", "lime"]}, "explanation by 'lime'"),
            ({"data": "f" * 32}, f"on the data '{'f' * 32}'"),
            ({"layers": ["bert.encoder.layer.1"]}, "at 'bert.encoder.layer.1'"),
            ({"metrics": ["deletion", "insertion"]}, "faithfulness/insertion has no value"),
            ({"metrics": ["aopc"]}, "could not be scored by it"),
            ({"metrics": ["reconstruction/r2"]}, "there is no explanation that it could judge"),
        ],
    )
    def test_what_is_missing_leaves_it_undecided(self, version, rule, words):
        version.explain(metrics={"deletion": 0.3, "aopc": np.nan})
        found = one(version.evidence(), {"rule": "evidence", **rule})
        assert found.verdict == "undecided"
        assert words in found.detail

    def test_what_is_too_old_or_too_little_fails(self, version):
        run_id = version.explain(metrics={"deletion": 0.3})
        old = one(version.evidence(now=LATER), {"rule": "evidence", "within_days": 7})
        assert old.verdict == "failed"
        assert "began 10.0 days ago, and 7 are allowed" in old.detail
        assert old.evidence == (f"runs:/{run_id}",)
        few = one(version.evidence(), {"rule": "evidence", "min_texts": 31})
        assert few.verdict == "failed"
        assert "explains 30 texts, and 31 are asked for" in few.detail
        # A later, smaller run is no reason to overlook the one that has enough texts.
        version.explain(TEXTS[:3])
        assert one(version.evidence(), {"rule": "evidence", "min_texts": 30}).verdict == "passed"

    def test_one_method_that_is_too_old_fails_whatever_the_others(self, version):
        version.explain(method="lime")
        found = one(
            version.evidence(now=LATER), {"rule": "evidence", "methods": ["lime", "occlusion"], "within_days": 1}
        )
        assert found.verdict == "failed"


class TestWhatIsNoEvidence:
    def test_runs_that_are_not_finished(self, version):
        with pytest.raises(KeyboardInterrupt), run(version.store, kind="attributions", name="x") as log:
            log.tags({"interpreto.model.uri": version.uri})
            raise KeyboardInterrupt
        found = version.evidence()
        assert (found.pieces, [each.run_id for each in found.set_aside]) == ([], [log.run_id])
        assert "it is KILLED" in found.set_aside[0].why
        assert "1 runs that are no evidence" in one(found, {"rule": "evidence"}).detail

    def test_runs_that_hold_nothing(self, version):
        with run(version.store, kind="attributions", name="x") as log:
            log.tags({"interpreto.model.uri": version.uri})
            log.text("note.txt", "nothing was explained")
        (aside,) = version.evidence().set_aside
        assert aside.why == "it holds no explanation"

    def test_a_store_that_fails_meanwhile_is_no_reason_to_set_a_run_aside(self, version, monkeypatch):
        version.explain()

        def broken(*_):
            raise MlflowException("the disk is full")

        monkeypatch.setattr(version.store.client, "list_artifacts", broken)
        with pytest.raises(TrackingError, match="the disk is full"):
            version.evidence()

    def test_runs_that_explain_another_content(self, version):
        run_id = version.explain()
        version.store.client.set_tag(run_id, "interpreto.model.fingerprint", "0" * 64)
        (aside,) = version.evidence().set_aside
        assert "another content" in aside.why
        version.store.client.delete_tag(run_id, "interpreto.model.fingerprint")
        version.store.client.set_tag(run_id, "interpreto.model.id", "m-" + "0" * 32)
        (aside,) = version.evidence().set_aside
        assert "it explains the logged model" in aside.why

    def test_runs_from_the_future(self, version):
        run_id = version.explain()
        found = version.evidence(now=datetime.now(timezone.utc) - timedelta(days=1))
        assert [each.run_id for each in found.set_aside] == [run_id]
        assert "in the future" in found.set_aside[0].why

    def test_runs_without_a_seal(self, version):
        run_id = version.explain()
        version.store.client.delete_tag(run_id, "interpreto.sha256")
        (aside,) = version.evidence().set_aside
        assert (aside.unsealed, aside.broken) == (True, False)

    @pytest.mark.parametrize("path", ["attributions/scores.parquet", "attributions/attributions.json", "manifest.json"])
    def test_runs_whose_files_were_changed(self, version, path, tmp_path):
        run_id = version.explain(metrics={"deletion": 0.9})
        local = tmp_path / path.rsplit("/", 1)[-1]
        local.write_bytes(b"{}")
        version.store.client.log_artifact(run_id, str(local), path.rpartition("/")[0] or None)
        found = version.evidence()
        assert found.pieces == []
        assert found.set_aside[0].broken

    def test_files_that_were_put_beside_the_sealed_ones(self, version, download):
        """They would be read like another method's: a folder of attributions with better scores."""
        run_id = version.explain(metrics={"deletion": 0.9})
        better = version.explain(metrics={"deletion": 0.1})
        folder = download(version.store, better) / "attributions"
        version.store.client.log_artifacts(run_id, str(folder), "attributions/lime")
        version.store.client.delete_run(better)
        found = version.evidence()
        assert found.pieces == []
        assert "was added since the run was sealed" in found.set_aside[0].why
        assert one(found, {"rule": "threshold", "metric": "deletion", "max": 0.5}).verdict == "undecided"

    def test_a_metric_that_was_logged_anew(self, version):
        run_id = version.explain(metrics={"deletion": 0.9})
        version.store.client.log_metric(run_id, "faithfulness/deletion", 0.1)
        found = version.evidence()
        assert found.set_aside[0].broken
        assert "is 0.1, and its sealed files say 0.9" in found.set_aside[0].why

    def test_a_metric_that_is_in_no_sealed_file_does_not_count(self, version):
        run_id = version.explain()
        version.store.client.log_metric(run_id, "faithfulness/deletion", 0.1)
        found = one(version.evidence(), {"rule": "threshold", "metric": "deletion", "max": 0.5})
        assert found.verdict == "undecided"
        assert "no sealed value of faithfulness/deletion" in found.detail


class TestThreshold:
    @pytest.mark.parametrize(
        ("bounds", "verdict"),
        [({"max": 0.3}, "passed"), ({"max": 0.29}, "failed"), ({"min": 0.3}, "passed"), ({"min": 0.31}, "failed")],
    )
    def test_a_value_at_the_bound_is_allowed(self, version, bounds, verdict):
        run_id = version.explain(metrics={"deletion": 0.3})
        found = one(version.evidence(), {"rule": "threshold", "metric": "faithfulness/deletion", **bounds})
        assert (found.verdict, found.evidence) == (verdict, (f"runs:/{run_id}",))
        assert "is 0.3 of 'occlusion'" in found.detail

    def test_the_last_run_of_each_method_and_data_set_decides(self, version):
        rule = {"rule": "threshold", "metric": "deletion", "max": 0.5}
        version.explain(metrics={"deletion": 0.9})
        assert one(version.evidence(), rule).verdict == "failed"
        version.explain(metrics={"deletion": 0.4})
        assert one(version.evidence(), rule).verdict == "passed"
        # Neither other texts nor another method come in the place of these.
        other = version.explain(TEXTS[:9], metrics={"deletion": 0.8})
        assert one(version.evidence(), rule).evidence == (f"runs:/{other}",)
        version.explain(TEXTS[:9], metrics={"deletion": 0.4})
        lime = version.explain(method="lime", metrics={"deletion": 0.8})
        assert one(version.evidence(), rule).evidence == (f"runs:/{lime}",)
        assert one(version.evidence(), {**rule, "methods": ["occlusion"]}).verdict == "passed"

    def test_a_method_that_is_named_must_have_the_metric(self, version):
        version.explain(metrics={"deletion": 0.4})
        version.explain(method="lime")
        rule = {"rule": "threshold", "metric": "deletion", "max": 0.5}
        assert one(version.evidence(), rule).verdict == "passed"
        found = one(version.evidence(), {**rule, "methods": ["occlusion", "lime"]})
        assert found.verdict == "undecided"
        assert "for the method 'lime'" in found.detail

    def test_a_real_explanation(self, version):
        explanations = Occlusion(version.model)(["the food was great", "awful soup"])
        result = Deletion(version.model, n_random=3)(explanations)
        with run(version.store, kind="attributions", name="x") as log:
            write_attributions(log, explanations, metrics=[result], model=version.model)
        found = one(version.evidence(), {"rule": "threshold", "metric": "deletion", "min": result.mean})
        assert found.verdict == "passed"
        assert found.facts[0]["value"] == result.mean


class TestMargin:
    @pytest.mark.parametrize(
        ("higher", "value", "verdict"), [(False, 0.3, "passed"), (False, 0.7, "failed"), (True, 0.7, "passed")]
    )
    def test_goes_by_the_direction_of_the_metric(self, version, higher, value, verdict):
        name = "insertion" if higher else "deletion"
        version.explain(metrics={name: value}, random=0.5, higher=higher)
        found = one(version.evidence(), {"rule": "margin", "metric": name, "at_least": 0.1})
        assert found.verdict == verdict
        assert found.facts[0]["margin"] == pytest.approx(0.2 if verdict == "passed" else -0.2)

    def test_with_confidence_needs_more_than_a_mean(self, version):
        values = np.where(np.arange(30) % 2, 0.1, 0.8)
        version.explain(metrics={"deletion": values}, random=0.5)
        rule = {"rule": "margin", "metric": "deletion", "at_least": 0.0}
        assert one(version.evidence(), rule).verdict == "passed"
        sure = one(version.evidence(), {**rule, "confidence": 0.95})
        assert sure.verdict == "failed"
        assert sure.facts[0]["lower_bound"] == pytest.approx(lower_bound(0.5 - values, 0.95))
        version.explain(metrics={"deletion": 0.3}, random=0.5)
        assert one(version.evidence(), {**rule, "confidence": 0.95}).verdict == "passed"

    def test_without_a_baseline_is_undecided(self, version):
        version.explain(metrics={"deletion": 0.3}, random=np.nan)
        found = one(version.evidence(), {"rule": "margin", "metric": "deletion"})
        assert found.verdict == "undecided"
        assert "no random baseline" in found.detail


class TestChampion:
    RULE: ClassVar = {"rule": "champion", "metric": "deletion", "by": 0.05, "min_texts": 20}

    @pytest.fixture
    def both(self, store):
        return register(store), register(store, seed=1)

    def judge(self, old, new, **more):
        return one(new.evidence(), {**self.RULE, **more}, old.evidence())

    def test_passes_where_it_is_no_worse_by_more_with_confidence(self, both):
        old, new = both
        noise = np.random.default_rng(0).normal(0, 0.01, 30)
        runs = old.explain(metrics={"deletion": 0.3}), new.explain(metrics={"deletion": 0.32 + noise})
        found = self.judge(old, new)
        assert found.verdict == "passed"
        assert found.evidence == tuple(f"runs:/{each}/attributions/scores.parquet" for each in runs[::-1])
        (facts,) = found.facts
        assert facts["shared_texts"] == 30
        assert facts["difference"] == pytest.approx(-(0.02 + noise).mean())
        assert -0.05 <= facts["lower_bound"] < facts["difference"]
        assert facts["champion"] == old.uri

    def test_fails_where_it_is_worse_by_more(self, both):
        old, new = both
        old.explain(metrics={"deletion": 0.3})
        new.explain(metrics={"deletion": 0.4})
        assert self.judge(old, new).verdict == "failed"
        assert self.judge(old, new, by=0.2).verdict == "passed"
        assert self.judge(new, old).verdict == "passed"

    def test_is_undecided_where_the_texts_are_too_unlike_to_be_sure(self, both):
        old, new = both
        old.explain(metrics={"deletion": 0.3})
        new.explain(metrics={"deletion": 0.3 + np.where(np.arange(30) % 2, 0.5, -0.5)})
        assert self.judge(old, new).verdict == "undecided"

    def test_matches_texts_by_content_whatever_their_order(self, both):
        old, new = both
        values = np.linspace(0.1, 0.9, 30)
        old.explain(metrics={"deletion": values})
        new.explain((*TEXTS[::-1], "another text"), metrics={"deletion": np.append(values[::-1], 0.9)})
        found = self.judge(old, new, by=0.0)
        assert found.verdict == "passed"
        assert found.facts[0]["shared_texts"] == 30
        assert found.facts[0]["difference"] == pytest.approx(0, abs=1e-12)

    def test_is_undecided_with_too_few_texts_in_common_and_says_so(self, both):
        old, new = both
        old.explain(metrics={"deletion": np.where(np.arange(30) < 15, np.nan, 0.3)})
        new.explain(metrics={"deletion": 0.3})
        found = self.judge(old, new)
        assert found.verdict == "undecided"
        assert "have 15 scored texts in common, and 20 are needed" in found.detail
        assert self.judge(old, new, min_texts=15).verdict == "passed"

    def test_is_undecided_without_a_champion_or_its_evidence(self, both):
        old, new = both
        new.explain(metrics={"deletion": 0.3})
        assert "name one by --against" in one(new.evidence(), self.RULE).detail
        assert one(new.evidence(), self.RULE).verdict == "undecided"
        found = self.judge(old, new)
        assert found.verdict == "undecided"
        assert f"of {old.uri!r}: it has no explanation" in found.detail
        assert self.judge(new, new).verdict == "undecided"

    @pytest.mark.parametrize(
        ("changed", "words"),
        [({"granularity": "token"}, "granularity ('word' and 'token')"), ({"window": 3}, "window (None and 3)")],
    )
    def test_what_was_explained_in_another_way_is_not_compared(self, both, changed, words):
        old, new = both
        old.explain(metrics={"deletion": 0.3}, parameters=changed)
        new.explain(metrics={"deletion": 0.3})
        found = self.judge(old, new)
        assert found.verdict == "undecided"
        assert words in found.detail
        old.explain(metrics={"deletion": 0.3}, parameters={"replacement": "mask:7", "seed": 3, "dtype": "bfloat16"})
        assert self.judge(old, new).verdict == "passed"

    def test_one_that_is_worse_by_what_is_allowed_rarely_passes(self):
        """At the border, a bound of confidence 0.95 lets about one in twenty through."""
        rng = np.random.default_rng(1)
        passed = np.mean([lower_bound(rng.normal(-0.05, 0.1, 30), 0.95) >= -0.05 for _ in range(400)])
        assert 0.02 < passed < 0.1
