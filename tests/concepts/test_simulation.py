"""ConSim of real models and dictionaries: what is told is what the model and its concepts say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from interpreto_mlops import concepts
from interpreto_mlops.concepts import (
    ConceptDictionary,
    Label,
    ModelWithSplitPoints,
    PCAConcepts,
    TopKSAEConcepts,
    concept_importance,
    concept_study,
    consim,
    local_importance,
    top_words,
)
from interpreto_mlops.concepts.metrics.effect import predicted_classes
from interpreto_mlops.errors import InputError, IntegrityError
from interpreto_mlops.llm import Questioner
from interpreto_mlops.llm.simulation import Setting
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from tests.conftest import WORDS
from tests.llm.readers import RuleReader, at_random, by_importance, known, oracle, read_sections
from tests.models.architectures import random_model

MakeModel = Callable[..., TextModel]
SMALL = {"n_learn": 6, "n_evaluate": 6, "seeds": [0, 1]}


def some_texts(n: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(n)]


def described(split: ModelWithSplitPoints, texts: list[str], n_concepts: int = 8) -> ConceptDictionary:
    rows = split.get_activations(texts)[1]
    dictionary = PCAConcepts(n_concepts=n_concepts).fit(rows, progress=False)
    dictionary.descriptions = top_words(dictionary, rows)
    return dictionary


@pytest.fixture
def split(tiny_model: MakeModel) -> ModelWithSplitPoints:
    return ModelWithSplitPoints(tiny_model("distilbert", 9), [1])


@pytest.fixture
def dictionary(split: ModelWithSplitPoints) -> ConceptDictionary:
    return described(split, some_texts())


def said_alone(model: TextModel, text: str) -> int:
    """The class of one text, by a plain forward pass."""
    encoded = model.tokenizer(text, return_tensors="pt", truncation=True)
    with torch.inference_mode():
        return int(model.model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0].argmax())


class TestStudy:
    def test_predictions_are_the_models(self, split: ModelWithSplitPoints, dictionary: ConceptDictionary) -> None:
        study = concept_study(split, dictionary, some_texts())
        assert [sample.prediction for sample in study.samples] == [said_alone(split.model, t) for t in some_texts()]
        assert [sample.text for sample in study.samples] == some_texts()
        assert len(Counter(sample.prediction for sample in study.samples)) > 1
        assert study.classes == split.model.labels

    def test_importances_are_local_and_mean_ones(
        self, split: ModelWithSplitPoints, dictionary: ConceptDictionary
    ) -> None:
        study = concept_study(split, dictionary, some_texts())
        for sample in study.samples[:10]:
            (alone,) = local_importance(split, dictionary, [sample.text])
            shares = np.zeros(dictionary.n_concepts)
            shares[sample.contributions.places] = sample.contributions.values
            np.testing.assert_allclose(shares, alone.totals[0] / np.abs(alone.totals[0]).sum(), atol=1e-5)
        expected = concept_importance(split, dictionary, some_texts(), progress=False)
        np.testing.assert_allclose(study.explanation.importance, expected.normalised, atol=1e-6)
        given = concept_study(split, dictionary, some_texts()[:20], importance=expected)
        np.testing.assert_array_equal(given.explanation.importance, expected.normalised)

    def test_what_the_concepts_say_is_the_reconstructed_models_class(
        self, split: ModelWithSplitPoints, dictionary: ConceptDictionary
    ) -> None:
        texts = some_texts()
        both = predicted_classes(split, dictionary, texts)
        study = concept_study(split, dictionary, texts)
        assert [sample.of_concepts for sample in study.samples] == both[:, 1].tolist()
        assert (both[:, 0] != both[:, 1]).any()
        for text, said in zip(texts[:10], both[:10, 1].tolist(), strict=True):

            def reconstruct(output: torch.Tensor) -> torch.Tensor:
                changed = output.clone()
                changed[0, 1:-1] = dictionary.decode(dictionary.encode(output[0, 1:-1]))  # not [CLS] and [SEP]
                return changed

            with split.replaced(1, reconstruct):
                assert said_alone(split.model, text) == said

    def test_a_dictionary_that_keeps_everything_says_what_the_model_says(self, split: ModelWithSplitPoints) -> None:
        rows = split.get_activations(some_texts())[1]
        whole = PCAConcepts(n_concepts=rows.width).fit(rows, progress=False)
        both = predicted_classes(split, whole, some_texts())
        assert (both[:, 0] == both[:, 1]).all()

    def test_texts_without_tokens_are_left_out(
        self, split: ModelWithSplitPoints, dictionary: ConceptDictionary
    ) -> None:
        texts = ["", *some_texts(5), ""]
        study = concept_study(split, dictionary, texts, labels=[0, 1, 1, 1, 1, 2, 0])
        assert [sample.index for sample in study.samples] == [1, 2, 3, 4, 5]
        assert [sample.label for sample in study.samples] == [1, 1, 1, 1, 2]
        assert predicted_classes(split, dictionary, texts)[[0, -1]].tolist() == [[-1, -1]] * 2

    def test_labels_are_ids_or_names_or_a_data_sets(
        self, split: ModelWithSplitPoints, dictionary: ConceptDictionary
    ) -> None:
        texts = some_texts(3)
        by_name = concept_study(split, dictionary, texts, labels=["LABEL_0", "LABEL_2", "LABEL_1"])
        of_data = concept_study(
            split, dictionary, TextDataset("t", tuple(texts), ("LABEL_0", "LABEL_2", "LABEL_1"))
        )  # fmt: skip
        assert [s.label for s in by_name.samples] == [s.label for s in of_data.samples] == [0, 2, 1]

    def test_a_given_label_is_shown_alone_and_words_up_to_five(
        self, split: ModelWithSplitPoints, dictionary: ConceptDictionary
    ) -> None:
        assert dictionary.descriptions is not None
        named = [each.named(Label(f"name {each.concept}", "human")) for each in dictionary.descriptions[:4]]
        study = concept_study(
            split, dictionary, some_texts(5), descriptions=[*named, *dictionary.descriptions[4:]][::-1]
        )  # fmt: skip
        shown = [feature.words for feature in study.explanation.features]
        assert shown[:4] == [(f"name {number}",) for number in range(4)]
        assert shown[4:] == [tuple(w.word for w in each.words[:5]) for each in dictionary.descriptions[4:]]
        assert [feature.id for feature in study.explanation.features] == list(range(8))

    def test_words_of_the_other_end_are_shown_beside(
        self, split: ModelWithSplitPoints, dictionary: ConceptDictionary
    ) -> None:
        opposed = {number: [f"not{number}.{k}" for k in range(7)] for number in range(0, 8, 2)}
        reader = RuleReader(at_random)
        consim(
            split, dictionary, some_texts(), Questioner(reader), opposed=opposed, settings=["E1"], **SMALL
        )  # fmt: skip
        told = read_sections(reader.asked[0].user)["concepts"]
        assert told
        for each in told:
            number = int(each["id"].removeprefix("concept_"))
            assert each.get("opposed", []) == opposed.get(number, [])[:5]

    @pytest.mark.parametrize("architecture", ["gpt2", "bert"])
    def test_other_architectures_and_sparse_codes(self, architecture: str, tiny_model: MakeModel) -> None:
        split = ModelWithSplitPoints(tiny_model(architecture), [1])
        rows = split.get_activations(some_texts())[1]
        dictionary = TopKSAEConcepts(n_concepts=32, k=2, n_epochs=2).fit(rows, progress=False)
        dictionary.descriptions = top_words(dictionary, rows)
        study = concept_study(split, dictionary, some_texts(), method="gradient_x_activation")
        for sample in study.samples:
            assert np.abs(sample.contributions.values).sum() == pytest.approx(1.0)
            assert len(sample.contributions.places) < 32


class TestConsim:
    def test_an_oracle_scores_one_and_all_is_told(
        self, split: ModelWithSplitPoints, dictionary: ConceptDictionary
    ) -> None:
        truth = known(concept_study(split, dictionary, some_texts()))
        reader = RuleReader(oracle(truth))
        labels = np.random.default_rng(0).integers(0, 3, 60).tolist()
        result = consim(split, dictionary, some_texts(), Questioner(reader), labels=labels, **SMALL)
        assert result.score == 1.0
        assert result.settings[Setting.E3].on_right == result.settings[Setting.E3].on_wrong == 1.0
        assert result.settings[Setting.E3].of_concepts is not None
        assert len(reader.asked) == 12
        told = read_sections(reader.asked[1].user)["concepts"]
        ids = {int(each["id"].removeprefix("concept_")) for each in told}
        importance = concept_importance(split, dictionary, some_texts(), progress=False).normalised
        assert ids == set(np.flatnonzero((np.abs(np.nan_to_num(importance)) > 0.05).any(axis=0)).tolist())

    def test_the_model_is_left_as_it_was(self, split: ModelWithSplitPoints, dictionary: ConceptDictionary) -> None:
        before = {name: tensor.clone() for name, tensor in split.model.model.state_dict().items()}
        consim(split, dictionary, some_texts(), Questioner(RuleReader(at_random)), **SMALL)
        after = split.model.model.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(parameter.grad is not None for parameter in split.model.model.parameters())


class TestBadInput:
    def ask(self, split: ModelWithSplitPoints, dictionary: ConceptDictionary, **options: object) -> None:
        reader = RuleReader(at_random)
        try:
            consim(split, dictionary, some_texts(), Questioner(reader), **{**SMALL, **options})  # type: ignore[arg-type]
        finally:
            assert not reader.asked

    def test_another_model(self, dictionary: ConceptDictionary, tiny_model: MakeModel) -> None:
        from tests.conftest import word_tokenizer

        for head in ("causal", "token"):
            model = TextModel(random_model("gpt2", head), word_tokenizer(bos=False), name="other")
            with pytest.raises(InputError, match="'other' cannot be simulated"):
                self.ask(ModelWithSplitPoints(model, [1]), dictionary)
        several = tiny_model("bert")
        several.model.config.problem_type = "multi_label_classification"
        with pytest.raises(InputError, match="exclusive classes"):
            self.ask(ModelWithSplitPoints(several, [1]), dictionary)
        with pytest.raises(IntegrityError, match="another one"):
            self.ask(ModelWithSplitPoints(tiny_model("distilbert", 8), [1]), dictionary)

    def test_descriptions(self, split: ModelWithSplitPoints, dictionary: ConceptDictionary) -> None:
        told = dictionary.descriptions
        assert told is not None
        with pytest.raises(InputError, match="7 of the 8 concepts have no description, the first is 1"):
            self.ask(split, dictionary, descriptions=told[:1])
        with pytest.raises(InputError, match="hashes"):
            self.ask(split, dictionary.hidden())
        dictionary.descriptions = None
        with pytest.raises(InputError, match="top_words"):
            self.ask(split, dictionary)

    def test_labels_importance_and_options(self, split: ModelWithSplitPoints, dictionary: ConceptDictionary) -> None:
        with pytest.raises(InputError, match="give a label for each of the 60 texts, not 2"):
            self.ask(split, dictionary, labels=[0, 1])
        with pytest.raises(InputError, match="'no such class'"):
            self.ask(split, dictionary, labels=["no such class"] * 60)
        other = concept_importance(split, described(split, some_texts(), 4), some_texts(), progress=False)
        with pytest.raises(InputError, match=r"importance is of 4 concepts .* there are 8 concepts"):
            self.ask(split, dictionary, importance=other)
        with pytest.raises(InputError, match="more than the 60"):
            self.ask(split, dictionary, n_learn=50, n_evaluate=20)
        with pytest.raises(InputError, match="give a list of texts"):
            consim(split, dictionary, "one text", Questioner(RuleReader(at_random)))


def test_names_are_public() -> None:
    assert {"consim", "concept_study"} <= set(concepts.__all__)


@pytest.mark.slow
def test_who_reads_the_concepts_of_a_real_classifier_beats_who_reads_them_shuffled(
    cebab_model: TextModel, cebab_reviews: pd.DataFrame
) -> None:
    """Words of concepts and their importance say what a classifier of reviews says."""
    split = ModelWithSplitPoints(cebab_model, [-2])
    fitted, drawn = cebab_reviews["text"][:300].tolist(), cebab_reviews["text"][300:500].tolist()
    rows = split.get_activations(fitted, granularity="word")[-2]
    dictionary = TopKSAEConcepts(n_concepts=64, k=4, n_epochs=10).fit(rows, progress=False)
    dictionary.descriptions = top_words(dictionary, rows, n_words=8)
    labels = cebab_reviews["label"][300:500].tolist()
    importance = concept_importance(split, dictionary, fitted, progress=False)
    swapped = concepts.ConceptImportance(importance.classes, importance.values[::-1].copy(), importance.n_texts)
    scores = {}
    for name, given in (("own", importance), ("swapped", swapped)):
        result = consim(
            split,
            dictionary,
            drawn,
            Questioner(RuleReader(by_importance)),
            labels=labels,
            importance=given,
            settings=["E1"],
            mistakes=0.1,
            seeds=range(5),
        )
        scores[name] = result.settings[Setting.E1].score or 0.0
    assert scores["own"] > 0.6
    assert scores["swapped"] < 0.4
