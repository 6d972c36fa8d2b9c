"""The commands of the catalogue on what a real job has left."""

from __future__ import annotations

import io
import json
import re
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.cli import main
from interpreto_mlops.tracking.store import connect
from interpreto_mlops.tracking.text_models import log_text_model
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import parse_recipe


@pytest.fixture
def explained(database, tiny_model, tmp_path):
    """The address of a store with a registered model and its attributions, as options of a command."""
    store = connect(database, "jobs")
    log_text_model(store, None, tiny_model(), name="reviews", registered_model_name="reviews")
    data = tmp_path / "reviews.csv"
    pd.DataFrame({"text": ["the food was great", "<b>bad</b> service", "the soup was cold"]}).to_csv(data, index=False)
    values = {"kind": "attribute", "model": "models:/reviews/1", "data": str(data), "tracking_uri": database}
    values |= {"experiment": "jobs", "methods": ["occlusion"], "metrics": ["deletion"]}
    execute(parse_recipe(values), command="…")
    return ["--tracking-uri", database, "--catalogue-uri", f"sqlite:///{tmp_path}/book.db"]


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_catalogue_is_rebuilt_and_asked(explained):
    said = run("catalogue", "rebuild", *explained)
    assert "holds 2 runs, 0 dictionaries, 1 versions" in said
    asked = ("query", "texts_with_word", "word=food", "version=models:/reviews/1", "k=20")
    found = json.loads(run(*asked, *explained, "--format", "json"))
    assert {row["text"] for row in found} <= {"the food was great"}
    table = pd.read_csv(io.StringIO(run(*asked, *explained, "--format", "csv")))
    assert len(table) == len(found)
    assert run("query", "texts_with_word", "word=nowhere", "version=models:/reviews/1", *explained) == "nothing\n"
    listed = run("query")
    assert "texts_with_word word=… version=… [target=None]" in listed
    assert "needs 'version'" in run("query", "texts_with_word", "word=food", *explained, code=1)
    assert "a parameter is NAME=VALUE, not 'food'" in run("query", "texts_with_word", "food", *explained, code=1)
    assert "unknown question" in run("query", "anything", *explained, code=1)


def test_the_log_is_shown_and_checked(explained, tmp_path):
    file = tmp_path / "book.db"
    run("catalogue", "rebuild", *explained)
    assert "the log of 0 entries is whole" in run("catalogue", "log", "--verify", *explained)
    with Catalogue.connect(f"sqlite:///{file}") as book:
        store = connect(explained[1], "jobs")
        book.note_registration(store, "reviews", 1, actor="ada")
        book.move_alias(store, "reviews", "champion", 1, actor="bob")
    assert int(store.client.get_model_version_by_alias("reviews", "champion").version) == 1
    lines = run("catalogue", "log", *explained).splitlines()
    assert len(lines) == 2
    assert " bob move_alias models:/reviews@champion: null -> " in lines[1]
    assert json.loads(run("catalogue", "log", "--last", 1, "--json", *explained))["actor"] == "bob"
    assert "head: " in run("catalogue", "log", "--verify", *explained)
    with sqlite3.connect(file) as connection:
        (table,) = connection.execute(
            "select name from sqlite_master where type='table' and sql like '%previous%'"
        ).fetchone()
        for (trigger,) in connection.execute("select name from sqlite_master where type='trigger'").fetchall():
            connection.execute(f"drop trigger {trigger}")
        connection.execute(f"update {table} set actor = 'eve' where sequence = 1")
    assert "entry 1 of the log was edited" in run("catalogue", "log", "--verify", *explained, code=1)
    assert json.loads(run("catalogue", "log", "--verify", "--json", *explained, code=1))["first_bad"] == 1


@pytest.mark.parametrize(
    "command", [("catalogue", "log"), ("catalogue", "log", "--verify"), ("query", "alias_moves", "name=a", "alias=b")]
)
def test_a_catalogue_that_is_gone_is_not_an_empty_one(database, tmp_path, command):
    where = f"sqlite:///{tmp_path}/typo/book.db"
    said = run(*command, "--tracking-uri", database, "--catalogue-uri", where, code=1)
    assert f"there is no catalogue at '{where}'" in said
    assert not (tmp_path / "typo").exists()
    file = database.removeprefix("sqlite:///")
    before = Path(file).read_bytes()
    assert "there is no catalogue at" in run(*command, "--tracking-uri", database, "--catalogue-uri", database, code=1)
    assert Path(file).read_bytes() == before


def test_hashes_that_were_kept_elsewhere_find_a_log_that_was_made_anew(database, tmp_path):
    where = f"sqlite:///{tmp_path}/book.db"
    options = ("--tracking-uri", database, "--catalogue-uri", where)
    with Catalogue.connect(where) as book:
        for number in (1, 2):
            book.append("audit", f"models:/reviews/{number}")
    (kept,) = re.findall("^head: (.*)$", run("catalogue", "log", "--verify", *options), re.MULTILINE)
    number, _, value = kept.partition("=")
    assert number == "2"
    assert "is whole" in run("catalogue", "log", "--verify", "--known", kept, *options)
    assert "is whole" in run("catalogue", "log", "--known", f"2={value.upper()}", *options)
    (tmp_path / "book.db").unlink()
    with Catalogue.connect(where) as book:
        for number in (1, 2):
            book.append("audit", f"models:/reviews/{number}", actor="eve")
    assert "is whole" in run("catalogue", "log", "--verify", *options)
    said = run("catalogue", "log", "--verify", "--known", kept, *options, code=1)
    assert "entry 2 of the log has another hash" in said
    with Catalogue.connect(where) as book:
        other = book.entries()[0].hash
    first = f"1={other}"
    assert "is whole" in run("catalogue", "log", "--verify", "--known", first, *options)
    assert "another hash" in run("catalogue", "log", "--verify", "--known", first, "--known", kept, *options, code=1)
    assert "had 3 entries" in run("catalogue", "log", "--verify", "--known", f"3={value}", *options, code=1)


@pytest.mark.parametrize("given", ["2", "x=" + "0" * 64, "2=abc", "0=" + "0" * 64])
def test_a_kept_hash_that_cannot_be_read_is_named(database, tmp_path, given):
    where = f"sqlite:///{tmp_path}/book.db"
    Catalogue.connect(where).close()
    options = ("--tracking-uri", database, "--catalogue-uri", where)
    assert f"NUMBER=HASH, not '{given}'" in run("catalogue", "log", "--verify", "--known", given, *options, code=1)
    twice = ("--known", "1=" + "0" * 64, "--known", "1=" + "1" * 64)
    assert "entry 1 was given with two hashes" in run("catalogue", "log", "--verify", *twice, *options, code=1)


def test_texts_can_be_hidden(explained, tmp_path):
    run("catalogue", "rebuild", "--hide-texts", *explained)
    assert b"great" not in (tmp_path / "book.db").read_bytes()
    found = json.loads(
        run(
            "query",
            "texts_with_word",
            "word=great",
            "version=models:/reviews/1",
            "k=20",
            *explained,
            "--format",
            "json",
        )
    )
    assert all(row["text"] is None for row in found)


def test_without_a_store_the_commands_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no MLflow database" in run("catalogue", "rebuild", code=1)
