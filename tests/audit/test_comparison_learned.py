"""Dictionaries and versions of real models in a real store: concepts matched, agreement, importance that shifted."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from interpreto_mlops.audit.comparison import compare_evidence
from interpreto_mlops.audit.comparison.dictionaries import match_by_activations
from interpreto_mlops.audit.comparison.models import agreement, importance_shift
from interpreto_mlops.cli import main
from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, concept_importance, top_words
from interpreto_mlops.concepts.interpretation import Word
from interpreto_mlops.errors import DataError, InputError, IntegrityError, ModelLoadError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import register_dictionary, run, write_dictionary
from interpreto_mlops.tracking.store import connect
from interpreto_mlops.tracking.verification import verify_evidence
from tests.audit.test_comparison_evidence import DATA, all_runs, explain, register
from tests.visuals.hostile import PAYLOADS, assert_harmless

METRICS = {"reconstruction/r2": 0.5, "stability/stability": 0.8, "stability/stability_random": 0.3}


def learn(store, model, layer=1, n_concepts=4, change=lambda dictionary: None, importance=True, name="concepts"):
    """Write a run with a dictionary, register it; return the run, the dictionary, its importance and activations."""
    split = ModelWithSplitPoints(model, [layer])
    activations = split.get_activations(DATA, progress=False)[layer]
    dictionary = PCAConcepts(n_concepts=n_concepts).fit(activations, progress=False)
    dictionary.descriptions = top_words(dictionary, activations)
    change(dictionary)
    weights = concept_importance(split, dictionary, DATA, progress=False) if importance else None
    with run(store, kind="concepts", name="pca", suite=f"concepts-{name}") as log:
        log.tags({"interpreto.model.uri": model.uri, "interpreto.model.id": model.model_id})
        logged = write_dictionary(log, dictionary, metrics=METRICS, importance=weights, dataset=DATA, draw=False)
    version = register_dictionary(store, logged, dictionary, name=name)
    return log.run_id, dictionary, weights, activations, f"models:/{name}/{version.version}"


def replaced(concepts):
    """What turns these concepts into other directions: of the unused ones, orthogonal to all."""

    def change(dictionary):
        spare = PCAConcepts(n_concepts=12)
        spare.complete(dictionary.weights, [], {})
        rows = dictionary.dictionary.double().numpy()
        free = np.linalg.svd(rows)[2][len(rows) :]
        decoder = dictionary.weights["decoder"].clone()
        for place, concept in enumerate(concepts):
            decoder[concept] = decoder.new_tensor(free[place])
        dictionary.weights = {**dictionary.weights, "decoder": decoder}

    return change


class World:
    """Two versions of a model, explained, each with a dictionary; and a dictionary with three concepts replaced."""

    def __init__(self, store):
        self.store = store
        self.models = [register(store, seed) for seed in (4, 7)]
        self.explained = [explain(store, model, kinds=()) for model in self.models]
        self.learned = [learn(store, model) for model in self.models]
        self.planted = [
            learn(store, self.models[0], n_concepts=8, importance=False, name="planted", change=change)
            for change in (lambda dictionary: None, replaced([1, 4, 7]))
        ]


@pytest.fixture(scope="module")
def world(migrated, tmp_path_factory):
    """Evidence that no test changes; runs may be added."""
    folder = tmp_path_factory.mktemp("learned")
    shutil.copy(migrated, folder / "mlflow.db")
    return World(connect(f"sqlite:///{folder}/mlflow.db", "tests"))


def test_three_replaced_concepts_of_a_registered_dictionary_are_named(world, tmp_path):
    uris = ["models:/planted/1", "models:/planted/2"]
    found = compare_evidence(world.store, uris)
    (compared,) = found.dictionaries
    match = compared.match
    assert (match.by, match.n_pairs) == ("directions", 8)
    assert match.new["concept"].tolist() == match.vanished["concept"].tolist() == [1, 4, 7]
    assert match.pairs == [(i, i) for i in (0, 2, 3, 5, 6)] or sorted(match.pairs) == [(i, i) for i in (0, 2, 3, 5, 6)]
    assert not match.matched["label_changed"].any()
    single = found.single.set_index(["metric", "subject"])
    assert single.loc[("stability/stability", "planted v1"), "random"] == 0.3
    assert ("stability/stability_random", "planted v1") not in single.index
    assert set(found.single["value"]) == {0.5, 0.8}
    folder = Path(world.store.client.download_artifacts(found.report_run_id, "report", str(tmp_path)))
    page = assert_harmless((folder / "compare.html").read_text(encoding="utf-8")).find("body")[0][1]
    assert "New concepts, which only the second has: 3" in page
    assert "it has no interval and no test" in page
    assert verify_evidence(world.store, f"runs:/{found.report_run_id}").verdict == "intact"
    content = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    assert [each["concept"] for each in content["dictionaries"][0]["new"]] == [1, 4, 7]
    threshold = compare_evidence(world.store, uris, threshold=-1.0, log=False)
    assert len(threshold.dictionaries[0].match.new) == 0


def test_runs_of_dictionaries_are_compared_as_the_dictionaries_are(world):
    runs = [f"runs:/{each[0]}" for each in world.planted]
    (by_run,) = compare_evidence(world.store, runs, log=False).dictionaries
    (by_uri,) = compare_evidence(world.store, ["models:/planted/1", "models:/planted/2"], log=False).dictionaries
    pd.testing.assert_frame_equal(by_run.match.matched, by_uri.match.matched)
    (same,) = compare_evidence(world.store, runs[:1] * 2, log=False).dictionaries
    assert len(same.match.new) == len(same.match.vanished) == 0
    assert same.match.mean == pytest.approx(1.0)


def test_dictionaries_of_two_models_need_texts_and_are_then_compared_by_their_codes(world, tmp_path):
    uris = ["models:/concepts/1", "models:/concepts/2"]
    before = all_runs(world.store)
    with pytest.raises(InputError, match=r"not of the same layer of the same model.* --data and --text-column"):
        compare_evidence(world.store, uris)
    assert all_runs(world.store) == before
    pd.DataFrame({"review": DATA.texts}).to_csv(tmp_path / "texts.csv", index=False)
    data = ["--data", str(tmp_path / "texts.csv"), "--text-column", "review", "--no-log", "--json"]
    told = CliRunner().invoke(main, ["compare", *uris, "--tracking-uri", world.store.tracking_uri, *data])
    assert told.exit_code == 0, told.output
    (found,) = json.loads(told.output)["dictionaries"]
    (_, first, _, rows, _), (_, second, _, others, _) = world.learned
    expected = match_by_activations(first, rows, second, others)
    assert (found["by"], found["unit"], found["rows"]) == ("activations", "rows", len(rows))
    assert found["mean"] == pytest.approx(expected.mean, abs=1e-6)
    assert found["random_mean"] == pytest.approx(expected.random_mean, abs=1e-6)
    assert [(each["first"], each["second"]) for each in found["matched"]] == expected.pairs
    wrong = CliRunner().invoke(
        main, ["compare", *uris, "--tracking-uri", world.store.tracking_uri, "--data", str(tmp_path / "texts.csv")]
    )
    assert wrong.exit_code == 1
    assert "no column 'text'; its columns are 'review'" in wrong.output
    forced = compare_evidence(world.store, uris, match_by="directions", log=False)
    assert forced.dictionaries[0].match.by == "directions"


def test_of_layers_of_different_widths_or_places_the_codes_are_compared(world):
    *_, uri = learn(world.store, world.models[0], layer=0, name="lower", importance=False)
    found = compare_evidence(world.store, ["models:/concepts/1", uri], texts=DATA, log=False)
    (compared,) = found.dictionaries
    assert (compared.match.by, compared.match.unit) == ("activations", "rows")
    assert compared.method == "pca (layer bert.encoder.layer.1) / pca (layer bert.encoder.layer.0)"


def test_two_versions_are_compared_in_what_they_look_at(world, nobody, unchanged):
    found = compare_evidence(world.store, ["models:/reviews/1", "models:/reviews/2"])
    a, b = ({str(item.index): item for item in explained} for _, explained, _ in world.explained)
    expected = agreement(a, b)
    summary = expected.summary()
    shown = found.agreement.set_index("measure")
    assert shown["mean"].to_dict() == pytest.approx(dict(zip(summary["measure"], summary["mean"], strict=True)))
    assert shown["low"].to_dict() == pytest.approx(dict(zip(summary["measure"], summary["low"], strict=True)))
    (pairing,) = found.pairing.to_dict("records")
    changed = [i for i in a if a[i].targets != b[i].targets]
    assert pairing["other_targets"] == len(changed) == len(found.targets)
    assert pairing["shared"] == len(DATA)
    assert set(found.targets["text"]) == {DATA.texts[int(i)] for i in changed}
    assert 0 < len(changed) < len(DATA)
    first = found.changed.iloc[0]
    item = a[str(first["index_first"])]
    assert first["spearman"] == pytest.approx(expected.texts["spearman"].min())
    assert first["words_first"].startswith(f"{item.elements[item.ranking()[0]]} ")
    assert first["text"] == item.text

    (compared,) = found.dictionaries
    assert compared.match.by == "activations"
    (_, _, before, _, _), (_, _, after, _, _) = world.learned
    shift = importance_shift(before.to_frame(), after.to_frame(), compared.match.pairs)
    assert len(found.shifts) == len(shift)
    assert found.shifts["shift"].tolist() == pytest.approx(shift["shift"].tolist())
    assert found.report_run_id is not None


def test_where_texts_are_hidden_the_report_holds_none(world, tmp_path, monkeypatch):
    uris = ["models:/reviews/1", "models:/reviews/2"]
    shown = compare_evidence(world.store, uris, log=False)
    monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", "1")
    found = compare_evidence(world.store, uris)
    for name in ("table", "pairs", "agreement"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(shown, name))
    assert len(found.targets) == len(shown.targets)
    assert found.dictionaries[0].match.pairs == shown.dictionaries[0].match.pairs
    folder = Path(world.store.client.download_artifacts(found.report_run_id, "", str(tmp_path)))
    kept = " ".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()).casefold()
    words = {element.casefold() for item in world.explained[0][1] for element in item.elements}
    told = [word for word in ("waiter", "soup", "awful", "great", "loved") if word in words]
    assert len(told) == 5
    assert not [word for word in told if word in kept]
    assert "sha256:" in kept


@pytest.mark.slow
def test_the_same_through_a_server(server):
    store = connect(server, "compared dictionaries")
    models = [register(store, seed, "served-reviews") for seed in (4, 7)]
    for model in models:
        explain(store, model)
        learn(store, model, name="served-concepts")
    found = compare_evidence(store, ["models:/served-reviews/1", "models:/served-reviews/2"])
    assert found.pairs["paired"].all()
    assert len(found.agreement) == 3
    assert found.dictionaries[0].match.by == "activations"
    assert len(found.shifts) > 0 or found.dictionaries[0].match.pairs == []
    assert verify_evidence(store, f"runs:/{found.report_run_id}").verdict == "intact"


def test_a_run_agrees_with_itself_exactly(world):
    run_id = world.explained[0][0]
    found = compare_evidence(world.store, [f"runs:/{run_id}"] * 2, log=False)
    assert found.agreement[["mean", "low", "high"]].to_numpy().tolist() == [[1.0] * 3] * len(found.agreement)
    assert len(found.targets) == 0


def test_runs_of_dictionaries_of_two_models_need_texts_as_well(world):
    runs = [f"runs:/{each[0]}" for each in world.learned]
    with pytest.raises(InputError, match="--data"):
        compare_evidence(world.store, runs)
    found = compare_evidence(world.store, runs, texts=TextDataset("two", DATA.texts[:2]), log=False)
    assert found.dictionaries[0].match.rows > 2
    same = [f"runs:/{each[0]}" for each in world.planted]
    with pytest.raises(InputError, match="to be matched by 'activations'"):
        compare_evidence(world.store, same, match_by="activations")


def test_without_common_texts_concepts_of_versions_are_said_to_be_unmatched(world):
    for place, seed in enumerate((4, 7)):
        model = register(world.store, seed, "apart")
        explain(world.store, model, TextDataset(f"part {place}", DATA.texts[3 * place : 3 * place + 3]), kinds=())
        learn(world.store, model, importance=False, name="apart-concepts")
    found = compare_evidence(world.store, ["models:/apart/1", "models:/apart/2"], log=False)
    assert found.dictionaries == ()
    assert any("concepts were not matched: the dictionaries 'models:/m-" in note for note in found.notes)
    assert any("have no text in common" in note for note in found.notes)
    given = compare_evidence(world.store, ["models:/apart/1", "models:/apart/2"], texts=DATA, log=False)
    assert len(given.dictionaries) == 1


def test_a_model_that_was_changed_is_refused(world):
    *_, uri = learn(world.store, world.models[0], change=forge, importance=False, name="forged")
    before = all_runs(world.store)
    with pytest.raises(IntegrityError, match="is not the one that the dictionary was made from"):
        compare_evidence(world.store, ["models:/concepts/1", uri], texts=DATA)
    assert all_runs(world.store) == before


def forge(dictionary):
    said = dictionary.provenance["model"]
    dictionary.provenance = {**dictionary.provenance, "model": {**said, "fingerprint": "0" * 64}}


def strange(dictionary):
    dictionary.provenance = {**dictionary.provenance, "model": {}}


def lost(dictionary):
    said = dictionary.provenance["model"]
    dictionary.provenance = {**dictionary.provenance, "model": {**said, "uri": "models:/lost/9"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (strange, "pca: concepts were not matched: a pca dictionary does not say which layer of which model"),
        (lost, "pca: concepts were not matched: there is no model 'models:/lost/9'"),
        (forge, "CHANGED EVIDENCE: pca: concepts were not matched: the model at 'models:/reviews/1' is not the one"),
    ],
)
def test_concepts_that_cannot_be_matched_leave_the_rest_of_the_comparison(world, change, words):
    store, suites = world.store, [f"{change.__name__}-{place}" for place in range(2)]
    for place, suite in enumerate(suites):
        changed = {} if place else {"change": change}
        run_id, *_ = learn(store, world.models[place], importance=False, name=suite, **changed)
        store.client.set_tag(run_id, "interpreto.suite", suite)
        explain(store, world.models[place], suite=suite)
    found = compare_evidence(store, suites, match_by="activations", log=False)
    assert len(found.pairs) == 2
    assert found.dictionaries == ()
    (said,) = (note for note in found.notes if "not matched" in note)
    assert said.startswith(words)
    with pytest.raises((InputError, IntegrityError, ModelLoadError)):
        compare_evidence(
            store, [f"models:/{suite}/1" for suite in suites], texts=DATA, match_by="activations", log=False
        )


def test_importance_that_cannot_be_read_is_one_sentence_or_a_note(world, tmp_path):
    store, name = world.store, "broken"
    runs = [learn(store, world.models[0], name=name) for _ in range(2)]
    uris = [each[-1] for each in runs]
    assert len(compare_evidence(store, uris, log=False).shifts) > 0
    file = tmp_path / "importance.parquet"
    pd.DataFrame({"class": ["a"], "share": [1.0]}).to_parquet(file)
    strange = pd.DataFrame({"class": ["a"], "concept": ["first"], "share": [1.0]})
    for broken in (b"garbage", file.read_bytes(), strange):
        strange.to_parquet(file) if broken is strange else file.write_bytes(broken)
        store.client.log_artifact(runs[0][0], str(file), "concepts")
        with pytest.raises(DataError, match=rf"cannot read the artifact 'concepts/imp.* of the run '{runs[0][0]}"):
            compare_evidence(store, uris, log=False)
    told = CliRunner().invoke(main, ["compare", *uris, "--tracking-uri", store.tracking_uri, "--no-log"])
    assert told.exit_code == 1
    assert len(told.output.strip().splitlines()) == 1, told.output
    for place, (run_id, *_) in enumerate(runs):
        store.client.set_tag(run_id, "interpreto.suite", f"broken-{place}")
        explain(store, world.models[0], suite=f"broken-{place}")
    found = compare_evidence(store, ["broken-0", "broken-1"], log=False)
    assert (len(found.dictionaries), len(found.shifts), len(found.pairs)) == (1, 0, 2)
    (said,) = (note for note in found.notes if "importance" in note)
    assert said.startswith("pca: the importance of concepts was not compared: cannot read the artifact 'concepts/imp")


def test_too_few_common_texts_for_codes_leave_the_rest_of_the_comparison(world):
    store, suites = world.store, ["few-0", "few-1"]
    for place, suite in enumerate(suites):
        run_id, *_ = learn(store, world.models[place], name=suite)
        store.client.set_tag(run_id, "interpreto.suite", suite)
        texts = (DATA.texts[1], f"a cold soup {place}")
        explain(store, world.models[place], TextDataset(suite, texts), suite=suite)
    found = compare_evidence(store, suites, texts=TextDataset("one word", ("good",)), log=False)
    assert len(found.pairs) == 2
    assert found.dictionaries == ()
    assert any("concepts were not matched" in note for note in found.notes)


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        (
            ["models:/planted/1", "models:/reviews/1"],
            "'models:/planted/1' is a dictionary and 'models:/reviews/1' is a",
        ),
        (
            ["models:/planted/1", "attributions"],
            "there is nothing to compare: 'models:/planted/1' has dictionaries by pca; 'runs:/",
        ),
        (["models:/planted/1", "models:/planted/2", "--threshold", "7"], "lies between -1 and 1, not at 7.0"),
        (["models:/planted/1", "models:/planted/2", "--level", "95"], "lies between 0 and 1, not at 95.0"),
        (["models:/planted/1", "models:/planted/2", "--top-k", "0"], "top_k must be at least 1"),
        (["models:/planted/1", "models:/planted/2", "--data", "none.csv"], "there is no data file 'none.csv'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_nothing_is_written(world, uris, words):
    uris = [f"runs:/{world.explained[0][0]}" if uri == "attributions" else uri for uri in uris]
    before = all_runs(world.store)
    result = CliRunner().invoke(main, ["compare", *uris, "--tracking-uri", world.store.tracking_uri])
    assert result.exit_code == 1
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1, result.output
    assert all_runs(world.store) == before


def test_hostile_labels_are_harmless_on_the_page_and_named_as_changed(world, tmp_path):
    def hostile(shift):
        def change(dictionary):
            dictionary.descriptions = [
                replace(each, words=(Word(PAYLOADS[place + shift], 1.0, 1),), density=0.5)
                for place, each in enumerate(copy.copy(dictionary.descriptions))
            ]

        return change

    uris = [
        learn(world.store, world.models[0], change=hostile(shift), name="hostile", n_concepts=4)[-1] for shift in (0, 3)
    ]
    found = compare_evidence(world.store, uris, command=PAYLOADS[0])
    assert found.dictionaries[0].match.n_changed_labels == 4
    folder = Path(world.store.client.download_artifacts(found.report_run_id, "report", str(tmp_path)))
    page = assert_harmless((folder / "compare.html").read_text(encoding="utf-8"))
    assert PAYLOADS[1] in page.find("body")[0][1]
