"""Texts that are hostile, and texts that are to be hidden."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from interpreto_mlops.attributions import AttributionSet, Occlusion
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.tables import AttributionRow, SampleRow
from interpreto_mlops.audit.catalogue.texts import sha256_of
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import run, write_attributions
from interpreto_mlops.tracking.store import Store
from tests.audit.contents import DERIVED, content, rows
from tests.audit.evidence import Evidence
from tests.workflows.writer import build_writer

HOSTILE = "The NUL \0 and '); DROP TABLE catalogue_run; -- sha256:food \ud800 great"


@pytest.mark.parametrize("hide", [False, True])
def test_hostile_texts_are_taken_as_they_are(
    catalogue: Catalogue, store: Store, tiny_model: Callable[..., TextModel], hide: bool
) -> None:
    if hide:
        catalogue.hide_texts()
    hostile = HOSTILE.replace("\ud800", "")
    model = tiny_model()
    explanations = Occlusion(model)([hostile, "x" * 5000 + " food"])
    with run(store, kind="attributions", name="x") as log:
        write_attributions(log, explanations, model=model)
    catalogue.record_run(store, log.run_id)
    # A lone surrogate cannot come from a file; from Python it can.
    catalogue.record_run(store, log.run_id, explanations=_with_text(explanations, HOSTILE))
    first, second = rows(catalogue, SampleRow)
    assert first["sha256"] == sha256_of(HOSTILE)
    assert first["text"] == (None if hide else HOSTILE.replace("\0", "\ufffd").replace("\ud800", "?"))
    assert second["text"] == (None if hide else "x" * 5000 + " food")
    words = {row["word"] for row in rows(catalogue, AttributionRow)}
    assert ("sha256:" + sha256_of("great") in words) == hide
    assert all(row.startswith("sha256:") for row in words if hide or len(row) > 60)
    for word in ("GREAT", "x" * 5000, "drop"):
        assert len(catalogue.ask("texts_with_word", word=word, version=model.fingerprint, k=20)) <= 1
    with catalogue.database.reading() as connection:
        assert connection.scalar(text("SELECT count(*) FROM catalogue_run")) == 1


def _with_text(explanations: AttributionSet, changed: str) -> AttributionSet:
    return AttributionSet([replace(explanations[0], text=changed), *explanations[1:]])


def everything(catalogue: Catalogue) -> str:
    """All that the catalogue holds, as text."""
    values = [list(row.values()) for model in DERIVED for row in rows(catalogue, model)]
    return json.dumps(values, ensure_ascii=False).lower().replace("models:/reviews", "")


def test_hidden_texts_are_nowhere_and_questions_find_the_same(
    full: Catalogue, evidence: Evidence, tmp_path: Path
) -> None:
    word = evidence.data.texts[0].split()[1]
    asked = {"word": word, "version": "models:/reviews/1", "k": 20}
    changed = {"before": f"models:/{evidence.dictionary_name}/1", "after": f"models:/{evidence.dictionary_name}/2"}
    open_texts, open_labels = full.ask("texts_with_word", **asked), full.ask("changed_labels", **changed)
    assert not open_texts.empty
    assert not full.hides_texts
    words = {each for each in " ".join(evidence.data.texts).lower().split() if len(each) > 4}
    assert all(each in everything(full) for each in ("great", "waiter"))

    with Catalogue.connect(f"sqlite:///{tmp_path}/hidden.db", hide_texts=True) as written_hidden:
        written_hidden.rebuild(evidence.store)
        full.hide_texts()
        # What was there is as what is written afterwards.
        assert content(written_hidden) == content(full)
    assert full.hides_texts
    assert [each for each in words if each in everything(full)] == []
    found = full.ask("texts_with_word", **asked)
    assert found["text"].isna().all()
    assert found.drop(columns="text").equals(open_texts.drop(columns="text"))
    labels = full.ask("changed_labels", **changed)
    assert labels[["concept", "change"]].equals(open_labels[["concept", "change"]])
    assert labels["before"].str.startswith("sha256:").all()
    full.rebuild(evidence.store)
    assert [each for each in words if each in everything(full)] == []
    assert [(entry.action, entry.after) for entry in full.entries()] == [("setting", {"texts": "hashed"})]
    assert full.verify_log().ok


def test_hidden_texts_are_not_in_the_file_either(evidence: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with Catalogue.connect(f"sqlite:///{path}") as catalogue:
        catalogue.rebuild(evidence.store)
        assert b"waiter" in path.read_bytes()
        catalogue.hide_texts()
    assert b"waiter" not in path.read_bytes()


def test_a_catalogue_that_hides_texts_goes_on_to(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", "1")
    Catalogue.connect(uri).close()
    monkeypatch.delenv("INTERPRETO_HIDE_TEXTS")
    with Catalogue.connect(uri) as catalogue:
        assert catalogue.hides_texts
        catalogue.hide_texts()
        assert len(catalogue.entries()) == 1
    with pytest.raises(InputError, match="takes no texts any more"):
        Catalogue.connect(uri, hide_texts=False)


def test_what_a_language_model_wrote_is_text(catalogue: Catalogue, store: Store) -> None:
    explanations = Occlusion(build_writer())(["the food was great"], targets=["but slow"])
    written = {target.name for item in explanations for target in item.targets}
    assert {"but", "slow"} <= {each.strip() for each in written}
    with run(store, kind="attributions", name="x") as log:
        write_attributions(log, explanations)
    catalogue.record_run(store, log.run_id)
    assert {row["target"] for row in rows(catalogue, AttributionRow)} == written
    catalogue.hide_texts()
    hidden = {row["target"] for row in rows(catalogue, AttributionRow)}
    assert hidden == {"sha256:" + sha256_of(each) for each in written}
    catalogue.record_run(store, log.run_id)
    assert {row["target"] for row in rows(catalogue, AttributionRow)} == hidden
