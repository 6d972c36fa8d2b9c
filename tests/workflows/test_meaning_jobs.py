"""Names of concepts and simulatability as jobs: a stored dictionary, a real client and server, and what is kept."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from interpreto_mlops.attributions import Occlusion, Saliency
from interpreto_mlops.cli.common import this_command
from interpreto_mlops.concepts import (
    Label,
    ModelWithSplitPoints,
    PCAConcepts,
    TopKInputs,
    TopKSAEConcepts,
    top_words,
)
from interpreto_mlops.errors import (
    DataError,
    InputError,
    IntegrityError,
    LanguageModelError,
    ModelLoadError,
    UnknownNameError,
)
from interpreto_mlops.llm import Prompt
from interpreto_mlops.models.loading import load_model
from interpreto_mlops.text.datasets import load_dataset
from interpreto_mlops.tracking.attribution_evidence import write_attributions
from interpreto_mlops.tracking.concept_evidence import register_dictionary, write_dictionary
from interpreto_mlops.tracking.dictionary_flavor import load_dictionary
from interpreto_mlops.tracking.lineage import lineage
from interpreto_mlops.tracking.resolving import resolve
from interpreto_mlops.tracking.runs import run
from interpreto_mlops.tracking.store import connect
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.job import Console
from interpreto_mlops.workflows.labelling import Labelled, label
from interpreto_mlops.workflows.recipes import parse_recipe
from interpreto_mlops.workflows.running import carry_out
from interpreto_mlops.workflows.simulating import Simulated, simulate
from tests.concepts.planted_words import WordJudge
from tests.llm.readers import answer_text, at_random, read_sections
from tests.llm.scripted_server import Reply, Request, ScriptedServer

Factory = Callable[..., ScriptedServer]

KEY = "sk-test-0123456789abcdefghijklmnop"
MARKED = re.compile("«(.*?)»")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def stored(model_folder, data_file, database) -> str:
    """The address of a registered dictionary."""
    store = connect(database, "meaning")
    split = ModelWithSplitPoints(load_model(str(model_folder)), [0])
    rows = split.get_activations(load_dataset(data_file, text_column="review"), progress=False)[0]
    dictionary = TopKSAEConcepts(n_concepts=6, k=2, n_epochs=2).fit(rows, progress=False)
    dictionary.descriptions = top_words(dictionary, rows)
    with run(store, kind="concepts", name="topk_sae") as log:
        logged = write_dictionary(log, dictionary, draw=False)
    version = register_dictionary(store, logged, dictionary)
    return f"models:/{version.name}/{version.version}"


def namer(request: Request) -> Reply:
    """Names a concept by the piece that is marked most often; judges by whether the name stands in the text."""
    if "You name one feature" in request.system:
        word = Counter(each.lower() for each in MARKED.findall(request.user)).most_common(1)[0][0]
        said: Any = {"label": f"the word {word}", "explanation": f"It is {word}."}
    else:
        schema = request.body["response_format"]["json_schema"]["schema"]
        said = WordJudge().said(Prompt(request.system, request.user, schema=schema))
    return Reply(json.dumps(said), prompt_tokens=100, answer_tokens=10)


def guesser(request: Request) -> Reply:
    """Draws the class of each text."""
    return Reply(answer_text(Prompt(request.system, request.user), at_random), prompt_tokens=100, answer_tokens=10)


@pytest.fixture
def asked(stored, data_file, database, tmp_path) -> Callable[..., dict[str, Any]]:
    """A function that makes a recipe of names."""

    def make(server: ScriptedServer | None = None, **more: Any) -> dict[str, Any]:
        values: dict[str, Any] = {"kind": "label", "dictionary": stored, "data": str(data_file)}
        values |= {"text_column": "review", "tracking_uri": database, "experiment": "meaning", "n_silent": 2}
        values |= {"options": {"detection": {"least": 2, "window": 3, "n_active": 6, "n_inactive": 6}}}
        if server is not None:
            llm = {"model": "openai:judge", "base_url": server.base_url, "answers": str(tmp_path / "answers")}
            values |= {"llm": {**llm, "price": [1.0, 2.0], "retries": 0}}
        return {**values, **more}

    return make


def named(recipe: dict[str, Any], **more: Any) -> Labelled:
    return label(parse_recipe(recipe), command="interpreto-mlops label …", **more)


def runs_of(database: str) -> list[Any]:
    client = MlflowClient(database, registry_uri=database)
    experiment = client.get_experiment_by_name("meaning")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


class TestNames:
    def test_become_the_next_version_and_the_run_says_what_changed(self, asked, stored, database, scripted_server):
        server = scripted_server(namer)
        done = named(asked(server))
        name, version = stored.removeprefix("models:/").split("/")
        assert done.version == (name, str(int(version) + 1))
        store = connect(database, "meaning")
        before, after = (load_dictionary(f"models:/{name}/{each}", store=store) for each in (version, done.version[1]))
        assert all(each.given is None for each in before.descriptions)
        alive = [each for each in after.descriptions if each.density > 0]
        assert alive
        assert [each.origin for each in alive] == ["llm"] * len(alive)
        assert all(each.label.startswith("the word ") and each.given.by == "judge" for each in alive)
        # The weights are the same; only what is said of them is another.
        assert all((after.weights[key] == before.weights[key]).all() for key in before.weights)
        found = store.client.get_run(done.run_id)
        assert found.data.tags["interpreto.kind"] == "concepts"
        assert found.data.tags["interpreto.labels.of"] == stored
        assert found.data.tags["interpreto.labels.by"] == "judge"
        assert found.data.params["language_model"] == "judge"
        assert found.data.params["subject"] == stored
        registered = store.client.get_model_version(*done.version)
        assert registered.tags["interpreto.labels.of"] == stored
        assert registered.description.startswith("Labels by judge for the concepts of models:/")
        score = done.scores["interpretation/detection"]
        assert found.data.metrics["interpretation/detection"] == pytest.approx(score.mean)
        assert found.data.metrics["interpretation/detection_shuffled"] == pytest.approx(score.shuffled_mean)
        assert {"reconstruction/r2", "effect/agreement"} <= found.data.metrics.keys()
        assert "concepts/density.parquet" in {
            each.path for each in store.client.list_artifacts(done.run_id, "concepts")
        }
        assert found.data.metrics["cost/questions_asked"] == len(server.requests)
        assert found.data.metrics["cost/tokens_read"] == 100 * len(server.requests)
        assert found.data.metrics["cost/price"] == pytest.approx(120e-6 * len(server.requests))
        table = pd.DataFrame(**artifact(store, done.run_id, "interpretation/labels.json"))
        assert set(table["origin_before"]) == {"words"}
        assert table.loc[table["changed"], "origin_after"].eq("llm").all()
        assert table["changed"].sum() == len(alive)
        lines = "\n".join(lineage(store, "models:/{}/{}".format(*done.version)).lines())
        assert stored in lines

    def test_questions_are_kept_and_can_be_replayed_without_a_key(
        self, asked, database, scripted_server, tmp_path, monkeypatch
    ):
        server = scripted_server(namer)
        first = named(asked(server))
        store = connect(database, "meaning")
        file = store.client.download_artifacts(first.run_id, "questions/answers.jsonl", str(tmp_path))
        assert len(Path(file).read_text().splitlines()) == len(server.requests)
        server.stop()
        monkeypatch.delenv("OPENAI_API_KEY")
        again = named(asked(llm={"model": f"answers:{file}", "answers": False}))
        assert [each.label for each in again.descriptions] == [each.label for each in first.descriptions]
        assert again.scores["interpretation/detection"].values == first.scores["interpretation/detection"].values

    def test_a_second_run_asks_nothing_and_a_broken_one_goes_on(self, asked, database, scripted_server):
        def dying(request: Request) -> Reply:
            return namer(request) if request.number < 4 else Reply("", status=500)

        # Names are there, but scores are not: nothing is said that nobody judged.
        recipe = asked(scripted_server(dying))
        recipe["llm"]["concurrency"] = 1
        done = named(recipe)
        assert done.scores["interpretation/detection"].reason
        assert "interpretation/detection" not in connect(database, "meaning").client.get_run(done.run_id).data.metrics
        server = scripted_server(namer)
        recipe["llm"]["base_url"] = server.base_url
        named(recipe)
        first = len(server.requests)
        assert first > 4
        named(recipe)
        assert len(server.requests) == first

    def test_nothing_of_a_key_is_kept(self, asked, database, scripted_server, tmp_path):
        named(asked(scripted_server(namer)))
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        files += [file for file in Path(database.removeprefix("sqlite:///")).parent.rglob("*") if file.is_file()]
        assert len(files) > 20
        assert [file for file in files if KEY.encode() in file.read_bytes()] == []

    def test_of_people_are_taken_as_they_are(self, asked, stored, database, tmp_path):
        file = tmp_path / "names.csv"
        pd.DataFrame({"concept": [1, 3], "label": ["food", "<b>service</b>"]}).to_csv(file, index=False)
        done = named(asked(labels=str(file), by="Ada", options={}))
        assert done.version is not None
        again = load_dictionary("models:/{}/{}".format(*done.version), store=connect(database, "meaning"))
        assert [again.descriptions[i].label for i in (1, 3)] == ["food", "<b>service</b>"]
        assert [each.origin for each in again.descriptions] == ["words", "human", "words", "human", "words", "words"]
        assert again.descriptions[1].given.by == "Ada"
        store = connect(database, "meaning")
        assert store.client.get_run(done.run_id).data.tags["interpreto.labels.by"] == "Ada"
        folder = store.client.download_artifacts(done.run_id, "concepts", str(tmp_path))
        page = (Path(folder) / "concepts.html").read_text()
        assert "<b>service</b>" not in page

    def test_of_people_are_another_cell_when_the_file_says_something_else(self, asked, database, tmp_path):
        file, store, cells = tmp_path / "names.csv", connect(database, "meaning"), []
        for name in ("food", "food", "service"):
            pd.DataFrame({"concept": [1], "label": [name]}).to_csv(file, index=False)
            done = named(asked(labels=str(file), options={}))
            cells.append(store.client.get_run(done.run_id).data.tags["interpreto.cell"])
        assert cells[0] == cells[1] != cells[2]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ({"concept": [9], "label": ["x"]}, "names the concept '9'; they are 0 to 5"),
            ({"concept": [1, 1], "label": ["x", "y"]}, "names concept 1 a second time"),
            ({"concept": [1], "label": [""]}, "must be one line of 1 to 120 characters"),
            ({"concept": [1], "label": ["a\nb"]}, "must be one line of 1 to 120 characters"),
            ({"concept": [1], "name": ["x"]}, "has no column 'label'"),
            ({"concept": ["1.05"], "label": ["x"]}, "names the concept '1.05'"),
            ({"concept": ["1.0.0"], "label": ["x"]}, "names the concept '1.0.0'"),
            ({"concept": ["9" * 400], "label": ["x"]}, "they are 0 to 5"),
            ({"concept": [1], "label": ["x"], "explanation": ["\x1b[31mred"]}, "characters that can be printed"),
            ({"concept": [1], "label": ["x"], "explanation": ["a" * 1001]}, "at most 1000 characters"),
        ],
    )
    def test_of_people_that_cannot_be_taken_leave_nothing_registered(self, asked, database, tmp_path, rows, message):
        file = tmp_path / "names.csv"
        pd.DataFrame(rows).to_csv(file, index=False)
        before = len(MlflowClient(database, registry_uri=database).search_model_versions())
        with pytest.raises(DataError, match=re.escape(message)):
            named(asked(labels=str(file), options={}))
        assert len(MlflowClient(database, registry_uri=database).search_model_versions()) == before
        assert [each.info.status for each in runs_of(database)] == ["FINISHED"]

    def test_an_estimate_asks_nothing_and_writes_nothing(self, asked, database, scripted_server):
        server = scripted_server(namer)
        before = len(runs_of(database))
        recipe = asked(server)
        done = named(recipe, estimate_only=True)
        assert done.estimate is not None
        assert server.requests == []
        assert len(runs_of(database)) == before
        named(recipe)
        assert done.estimate.to_ask >= len(server.requests) >= 0.5 * done.estimate.to_ask
        assert named(recipe, estimate_only=True).estimate.cached > 0

    def test_a_model_that_answers_nonsense_registers_nothing(self, asked, database, scripted_server):
        server = scripted_server(lambda request: Reply("I will not."))
        with pytest.raises(LanguageModelError, match="not one concept was given a label"):
            named(asked(server))
        assert [each.info.status for each in runs_of(database)].count("FAILED") == 1
        assert len(MlflowClient(database, registry_uri=database).search_model_versions()) == 1

    def test_hidden_texts_are_in_no_file(self, asked, database, scripted_server, tmp_path, data_file):
        recipe = asked(scripted_server(namer), hide_texts=True, experiment="hidden")
        done = named(recipe)
        store = connect(database, "hidden")
        folder = Path(store.client.download_artifacts(done.run_id, "", str(tmp_path / "run")))
        words = {word for word in " ".join(pd.read_csv(data_file)["review"]).lower().split() if len(word) > 6}
        assert words
        written = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file()).lower()
        assert [word for word in words if word.encode() in written] == []
        model = load_dictionary("models:/{}/{}".format(*done.version), store=store)
        assert all(each.label.startswith(("sha256:", "dead", "(no word)")) for each in model.descriptions)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, InputError),
        ({"llm": {"model": "judge"}}, InputError),
        ({"llm": {"model": "oracle:judge"}}, UnknownNameError),
        ({"llm": {"model": "answers:x.jsonl", "base_url": "http://localhost"}}, InputError),
        ({"llm": {"model": "openai:x", "max_cost": 1.0}}, InputError),
        ({"llm": {"model": "openai:x"}, "metrics": ["beauty"]}, UnknownNameError),
        ({"llm": {"model": "openai:x"}, "importance": "beauty"}, UnknownNameError),
        ({"llm": {"model": "openai:x"}, "options": {"fuzzing": {}}}, UnknownNameError),
        ({"llm": {"model": "openai:x"}, "options": {"detection": {"nonsense": 1}}}, UnknownNameError),
        ({"llm": {"model": "answers:absent.jsonl"}}, DataError),
        ({"llm": {"model": "openai:x", "base_url": "http://127.0.0.1:9"}, "concepts": [77]}, InputError),
        ({"llm": {"model": "openai:x", "base_url": "http://127.0.0.1:9"}, "name": "a/b"}, InputError),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(asked, database, change, error):
    before = len(runs_of(database))
    with pytest.raises(error):
        named(asked(**change))
    assert len(runs_of(database)) == before


def test_an_error_does_not_repeat_the_password_of_an_address(asked):
    with pytest.raises(InputError, match="has no address") as caught:
        named(asked(llm={"model": "local:x", "base_url": "http://ada:hunter2@localhost/v1"}))
    assert "hunter2" not in str(caught.value)


def test_a_password_in_an_address_is_in_no_file(asked, database, scripted_server, tmp_path, monkeypatch):
    recipe = asked(scripted_server(namer), metrics=[], options={})
    recipe["llm"]["base_url"] = recipe["llm"]["base_url"].replace("://", "://ada:it's a \"zebrafish@")
    monkeypatch.setattr("sys.argv", ["interpreto-mlops", "label", "x", "--base-url", recipe["llm"]["base_url"]])
    done = label(parse_recipe(recipe), command=this_command())
    store = connect(database, "meaning")
    folder = Path(store.client.download_artifacts(done.run_id, "", str(tmp_path / "run")))
    assert "://***@127.0.0.1" in (folder / "recipe.yaml").read_text()
    assert "://***@127.0.0.1" in store.client.get_run(done.run_id).data.tags["interpreto.command"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    files += [file for file in Path(database.removeprefix("sqlite:///")).parent.rglob("*") if file.is_file()]
    assert [file for file in files if b"zebrafish" in file.read_bytes()] == []


def artifact(store: Any, run_id: str, path: str) -> dict[str, Any]:
    local = store.client.download_artifacts(run_id, path)
    found: dict[str, Any] = json.loads(Path(local).read_text())
    return found


class TestSimulatability:
    @pytest.fixture
    def simulation(self, asked) -> Callable[..., dict[str, Any]]:
        def make(server: ScriptedServer, **more: Any) -> dict[str, Any]:
            values = {
                name: value
                for name, value in asked(server).items()
                if name not in ("dictionary", "n_silent", "options")
            }
            values |= {"kind": "consim", "subject": asked()["dictionary"], "label_column": "stars"}
            return {**values, "n_learn": 6, "n_evaluate": 6, "seeds": 5, **more}

        return make

    def test_of_concepts_is_logged_with_every_question(self, simulation, database, scripted_server, tmp_path):
        server = scripted_server(guesser)
        recipe = simulation(server)
        # The tiny model calls its classes by other names than the data.
        done = simulated({**recipe, "label_column": None})
        ((_, result),) = done.results.items()
        store = connect(database, "meaning")
        found = store.client.get_run(done.run_id)
        assert found.data.tags["interpreto.kind"] == "simulatability"
        assert found.data.params["language_model"] == "judge"
        assert found.data.metrics["simulatability/consim"] == pytest.approx(result.score)
        assert found.data.metrics["simulatability/L2"] == pytest.approx(result.settings["L2"].score)
        assert "simulatability/consim_gain" in found.data.metrics
        folder = Path(store.client.download_artifacts(done.run_id, "", str(tmp_path / "run")))
        settings = pd.DataFrame(**json.loads((folder / "simulatability/settings.json").read_text()))
        assert settings["setting"].tolist() == ["L1", "E1", "L2", "E2", "E3", "U1"]
        answers = pd.read_parquet(folder / "simulatability/answers.parquet")
        assert len(answers) == 6 * 5 * 6
        assert len((folder / "questions/answers.jsonl").read_text().splitlines()) == len(server.requests)
        page = (folder / "simulatability/simulatability.html").read_text()
        assert "the examples alone" in page
        model_id = resolve(store, recipe["subject"]).model_id
        assert model_id is not None
        logged = store.client.get_logged_model(model_id)
        assert "simulatability/consim" in {metric.key for metric in logged.metrics}
        count = len(server.requests)
        simulated({**recipe, "label_column": None})
        assert len(server.requests) == count

    def test_of_attributions_reads_the_run(self, simulation, database, scripted_server, model_folder, data_file):
        outcome = execute(
            parse_recipe(
                {
                    "kind": "attribute",
                    "model": str(model_folder),
                    "data": str(data_file),
                    "text_column": "review",
                    "methods": ["saliency"],
                    "metrics": [],
                    "tracking_uri": database,
                    "experiment": "meaning",
                }
            ),
            command="…",
        )
        (cell,) = outcome.attributions
        recipe = simulation(scripted_server(guesser), subject=f"runs:/{cell.run_id}")
        done = simulated({key: value for key, value in recipe.items() if key not in ("data", "label_column")})
        assert list(done.results) == ["saliency"]
        found = connect(database, "meaning").client.get_run(done.run_id)
        assert found.data.tags["interpreto.source_run"] == cell.run_id
        assert "simulatability/attributions" in found.data.metrics

    @pytest.fixture
    def explained(self, database, model_folder, data_file) -> str:
        """The address of a run of two attribution methods."""
        store = connect(database, "meaning")
        model = load_model(str(model_folder))
        texts = load_dataset(data_file, text_column="review").texts
        with run(store, kind="attributions", name="two") as log:
            for name, method in (("saliency", Saliency(model)), ("occlusion", Occlusion(model))):
                folder = method(texts).save(Path(str(data_file)).parent / "explained" / name)
                log.folder(folder, f"attributions/{name}")
        return f"runs:/{log.run_id}"

    def test_of_several_methods_is_estimated_and_scored_for_each(self, simulation, explained, scripted_server):
        server = scripted_server(guesser)
        recipe = {**simulation(server, subject=explained), "label_column": None}
        assert simulated(recipe, estimate_only=True).estimate.questions == 2 * 6 * 5
        done = simulated(recipe)
        assert sorted(done.results) == ["occlusion", "saliency"]
        # What is asked without an explanation is the same for both.
        assert len(server.requests) == 2 * 6 * 5 - 2 * 5

    def test_other_texts_than_those_explained_are_refused(
        self, simulation, explained, database, scripted_server, tmp_path
    ):
        other = tmp_path / "other.csv"
        pd.DataFrame({"review": ["something else"] * 60}).to_csv(other, index=False)
        server, before = scripted_server(guesser), len(runs_of(database))
        with pytest.raises(InputError, match="are not among those of"):
            simulated({**simulation(server, subject=explained, data=str(other)), "label_column": None})
        assert len(runs_of(database)) == before

    def test_a_text_that_is_there_twice_has_the_label_of_its_place(
        self, simulation, database, model_folder, scripted_server, tmp_path
    ):
        file = tmp_path / "twice.csv"
        model = load_model(str(model_folder))
        texts = ["awful soup", "never again", "this is a fine place"] * 20
        names = [model.labels[i // 20] for i in range(60)]
        pd.DataFrame({"review": texts, "stars": names}).to_csv(file, index=False)
        with run(connect(database, "meaning"), kind="attributions", name="twice") as log:
            write_attributions(log, Saliency(model)(texts), model=model, draw=False)
        sizes = {"n_learn": 1, "n_evaluate": 1, "settings": ["L1"]}
        server = scripted_server(guesser)
        done = simulated(simulation(server, subject=f"runs:/{log.run_id}", data=str(file), **sizes))
        ((_, result),) = done.results.items()
        # The first of the same texts are drawn, and all of those have the first class.
        assert set(result.samples["label"]) == {0}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({}, "unknown class '1'; known: 'LABEL_0'"),  # the data's labels are no classes of the model
            ({"label_column": None, "n_learn": 60}, "more than the 60 different ones"),
        ],
    )
    def test_what_cannot_be_simulated_leaves_no_run(self, simulation, database, scripted_server, change, message):
        server, before = scripted_server(guesser), len(runs_of(database))
        with pytest.raises(InputError, match=message):
            simulated(simulation(server, **change))
        assert len(runs_of(database)) == before
        assert server.requests == []

    def test_of_signed_concepts_shows_the_words_of_both_ends(
        self, simulation, database, model_folder, data_file, scripted_server
    ):
        store = connect(database, "meaning")
        split = ModelWithSplitPoints(load_model(str(model_folder)), [0])
        rows = split.get_activations(load_dataset(data_file, text_column="review"), progress=False)[0]
        dictionary = PCAConcepts(n_concepts=4).fit(rows, progress=False)
        dictionary.descriptions = [
            each.named(Label("a name", "human")) if each.concept == 0 else each for each in top_words(dictionary, rows)
        ]
        with run(store, kind="concepts", name="pca") as log:
            version = register_dictionary(store, write_dictionary(log, dictionary, draw=False), dictionary)
        server = scripted_server(guesser)
        subject = f"models:/{version.name}/{version.version}"
        simulated({**simulation(server, subject=subject, settings=["E1"]), "label_column": None})
        weakest = {
            each.concept: [example.word.lower() for example in each.examples]
            for each in TopKInputs(k=5, unit="word", bottom=True)(dictionary, rows)
        }
        shown = read_sections(server.requests[0].user)["concepts"]
        assert len(shown) > 1
        for each in shown:
            concept = int(each["id"].removeprefix("concept_"))
            assert each.get("opposed") == (None if concept == 0 else weakest[concept])

    def test_an_estimate_asks_nothing(self, simulation, database, scripted_server):
        server = scripted_server(guesser)
        done = simulated({**simulation(server), "label_column": None}, estimate_only=True)
        assert done.estimate is not None
        assert done.estimate.to_ask == 6 * 5
        assert server.requests == []

    def test_a_reader_that_thinks_may_write_more(self, simulation, asked, scripted_server):
        server = scripted_server(guesser)
        simulated({**simulation(server, answer_tokens=5000, settings=["L1"]), "label_column": None})
        assert {request.body["max_tokens"] for request in server.requests} == {5000}
        server = scripted_server(namer)
        named(asked(server, answer_tokens=5000, metrics=[], options={}))
        assert {request.body["max_tokens"] for request in server.requests} == {5000}

    def test_a_run_without_attributions_is_refused(self, simulation, scripted_server, database):
        store = connect(database, "meaning")
        empty = store.client.create_run(store.experiment_id)
        with pytest.raises(DataError, match="holds no attributions"):
            simulated(simulation(scripted_server(guesser), subject=f"runs:/{empty.info.run_id}", data=None))

    def test_concepts_without_texts_are_refused(self, simulation, scripted_server):
        recipe = simulation(scripted_server(guesser))
        with pytest.raises(InputError, match="say which, by 'data'"):
            simulated({key: value for key, value in recipe.items() if key != "data"})


def simulated(recipe: dict[str, Any], **more: Any) -> Simulated:
    return simulate(parse_recipe(recipe), command="interpreto-mlops consim …", **more)


def test_another_base_model_is_refused(asked, scripted_server, tiny_model, tmp_path):
    other = tiny_model(seed=7)
    folder = tmp_path / "other"
    other.model.save_pretrained(folder)
    other.tokenizer.save_pretrained(folder)
    with pytest.raises(IntegrityError):
        named(asked(scripted_server(namer), base_model=str(folder)))


def test_a_model_that_is_gone_can_be_named(asked, scripted_server, model_folder):
    moved = model_folder.rename(model_folder.with_name("moved"))
    with pytest.raises(ModelLoadError, match="say where it is by base_model"):
        named(asked(scripted_server(namer)))
    assert named(asked(scripted_server(namer), base_model=str(moved), metrics=[], options={})).version is not None


def test_a_dictionary_without_a_registered_name_is_labelled_and_the_console_says_so(asked, database, scripted_server):
    found = resolve(connect(database, "meaning"), asked()["dictionary"])
    server, lines = scripted_server(namer), list[str]()
    recipe = asked(server, dictionary=f"models:/{found.model_id}")
    assert named(recipe, console=Console(write=lines.append)).version is None
    text = "\n".join(lines)
    assert "no version is registered" in text
    # What is said of the cost is of the names and of their scores.
    assert f"judge was asked {len(server.requests)} questions" in text


def test_any_recipe_says_what_came_of_it(asked, scripted_server):
    lines: list[str] = []
    recipe = parse_recipe(asked(scripted_server(namer)))
    carry_out(recipe, command="…", console=Console(write=lines.append))
    text = "\n".join(lines)
    assert "concepts have a label that was given" in text
    assert "registered: models:/" in text
    assert "interpretation/detection" in text
    lines.clear()
    carry_out(recipe, command="…", console=Console(write=lines.append), estimate_only=True)
    assert "tokens to read" in lines[-1]
    with pytest.raises(InputError, match="asks no language model"):
        attribute = {"kind": "attribute", "model": "x", "data": "y"}
        carry_out(parse_recipe(attribute), command="…", console=Console(quiet=True), estimate_only=True)
