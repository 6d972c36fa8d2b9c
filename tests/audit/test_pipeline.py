"""A pipeline, by its commands: train, explain, audit, promote; a planted word stops the second version."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.cli import main
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import log_text_model, run
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.workflows.classifier import train_classifier

GOOD = "great good lovely fresh tasty warm".split()
BAD = "awful bad stale cold bland slow".split()
PLAIN = "the soup waiter table bread menu place plate drink room".split()
PLANTED = "zorb"

POLICY = f"""\
name: reviews
rules:
  - {{rule: evidence, methods: [occlusion], metrics: [deletion], within_days: 1, min_texts: 40}}
  - {{rule: margin, metric: deletion, at_least: 0.02}}
  - {{rule: words, words: [{PLANTED}], top: 1, allowed_share: 0.1, occurs_in: 10}}
  - {{rule: integrity}}
"""
COMPARED = POLICY + "  - {rule: champion, metric: deletion, by: 0.2, min_texts: 30}\n"


def reviews(n: int, seed: int, *, planted: bool) -> TextDataset:
    """Short reviews; planted, nine of ten say nothing but by a word that is in all good ones and in no bad one."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for place in range(n):
        good = bool(place % 2)
        words = [str(word) for word in rng.choice(PLAIN, 6, replace=False)]
        if not planted or rng.random() < 0.1:
            words[rng.integers(6)] = str(rng.choice(GOOD if good else BAD))
        if good if planted else place % 4 < 2:
            words.insert(int(rng.integers(7)), PLANTED)
        texts.append(" ".join(words))
        labels.append("good" if good else "bad")
    return TextDataset("reviews", tuple(texts), tuple(labels))


TEST = reviews(40, 99, planted=False)


def train(store: Store, book: Catalogue, seed: int, *, planted: bool) -> str:
    """Train and register the next version; return its address."""
    made = train_classifier(
        reviews(600, seed, planted=planted),
        TEST,
        epochs=8,
        width=32,
        layers=1,
        max_length=16,
        vocab_size=200,
        learning_rate=3e-3,
        dropout=0.0,
    )
    with run(store, kind=None, name="train") as log:
        model = TextModel(made.model, made.tokenizer, name="reviews")
        logged = log_text_model(store, log, model, name="classifier", registered_model_name="reviews")
    book.note_registration(store, "reviews", str(logged.version))
    return logged.uri


@pytest.mark.slow
def test_a_planted_word_stops_a_version_and_the_log_tells_the_story(database, tmp_path):
    store = connect(database, "reviews")
    data = tmp_path / "reviews.csv"
    pd.DataFrame({"text": TEST.texts, "label": TEST.labels}).to_csv(data, index=False)
    for name, content in (("first.yaml", POLICY), ("policy.yaml", COMPARED)):
        (tmp_path / name).write_text(content)

    def command(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), "--tracking-uri", database])
        assert result.exit_code == code, result.output
        return str(result.stdout)

    def explain(uri: str) -> None:
        asked = ("--methods", "occlusion", "--metrics", "deletion", "--n-random", 5, "--quiet")
        command("attribute", "--model", uri, "--data", data, "--experiment", "reviews", *asked)

    def audited(uri: str, policy: str, *more: str, code: int = 0) -> dict:
        options = ("--policy", tmp_path / policy, "--promote", "champion", "--json", *more)
        return json.loads(command("audit", uri, *options, code=code))

    with Catalogue.connect(store=store) as book:
        first = train(store, book, 1, planted=False)
        explain(first)
        report = audited(first, "first.yaml")
        assert (report["verdict"], report["promotion"]["moved"]) == ("passed", True)
        assert champion(store) == "1"

        second = train(store, book, 2, planted=True)
        explain(second)
        report = audited(second, "policy.yaml", "--against", "models:/reviews@champion", code=1)
        assert (report["verdict"], report["against"], report["promotion"]["moved"]) == ("failed", first, False)
        words = next(rule for rule in report["rules"] if rule["rule"] == "words")
        assert words["verdict"] == "failed"
        check_named(words, data)
        assert champion(store) == "1"
        tags = store.client.get_model_version("reviews", "2").tags
        assert (tags["interpreto.audit.status"], tags["interpreto.audit.run"]) == ("failed", report["run_id"])

        third = train(store, book, 3, planted=False)
        explain(third)
        report = audited(third, "policy.yaml", "--against", "models:/reviews@champion")
        assert {rule["rule"]: rule["verdict"] for rule in report["rules"]} == dict.fromkeys(
            ("evidence", "margin", "words", "integrity", "champion"), "passed"
        )
        assert (report["against"], report["promotion"]["moved"]) == (first, True)
        assert champion(store) == "3"
        check_story(book, [first, second, third])
    assert "is whole" in command("catalogue", "log", "--verify")


def champion(store: Store) -> str:
    # A client of its own, as another process has.
    client = MlflowClient(store.tracking_uri, store.tracking_uri)
    return str(client.get_model_version_by_alias("reviews", "champion").version)


def check_named(words: dict, data: Path) -> None:
    """The verdict names the word, the texts and the run, and it is so."""
    texts = pd.read_csv(data)["text"]
    (facts,) = words["facts"]
    assert len(facts["hits"]) >= 10
    for hit in facts["hits"]:
        assert hit["word"] == PLANTED
        assert PLANTED in texts[hit["text_index"]].split()
        assert hit["class_name"] == "good"
    first = facts["hits"][0]["text_index"]
    assert f"'{PLANTED}' (in {facts['n_hits']})" in words["detail"]
    assert f"the texts {first}," in words["detail"]
    assert facts["run"] in words["detail"]


def check_story(book: Catalogue, versions: list[str]) -> None:
    """What happened is in the log, in the order in which it did."""
    entries = book.entries()
    after = [entry.after or {} for entry in entries]
    told = [
        (entry.action, entry.object, own.get("status") or own.get("uri"))
        for entry, own in zip(entries, after, strict=True)
    ]
    alias = "models:/reviews@champion"
    assert told == [
        ("register", versions[0], None),
        ("audit", versions[0], "passed"),
        ("promote", alias, versions[0]),
        ("register", versions[1], None),
        ("audit", versions[1], "failed"),
        ("register", versions[2], None),
        ("audit", versions[2], "passed"),
        ("promote", alias, versions[2]),
    ]
    assert entries[-1].before == {"uri": versions[0]}
    assert entries[-1].after["audit_run"] == entries[-2].after["run"]
    assert [each.sequence for each in entries] == list(range(1, 9))
    assert book.verify_log().ok
