"""TCAV on a model with a planted concept: it is found, and random ones are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from interpreto_mlops.concepts import PROBES, ModelWithSplitPoints, TCAVResult, tcav
from interpreto_mlops.concepts.probes.activation_vectors import _vectors, _welch
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import WORDS, word_tokenizer

WIDTH = 24
PLANTED = ("great", "loved")
UNUSED = ("soup", "place")


class PlantedConfig(PretrainedConfig):
    model_type = "planted"


class PlantedForSequenceClassification(PreTrainedModel):
    """The second class grows with the mean row along one direction, on which the planted words lie, and bends a little
    along all others."""

    config_class = PlantedConfig

    def __init__(self, config: PlantedConfig, tokenizer: Any) -> None:
        super().__init__(config)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(64, WIDTH)
            self.layer = torch.nn.Linear(WIDTH, WIDTH, bias=False)
            self.bent = torch.nn.Parameter(torch.randn(WIDTH, WIDTH) * 0.5)
        self.layer.weight.data = torch.eye(WIDTH)
        vectors = self.embedding.weight.data
        vectors[:, :2] = 0.0
        for place, words in enumerate((PLANTED, UNUSED)):
            for word in words:
                vectors[tokenizer.convert_tokens_to_ids(word), place] = 4.0
        self.bent.data[:2] = 0.0
        self.bent.data[:, :2] = 0.0

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, **_):
        rows = self.layer(self.embedding(input_ids) if inputs_embeds is None else inputs_embeds)
        mask = attention_mask[..., None].to(rows)
        mean = (rows * mask).sum(1) / mask.sum(1)
        y = torch.tanh(mean[:, 0]) + 0.5 * mean[:, 0] + 0.3 * torch.sin(mean @ self.bent).sum(-1)
        return SequenceClassifierOutput(logits=torch.stack([-y, y], dim=-1))


@pytest.fixture(scope="module")
def split() -> ModelWithSplitPoints:
    tokenizer = word_tokenizer(bos=False)
    model = PlantedForSequenceClassification(
        PlantedConfig(num_labels=2, vocab_size=64, eos_token_id=None), tokenizer
    ).eval()
    return ModelWithSplitPoints(TextModel(model, tokenizer, name="planted"), ["layer"])


def written(n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    words = [word for word in WORDS if word.isalpha()]
    return [" ".join(rng.choice(words, 8, replace=False)) for _ in range(n)]


def holding(texts: list[str], words: tuple[str, ...]) -> np.ndarray:
    return np.asarray([bool(set(words) & set(text.split())) for text in texts])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return written(800, seed=0)


@pytest.fixture(scope="module")
def activations(split: ModelWithSplitPoints, texts: list[str]) -> Any:
    return split.get_activations(texts, granularity="sample", progress=False)["layer"]


@pytest.fixture(scope="module")
def found(split: ModelWithSplitPoints, activations: Any, texts: list[str]) -> TCAVResult:
    labels = np.stack([holding(texts, PLANTED), holding(texts, UNUSED)], axis=1)
    return tcav(split, activations, labels, written(120, seed=1), names=("planted", "unused"), seed=0)


def test_a_planted_concept_is_significant_with_the_right_sign(found: TCAVResult) -> None:
    assert found.classes == ("LABEL_0", "LABEL_1")
    assert sum(found.n_texts) == 120
    for measure in ("tcav", "sensitivity"):
        assert found.significant(measure)[0].all()
        against, speaks_for = np.asarray(getattr(found, measure))[0].mean(axis=1)
        assert against < speaks_for
    assert found.tcav[0, 1].mean() > 0.9
    assert found.tcav[0, 0].mean() < 0.1


def test_a_concept_that_is_there_and_not_used_has_a_sensitivity_of_none(found: TCAVResult) -> None:
    """Its direction is known as well as the other's; the model does not look at it."""
    assert abs(found.sensitivity[1].mean()) < 0.2 * abs(found.sensitivity[0, 1].mean())
    assert not found.significant("sensitivity")[1].any()


def test_random_concepts_are_as_rarely_significant_as_the_level_says(
    split: ModelWithSplitPoints, activations: Any, texts: list[str]
) -> None:
    explained = written(60, seed=2)
    raw, corrected = [], 0
    for seed in range(6):
        labels = np.random.default_rng(seed).random((len(texts), 8)) < 0.4
        random = tcav(split, activations, labels, explained, probe="mean_difference", repetitions=20, seed=seed)
        for measure in ("tcav", "sensitivity"):
            raw += random.p_values(measure, corrected=False).ravel().tolist()
            corrected += bool(random.significant(measure).any())
    # 192 tests, of which two classes and two measures say much the same.
    assert np.mean(np.asarray(raw) < 0.05) < 0.11
    assert corrected <= 2


def test_rows_that_are_used_again_and_again_would_not_be_a_test(activations: Any, texts: list[str]) -> None:
    """Why sets are disjoint: one fixed random concept against many random sets agrees with itself."""
    rows = activations.tensor().double().numpy()
    rng = np.random.default_rng(0)
    significant = 0
    for _ in range(20):
        fixed = rng.choice(len(rows), 40, replace=False)
        gradient = rng.standard_normal(rows.shape[1])
        own, chance = [], []
        for _ in range(20):
            sets = rng.choice(len(rows), (3, 40), replace=False)
            own.append((rows[fixed].mean(0) - rows[sets[0]].mean(0)) @ gradient)
            chance.append((rows[sets[1]].mean(0) - rows[sets[2]].mean(0)) @ gradient)
        significant += stats.ttest_ind(own, chance, equal_var=False).pvalue < 0.05
    assert significant >= 8


def test_the_test_is_welchs() -> None:
    rng = np.random.default_rng(0)
    for size in (5, 20):
        own, random = rng.random(size), 0.3 + 0.2 * rng.random(size)
        assert _welch(own, random) == pytest.approx(stats.ttest_ind(own, random, equal_var=False).pvalue)
    third = np.full(7, 1 / 3)
    assert _welch(third, third) == 1.0
    # Seven beside seven, all apart: the smallest p-value that a permutation test can have.
    apart = stats.permutation_test(
        (third, third + 0.5), lambda a, b: a.mean() - b.mean(), permutation_type="independent"
    )
    assert _welch(third, third + 0.5) == pytest.approx(apart.pvalue)


@pytest.mark.parametrize("repetitions", [2, 3, 4, 5, 10])
def test_shares_that_are_all_or_nothing_are_rarely_significant(repetitions: int) -> None:
    """Where all gradients point one way, each repetition's share is 0 or 1 with even chances: all cases, by weight."""
    wrong = 0.0
    for own in range(repetitions + 1):
        for random in range(repetitions + 1):
            shares = [np.arange(repetitions) < each for each in (own, random)]
            weight = math.comb(repetitions, own) * math.comb(repetitions, random) / 4**repetitions
            wrong += weight * (_welch(*(each.astype(float) for each in shares)) < 0.05)
    assert wrong < 0.055


def test_calibration_changes_no_direction(split: ModelWithSplitPoints, activations: Any, texts: list[str]) -> None:
    labels, explained = holding(texts, PLANTED), texts[:10]
    family = PROBES.get("mean_difference")
    plain, *others = (
        tcav(split, activations, labels, explained, probe=family(calibration=how), repetitions=10, most_rows=4)
        for how in ("none", "balanced", "platt")
    )
    for other in others:
        assert np.array_equal(other.sensitivity, plain.sensitivity)


def test_derivatives_are_those_of_the_logits(split: ModelWithSplitPoints, activations: Any, texts: list[str]) -> None:
    """Against finite differences: every row of the text moves along the vector."""
    explained = written(6, seed=3)
    labels = holding(texts, PLANTED)
    one = tcav(split, activations, labels, explained, class_labels=[1] * 6, probe="mean_difference", repetitions=2)
    assert one.classes == ("LABEL_1",)
    vectors = _vectors_again(activations, labels)
    inputs = split.model.inputs(list(split.model.encode(explained)))
    step = 1e-2
    for repetition, vector in enumerate(vectors):
        moved = [
            split.outputs(inputs, {"layer": lambda rows, s=sign, v=vector: rows + s * step * v}).logits[:, 1]
            for sign in (1, -1)
        ]
        slopes = ((moved[0] - moved[1]) / (2 * step)).detach().numpy()
        assert one.sensitivity[0, 0, repetition] == pytest.approx(slopes.mean(), rel=1e-2)
        assert one.tcav[0, 0, repetition] == (slopes > 0).mean()


def _vectors_again(activations: Any, labels: np.ndarray) -> torch.Tensor:
    rng = np.random.default_rng([0, 0])
    family = PROBES.get("mean_difference")()
    vectors, _, _ = _vectors(family, activations, labels.astype(float), activations.text_ids, 2, 500, rng, 0)
    return torch.from_numpy(vectors).float()


def test_no_grad_is_left_behind_and_nothing_changes(split: ModelWithSplitPoints, activations: Any, texts: Any) -> None:
    model = split.model.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tcav(split, activations, holding(texts, PLANTED), texts[:10], repetitions=2)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
        assert torch.equal(parameter, before[name])


def test_the_same_seed_gives_the_same_result(split: ModelWithSplitPoints, activations: Any, texts: Any) -> None:
    labels = holding(texts, PLANTED)
    one, same, other = (tcav(split, activations, labels, texts[:10], repetitions=3, seed=s) for s in (1, 1, 2))
    assert np.array_equal(one.sensitivity, same.sensitivity)
    assert not np.array_equal(one.sensitivity, other.sensitivity)
    frame = one.to_frame()
    assert len(frame) == len(one.classes)
    assert {"concept", "class", "tcav", "tcav_random", "tcav_p", "sensitivity"} <= set(frame.columns)


def test_tokens_are_rows_too(split: ModelWithSplitPoints, texts: list[str]) -> None:
    rows = split.get_activations(texts[:300], progress=False)["layer"]
    said = [rows.texts[t][a:b] for t, (a, b) in zip(rows.text_ids, rows.spans, strict=True)]
    labels = np.asarray([word in PLANTED for word in said])
    one = tcav(split, rows, labels, texts[300:340], per="row", repetitions=10)
    assert one.significant("sensitivity").all()


def test_what_cannot_be_tested_is_refused(
    split: ModelWithSplitPoints, activations: Any, texts: list[str], tiny_model: Callable
) -> None:
    labels = holding(texts, PLANTED)
    for error, words, call in (
        (DataError, "only 12 texts with concept 0", lambda: tcav(split, activations, np.arange(800) < 12, texts[:5])),
        (UnknownNameError, "direction 'svdd'", lambda: tcav(split, activations, labels, texts[:5], probe="svdd")),
        (UnknownNameError, "'nine'", lambda: tcav(split, activations, labels, texts[:1], class_labels=["nine"])),
        (InputError, "repetitions", lambda: tcav(split, activations, labels, texts[:5], repetitions=1)),
        (InputError, "is split at", lambda: tcav(ModelWithSplitPoints(tiny_model(), [0]), activations, labels, texts)),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            call()
