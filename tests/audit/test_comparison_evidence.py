"""Evidence of real models in a real store, compared: what is read, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from interpreto_mlops.attributions import Occlusion, Saliency
from interpreto_mlops.attributions.comparison import paired_tests
from interpreto_mlops.attributions.metrics import Comprehensiveness, Deletion, Insertion
from interpreto_mlops.audit.comparison import compare_evidence
from interpreto_mlops.cli import main
from interpreto_mlops.errors import InputError, ModelLoadError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import load_model, log_text_model, run, write_attributions
from interpreto_mlops.tracking.attribution_evidence import write_details
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.store import connect
from interpreto_mlops.tracking.verification import verify_evidence
from tests.conftest import TEXTS, build, word_tokenizer
from tests.visuals.hostile import PAYLOADS, assert_harmless

DATA = TextDataset("reviews", (*TEXTS, "the soup was good", "bad service again"))


def register(store, seed, name="reviews"):
    plain = TextModel(build("bert", seed), word_tokenizer(), name="tiny")
    return load_model(log_text_model(store, None, plain, name=name, registered_model_name=name).uri, store=store)


def explain(store, model, data=DATA, method=Occlusion, suite=None, kinds=(Deletion, Insertion), **options):
    """Write a run; return its id, what was explained, and the scores."""
    found = method(model, **options)(data.texts)
    scores = [kind(model, n_random=3)(found) for kind in kinds]
    with run(store, kind="attributions", name=f"{method.name} on {data.name}", suite=suite) as log:
        write_attributions(log, found, metrics=scores, model=model, dataset=data, draw=False)
    return log.run_id, found, scores


def all_runs(store):
    return {each.info.run_id for each in store.client.search_runs([store.experiment_id])}


class World:
    """A store with two versions of a model, each explained by two methods, and what was written there."""

    def __init__(self, store):
        self.store = store
        self.models = [register(store, seed) for seed in (0, 1)]
        self.runs = {
            (version, method.name): explain(store, model, method=method, suite=f"suite-{version}")
            for version, model in enumerate(self.models, 1)
            for method in (Occlusion, Saliency)
        }
        self.other = explain(
            store, self.models[0], TextDataset("others", ("never slow", "hated it")), granularity="token"
        )
        self.subset = explain(
            store, self.models[0], TextDataset("subset", (TEXTS[1], "not there", TEXTS[0])), suite="subset"
        )


@pytest.fixture(scope="module")
def world(migrated, tmp_path_factory):
    """Evidence that no test changes; runs may be added."""
    folder = tmp_path_factory.mktemp("compared")
    shutil.copy(migrated, folder / "mlflow.db")
    return World(connect(f"sqlite:///{folder}/mlflow.db", "tests"))


def test_a_run_compared_with_itself_differs_by_exactly_nothing(world):
    run_id = world.runs[1, "occlusion"][0]
    before = all_runs(world.store)
    found = compare_evidence(world.store, [f"runs:/{run_id}"] * 2, log=False)
    assert all_runs(world.store) == before
    assert found.pairs[["difference", "low", "high"]].to_numpy().tolist() == [[0.0] * 3] * 2
    assert found.pairs["p_value"].tolist() == [1.0, 1.0]
    assert found.pairing["shared"].tolist() == [len(DATA)]
    assert any("are the same: runs:/" in note for note in found.notes)


def test_versions_are_compared_by_the_same_methods_on_the_same_texts(world):
    found = compare_evidence(world.store, ["models:/reviews/1", "models:/reviews/2"], log=False)
    assert [each["label"] for each in found.subjects] == ["reviews v1", "reviews v2"]
    assert set(found.table["method"]) == {"occlusion", "saliency"}
    for row in found.pairs.to_dict("records"):
        place = ["deletion", "insertion"].index(row["metric"])
        first, second = (world.runs[version, row["method"]][2][place].values for version in (1, 2))
        test = paired_tests((first - second)[:, None])
        assert row["texts"] == len(DATA)
        assert row["difference"] == pytest.approx(test.mean[0])
        assert row["p_value"] == pytest.approx(test.p_value[0])
    for row in found.table.to_dict("records"):
        place = ["deletion", "insertion"].index(row["metric"])
        result = world.runs[int(row["subject"][-1]), row["method"]][2][place]
        assert row["mean"] == pytest.approx(result.mean)
        assert row["random_mean"] == pytest.approx(np.nanmean(result.random_values))
    assert set(found.pairing["by"]) == {"digest"}
    assert any("1 more of the same kind" in note for note in found.notes)
    assert any(note.startswith("Only reviews v1 has occlusion (") for note in found.notes)


def test_a_suite_holds_the_runs_of_its_job_and_three_are_compared_pair_by_pair(world):
    found = compare_evidence(world.store, ["suite-1", "suite:suite-2", "subset"], log=False)
    occlusion = found.pairing[found.pairing["method"] == "occlusion"]
    assert occlusion["by"].tolist() == ["content"] * 3
    assert occlusion["shared"].tolist() == [len(DATA), 2, 2]
    assert occlusion[["only_first", "only_second"]].to_numpy().tolist() == [[0, 0], *[[len(DATA) - 2, 1]] * 2]
    scores, subset = world.runs[1, "occlusion"][2][0].values, world.subset[2][0].values
    row = found.pairs[(found.pairs["metric"] == "deletion") & (found.pairs["second"] == "subset")].iloc[0]
    assert row["difference"] == pytest.approx(((scores[1] - subset[0]) + (scores[0] - subset[2])) / 2)


def test_runs_without_a_shared_text_are_compared_without_a_test(world):
    one, other = world.runs[1, "occlusion"][0], world.other[0]
    found = compare_evidence(world.store, [f"runs:/{one}", f"runs:/{other}"], log=False)
    assert not found.pairs["paired"].any()
    assert found.pairs["p_value"].isna().all()
    assert any("have no text in common" in note for note in found.notes)
    assert any("settings differ" in note for note in found.notes)
    assert json.loads(json.dumps(found.to_dict()))["pairs"][0]["p_value"] is None


def test_two_methods_of_one_model_are_compared_on_the_same_texts(world):
    one, other = world.runs[1, "occlusion"][0], world.runs[1, "saliency"][0]
    found = compare_evidence(world.store, [f"runs:/{one}", f"runs:/{other}"], log=False)
    assert set(found.table["method"]) == {"occlusion / saliency"}
    assert found.pairs["paired"].all()


def test_metrics_with_other_parameters_are_said_not_to_be_the_same(world):
    model = world.models[0]
    found = Occlusion(model)(DATA.texts)
    runs = []
    for bins in ([0.5], [0.2, 0.4]):
        scores = [Comprehensiveness(model, n_random=2, seed=len(bins), bins=bins)(found)]
        with run(world.store, kind="attributions", name="bins") as log:
            write_attributions(log, found, metrics=scores, model=model, dataset=DATA, draw=False)
        runs.append(f"runs:/{log.run_id}")
    notes = compare_evidence(world.store, runs, log=False).notes
    (said,) = (note for note in notes if "is not the same metric" in note)
    assert "comprehensiveness" in said
    assert "its bins is [0.5] for bins" in said
    assert not any("same metric" in note for note in compare_evidence(world.store, runs[:1] * 2, log=False).notes)


def test_a_run_that_holds_several_methods_is_compared_by_each_of_them(world):
    store, reference = world.store, DataReference.of(DATA)
    with run(store, kind="attributions", name="together") as log:
        log.input(reference, "explained")
        for method in ("occlusion", "saliency"):
            _, found, scores = world.runs[1, method]
            write_details(log.part(method), found, scores, world.models[0], reference, draw=False)
    both = compare_evidence(store, [f"runs:/{log.run_id}", "suite-1"], log=False)
    assert set(both.pairing["method"]) == {"occlusion", "saliency"}
    assert both.pairing["by"].tolist() == ["digest"] * 2
    assert both.pairs["difference"].tolist() == [0.0] * 4
    assert both.agreement["mean"].dropna().tolist() == [1.0] * 6
    assert not any("not the same metric" in note for note in both.notes)


def test_the_report_run_says_what_was_compared_and_is_sealed(world, tmp_path, nobody, unchanged):
    uris = ["models:/reviews/1", "models:/reviews/latest"]
    found = compare_evidence(world.store, uris, command="interpreto-mlops compare …")
    client = world.store.client
    logged = client.get_run(found.report_run_id)
    tags = logged.data.tags
    assert logged.info.status == "FINISHED"
    assert tags["interpreto.kind"] == "report"
    assert tags["interpreto.compared"] == "models:/reviews/1 models:/reviews/2"
    assert tags["interpreto.command"] == "interpreto-mlops compare …"
    assert [each.dataset.digest for each in logged.inputs.dataset_inputs] == [DATA.digest]
    assert {each.model_id for each in logged.inputs.model_inputs} == {model.model_id for model in world.models}
    folder = client.download_artifacts(found.report_run_id, "report", str(tmp_path))
    content = json.loads((Path(folder) / "compare.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(found.to_dict()))
    page = assert_harmless((Path(folder) / "compare.html").read_text(encoding="utf-8"))
    assert "reviews v2" in page.find("body")[0][1]
    assert verify_evidence(world.store, f"runs:/{found.report_run_id}").verdict == "intact"


def test_the_command_prints_tables_or_json_and_logs_unless_told_not_to(world):
    where = ["--tracking-uri", world.store.tracking_uri]
    before = all_runs(world.store)
    told = CliRunner().invoke(main, ["compare", "models:/reviews/1", "models:/reviews/2", *where, "--no-log"])
    assert told.exit_code == 0, told.output
    assert "reviews v1: models:/reviews/1" in told.output
    assert all_runs(world.store) == before
    shown = CliRunner().invoke(main, ["compare", "models:/reviews/1", "models:/reviews/2", *where, "--json"])
    content = json.loads(shown.output)
    assert {content["report_run_id"]} == all_runs(world.store) - before


@pytest.mark.parametrize(
    ("uris", "words"),
    [
        (["models:/reviews/1"], "needs at least two addresses, and only 'models:/reviews/1' was given"),
        (["models:/reviews/1", "models:/none/1"], "there is no model 'models:/none/1'"),
        (["models:/reviews/1", f"runs:/{'0' * 32}"], "there is no run"),
        (["models:/reviews/1", "nothing-like-it"], "there is no suite 'nothing-like-it'"),
        (["models:/reviews/1", "a'b\"c"], "there is no suite"),
        (["suite-1", "suite:"], "there is no suite ''"),
        (["suite-1", "empty"], "the run 'empty' holds neither"),
        (["suite-1", "other"], "there is nothing to compare: 'suite-1' has "),
        (["suite-1", "models:/unexplained/1"], "the model 'models:/unexplained/1' was not explained yet"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_nothing_is_written(world, uris, words):
    store = world.store
    if "empty" in uris:
        empty = store.client.create_run(store.experiment_id)
        uris = [uris[0], f"runs:/{empty.info.run_id}"]
        words = words.replace("'empty'", repr(uris[1]))
    if "other" in uris:
        uris = [uris[0], f"runs:/{world.other[0]}"]
    if "models:/unexplained/1" in uris:
        register(store, 7, "unexplained")
    before = all_runs(store)
    result = CliRunner().invoke(main, ["compare", *uris, "--tracking-uri", store.tracking_uri])
    assert result.exit_code == 1
    assert words in result.output
    assert len(result.output.strip().splitlines()) == 1, result.output
    assert all_runs(store) == before
    with pytest.raises((InputError, ModelLoadError)):
        compare_evidence(store, uris)


@pytest.mark.filterwarnings("ignore:text .* is longer")
def test_hostile_names_and_texts_are_harmless_on_the_page(world, tmp_path):
    store, model = world.store, world.models[0]
    data = TextDataset(PAYLOADS[0], PAYLOADS)
    runs = [explain(store, model, data, suite=PAYLOADS[2])[0] for _ in range(2)]
    for run_id in runs:
        store.client.set_tag(run_id, "mlflow.runName", PAYLOADS[1])
    found = compare_evidence(store, [f"runs:/{run_id}" for run_id in runs], command=PAYLOADS[3])
    folder = store.client.download_artifacts(found.report_run_id, "report", str(tmp_path))
    page = assert_harmless((Path(folder) / "compare.html").read_text(encoding="utf-8"))
    assert PAYLOADS[1] in page.find("body")[0][1]
