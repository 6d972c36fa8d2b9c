"""The log: its chain, whoever writes at once, and what tampering with it leaves to see."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pwd
import sqlite3
from collections.abc import Callable

import numpy as np
import pytest
from sqlalchemy import Connection, func, select, text

from interpreto_mlops.attributions.results import Attribution, Target
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.tables import AttributionRow, RunRow, SampleRow, ScoreRow
from interpreto_mlops.audit.catalogue.writing import replace_run
from interpreto_mlops.errors import CatalogueError, InputError, UnknownNameError

PROCESSES, ENTRIES = 10, 10
EXPLAINED = Attribution(
    *("good food", 0, ("good", "food"), np.array([[0, 4], [5, 9]]), np.array([[0.5, -0.25]]), (Target(1, "positive"),)),
    *(np.ones(1), np.zeros(1), None, "occlusion"),
)

# Python 3.12 warns of forks beside threads; the children use none of those that torch has started.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def write(catalogue: Catalogue, count: int = 5) -> None:
    for number in range(1, count + 1):
        before = {"uri": f"models:/reviews/{number - 1}"} if number > 1 else None
        after = {"uri": f"models:/reviews/{number}", "grüße": [1, 2.5, None]}
        catalogue.append("move_alias", "models:/reviews@champion", before=before, after=after, actor=f"actor {number}")


def unlocked(catalogue: Catalogue, change: Callable[[Connection], object]) -> None:
    """Change the log as somebody who may do everything to the database."""
    tables = ("catalogue_log", "catalogue_log_head")
    with catalogue.database.writing() as connection:
        if catalogue.database.is_sqlite:
            kept = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
            for name, _ in kept:
                connection.execute(text(f"DROP TRIGGER {name}"))
        else:
            for table in tables:
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER ALL"))
        change(connection)


def run(statement: str, **values: object) -> Callable[[Connection], object]:
    return lambda connection: connection.execute(text(statement), values)


def test_entries_are_chained_by_the_sha256_of_their_canonical_json(catalogue: Catalogue) -> None:
    write(catalogue)
    entries = catalogue.entries()
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    previous = "0" * 64
    for entry in entries:
        plain = {name: getattr(entry, name) for name in ("at", "actor", "action", "object", "store", "previous")}
        for name in ("before", "after"):
            value = getattr(entry, name)
            plain[name] = None if value is None else json.dumps(value, sort_keys=True, separators=(",", ":"))
        assert entry.previous == previous
        previous = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        assert entry.hash == previous
    verdict = catalogue.verify_log()
    assert verdict.ok
    assert (verdict.entries, verdict.head, verdict.first_bad) == (5, previous, None)
    assert catalogue.entries(last=2) == entries[-2:]
    assert entries[1].before == {"uri": "models:/reviews/1"}


def test_no_hash_is_kept_of_what_is_no_entry(catalogue: Catalogue) -> None:
    with pytest.raises(InputError, match="numbered from 1, so none is kept of 0"):
        catalogue.verify_log({0: "0" * 64})


def test_an_empty_log_is_whole(catalogue: Catalogue) -> None:
    assert catalogue.verify_log().ok
    assert catalogue.entries() == []


def test_the_actor_is_the_operating_systems_user_whatever_the_environment_says(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER", "LOGNAME", "USERNAME", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.setenv(name, "mallory")
    entry = catalogue.append("audit", "models:/reviews/1")
    assert entry.actor == pwd.getpwuid(os.getuid()).pw_name
    assert entry.store is None


def test_what_the_log_refuses_leaves_it_as_it_was(catalogue: Catalogue) -> None:
    with pytest.raises(UnknownNameError, match="unknown action 'forget'; known: 'register'"):
        catalogue.append("forget", "models:/reviews/1")
    with pytest.raises(InputError, match="as 'after' must be plain JSON"):
        catalogue.append("audit", "models:/reviews/1", after={"score": float("nan")})
    with pytest.raises(InputError, match="1 to 500 characters, unlike ''"):
        catalogue.append("audit", "")
    assert catalogue.entries() == []
    assert catalogue.verify_log().ok


def test_hostile_and_secret_text_is_kept_safely(catalogue: Catalogue) -> None:
    name = "'; DROP TABLE catalogue_log; -- \0 \ud800 <b>"
    entry = catalogue.append(
        "audit", f"models:/{name}/1", after={"text": name, "store": "http://alice:secret@host:5000"}, actor=name
    )
    assert entry.actor == "'; DROP TABLE catalogue_log; -- \ufffd ? <b>"
    assert entry.after["text"] == name
    assert entry.after["store"] == "http://***@host:5000"
    assert catalogue.verify_log().ok


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE catalogue_log SET actor = 'eve' WHERE sequence = 2",
        "DELETE FROM catalogue_log WHERE sequence = 5",
        "DELETE FROM catalogue_log",
        "UPDATE catalogue_log_head SET sequence = 1",
        "DELETE FROM catalogue_log_head",
    ],
)
def test_the_database_itself_refuses_to_change_the_log(catalogue: Catalogue, statement: str) -> None:
    write(catalogue)
    refused = pytest.raises(CatalogueError, match="the log of the catalogue only grows")
    with refused, catalogue.database.writing() as connection:
        connection.execute(text(statement))
    assert catalogue.verify_log().ok
    assert len(catalogue.entries()) == 5


@pytest.mark.parametrize("statement", ["TRUNCATE catalogue_log", "TRUNCATE catalogue_log_head"])
def test_postgresql_refuses_to_truncate(postgres: str, statement: str) -> None:
    with Catalogue.connect(postgres) as catalogue:
        write(catalogue)
        with pytest.raises(CatalogueError, match="only grows"), catalogue.database.writing() as connection:
            connection.execute(text(statement))
        assert catalogue.verify_log().ok


@pytest.mark.parametrize("sequence", [2, 6])
def test_sqlite_refuses_to_replace_by_inserting(tmp_path, sequence: int) -> None:
    catalogue = Catalogue.connect(f"sqlite:///{tmp_path}/c.db")
    write(catalogue)
    columns = "at, actor, action, object, store, before, after, previous, hash"
    statement = (
        f"INSERT OR REPLACE INTO catalogue_log SELECT {sequence}, {columns} FROM catalogue_log WHERE sequence = 2"
    )
    with pytest.raises(CatalogueError, match="only grows"), catalogue.database.writing() as connection:
        connection.execute(text(statement))
    with pytest.raises(CatalogueError, match="only grows"), catalogue.database.writing() as connection:
        connection.execute(text("INSERT OR REPLACE INTO catalogue_log_head VALUES (1, 2, 'x')"))
    assert len(catalogue.entries()) == 5


def rehash(connection: Connection, sequence: int) -> None:
    """Make an entry's hash that of its content."""
    from interpreto_mlops.audit.catalogue.log import hash_of

    row = connection.execute(text("SELECT * FROM catalogue_log WHERE sequence = :n"), {"n": sequence}).mappings().one()
    run("UPDATE catalogue_log SET hash = :h WHERE sequence = :n", h=hash_of(row), n=sequence)(connection)


def edit_and_rehash(sequence: int) -> Callable[[Connection], object]:
    def change(connection: Connection) -> None:
        run("UPDATE catalogue_log SET actor = 'eve' WHERE sequence = :n", n=sequence)(connection)
        rehash(connection, sequence)

    return change


def swap(first: int, second: int) -> Callable[[Connection], object]:
    def change(connection: Connection) -> None:
        for old, new in ((first, 99), (second, first), (99, second)):
            run("UPDATE catalogue_log SET sequence = :new WHERE sequence = :old", old=old, new=new)(connection)

    return change


def delete_and_renumber(sequence: int) -> Callable[[Connection], object]:
    def change(connection: Connection) -> None:
        run("DELETE FROM catalogue_log WHERE sequence = :n", n=sequence)(connection)
        for number in range(sequence + 1, 6):
            run("UPDATE catalogue_log SET sequence = :n - 1 WHERE sequence = :n", n=number)(connection)

    return change


def append_a_copy(connection: Connection) -> None:
    row = dict(connection.execute(text("SELECT * FROM catalogue_log WHERE sequence = 5")).mappings().one())
    row |= {"sequence": 6, "previous": row["hash"], "actor": "eve", "hash": "x"}
    names = ", ".join(row)
    connection.execute(text(f"INSERT INTO catalogue_log ({names}) VALUES (:{', :'.join(row)})"), row)
    rehash(connection, 6)


@pytest.mark.parametrize(
    ("change", "first", "problem", "words"),
    [
        (
            run("UPDATE catalogue_log SET actor = 'eve' WHERE sequence = 3"),
            3,
            "edited",
            "entry 3 of the log was edited",
        ),
        (run("UPDATE catalogue_log SET at = 'x' WHERE sequence = 1"), 1, "edited", "entry 1"),
        (run("UPDATE catalogue_log SET after = NULL WHERE sequence = 5"), 5, "edited", "entry 5"),
        (run("UPDATE catalogue_log SET store = 'elsewhere' WHERE sequence = 2"), 2, "edited", "entry 2"),
        (run("UPDATE catalogue_log SET hash = 'x' WHERE sequence = 4"), 4, "edited", "entry 4"),
        (edit_and_rehash(2), 2, "edited", "was replaced: the entry after it names another hash"),
        (edit_and_rehash(1), 1, "edited", "was replaced"),
        (edit_and_rehash(5), 5, "edited", "another hash than the head"),
        (run("DELETE FROM catalogue_log WHERE sequence = 1"), 1, "missing", "entry 1 of the log is gone"),
        (run("DELETE FROM catalogue_log WHERE sequence = 3"), 3, "missing", "entry 3 of the log is gone"),
        (delete_and_renumber(3), 3, "missing", "entry 3 of the log is gone, and those after it got other numbers"),
        (delete_and_renumber(1), 1, "missing", "entry 1 of the log is gone, and"),
        (run("DELETE FROM catalogue_log WHERE sequence >= 4"), 4, "missing", "entry 4 .* the log had 5 entries"),
        (run("DELETE FROM catalogue_log"), 1, "missing", "entry 1 .* the log had 5 entries"),
        (swap(2, 3), 2, "reordered", "entry 2 of the log is not where it was written"),
        (swap(1, 5), 1, "reordered", "entry 1"),
        (swap(4, 5), 4, "reordered", "entry 4"),
        (append_a_copy, 6, "added", "entry 6 of the log was not added by this package"),
        (run("DELETE FROM catalogue_log_head"), 1, "added", "entry 1"),
    ],
)
def test_tampering_is_found_and_the_first_entry_named(
    catalogue: Catalogue, change: Callable[[Connection], object], first: int, problem: str, words: str
) -> None:
    write(catalogue)
    unlocked(catalogue, change)
    verdict = catalogue.verify_log()
    assert not verdict.ok
    assert (verdict.first_bad, verdict.problem) == (first, problem)
    import re

    assert re.search(words, verdict.message), verdict.message


def test_a_log_that_was_rewritten_whole_is_found_by_a_hash_that_was_kept_elsewhere(catalogue: Catalogue) -> None:
    write(catalogue)
    kept = {2: catalogue.entries()[1].hash, 5: catalogue.verify_log().head}
    assert catalogue.verify_log(kept).ok

    def rewrite(connection: Connection) -> None:
        edit_and_rehash(2)(connection)
        for number in (3, 4, 5):
            before = connection.scalar(text("SELECT hash FROM catalogue_log WHERE sequence = :n"), {"n": number - 1})
            run("UPDATE catalogue_log SET previous = :p WHERE sequence = :n", p=before, n=number)(connection)
            rehash(connection, number)
        run("UPDATE catalogue_log_head SET hash = (SELECT hash FROM catalogue_log WHERE sequence = 5)")(connection)

    unlocked(catalogue, rewrite)
    # As the docstring says: nothing in the database itself tells.
    assert catalogue.verify_log().ok
    verdict = catalogue.verify_log(kept)
    assert (verdict.ok, verdict.first_bad, verdict.problem) == (False, 2, "rewritten")

    def cut(connection: Connection) -> None:
        run("DELETE FROM catalogue_log WHERE sequence > 1")(connection)
        run("UPDATE catalogue_log_head SET sequence = 1, hash = (SELECT hash FROM catalogue_log)")(connection)

    unlocked(catalogue, cut)
    assert catalogue.verify_log().ok
    verdict = catalogue.verify_log(kept)
    assert (verdict.ok, verdict.first_bad, verdict.problem) == (False, 2, "missing")


def write_many(uri: str, process: int, start: object) -> None:
    """What each of the processes does: open the catalogue, which nobody has made yet, and write."""
    start.wait()  # type: ignore[attr-defined]
    with Catalogue.connect(uri) as catalogue:
        for number in range(ENTRIES):
            what, after = f"models:/reviews/{process}", {"number": number}
            catalogue.append("audit", what, after=after, actor=f"process {process}")
            # All replace the same run, and each has one of its own.
            for run_id in ("shared", f"of {process}"):
                with catalogue.database.writing() as connection:
                    row = {"run_id": run_id, "store": "s", "experiment_id": "1", "kind": "attributions"}
                    replace_run(connection, {**row, "status": "FINISHED"}, {"score": number}, [EXPLAINED])


@forks
def test_ten_processes_make_the_catalogue_and_write_it_and_its_log_at_once(uri: str) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(PROCESSES)
    processes = [context.Process(target=write_many, args=(uri, number, start)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    with Catalogue.connect(uri) as catalogue:
        verdict = catalogue.verify_log()
        assert verdict.ok, verdict.message
        entries = catalogue.entries()
        with catalogue.database.reading() as connection:
            counts = [
                connection.scalar(select(func.count()).select_from(model))
                for model in (RunRow, SampleRow, AttributionRow, ScoreRow)
            ]
    assert len(entries) == PROCESSES * ENTRIES
    # Nothing is lost, and each process's own entries are in the order in which it wrote them.
    for number in range(PROCESSES):
        own = [entry.after["number"] for entry in entries if entry.actor == f"process {number}"]
        assert own == list(range(ENTRIES))
    # They did take turns.
    assert len({entry.actor for entry in entries[: PROCESSES * 2]}) > 1
    runs = PROCESSES + 1
    assert counts == [runs, runs, 2 * runs, runs]


@forks
def test_verifying_while_others_write_finds_a_whole_log(uri: str) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=write_many, args=(uri, number, start)) for number in range(3)]
    for process in processes:
        process.start()
    catalogue = Catalogue.connect(uri)
    seen = []
    while any(process.is_alive() for process in processes):
        verdict = catalogue.verify_log()
        assert verdict.ok, verdict.message
        seen.append(verdict.entries)
    assert seen == sorted(seen)
    assert catalogue.verify_log().entries == 3 * ENTRIES
    catalogue.close()


def test_a_writer_waits_for_another_one(tmp_path) -> None:
    catalogue = Catalogue.connect(f"sqlite:///{tmp_path}/c.db")
    other = sqlite3.connect(tmp_path / "c.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    import threading

    timer = threading.Timer(1.0, other.rollback)
    timer.start()
    catalogue.append("audit", "models:/reviews/1")
    timer.join()
    assert catalogue.verify_log().entries == 1
    other.close()
    catalogue.close()


def test_an_entry_that_was_edited_into_no_json_is_said_in_one_sentence(catalogue: Catalogue) -> None:
    catalogue.append("audit", "models:/reviews/1", after={"status": "failed"})
    unlocked(catalogue, run("UPDATE catalogue_log SET after = '{oops'"))
    with pytest.raises(CatalogueError, match="entry 1 of the log was edited: 'after' is no JSON"):
        catalogue.entries()
    assert catalogue.verify_log().first_bad == 1
