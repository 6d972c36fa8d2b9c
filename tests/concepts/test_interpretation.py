"""Words and contexts of concepts: on sets whose codes are written by hand, and on a real model's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from interpreto_mlops.concepts import ActivationSet, ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.concepts.interpretation import ConceptDescription
from interpreto_mlops.concepts.ranking import TopKeys
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import word_spans
from tests.concepts.written_sets import Row, identity, written_set


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., ActivationSet]:
    """A factory: texts and rows (text, start, end, activations) make an activation set."""
    return partial(written_set, tmp_path)


TEXTS = ("Good food, GOOD wine", "the goodness of wine", "bad soup")
TOKENS: list[Row] = [
    (0, 0, 4, [3.0, 0.0, 0.0]),
    (0, 5, 9, [0.0, 1.0, 0.0]),
    (0, 9, 10, [0.0, 0.5, 0.0]),
    (0, 11, 15, [5.0, 0.0, 0.0]),
    (0, 16, 20, [4.0, 2.0, 0.0]),
    (1, 0, 3, [0.0, 0.0, -1.0]),
    (1, 4, 8, [1.0, 0.0, 0.0]),
    (1, 8, 12, [2.0, 0.0, 0.0]),
    (1, 13, 15, [0.0, 0.0, 0.0]),
    (1, 16, 20, [6.0, 0.0, 0.0]),
    (2, 0, 3, [0.0, 7.0, 0.0]),
    (2, 4, 8, [0.0, 7.0, 0.0]),
]


def words(description: ConceptDescription) -> list[tuple[str, float, int]]:
    return [(word.word, word.activation, word.count) for word in description.words]


def test_words_are_whole_lower_cased_and_counted(make_set: Callable[..., ActivationSet]) -> None:
    first, second, third = top_words(identity(3), make_set(TEXTS, TOKENS))
    assert words(first) == [("wine", 6.0, 2), ("good", 5.0, 2), ("goodness", 2.0, 2)]
    assert sorted(words(second), key=lambda w: (-w[1], w[0])) == [
        ("bad", 7.0, 1),
        ("soup", 7.0, 1),
        ("wine", 2.0, 1),
        ("food", 1.0, 1),
        (",", 0.5, 1),
    ]
    assert words(third) == []
    assert (first.label, third.label) == ("wine, good, goodness", "dead")
    assert (first.density, third.density) == (6 / 12, 0.0)
    assert (first.max_activation, third.max_activation) == (6.0, 0.0)


def test_contexts_are_slices_of_different_texts(make_set: Callable[..., ActivationSet]) -> None:
    first, second, _ = top_words(identity(3), make_set(TEXTS, TOKENS), window=6)
    assert [(c.text_index, c.before, c.word, c.after, c.activation) for c in first.contexts] == [
        (1, "ss of ", "wine", "", 6.0),
        (0, "food, ", "GOOD", " wine", 5.0),
    ]
    assert [(c.text_index, c.activation) for c in second.contexts] == [(2, 7.0), (0, 2.0)]


def test_a_signed_concept_is_described_by_its_positive_side(make_set: Callable[..., ActivationSet]) -> None:
    rows = [(text, start, end, [-x for x in row]) for text, start, end, row in TOKENS]
    third = top_words(identity(3, signed=True), make_set(TEXTS, rows))[2]
    assert words(third) == [("the", 1.0, 1)]
    assert third.density == 1 / 12


def test_limits_and_chunks_change_only_how_much_is_shown(
    make_set: Callable[..., ActivationSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = make_set(TEXTS, TOKENS)
    whole = top_words(identity(3), activations)
    monkeypatch.setattr("interpreto_mlops.concepts.base._CHUNK_NUMBERS", 12)
    assert top_words(identity(3), activations) == whole
    few = top_words(identity(3), activations, n_words=1, n_contexts=1)
    assert [d.words for d in few] == [d.words[:1] for d in whole]
    assert [d.contexts for d in few] == [d.contexts[:1] for d in whole]
    none = top_words(identity(3), activations, n_words=0, n_contexts=0)
    assert all(d.words == () and d.contexts == () for d in none)
    assert [d.density for d in none] == [d.density for d in whole]
    with pytest.raises(InputError, match="n_words must not be negative, not -1"):
        top_words(identity(3), activations, n_words=-1)


def test_tokens_without_a_place_are_passed_over(make_set: Callable[..., ActivationSet]) -> None:
    rows: list[Row] = [(0, 0, 0, [9.0, 8.0]), (0, 0, 3, [1.0, 0.0])]
    first, second = top_words(identity(2), make_set(["bad"], rows, "all_tokens"))
    assert words(first) == [("bad", 1.0, 1)]
    assert first.max_activation == 9.0
    assert [c.activation for c in first.contexts] == [1.0]
    assert (second.label, second.contexts) == ("(no word)", ())


def test_rows_of_texts_give_their_over_represented_words(make_set: Callable[..., ActivationSet]) -> None:
    texts = [f"the soup was {'good' if i % 2 else 'awful'} number{i}" for i in range(40)]
    rows: list[Row] = [(i, 0, len(text), [float(i % 2 == 0) * (5 + i), 0.0]) for i, text in enumerate(texts)]
    first, second = top_words(identity(2), make_set(texts, rows, "sample"), window=5)
    top = range(38, -1, -2)
    assert words(first) == [("awful", pytest.approx(np.mean([5 + i for i in top])), 20)]
    assert first.contexts[0].text_index == 38
    assert (first.contexts[0].before, first.contexts[0].word, first.contexts[0].after) == ("", "the soup w", "")
    assert second.label == "dead"


def test_over_representation_is_the_formula(make_set: Callable[..., ActivationSet]) -> None:
    generator = np.random.default_rng(0)
    vocabulary = [f"w{j}" for j in range(30)]
    texts = [" ".join(generator.choice(vocabulary, 8)) for _ in range(200)]
    values = [float("w3" in text.split()) + float("w7" in text.split()) + 0.01 * i for i, text in enumerate(texts)]
    rows: list[Row] = [(i, 0, len(text), [values[i]]) for i, text in enumerate(texts)]
    (found,) = top_words(identity(1), make_set(texts, rows, "cls"), n_words=30)
    top = sorted(range(200), key=lambda i: -values[i])[:32]
    scores = {}
    for word in vocabulary:
        n, everywhere = (sum(word in texts[i].split() for i in ids) for ids in (top, range(200)))
        if n >= 2 and n / 32 > everywhere / 200:
            scores[word] = n * math.log((n / 32) / (everywhere / 200))
    assert [word.word for word in found.words] == sorted(scores, key=lambda word: (-scores[word], word))


def test_json_keeps_a_description() -> None:
    description = ConceptDescription(3, (), (), 0.5, 2.0)
    values = json.loads(json.dumps(description.to_dict()))
    assert values["label"] == "(no word)"
    assert ConceptDescription.from_dict(values) == description


@pytest.mark.parametrize("seed", range(5))
def test_top_keys_are_exact_whatever_the_stream(seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys, values = rng.integers(-1, 25, 400), rng.integers(-20, 60, (400, 3)).astype(np.float32)
    top = TopKeys(3, 6)
    start = 0
    while start < 400:
        stop = min(400, start + int(rng.integers(1, 60)))
        top.add(keys[start:stop], values[start:stop], start)
        start = stop
    for column in range(3):
        best: dict[int, float] = {}
        for key, value in zip(keys.tolist(), values[:, column].tolist(), strict=True):
            if key >= 0 and value > 0:
                best[key] = max(best.get(key, 0.0), value)
        entries = top.entries(column)
        assert [value for _, value, _ in entries] == sorted(best.values(), reverse=True)[:6]
        assert len({key for key, _, _ in entries}) == len(entries)
        for key, value, row in entries:
            assert (best[key], keys[row], values[row, column]) == (value, key, value)


@pytest.mark.parametrize("granularity", ["token", "all_tokens", "word", "sentence", "cls", "sample"])
def test_every_granularity_of_a_model(tiny_model: Callable[..., TextModel], texts: list[str], granularity: str) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    activations = split.get_activations(texts, granularity=granularity, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=4).fit(activations, progress=False)
    described = top_words(dictionary, activations, n_words=3)
    codes = dictionary.encode(activations)
    known = {text[start:end].lower() for text in texts for start, end in word_spans(text).tolist()}
    for concept, description in enumerate(described):
        assert description.concept == concept
        assert description.max_activation == pytest.approx(float(codes[:, concept].max()))
        assert description.density == pytest.approx(float((codes[:, concept] > 0).double().mean()))
        assert {word.word for word in description.words} <= known
        assert description.contexts
        for context in description.contexts:
            assert context.before + context.word + context.after in texts[context.text_index]
