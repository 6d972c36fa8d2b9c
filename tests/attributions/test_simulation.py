"""Simulatability of attributions: what is told are the words that the model's explanations name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from interpreto_mlops import attributions
from interpreto_mlops.attributions import (
    Attribution,
    AttributionSet,
    Occlusion,
    Target,
    attribution_study,
    simulatability,
)
from interpreto_mlops.errors import InputError
from interpreto_mlops.llm import Questioner
from interpreto_mlops.llm.simulation import Setting
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import WORDS
from tests.llm.readers import RuleReader, at_random, by_importance, known, oracle, read_sections

SMALL = {"n_learn": 6, "n_evaluate": 6, "seeds": [0, 1]}
NAMES = ("bad food", "good", "good food")


def made(words: list[str], scores: list[float], said: int, index: int = 0, others: tuple[int, ...] = ()) -> Attribution:
    """An explanation of one class, or of several of which `said` has the highest output."""
    ids = (*others, said)
    return Attribution(
        text=" ".join(words),
        index=index,
        elements=tuple(words),
        spans=np.zeros((len(words), 2), dtype=np.int64),
        scores=np.asarray([[0.5] * len(words)] * len(others) + [scores], dtype=np.float64),
        targets=tuple(Target(i, NAMES[i]) for i in ids),
        output=np.asarray([1.0] * len(others) + [5.0]),
        baseline_output=np.zeros(len(ids)),
        standard_error=None,
        method="occlusion",
    )


def planted(n: int = 60) -> AttributionSet:
    """The word `sign0`, `sign1` or `sign2` says the class."""
    rng = np.random.default_rng(0)
    items = []
    for i in range(n):
        words = [f"word{k}" for k in rng.integers(0, 30, 5)]
        items.append(made([*words, f"sign{i % 3}", str(i)], [*rng.normal(0, 0.1, 5), 3.0, 0.0], i % 3, i))
    return AttributionSet(items)


class TestStudy:
    def test_words_are_counted_once_by_their_sum(self) -> None:
        items = [
            made(["Good", "good", "soup", " ", "bad"], [1.0, 2.0, -1.0, 9.0, np.nan], 1),
            made(["soup", "awful"], [2.0, 2.0], 0, 1),
            made(["good"], [1.0], 1, 2),
        ]
        study = attribution_study(AttributionSet(items), classes=NAMES)
        words = [feature.words[0] for feature in study.explanation.features]
        assert words == ["good", "soup", "awful"]
        first = study.samples[0].contributions
        assert {words[p]: v for p, v in zip(first.places, first.values, strict=True)} == {"good": 0.75, "soup": -0.25}
        good, soup, awful = range(3)
        importance = study.explanation.importance
        assert importance[1, [good, soup, awful]].tolist() == [4 / 5, -1 / 5, 0.0]  # sums 4 and −1 over two texts
        assert importance[0, [good, soup, awful]].tolist() == [0.0, 0.5, 0.5]
        assert np.isnan(importance[2]).all()

    def test_only_the_top_words_are_told(self) -> None:
        items = [made(["a", "b", "c", "d"], [4.0, -3.0, 2.0, 1.0], k, k) for k in (0, 1)]
        study = attribution_study(AttributionSet(items), n_words=2)
        assert np.flatnonzero(study.explanation.importance[0]).tolist() == [0, 1]
        assert study.explanation.importance[0, :2].tolist() == [4 / 7, -3 / 7]
        assert study.samples[0].contributions.values.tolist() == [0.4, -0.3]

    def test_of_several_classes_the_one_that_the_model_says_is_explained(self) -> None:
        item = made(["a", "b"], [1.0, -3.0], 2, others=(0, 1))
        study = attribution_study(AttributionSet([item, made(["a"], [1.0], 0, 1)]))
        assert study.classes == ("bad food", "good food")
        assert [sample.prediction for sample in study.samples] == [1, 0]
        assert study.samples[0].contributions.values.tolist() == [-0.75, 0.25]

    def test_labels_by_id_or_name(self) -> None:
        items = AttributionSet([made(["a"], [1.0], 2), made(["a"], [1.0], 0, 1)])
        for labels in ([0, 2], ["bad food", "good food"]):
            assert [sample.label for sample in attribution_study(items, labels=labels).samples] == [0, 1]
        assert attribution_study(items, labels=[1, 2], classes=NAMES).samples[0].label == 1

    def test_means_by_hand_of_a_real_method(self, tiny_model: Callable[..., TextModel]) -> None:
        model = tiny_model("bert", 7)
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(40)]
        explanations = Occlusion(model)(texts)
        study = attribution_study(explanations, classes=model.labels, n_words=3)
        means: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for item in explanations:
            for word, score in zip(item.elements, item.scores[0], strict=True):
                means[item.targets[0].id][word] += score
        words = [feature.words[0] for feature in study.explanation.features]
        for said, own in means.items():
            top = sorted(own, key=lambda word: -abs(own[word]))[:3]
            found = {words[i]: v for i, v in enumerate(study.explanation.importance[said]) if v}
            total = sum(abs(own[word]) for word in top)
            assert found == pytest.approx({word: own[word] / total for word in top})


class TestSimulatability:
    def test_an_oracle_scores_one_under_its_own_names(self) -> None:
        explanations = planted()
        reader = RuleReader(oracle(known(attribution_study(explanations))))
        result = simulatability(explanations, Questioner(reader), labels=[i % 2 for i in range(60)], **SMALL)
        assert result.score == 1.0
        assert result.name == "attributions"
        assert result.metrics["simulatability/attributions"] == 1.0
        assert result.settings[Setting.E3].of_concepts is None
        assert "words" in read_sections(reader.asked[1].user)

    def test_good_words_score_high_and_words_of_the_wrong_class_low(self) -> None:
        explanations = planted()
        wrong = AttributionSet(
            replace(item, elements=tuple(each.replace("sign", "gone") for each in item.elements))
            for item in explanations
        )
        scores = []
        for given in (explanations, wrong):
            result = simulatability(given, Questioner(RuleReader(by_importance)), **SMALL, settings=["E1", "L1"])
            scores.append(result.settings[Setting.E1].score or 0.0)
        assert scores[0] == 1.0
        assert scores[1] < 0.7

    def test_local_words_are_those_of_the_text(self) -> None:
        reader = RuleReader(at_random)
        simulatability(planted(), Questioner(reader), **SMALL, settings=["E3"])
        for example in read_sections(reader.asked[0].user)["examples"]:
            (sign,) = [word for word in example["text"].split() if word.startswith("sign")]
            assert example["importance"][sign] == "++"
            assert set(example["importance"]) <= set(example["text"].split())


class TestBadInput:
    def test_explanations(self) -> None:
        explanations = planted(6)
        with pytest.raises(InputError, match="hashes"):
            attribution_study(explanations.hidden())
        item = explanations[0]
        for target in (Target(0, "a", positions=(1,)), Target(0, "a", contrast=(1,), contrast_name="b")):
            with pytest.raises(InputError, match="text 0 is not explained by a class alone"):
                attribution_study(AttributionSet([replace(item, targets=(target,))]))
        with pytest.raises(InputError, match=r"\['bad food'\] alone; explain what the model says"):
            attribution_study(AttributionSet([item, item]))

    def test_classes_labels_and_numbers(self) -> None:
        explanations = planted(6)
        for classes in (("x", "y", "z"), ("bad food",), "bad food"):
            with pytest.raises(InputError, match="classes must be the names of all classes by id"):
                attribution_study(explanations, classes=classes)
        with pytest.raises(InputError, match="give a label for each of the 6 explained texts, not 1"):
            attribution_study(explanations, labels=[0])
        for label in (7, "other"):
            with pytest.raises(InputError, match=f"there is no class {label!r}"):
                attribution_study(explanations, labels=[label] * 6)
        for n_words in (0, True, 2.5):
            with pytest.raises(InputError, match="n_words"):
                attribution_study(explanations, n_words=n_words)  # type: ignore[arg-type]


def test_names_are_public() -> None:
    assert {"simulatability", "attribution_study"} <= set(attributions.__all__)


@pytest.mark.slow
def test_words_of_a_real_classifier_tell_what_it_says(cebab_model: TextModel, cebab_reviews: pd.DataFrame) -> None:
    texts, labels = cebab_reviews["text"][:300].tolist(), cebab_reviews["label"][:300].tolist()
    explanations = Occlusion(cebab_model)(texts)
    reader = RuleReader(by_importance)
    result = simulatability(
        explanations, Questioner(reader), labels=labels, classes=cebab_model.labels, mistakes=0.1, n_words=30
    )
    assert result.score is not None
    assert result.score > 0.6
