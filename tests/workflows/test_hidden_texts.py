"""Texts that must not be kept: no byte of what a job leaves behind holds a word of them, and it can be used."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

import interpreto_mlops as im
from interpreto_mlops.attributions import AttributionSet, Occlusion
from interpreto_mlops.attributions.metrics import Deletion, Plausibility
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.cli import main
from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.errors import InputError, ModelOutputError
from interpreto_mlops.models.objectives import Target
from interpreto_mlops.text.hiding import hidden_word, hiding_texts, is_hash, sha256_of
from interpreto_mlops.tracking import connect, log_text_model, run, write_attributions
from interpreto_mlops.tracking.reading import read_explanations
from interpreto_mlops.visuals.attributions_html import render_page
from interpreto_mlops.visuals.highlight import highlight
from interpreto_mlops.workflows import attribute as attribute_workflow
from interpreto_mlops.workflows.compare import compare_methods
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import parse_recipe
from tests.conftest import WORDS
from tests.workflows.writer import build_writer

# Words that nothing but the texts holds; neither does the vocabulary, so that even a tokenizer could not say them.
MARKERS = ("zzqwanda", "yyvkorb", "wwjplim", "vvxtosk")


@pytest.fixture
def marked_file(tmp_path):
    """Forty reviews, each with two of the markers."""
    draw = random.Random(0)
    known = [word for word in WORDS if word.isalpha()]
    rows = []
    for _ in range(40):
        words = draw.choices(known, k=5) + draw.sample(MARKERS, 2)
        draw.shuffle(words)
        rows.append(" ".join(words).capitalize())
    path = tmp_path / "reviews.csv"
    pd.DataFrame({"review": rows, "stars": ["1", "5"] * 20}).to_csv(path, index=False)
    return path


def job(kind, model_folder, data_file, uri, **more):
    common = {"model": str(model_folder), "data": str(data_file), "text_column": "review", "label_column": "stars"}
    if kind == "concepts":
        more = {
            "layers": [0],
            "n_concepts": [6],
            "effect_texts": 5,
            "options": {"topk_sae": {"k": 3, "n_epochs": 2}},
            **more,
        }
    else:
        more = {"methods": ["occlusion", "kernel_shap"], "n_random": 3, **more}
    return parse_recipe({"kind": kind, **common, "tracking_uri": uri, "experiment": "jobs", **more})


def contents(folder: Path):
    """Every file under a folder, with what is compressed inside of it laid open."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                yield path, pyarrow.parquet.read_table(path).to_pandas().to_csv().encode()
                yield path, str(pyarrow.parquet.read_metadata(path)).encode()


def found_in(folder: Path, words=MARKERS):
    """The files that hold one of the words, in any case and any of the ways that files write text."""
    hits = set()
    for path, content in contents(folder):
        lowered = content.lower()
        for word in words:
            forms = (word.encode(), word.encode("utf-16-le"), "".join(f"\\u{ord(c):04x}" for c in word).encode())
            hits |= {path.relative_to(folder).as_posix() for form in forms if form in lowered}
    return hits


def both_jobs(model_folder, data_file, uri, **more):
    attributed = execute(job("attribute", model_folder, data_file, uri, **more), command="…")
    learnt = execute(job("concepts", model_folder, data_file, uri, **more), command="…")
    return attributed, learnt


@pytest.mark.parametrize("how", ["recipe", "environment", "not at all"])
def test_no_byte_of_two_jobs_holds_a_word_of_the_texts(database, model_folder, marked_file, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", "1")
    more = {"hide_texts": True} if how == "recipe" else {}
    attributed, learnt = both_jobs(model_folder, marked_file, database, **more)
    folder = Path(database.removeprefix("sqlite:///")).parent
    assert {"mlflow.db", "catalogue.db"} <= {path.name for path in folder.iterdir()}
    names = {path.name for path in folder.rglob("*")}
    assert {"attributions.parquet", "attributions.json", "examples.json", "attributions.html", "concepts.html"} <= names
    assert {"labels.json", "dictionary.json", "README.md", "report.html", "recipe.yaml", "example.png"} <= names
    hits = found_in(folder)
    if how != "not at all":
        assert hits == set()
        # What Python gets back is whole.
        assert "zzqwanda" in " ".join(item.text for item in attributed.attributions[0].explanations).lower()
        assert any("zzqwanda" in each.label for cell in learnt.concepts for each in cell.dictionary.descriptions)
        return
    # The search can find them: in files of each kind.
    named = {Path(path).name for path in hits}
    assert {"attributions.parquet", "attributions.json", "examples.json", "attributions.html"} <= named
    assert {"concepts.html", "labels.json", "dictionary.json", "README.md", "catalogue.db"} <= named


@pytest.mark.slow
def test_no_byte_of_a_server_holds_one(server, server_database, model_folder, marked_file):
    both_jobs(model_folder, marked_file, server, hide_texts=True)
    folder = Path(server_database.removeprefix("sqlite:///")).parent
    assert {"mlflow.db", "attributions.parquet", "dictionary.json"} <= {path.name for path in folder.rglob("*")}
    assert found_in(folder) == set()


def test_what_is_hidden_can_be_used(database, model_folder, marked_file, tmp_path):
    uri = f"sqlite:///{tmp_path}/open.db"
    # An experiment keeps what it first heard of a data set, so each has its own.
    plain, hidden = (
        execute(
            job("attribute", model_folder, marked_file, database, catalogue_uri=uri, hide_texts=hide, experiment=name),
            command="…",
        )
        for name, hide in (("open", False), ("hidden", True))
    )
    shown, hashed = (
        {each.label: each for cell in outcome.attributions for each in read_explanations(outcome.store, cell.run_id)}
        for outcome in (plain, hidden)
    )
    for label, before in shown.items():
        after = hashed[label]
        assert after.explanations == before.explanations.hidden()
        assert [item.text_sha256 for item in after.explanations] == [item.text_sha256 for item in before.explanations]
        assert after.scores.equals(before.scores)
        assert [t.name for item in after.explanations for t in item.targets] == [
            t.name for item in before.explanations for t in item.targets
        ]
    # The same metrics, and the same data set by its digest.
    for one, other in zip(plain.attributions, hidden.attributions, strict=True):
        one, other = (plain.store.client.get_run(each.run_id) for each in (one, other))
        faithful = {key for key in one.data.metrics if key.startswith("faithfulness/")}
        assert faithful
        assert {key: one.data.metrics[key] for key in faithful} == {key: other.data.metrics[key] for key in faithful}
        assert one.data.tags["interpreto.cell"] == other.data.tags["interpreto.cell"]
        digests = [each.inputs.dataset_inputs[0].dataset.digest for each in (one, other)]
        assert digests[0] == digests[1]
        assert "reviews.csv" in one.inputs.dataset_inputs[0].dataset.source
        assert "reviews.csv" not in other.inputs.dataset_inputs[0].dataset.source

    # One catalogue holds both, and who knows a word finds it in both.
    fingerprint = plain.store.client.get_run(plain.report_run_id).data.tags["interpreto.model.fingerprint"]
    with Catalogue.connect(uri) as book:
        assert not book.hides_texts
        answers = book.ask("texts_with_word", word="Zzqwanda", version=fingerprint, k=20, method="occlusion", limit=0)
        by_run = dict(list(answers.groupby("run_id")))
        first, second = (by_run[each.attributions[0].run_id] for each in (plain, hidden))
        assert len(first) > 3
        same = ["text_index", "text_sha256", "target", "rank", "score"]
        assert first[same].sort_values(same).values.tolist() == second[same].sort_values(same).values.tolist()
        assert first["text"].notna().all()
        assert second["text"].isna().all()


def test_a_catalogue_that_hides_holds_the_same_of_hidden_and_of_plain_runs(
    database, model_folder, marked_file, tmp_path
):
    rows = []
    for hide in (False, True):
        own = f"sqlite:///{tmp_path}/{hide}.db"
        with Catalogue.connect(own, hide_texts=True):
            pass
        execute(job("concepts", model_folder, marked_file, database, catalogue_uri=own, hide_texts=hide), command="…")
        with Catalogue.connect(own) as book, book.database.reading() as connection:
            labels = connection.exec_driver_sql(
                "SELECT concept, label FROM catalogue_concept ORDER BY model_id, concept"
            )
            words = connection.exec_driver_sql("SELECT word FROM catalogue_activation")
            rows.append((sorted(map(tuple, labels)), sorted(map(tuple, words))))
    assert rows[0] == rows[1]
    assert any(is_hash(label) for _, label in rows[0][0])


def test_a_dictionary_is_logged_without_words_and_stays_as_it_is(database, tiny_model, marked_file):
    mlflow.set_tracking_uri(database)
    texts = pd.read_csv(marked_file)["review"].tolist()
    activations = ModelWithSplitPoints(tiny_model(), [1]).get_activations(texts, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=4).fit(activations)
    dictionary.descriptions = top_words(dictionary, activations)
    before = [each.label for each in dictionary.descriptions]
    with hiding_texts():
        logged = im.log_dictionary(dictionary)
        im.tracking.dictionary_flavor.save_model(dictionary, "saved")
    assert [each.label for each in dictionary.descriptions] == before
    assert dictionary.provenance["data"]["source"]
    again = im.load_dictionary(logged.uri)
    assert [each.concept for each in again.descriptions] == [0, 1, 2, 3]
    for mine, kept in zip(dictionary.descriptions, again.descriptions, strict=True):
        assert [word.word for word in kept.words] == [hidden_word(word.word) for word in mine.words]
        assert kept.label == mine.hidden().label
        assert is_hash(kept.label)
        assert (kept.density, kept.max_activation) == (mine.density, mine.max_activation)
    assert again.hidden().descriptions == again.descriptions
    assert found_in(Path.cwd() / "saved", (*MARKERS, "waiter")) == set()


def test_what_a_language_model_wrote_is_hidden(database):
    store = connect(database, "tests")
    explanations = Occlusion(build_writer())(["the food was great"], targets=["but slow"])
    with hiding_texts(), run(store, kind="attributions", name="x") as log:
        write_attributions(log, explanations)
    (kept,) = read_explanations(store, log.run_id)
    (item,) = kept.explanations
    assert all(is_hash(target.name) and target.ids == () and target.id == -1 for target in item.targets)
    assert item.ids is None
    assert item.continuation is None
    assert item.hidden() is item
    assert (item.scores == explanations[0].scores)[item.valid].all()
    params = store.client.get_run(log.run_id).data.params
    assert params["method.targets"] == "several"


def test_a_failed_run_does_not_quote_a_text(database, model_folder, marked_file, monkeypatch):
    def fail(*_, **__):
        raise ModelOutputError("NaN for text 0: 'zzqwanda'")

    monkeypatch.setattr(attribute_workflow, "explain_together", fail)
    with pytest.raises(ModelOutputError, match="zzqwanda"):
        execute(job("attribute", model_folder, marked_file, database, hide_texts=True), command="…")
    client = MlflowClient(database)
    runs = client.search_runs([client.get_experiment_by_name("jobs").experiment_id])
    assert {each.info.status for each in runs} == {"FAILED"}
    notes = {each.data.tags["mlflow.note.content"] for each in runs}
    assert notes == {"Failed: ModelOutputError, whose message is not kept."}


@pytest.mark.parametrize("listed", [list, tuple, pd.Series, np.array])
def test_targets_of_single_texts_are_not_in_the_command(database, tiny_model, texts, monkeypatch, listed):
    monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", "1")
    model = tiny_model()
    targets = listed([model.labels[0]] * len(texts))
    found = compare_methods(
        model, texts, [Occlusion(model)], [Deletion(model)], targets=targets, tracking_uri=database, experiment="jobs"
    )
    client = MlflowClient(database)
    command = client.get_run(found.report_run_id).data.tags["interpreto.command"]
    assert "targets=[…]  # 5 entries" in command
    assert model.labels[0] not in command
    assert found.explanations["occlusion"][0].text == texts[0]


def test_the_command_hides_texts(model_folder, marked_file, tmp_path):
    store = tmp_path / "by command"
    uri = f"sqlite:///{store}/mlflow.db"
    given = ["--model", model_folder, "--data", marked_file, "--text-column", "review", "--tracking-uri", uri]
    small = ["--methods", "occlusion", "--metrics", "deletion", "--max-texts", "8", "--hide-texts"]
    done = CliRunner().invoke(main, ["attribute", *map(str, given), *small])
    assert done.exit_code == 0, done.output
    assert found_in(store) == set()
    # The recipe of a run says so, too.
    client = MlflowClient(uri)
    (report,) = client.search_runs(
        [client.get_experiment_by_name("interpreto").experiment_id], "tags.`interpreto.kind` = 'report'"
    )
    recipe = client.download_artifacts(report.info.run_id, "recipe.yaml", str(tmp_path))
    assert "hide_texts: true" in Path(recipe).read_text()
    done = CliRunner().invoke(main, ["run", recipe])
    assert done.exit_code == 0, done.output
    assert found_in(store) == set()


def test_a_variable_that_says_neither_is_refused_before_anything_runs(database, model_folder, marked_file, monkeypatch):
    monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", "perhaps")
    with pytest.raises(InputError, match="INTERPRETO_HIDE_TEXTS must be 1 or 0, not 'perhaps'"):
        execute(job("attribute", model_folder, marked_file, database), command="…")
    assert MlflowClient(database).get_experiment_by_name("jobs") is None


def test_a_model_is_not_asked_about_a_hash(tiny_model, texts):
    model = tiny_model()
    hidden = Occlusion(model)(texts).hidden()
    with pytest.raises(InputError, match=r"text 0 is hidden.*explain the text anew"):
        Deletion(model)(hidden)
    with pytest.raises(InputError, match="text 0 is hidden"):
        Plausibility(rationales=[[(0, 3)]] * len(texts))(hidden)


def test_labels_of_single_tokens_are_text(tmp_path):
    """They are named after the word."""
    target = Target(2, "Zzqwanda: PLACE", positions=(1,))
    (plain,) = Occlusion(build_writer())(["the food was great"], targets=["but slow"])
    labelled = AttributionSet([replace(plain, targets=(target,), scores=plain.scores[:1], output=plain.output[:1])])
    (item,) = labelled.hidden()
    assert item.targets == (Target(2, "sha256:" + sha256_of("Zzqwanda: PLACE"), positions=(1,)),)
    assert AttributionSet.load(labelled.hidden().save(tmp_path)) == labelled.hidden()


def test_pages_and_figures_show_positions_and_scores_without_words(tiny_model, texts):
    model = tiny_model()
    plain = Occlusion(model)(texts)
    page = render_page([plain.hidden()], title="hidden")
    assert hidden_word("food")[: len("sha256:") + 8] + "…" in page
    words = {word for text in texts for word in text.lower().split() if len(word) > 4}
    shown = re.sub(r"<style.*?</style>|<script.*?</script>", "", page, flags=re.DOTALL).lower()
    assert {word for word in words if re.search(rf"\b{word}\b", shown)} <= {"place"}
    marks = highlight(plain[0].hidden()).pieces
    scored = [piece for piece in marks if piece.tones]
    assert len(scored) == len(plain[0])
    assert [piece.tones[0] for piece in scored] == [
        piece.tones[0] for piece in highlight(plain[0]).pieces if piece.tones
    ]


@pytest.mark.filterwarnings("ignore:The inplace keyword in", "ignore:Starting with pandas version 4.0")
@pytest.mark.filterwarnings("ignore:.*is deprecated since 3.4.0:FutureWarning", "ignore:.*type hint:UserWarning")
def test_evaluations_and_autologging_hide_texts_where_the_environment_says_so(
    database, tiny_model, marked_file, monkeypatch
):
    monkeypatch.setenv("INTERPRETO_HIDE_TEXTS", "1")
    store = connect(database, "tests")
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment("tests")
    model = tiny_model()
    logged = log_text_model(store, None, model, name="reviews", registered_model_name="reviews")
    frame = pd.read_csv(marked_file)
    quick = {"methods": ["occlusion"], "metrics": ["deletion"], "n_random": 2, "text_column": "review"}
    data = mlflow.data.from_pandas(frame, targets="stars", name="reviews")
    result = mlflow.models.evaluate(
        logged.uri, data, model_type="text-classifier", evaluators="interpreto", evaluator_config=quick
    )
    table = result.artifacts["examples"].content
    assert is_hash(table["data"][0][table["columns"].index("text")])
    activations = ModelWithSplitPoints(model, [1]).get_activations(frame["review"].tolist(), progress=False)[1]
    im.autolog(draw=True)
    try:
        Occlusion(model)(frame["review"].tolist())
        PCAConcepts(n_concepts=4).fit(activations)
    finally:
        im.autolog(disable=True)
    folder = Path(database.removeprefix("sqlite:///")).parent
    assert len(list(folder.rglob("attributions.html"))) == 2
    assert len(list(folder.rglob("dictionary.json"))) == 1
    assert found_in(folder) == set()
