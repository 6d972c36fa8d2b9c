"""Named questions: answers that reading everything gives, too, and the index that each goes through."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Connection, event, insert, text

from interpreto_mlops.attributions.results import Attribution, Target
from interpreto_mlops.audit.catalogue import QUESTIONS, Catalogue, parameters
from interpreto_mlops.audit.catalogue.log import append_to
from interpreto_mlops.audit.catalogue.tables import (
    AttributionRow,
    ConceptRow,
    DictionaryRow,
    RunRow,
    SampleRow,
    VersionRow,
)
from interpreto_mlops.audit.catalogue.writing import bulk_insert, replace_run
from interpreto_mlops.errors import InputError, UnknownNameError
from tests.audit.evidence import Evidence
from tests.postgres import fresh_database

BASE = hashlib.sha256(b"base").hexdigest()


def brute_force(evidence: Evidence, word: str, k: int, target: str | None, method: str | None) -> set[tuple[Any, ...]]:
    found = set()
    for run_id, explanations in evidence.attributions.items():
        for item in explanations:
            for index, each in enumerate(item.targets):
                for rank, place in enumerate(item.ranking(index)[:k].tolist(), 1):
                    if (
                        item.elements[place].lower() == word.lower()
                        and item.scores[index, place] > 0
                        and target in (None, each.name)
                        and method in (None, item.method)
                    ):
                        found.add((run_id, item.index, item.text, each.name, rank, float(item.scores[index, place])))
                        break  # however often it stands in the text
    return found


@pytest.mark.parametrize("method", [None, "occlusion"])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_texts_with_a_word_are_those_that_reading_all_attributions_finds(
    full: Catalogue, evidence: Evidence, k: int, method: str | None
) -> None:
    words = {word for each in evidence.data.texts for word in each.split()} | {"GREAT", "nowhere"}
    targets = {target.name for found in evidence.attributions.values() for item in found for target in item.targets}
    total = 0
    for version in ("models:/reviews/1", f"models:/{evidence.model.model_id}", evidence.model.fingerprint):
        for word in words:
            for target in (None, *targets):
                found = full.ask("texts_with_word", word=word, version=version, k=k, target=target, method=method)
                columns = found[["run_id", "text_index", "text", "target", "rank", "score"]]
                expected = brute_force(evidence, word, k, target, method)
                assert set(columns.itertuples(index=False, name=None)) == expected
                assert len(found) == len(expected)
                assert found["score"].is_monotonic_decreasing
                total += len(found)
    assert total > 10


def test_a_version_without_evidence_is_not_one_without_the_word(full: Catalogue) -> None:
    assert full.ask("texts_with_word", word="nowhere", version="models:/reviews/1").empty
    with pytest.raises(InputError, match="the catalogue has no attributions of 'models:/reviews/2'; rebuild"):
        full.ask("texts_with_word", word="great", version="models:/reviews/2")
    with pytest.raises(InputError, match="no attributions by 'lime' of 'models:/reviews/1'"):
        full.ask("texts_with_word", word="great", version="models:/reviews/1", method="lime")
    with pytest.raises(InputError, match="cannot read the version 'reviews'; write models:/name/3"):
        full.ask("texts_with_word", word="great", version="reviews")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"word": "great"}, InputError, "the question 'texts_with_word' needs 'version'"),
        (
            {"word": "a", "version": "models:/reviews/1", "k": "many"},
            InputError,
            "k must be a whole number, not 'many'",
        ),
        ({"word": "a", "version": "models:/reviews/1", "k": 21}, InputError, "k must be 1 to 20, .*, not 21"),
        ({"word": "a", "version": "models:/reviews/1", "k": 0}, InputError, "not 0"),
        ({"word": "a", "version": "models:/reviews/1", "limit": -1}, InputError, "limit must not be negative, not -1"),
        ({"wrod": "a"}, UnknownNameError, "unknown parameter of the question 'texts_with_word' 'wrod'; known: 'word'"),
    ],
)
def test_parameters_that_cannot_be_used_are_named(
    small: Catalogue, given: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        small.ask("texts_with_word", **given)
    with pytest.raises(UnknownNameError, match="unknown question 'why'; known: 'alias_moves'"):
        small.ask("why")


def test_the_limit_keeps_the_largest_scores(full: Catalogue) -> None:
    asked = {"word": "the", "version": "models:/reviews/1", "k": "20"}
    every = full.ask("texts_with_word", **asked, limit="0")
    assert len(every) > 1
    pd.testing.assert_frame_equal(full.ask("texts_with_word", **asked, limit=1), every[:1])


def test_a_text_that_repeats_a_word_is_one_text(catalogue: Catalogue) -> None:
    # The second target was written twice: another place of the same continuation.
    targets = (Target(0, "again", ids=(5,)), Target(1, "again", ids=(5,)), Target(2, "bad"))
    scores = np.array([[0.1, 0.3, 0.2, 0.0], [0.9, 0.4, 0.5, 0.95], [-0.1, -0.3, 0.0, 0.2]])
    words, spans = ("food", "Food", "food", "was"), np.array([[0, 4], [5, 9], [10, 14], [15, 18]])
    output = np.zeros(3)
    items = [
        Attribution(" ".join(words), index, words, spans, scores / (index + 1), targets, output, output, None, "lime")
        for index in range(2)
    ]
    run = {"run_id": "r", "store": "s", "experiment_id": "1", "kind": "attributions", "status": "FINISHED"}
    with catalogue.database.writing() as connection:
        replace_run(connection, {**run, "model_uri": "models:/reviews/1"}, {}, items)
    asked = {"word": "food", "version": "models:/reviews/1", "k": 20}
    columns = ["text_index", "target", "rank", "score"]
    best = [[0, "again", 1, 0.9], [1, "again", 1, 0.45]]
    assert catalogue.ask("texts_with_word", **asked)[columns].values.tolist() == best
    assert catalogue.ask("texts_with_word", **asked, limit=1)[columns].values.tolist() == best[:1]
    assert catalogue.ask("texts_with_word", **asked, limit=2)[columns].values.tolist() == best
    assert catalogue.ask("texts_with_word", **asked, method="lime")[columns].values.tolist() == best
    of_both = catalogue.ask("texts_with_word", **{**asked, "word": "was"})
    assert of_both[["text_index", "target"]].values.tolist() == [[0, "again"], [1, "again"], [0, "bad"], [1, "bad"]]


def test_labels_that_changed_are_found(full: Catalogue, evidence: Evidence) -> None:
    name = evidence.dictionary_name
    found = full.ask("changed_labels", before=f"models:/{name}/1", after=f"{name}/2")
    first, second = evidence.labels
    assert first[2] != second[2]
    assert found.to_dict("records") == [
        {
            "concept": 2,
            "change": "changed",
            "before": first[2],
            "after": second[2],
            "origin_before": "words",
            "origin_after": "words",
        }
    ]
    assert full.ask("changed_labels", before=f"{name}/1", after=f"{name}/1").empty
    with pytest.raises(InputError, match="no labels of 'models:/reviews/1'"):
        full.ask("changed_labels", before="models:/reviews/1", after=f"{name}/1")
    with pytest.raises(InputError, match=f"cannot read the version '{name}@champion'"):
        full.ask("changed_labels", before=f"{name}@champion", after=f"{name}/1")


def test_concepts_that_are_new_or_gone_are_found(catalogue: Catalogue) -> None:
    labels = {"m-" + "1" * 32: {0: "a", 1: "b"}, "m-" + "2" * 32: {1: "b", 5: "c"}}
    with catalogue.database.writing() as connection:
        for model_id, of_model in labels.items():
            row = {"model_id": model_id, "store": "s", "name": "d"}
            connection.execute(insert(DictionaryRow).values(row))
            rows = [{"model_id": model_id, "concept": n, "label": t, "origin": "words"} for n, t in of_model.items()]
            connection.execute(insert(ConceptRow), rows)
    before, after = (f"models:/{model_id}" for model_id in labels)
    found = catalogue.ask("changed_labels", before=before, after=after)
    assert found[["concept", "change"]].values.tolist() == [[0, "gone"], [5, "new"]]


def test_dictionaries_of_a_base_are_found(full: Catalogue, evidence: Evidence) -> None:
    found = full.ask("dictionaries_of", sha256=evidence.model.fingerprint)
    assert sorted(found["version"]) == [1, 2]
    assert set(found["name"]) == {evidence.dictionary_name}
    assert set(found["run_id"]) == set(evidence.dictionary_runs)
    assert set(found["base_uri"]) == {"models:/reviews/1"}
    assert full.ask("dictionaries_of", sha256="0" * 64).empty
    with pytest.raises(InputError, match="64 hexadecimal digits, unlike 'abc'"):
        full.ask("dictionaries_of", sha256="abc")
    evidence.store.client.get_logged_model(found["model_id"][0])


def _ago(days: float) -> str:
    at = datetime.now(timezone.utc) - timedelta(days=days)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def test_who_moved_an_alias_and_whether_the_evidence_was_fresh(catalogue: Catalogue) -> None:
    def explained(run_id: str, days: float, **more: Any) -> None:
        row = {"run_id": run_id, "store": "s", "experiment_id": "1", "kind": "attributions", "status": "FINISHED"}
        row |= {"started_at": _ago(days + 1), "ended_at": _ago(days), **more}
        with catalogue.database.writing() as connection:
            connection.execute(insert(RunRow).values(row))

    with catalogue.database.writing() as connection:
        version = {"name": "reviews", "version": 3, "store": "s", "model_id": "m-3", "fingerprint": BASE}
        connection.execute(insert(VersionRow).values(version))
    explained("old", 40, model_uri="models:/reviews/1")
    explained("fresh", 5, model_uri="models:/reviews/2")
    explained("older", 9, model_uri="models:/reviews/2")
    explained("failed", 1, model_uri="models:/reviews/1", status="FAILED")
    explained("an audit", 1, model_uri="models:/reviews/1", kind="audit")
    explained("by its content", 3, model_fingerprint=BASE)
    moves = [
        ("alice", "move_alias", None, {"uri": "models:/reviews/1"}),
        ("bob", "promote", {"uri": "models:/reviews/1"}, {"uri": "models:/reviews/2"}),
        ("carol", "move_alias", {"uri": "models:/reviews/2"}, {"uri": "models:/reviews/3"}),
        ("dave", "move_alias", {"uri": "models:/reviews/3"}, {"uri": "models:/reviews/4"}),
        ("erin", "move_alias", {"uri": "models:/reviews/4"}, None),
    ]
    for actor, action, before, after in moves:
        catalogue.append(action, "models:/reviews@champion", before=before, after=after, actor=actor)
    catalogue.append("audit", "models:/reviews@champion", actor="nobody moved it")
    catalogue.append("move_alias", "models:/reviews@challenger", after={"uri": "models:/reviews/1"}, actor="frank")
    # What is explained after the move says nothing of it.
    explained("afterwards", -1, model_uri="models:/reviews/4")

    found = catalogue.ask("alias_moves", name="reviews", alias="champion")
    assert found["actor"].tolist() == ["alice", "bob", "carol", "dave", "erin"]
    assert found["fresh"].tolist() == [False, True, True, False, False]
    assert found["evidence"].dropna().tolist() == ["old", "fresh", "by its content"]
    assert found["evidence"].isna().tolist() == [False, False, False, True, True]
    assert found["days"].tolist() == pytest.approx([40, 5, 3, np.nan, np.nan], abs=0.1, nan_ok=True)
    assert found["after"].tolist()[:4] == [f"models:/reviews/{n}" for n in (1, 2, 3, 4)]
    assert found["before"].tolist()[1] == "models:/reviews/1"
    assert catalogue.ask("alias_moves", name="reviews", alias="champion", days="4")["fresh"].tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert catalogue.ask("alias_moves", name="reviews", alias="nobody").empty


def test_every_question_is_documented_for_who_asks_it() -> None:
    assert set(QUESTIONS.names()) == {"alias_moves", "changed_labels", "dictionaries_of", "texts_with_word"}
    for name, question in QUESTIONS.items():
        said = inspect.getdoc(question) or ""
        assert said.splitlines()[0].endswith("?")
        for each in parameters(name):
            assert each.name in said
            assert each.kind in (str, int, float)
            assert each.required == (each.default is None and each.name not in ("target", "method"))
    assert [(each.name, each.kind) for each in parameters("alias_moves")] == [
        ("name", str),
        ("alias", str),
        ("days", float),
    ]


RUNS, EXPLAINED, TEXTS, WORDS = 3000, 100, 20, 20


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalogue]:
    """A catalogue with enough rows for a database to prefer an index, where there is one."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            uri = f"sqlite:///{tmp_path_factory.mktemp('filled')}/c.db"
        else:
            uri = stack.enter_context(fresh_database(request.getfixturevalue("postgres_server")))
        catalogue = stack.enter_context(Catalogue.connect(uri))
        with catalogue.database.writing() as connection:
            _fill_runs(connection)
            _fill_dictionaries(connection)
        _fill_log(catalogue)
        if not catalogue.database.is_sqlite:
            with catalogue.database.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
        yield catalogue


def _model(key: int) -> dict[str, str]:
    return {"model_id": f"m-{key:032x}", "store": "s"}


def _fill_runs(connection: Connection) -> None:
    rng = np.random.default_rng(0)
    keys, places = range(1, RUNS + 1), [(key, place) for key in range(1, EXPLAINED + 1) for place in range(TEXTS)]
    common = {"experiment_id": "1", "kind": "attributions", "status": "FINISHED", "ended_at": _ago(1)}
    hashes = {key: hashlib.sha256(str(key).encode()).hexdigest() for key in keys}
    runs = (
        {**common, **_model(key), "id": key, "run_id": f"r{key}", "model_uri": f"models:/reviews/{key}"}
        | {"model_fingerprint": hashes[key]}
        for key in keys
    )
    versions = ({**_model(key), "name": "reviews", "version": key, "fingerprint": hashes[key]} for key in keys)
    samples = (
        {"run": key, "place": place, "text_index": place, "sha256": "0" * 64, "text": "text", "method": "lime"}
        for key, place in places
    )
    attributions = (
        {"run": key, "place": place, "target_index": 0, "rank": rank, "target": "positive", "generated": False}
        | {"element": rank, "word": f"word{word}", "score": 1 / rank}
        for key, place in places
        for rank, word in enumerate(rng.choice(100, WORDS, replace=False).tolist(), 1)
    )
    for model, rows in ((RunRow, runs), (VersionRow, versions), (SampleRow, samples), (AttributionRow, attributions)):
        bulk_insert(connection, model, rows)


def _fill_dictionaries(connection: Connection) -> None:
    dictionaries = (
        {**_model(key), "name": "d", "base_sha256": BASE if key < 3 else hashlib.sha256(b"%d" % key).hexdigest()}
        for key in range(1, RUNS + 1)
    )
    concepts = (
        {"model_id": _model(key)["model_id"], "concept": number, "label": str(key), "origin": "words"}
        for key in range(1, EXPLAINED + 1)
        for number in range(50)
    )
    for model, rows in ((DictionaryRow, dictionaries), (ConceptRow, concepts)):
        bulk_insert(connection, model, rows)


def _fill_log(catalogue: Catalogue) -> None:
    with catalogue.database.writing() as connection:
        for number in range(1, 2001):
            entry = {"actor": "a", "action": "move_alias", "object": f"models:/reviews{number % 500}@champion"}
            after = f'{{"uri":"models:/reviews/{number % 199 + 1}"}}'
            append_to(connection, {**entry, "store": None, "before": None, "after": after})


@contextmanager
def statements(catalogue: Catalogue) -> Iterator[list[tuple[str, Any]]]:
    """Hold what is asked of the database."""
    found: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        found.append((statement, given))

    event.listen(catalogue.database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(catalogue.database.engine, "before_cursor_execute", note)


ASKED = {
    "texts_with_word": {"word": "word7", "version": "models:/reviews/5", "target": "positive", "k": 20},
    "texts_with_word by a method": {"word": "word7", "version": "models:/reviews/5", "k": 20, "method": "lime"},
    "changed_labels": {"before": "models:/reviews/5", "after": "models:/reviews/6"},
    "dictionaries_of": {"sha256": BASE},
    "alias_moves": {"name": "reviews7", "alias": "champion"},
}


@pytest.mark.parametrize("name", sorted(ASKED))
def test_every_question_goes_through_an_index(filled: Catalogue, name: str) -> None:
    with statements(filled) as asked:
        answer = filled.ask(name.split(" ")[0], **ASKED[name])
    assert len(answer) > 0
    asked = [(statement, given) for statement, given in asked if statement.lstrip().upper().startswith("SELECT")]
    assert len(asked) <= 25
    for statement, given in asked:
        plan = _plan(filled, statement, given)
        scans = [line for line in plan if _reads_a_whole_table(line)]
        assert not scans, "\n".join([statement, *plan])


def test_a_question_without_an_index_would_be_seen(filled: Catalogue) -> None:
    plan = _plan(filled, "SELECT * FROM catalogue_attribution WHERE element = 3", ())
    assert any(_reads_a_whole_table(line) for line in plan)


def _plan(catalogue: Catalogue, statement: str, given: Any) -> list[str]:
    explain = "EXPLAIN QUERY PLAN " if catalogue.database.is_sqlite else "EXPLAIN "
    with catalogue.database.reading() as connection:
        rows = connection.exec_driver_sql(explain + statement, given).all()
    return [str(row[-1]) for row in rows]


def _reads_a_whole_table(line: str) -> bool:
    # SQLite's SCAN may also be of a subquery's own few rows.
    return "Seq Scan on catalogue_" in line or line.startswith("SCAN catalogue_")
