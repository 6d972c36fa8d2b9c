"""Evidence in other forms than a job leaves it: evaluations, runs of the user's own, copies of versions."""

from __future__ import annotations

from collections.abc import Callable

import mlflow
import numpy as np
import pandas as pd
import pytest

import interpreto_mlops as im
from interpreto_mlops.attributions import Occlusion
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.audit.catalogue.tables import RunRow, SampleRow, VersionRow
from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import log_text_model, run, schema
from interpreto_mlops.tracking.reading import read_explanations
from interpreto_mlops.tracking.store import Store
from tests.audit.contents import content, rows
from tests.audit.evidence import Evidence

METHODS = ["occlusion", "saliency"]


@pytest.fixture
def user(store: Store) -> Store:
    """The user has set MLflow up for themself."""
    mlflow.set_tracking_uri(store.tracking_uri)
    mlflow.set_experiment(experiment_id=store.experiment_id)
    return store


@pytest.mark.filterwarnings("ignore:.*is deprecated since 3.4.0:FutureWarning")
def test_an_evaluation_by_several_methods_is_found_by_each(
    catalogue: Catalogue, user: Store, tiny_model: Callable[..., TextModel], texts: list[str]
) -> None:
    logged = log_text_model(user, None, tiny_model(), name="reviews", registered_model_name="reviews")
    data = mlflow.data.from_pandas(pd.DataFrame({"text": texts}), name="reviews", digest="d" * 32)
    config = {"methods": METHODS, "metrics": ["deletion"], "n_random": 2}
    mlflow.models.evaluate(
        logged.uri, data, model_type="text-classifier", evaluators="interpreto", evaluator_config=config
    )
    assert catalogue.rebuild(user).skipped == {}
    (found,) = rows(catalogue, RunRow)
    held = {each.label: each.explanations for each in read_explanations(user, found["run_id"])}
    assert list(held) == METHODS
    assert [row["method"] for row in rows(catalogue, SampleRow)] == list(np.repeat(METHODS, len(texts)))
    version = {"version": logged.uri, "k": 20}
    for word in {word for each in texts for word in each.split()}:
        answers = {}
        for method, explanations in held.items():
            answers[method] = catalogue.ask("texts_with_word", word=word, method=method, **version)
            assert set(answers[method]["method"]) <= {method}
            expected = {
                item.text
                for item in explanations
                for place in item.ranking()[:20].tolist()
                if item.elements[place].lower() == word.lower() and item.scores[0, place] > 0
            }
            assert set(answers[method]["text"]) == expected
        assert len(catalogue.ask("texts_with_word", word=word, **version)) == sum(map(len, answers.values()))
    with pytest.raises(InputError, match="no attributions by 'lime'"):
        catalogue.ask("texts_with_word", word="food", method="lime", **version)
    before = content(catalogue)
    catalogue.record_run(user, found["run_id"])
    assert content(catalogue) == before


def test_a_run_without_attributions_is_no_evidence(small: Catalogue, store: Store) -> None:
    with run(store, kind="attributions", name="stopped before it wrote") as log:
        log.tags({schema.TAG_MODEL_URI: "models:/reviews/1"})
    assert small.rebuild(store).runs == 1
    with pytest.raises(InputError, match="the catalogue has no attributions of 'models:/reviews/1'"):
        small.ask("texts_with_word", word="food", version="models:/reviews/1")


def test_what_the_user_calls_method_and_layer_is_not_ours(
    small: Catalogue, user: Store, tiny_model: Callable[..., TextModel], texts: list[str]
) -> None:
    model = tiny_model()
    activations = ModelWithSplitPoints(model, [1]).get_activations(texts, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=3).fit(activations)
    dictionary.descriptions = top_words(dictionary, activations)
    with mlflow.start_run() as explained:
        mlflow.log_params({"method": "adamw", "layer": "7"})
        im.log_attributions(Occlusion(model)(texts), model=model)
    with mlflow.start_run() as learnt:
        mlflow.log_params({"method": "adamw", "layer": "7"})
        im.log_dictionary(dictionary, name="dictionary")
    small.rebuild(user)
    found = {row["run_id"]: row for row in rows(small, RunRow)}
    assert found[explained.info.run_id]["method"] == "occlusion"
    assert found[learnt.info.run_id]["method"] == "pca"
    assert found[learnt.info.run_id]["layer"] == user.client.get_run(learnt.info.run_id).data.params["concepts.layer"]
    every = [row["method"] for row in rows(small, SampleRow)]
    assert every == ["occlusion"] * len(texts)


def test_a_copy_of_a_version_has_the_evidence_of_the_original(small: Catalogue, own_evidence: Evidence) -> None:
    store = own_evidence.store
    for source, name in (("models:/reviews/1", "prod"), ("models:/prod/1", "prod-eu")):
        copied = store.client.copy_model_version(source, name)
        assert copied.source == source
    store.client.copy_model_version(f"models:/{own_evidence.dictionary_name}/2", "concepts-prod")
    small.rebuild(store)
    by_name = {row["name"]: row["model_id"] for row in rows(small, VersionRow)}
    assert by_name["prod-eu"] == by_name["prod"] == own_evidence.model.model_id
    for version in ("models:/prod/1", "models:/prod-eu/1"):
        asked = [
            small.ask("texts_with_word", word="the", version=each, k=20) for each in ("models:/reviews/1", version)
        ]
        assert len(asked[0]) > 0
        pd.testing.assert_frame_equal(*asked)
    small.move_alias(store, "prod", "champion", 1)
    assert small.ask("alias_moves", name="prod", alias="champion")["fresh"].tolist() == [True]
    before = f"models:/{own_evidence.dictionary_name}/1"
    assert len(small.ask("changed_labels", before=before, after="models:/concepts-prod/1")) == 1
