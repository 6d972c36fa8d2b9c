"""What the catalogue takes over from MLflow, once and again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy import text

from interpreto_mlops.attributions import AttributionSet
from interpreto_mlops.audit.catalogue import Catalogue, rebuilding
from interpreto_mlops.audit.catalogue.addresses import store_address
from interpreto_mlops.audit.catalogue.tables import (
    ActivationRow,
    AttributionRow,
    ConceptRow,
    DictionaryRow,
    RunRow,
    SampleRow,
    ScoreRow,
    VersionRow,
)
from interpreto_mlops.audit.catalogue.texts import sha256_of
from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.errors import CatalogueError, DataError, InputError, TrackingError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import run, write_attributions
from interpreto_mlops.tracking.dictionary_flavor import FLAVOR_NAME
from interpreto_mlops.tracking.store import Store
from tests.audit.contents import content, rows
from tests.audit.evidence import Evidence, make_evidence


def test_everything_is_derived_from_mlflow(full: Catalogue, evidence: Evidence) -> None:
    runs = {row["run_id"]: row for row in rows(full, RunRow)}
    assert set(runs) == {*evidence.attributions, *evidence.dictionary_runs}
    for run_id, explanations in evidence.attributions.items():
        row, found = runs[run_id], evidence.store.client.get_run(run_id)
        assert row["kind"] == "attributions"
        assert row["status"] == "FINISHED"
        assert row["model_uri"] == "models:/reviews/1"
        assert row["model_id"] == evidence.model.model_id
        assert row["model_fingerprint"] == evidence.model.fingerprint
        assert (row["dataset"], row["dataset_digest"]) == (evidence.data.name, evidence.data.digest)
        assert row["method"] == explanations.method
        assert row["store"] == store_address(evidence.store)
        assert row["ended_at"] > row["started_at"] > "2020"
        samples = [each for each in rows(full, SampleRow) if each["run"] == row["id"]]
        assert [each["text"] for each in samples] == list(evidence.data.texts)
        assert {each["method"] for each in samples} == {explanations.method}
        assert [each["sha256"] for each in samples] == [sha256_of(each) for each in evidence.data.texts]
        scores = {each["name"]: each["value"] for each in rows(full, ScoreRow) if each["run"] == row["id"]}
        assert scores == {
            name: pytest.approx(value) for name, value in found.data.metrics.items() if not name.startswith("curve/")
        }
        _check_attributions(full, row["id"], explanations)
    versions = [(row["name"], row["version"]) for row in rows(full, VersionRow)]
    assert versions == [("reviews", 1), (evidence.dictionary_name, 1), (evidence.dictionary_name, 2)]
    assert [row["fingerprint"] for row in rows(full, VersionRow)] == [evidence.model.fingerprint, None, None]


def _check_attributions(catalogue: Catalogue, key: int, explanations: AttributionSet) -> None:
    found = [each for each in rows(catalogue, AttributionRow) if each["run"] == key]
    expected = [
        (place, target, rank, name.name, element, item.elements[element].casefold(), item.scores[target, element])
        for place, item in enumerate(explanations)
        for target, name in enumerate(item.targets)
        for rank, element in enumerate(item.ranking(target)[:20].tolist(), 1)
    ]
    names = ("place", "target_index", "rank", "target", "element", "word", "score")
    assert [tuple(row[name] for name in names) for row in found] == expected


def test_dictionaries_have_their_concepts(full: Catalogue, evidence: Evidence) -> None:
    by_run = {row["run_id"]: row for row in rows(full, DictionaryRow)}
    assert set(by_run) == set(evidence.dictionary_runs)
    for run_id, labels in zip(evidence.dictionary_runs, evidence.labels, strict=True):
        row = by_run[run_id]
        assert row["base_sha256"] == evidence.model.fingerprint
        assert row["base_uri"] == "models:/reviews/1"
        assert (row["method"], row["n_concepts"], row["width"]) == ("pca", 4, 32)
        assert row["data_digest"] == evidence.data.digest
        assert row["sha256"] == evidence.store.client.get_logged_model(row["model_id"]).tags["interpreto.sha256"]
        concepts = [each for each in rows(full, ConceptRow) if each["model_id"] == row["model_id"]]
        assert {each["concept"]: each["label"] for each in concepts} == labels
        assert {each["origin"] for each in concepts} == {"words"}
        strong = [each for each in rows(full, ActivationRow) if each["model_id"] == row["model_id"]]
        for each in concepts:
            own = [one for one in strong if one["concept"] == each["concept"]]
            assert [one["rank"] for one in own] == list(range(1, len(own) + 1))
            assert own[0]["activation"] == pytest.approx(each["max_activation"])
            assert own[0]["word"] in evidence.data.texts[own[0]["text_index"]].casefold()
            assert own[0]["context"] in evidence.data.texts[own[0]["text_index"]]
    # A metric that is not a number is there, without a value.
    keys = {row["id"] for row in rows(full, RunRow) if row["kind"] == "concepts"}
    values = {(row["run"], row["name"]): row["value"] for row in rows(full, ScoreRow)}
    assert all(values[key, "complexity/l0"] is None for key in keys)


def test_rebuilding_again_changes_nothing_and_leaves_the_log_alone(full: Catalogue, evidence: Evidence) -> None:
    full.append("audit", "models:/reviews/1")
    before, log = content(full), full.entries()
    assert all(before.values())
    assert full.rebuild(evidence.store).removed == 0
    assert content(full) == before
    assert full.entries() == log


def test_a_lost_catalogue_is_rebuilt_the_same(full: Catalogue, evidence: Evidence, tmp_path: Path) -> None:
    with Catalogue.connect(f"sqlite:///{tmp_path}/again.db") as again:
        again.rebuild(evidence.store)
        assert content(again) == content(full)


def test_runs_that_are_recorded_one_by_one_are_as_rebuilt(full: Catalogue, evidence: Evidence, tmp_path: Path) -> None:
    with Catalogue.connect(f"sqlite:///{tmp_path}/again.db") as again:
        for run_id, explanations in evidence.attributions.items():
            again.record_run(evidence.store, run_id, explanations=explanations)
            again.record_run(evidence.store, run_id)
        for run_id in evidence.dictionary_runs:
            again.record_run(evidence.store, run_id)
        expected = content(full)
        found = content(again)
        # Versions are registered after the run: they come with `rebuild`, or by their own call.
        assert {**found, "catalogue_version": []} == {**expected, "catalogue_version": []}
        again.record_version(evidence.store, "reviews", 1)
        for number in ("1", "2"):
            again.record_version(evidence.store, evidence.dictionary_name, number)
        assert content(again) == expected


def test_explanations_at_hand_are_as_good_as_those_of_the_artifacts(catalogue: Catalogue, evidence: Evidence) -> None:
    for run_id, explanations in evidence.attributions.items():
        catalogue.record_run(evidence.store, run_id, explanations=explanations)
    at_hand = content(catalogue)
    for run_id in evidence.attributions:
        catalogue.record_run(evidence.store, run_id)
    assert content(catalogue) == at_hand


def test_what_is_gone_from_mlflow_goes(small: Catalogue, own_evidence: Evidence) -> None:
    small.rebuild(own_evidence.store)
    gone, kept = own_evidence.attributions
    own_evidence.store.client.delete_run(gone)
    own_evidence.store.client.delete_model_version(own_evidence.dictionary_name, "1")
    rebuilt = small.rebuild(own_evidence.store)
    assert (rebuilt.runs, rebuilt.versions, rebuilt.removed) == (3, 2, 2)
    assert gone not in {row["run_id"] for row in rows(small, RunRow)}
    (key,) = (row["id"] for row in rows(small, RunRow) if row["run_id"] == kept)
    assert {row["run"] for row in rows(small, AttributionRow)} == {key}
    assert {row["run"] for row in rows(small, SampleRow)} == {key}


def test_labels_of_the_run_and_their_origin_are_taken(small: Catalogue, own_evidence: Evidence, tmp_path: Path) -> None:
    run_id = own_evidence.dictionary_runs[1]
    client = own_evidence.store.client
    path = Path(client.download_artifacts(run_id, "concepts/labels.json", str(tmp_path)))
    table = json.loads(path.read_text(encoding="utf-8"))
    table["columns"].append("origin")
    for row in table["data"]:
        row.append("alice")
        row[table["columns"].index("label")] = f"label {row[0]}"
    path.write_text(json.dumps(table), encoding="utf-8")
    client.log_artifact(run_id, str(path), "concepts")
    small.rebuild(own_evidence.store)
    (model,) = (row["model_id"] for row in rows(small, DictionaryRow) if row["run_id"] == run_id)
    found = [row for row in rows(small, ConceptRow) if row["model_id"] == model]
    assert [(row["label"], row["origin"]) for row in found] == [(f"label {i}", "alice") for i in range(4)]


def test_evidence_that_cannot_be_read_is_told_of_and_the_rest_goes_on(
    small: Catalogue, own_evidence: Evidence, tmp_path: Path
) -> None:
    broken = next(iter(own_evidence.attributions))
    (tmp_path / "attributions.json").write_text("{", encoding="utf-8")
    own_evidence.store.client.log_artifact(broken, str(tmp_path / "attributions.json"), "attributions")
    rebuilt = small.rebuild(own_evidence.store)
    assert list(rebuilt.skipped) == [broken]
    assert "cannot read the attributions of the run" in rebuilt.skipped[broken]
    assert len(rows(small, RunRow)) == rebuilt.runs == 3
    with pytest.raises(DataError, match="cannot read the attributions"):
        small.record_run(own_evidence.store, broken)


def _set(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


DESCRIPTION, FLAVOR = ("descriptions", 1), ("flavors", FLAVOR_NAME)
DAMAGED = {
    "a concept twice": ("dictionary.json", _set(*DESCRIPTION, "concept", value=0), "the concept 0 is there twice"),
    "a concept without number": ("dictionary.json", _set(*DESCRIPTION, "concept", value="1"), "concept must be"),
    "a list as density": ("dictionary.json", _set(*DESCRIPTION, "density", value=[1]), "density must be a finite"),
    "no activation": ("dictionary.json", _set(*DESCRIPTION, "contexts", 0, "activation", value=None), "activation"),
    "a huge place": ("dictionary.json", _set(*DESCRIPTION, "contexts", 0, "text_index", value=2**70), "text_index"),
    "a number as word": ("dictionary.json", _set(*DESCRIPTION, "contexts", 0, "word", value=7), "word must be text"),
    "not a number": ("dictionary.json", _set(*DESCRIPTION, "max_activation", value=float("nan")), "max_activation"),
    "no float": ("dictionary.json", _set(*DESCRIPTION, "max_activation", value=10**400), "OverflowError"),
    "no list": ("dictionary.json", _set("descriptions", value=5), "TypeError"),
    "a list as width": ("MLmodel", _set(*FLAVOR, "width", value=[4]), "width must be a whole number"),
    "a list as n_concepts": ("MLmodel", _set(*FLAVOR, "n_concepts", value=[4]), "n_concepts must be a whole number"),
    "too many concepts": ("MLmodel", _set(*FLAVOR, "n_concepts", value=2**40), "n_concepts must be a whole number"),
    "a mapping as base": ("MLmodel", _set(*FLAVOR, "base_model", value={"a": 1}), "base_model must be text"),
    "a way out": ("MLmodel", _set(*FLAVOR, "data", value="../dictionary"), "outside of the model"),
    "a label twice": ("labels.json", _set("data", 1, 0, value=0), "the concept 0 is there twice"),
    "no label": ("labels.json", _set("data", 1, 1, value=None), "must be text, not None"),
    "a list as index": ("attributions.json", _set("texts", 0, "index", value=[1]), "index must be a whole number"),
    "a number as text": ("attributions.json", _set("texts", 0, "text", value=5), "text must be text, not 5"),
    "a number as element": ("attributions.json", _set("texts", 0, "elements", 0, value=5), "element must be text"),
    "no target": ("attributions.json", _set("texts", 0, "targets", 0, "name", value=None), "target must be text"),
    "nested": ("attributions.json", _set("texts", 0, "targets", value=5), "TypeError"),
}


def _places(evidence: Evidence) -> dict[str, tuple[Path, str]]:
    """Of each file its path, and by what it is named where it is skipped: by its model or its run."""
    client = evidence.store.client
    run_id, (explained, *_) = evidence.dictionary_runs[0], evidence.attributions
    (output,) = client.get_run(run_id).outputs.model_outputs
    model = local_file_uri_to_path(client.get_logged_model(output.model_id).artifact_location)
    card, labels = Path(model) / "dictionary" / "dictionary.json", _artifact(client, run_id, "concepts/labels.json")
    return {
        "dictionary.json": (card, output.model_id),
        "MLmodel": (Path(model) / "MLmodel", output.model_id),
        "labels.json": (labels, output.model_id),
        "attributions.json": (_artifact(client, explained, "attributions/attributions.json"), explained),
    }


def _artifact(client: MlflowClient, run_id: str, path: str) -> Path:
    return Path(local_file_uri_to_path(client.get_run(run_id).info.artifact_uri)) / path


def test_files_of_another_kind_than_this_package_writes_stop_nothing(
    catalogue: Catalogue, own_evidence: Evidence
) -> None:
    places = _places(own_evidence)
    for what, (file, damage, words) in DAMAGED.items():
        path, named = places[file]
        before = path.read_bytes()
        found: Any = yaml.safe_load(before) if file == "MLmodel" else json.loads(before)
        damage(found)
        path.write_text(yaml.safe_dump(found) if file == "MLmodel" else json.dumps(found), encoding="utf-8")
        rebuilt = catalogue.rebuild(own_evidence.store)
        assert list(rebuilt.skipped) == [named], (what, rebuilt.skipped)
        assert words in rebuilt.skipped[named], what
        assert rebuilt.versions == 3, what
        path.write_bytes(before)


def test_a_run_that_fails_half_way_leaves_what_was_there(
    full: Catalogue, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(full)
    run_id, explanations = next(iter(evidence.attributions.items()))

    class Stops(AttributionSet):
        def __iter__(self):
            yield explanations[0]
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        full.record_run(evidence.store, run_id, explanations=Stops(explanations))
    assert content(full) == before


def test_a_failed_run_is_listed_and_its_artifacts_are_no_evidence(small: Catalogue, own_evidence: Evidence) -> None:
    explanations = next(iter(own_evidence.attributions.values()))
    with pytest.raises(RuntimeError), run(own_evidence.store, kind="attributions", name="fails") as log:
        write_attributions(log, explanations, model=own_evidence.model, dataset=own_evidence.data)
        raise RuntimeError("after it has written")
    small.rebuild(own_evidence.store)
    (row,) = (row for row in rows(small, RunRow) if row["run_id"] == log.run_id)
    assert row["status"] == "FAILED"
    assert not [each for each in rows(small, SampleRow) if each["run"] == row["id"]]


def test_what_is_no_run_of_ours_is_refused_and_not_listed(catalogue: Catalogue, store: Store) -> None:
    other = store.client.create_run(store.experiment_id)
    with pytest.raises(InputError, match=f"the run '{other.info.run_id}' is none that explains"):
        catalogue.record_run(store, other.info.run_id)
    with pytest.raises(TrackingError, match="could not read the run 'none'"):
        catalogue.record_run(store, "none")
    with pytest.raises(TrackingError, match="could not read the version '7' of 'reviews'"):
        catalogue.record_version(store, "reviews", 7)
    assert catalogue.rebuild(store).runs == 0


@pytest.mark.slow
def test_through_a_server_it_is_the_same(server: str, tmp_path: Path) -> None:
    from interpreto_mlops.tracking.store import connect

    store = connect(server, "catalogue over a server")
    evidence = make_evidence(store)
    with Catalogue.connect(f"sqlite:///{tmp_path}/c.db") as catalogue:
        catalogue.rebuild(store)
        runs = {row["run_id"] for row in rows(catalogue, RunRow)}
        assert {*evidence.attributions, *evidence.dictionary_runs} <= runs
        before = content(catalogue)
        for run_id in (*evidence.attributions, *evidence.dictionary_runs):
            catalogue.record_run(store, run_id)
        assert content(catalogue) == before
        _check_labels(catalogue, evidence)


def _check_labels(catalogue: Catalogue, evidence: Evidence) -> None:
    by_run = {row["run_id"]: row["model_id"] for row in rows(catalogue, DictionaryRow)}
    for run_id, labels in zip(evidence.dictionary_runs, evidence.labels, strict=True):
        found = {r["concept"]: r["label"] for r in rows(catalogue, ConceptRow) if r["model_id"] == by_run[run_id]}
        assert found == labels


def test_a_dictionary_without_labels_has_no_concepts_in_the_catalogue(
    catalogue: Catalogue, store: Store, tiny_model: Callable[..., TextModel], texts: list[str]
) -> None:
    from interpreto_mlops.tracking import write_dictionary

    activations = ModelWithSplitPoints(tiny_model(), [1]).get_activations(texts, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=3).fit(activations)
    with run(store, kind="concepts", name="x") as log:
        write_dictionary(log, dictionary)
    catalogue.record_run(store, log.run_id)
    assert rows(catalogue, ConceptRow) == []
    assert len(rows(catalogue, DictionaryRow)) == 1
    assert top_words(dictionary, activations)
    (found,) = rows(catalogue, DictionaryRow)
    with pytest.raises(InputError, match="no labels of"):
        catalogue.ask("changed_labels", before=f"models:/{found['model_id']}", after="models:/reviews/1")


def test_a_database_that_goes_away_is_told_of(catalogue: Catalogue, evidence: Evidence) -> None:
    with catalogue.database.writing() as connection:
        connection.execute(text("DROP TABLE catalogue_score"))
    with pytest.raises(CatalogueError, match="could not be written"):
        catalogue.rebuild(evidence.store)
    assert rows(catalogue, RunRow) == []


def test_what_is_recorded_while_a_rebuild_goes_on_stays(
    small: Catalogue, own_evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = own_evidence.store
    small.rebuild(store)
    versions = rebuilding._versions

    def meanwhile(searched: Store) -> Any:
        with run(store, kind="report", name="meanwhile") as log:
            pass
        small.record_run(store, log.run_id)
        return versions(searched)

    monkeypatch.setattr(rebuilding, "_versions", meanwhile)
    small.rebuild(store)
    names = [row["name"] for row in rows(small, RunRow)]
    assert names.count("meanwhile") == 1
