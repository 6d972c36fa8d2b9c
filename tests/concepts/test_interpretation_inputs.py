"""Examples of what concepts fire on, beside brute force over all rows."""

from __future__ import annotations

import gc
import json
import re
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from interpreto_mlops.concepts import (
    INTERPRETATIONS,
    ActivationSet,
    ConceptInputs,
    Example,
    Interpretation,
    LLMLabels,
    ModelWithSplitPoints,
    PCAConcepts,
    TokenChange,
    TopKInputs,
    TopKSAEConcepts,
    interpret,
)
from interpreto_mlops.concepts.ranking import SampledValues, mirrored
from interpreto_mlops.errors import InputError, IntegrityError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import sentence_spans, word_spans
from tests.concepts.written_sets import Row, identity, written_set

SYLLABLES = ("ba", "Ba", "du", "ki", "lo", "mi")


def random_set(folder: Path, seed: int = 0, width: int = 3) -> ActivationSet:
    """Tokens of two letters, words of one to three of them, sentences of some words; all codes are different."""
    rng = np.random.default_rng(seed)
    texts, rows = [], []
    values = rng.permutation(4000 * width).reshape(4000, width) / 1000.0 - 5.0
    for number in range(40):
        text, spans = "", []
        for _ in range(int(rng.integers(1, 4))):
            for _ in range(int(rng.integers(1, 6))):
                for _ in range(int(rng.integers(1, 4))):
                    spans.append((len(text), len(text) + 2))
                    text += str(rng.choice(SYLLABLES))
                text += " "
            text = text[:-1] + ". "
        texts.append(text)
        rows += [(number, *span, values[len(rows) + i].tolist()) for i, span in enumerate(spans)]
    return written_set(folder, texts, rows)


def unit_of(text: str, start: int, end: int, unit: str) -> tuple[int, int]:
    """The unit around a token, found by looking at all of them."""
    inside = lambda spans: next((a, b) for a, b in spans.tolist() if a <= start < b)  # noqa: E731
    if unit == "token":
        return start, end
    if unit == "text":
        return 0, len(text)
    if unit == "sentence":
        return inside(sentence_spans(text))
    word = inside(word_spans(text))
    if unit == "word":
        return word
    n, sentence = int(unit[0]), inside(sentence_spans(text))
    before = [span for span in word_spans(text).tolist() if sentence[0] <= span[0] <= word[0]]
    return before[-n:][0][0], word[1]


def brute_force(
    activations: ActivationSet, codes: np.ndarray, unit: str, unique: bool, sign: float
) -> dict[object, float]:
    """The largest code of each unit, from all rows."""
    best: dict[object, float] = {}
    for row, value in enumerate((sign * codes).tolist()):
        index = int(activations.text_ids[row])
        start, end = unit_of(activations.texts[index], *activations.spans[row].tolist(), unit)
        key: object = activations.texts[index][start:end].casefold() if unique else (index, start, end)
        if value > 0:
            best[key] = max(best.get(key, 0.0), value)
    return best


def key_of(activations: ActivationSet, example: Example, unit: str, unique: bool) -> object:
    start, end = unit_of(activations.texts[example.text_index], *activations.spans[example.row].tolist(), unit)
    assert activations.texts[example.text_index][start:end] == example.word
    return example.word.casefold() if unique else (example.text_index, start, end)


@pytest.mark.parametrize("unique", [True, False])
@pytest.mark.parametrize("unit", ["token", "word", "2-grams", "3-grams", "sentence", "text"])
def test_examples_are_those_of_brute_force(
    tmp_path: Path, unit: str, unique: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpreto_mlops.concepts.base._CHUNK_NUMBERS", 200)
    activations = random_set(tmp_path)
    codes = activations.tensor().numpy()
    for signed, bottom in ((False, False), (True, False), (True, True)):
        found = TopKInputs(k=7, unit=unit, unique=unique, bottom=bottom)(identity(3, signed=signed), activations)
        for concept, each in enumerate(found):
            sign = -1.0 if bottom else 1.0
            wanted = brute_force(activations, codes[:, concept], unit, unique, sign)
            top = sorted(wanted, key=lambda key: -wanted[key])[:7]
            assert [key_of(activations, example, unit, unique) for example in each.examples] == top
            assert [sign * example.activation for example in each.examples] == pytest.approx([wanted[k] for k in top])
            assert each.density == (sign * codes[:, concept] > 0).mean()
            assert sign * each.extreme == pytest.approx((sign * codes[:, concept]).max())


def test_the_bottom_of_codes_with_one_side_is_where_they_are_weakest(tmp_path: Path) -> None:
    activations = random_set(tmp_path)
    codes = activations.tensor().numpy()
    found = TopKInputs(k=5, unique=False, bottom=True)(identity(3), activations)
    for concept, each in enumerate(found):
        weakest = np.sort(codes[codes[:, concept] > 0, concept])[:5]
        assert [example.activation for example in each.examples] == weakest.tolist()
        assert [codes[example.row, concept] for example in each.examples] == weakest.tolist()
        assert each.extreme == codes[:, concept].max()


def test_quantiles_are_those_of_all_codes_where_a_concept_fires_seldom(tmp_path: Path) -> None:
    activations = random_set(tmp_path)
    codes = activations.tensor().numpy()
    method = TopKInputs(k=20, unique=False, quantiles=10)
    found = method(identity(3), activations)
    for concept, each in enumerate(found):
        positive = np.sort(codes[codes[:, concept] > 0, concept])[::-1]
        assert len(positive) < 512
        parts = [set(part.tolist()) for part in np.array_split(positive, 10)]
        assert [example.quantile for example in each.examples] == [part for part in range(10) for _ in range(2)]
        assert all(example.activation in parts[example.quantile or 0] for example in each.examples)
        assert [e.activation for e in each.examples] == sorted((e.activation for e in each.examples), reverse=True)
    assert method(identity(3), activations) == found
    others = TopKInputs(k=20, unique=False, quantiles=10, seed=1)(identity(3), activations)
    assert [o.density for o in others] == [f.density for f in found]
    assert others != found
    words = TopKInputs(k=9, unit="word", quantiles=4)(identity(3, signed=True), activations)[0].examples
    assert len({example.word.casefold() for example in words}) == len(words)
    assert [sum(e.quantile == part for e in words) for part in range(4)] == [3, 2, 2, 2]
    below = TopKInputs(k=6, unique=False, quantiles=3, bottom=True)(identity(3, signed=True), activations)[1]
    assert all(example.activation < 0 for example in below.examples)
    with pytest.raises(InputError, match="have one side"):
        TopKInputs(quantiles=3, bottom=True)(identity(3), activations)


def test_a_sample_is_uniform_and_does_not_depend_on_chunks() -> None:
    values = np.random.default_rng(1).random((3000, 4)).astype(np.float32) - np.float32(0.3)
    values[:, 3] = 0.0
    values[5:9, 3] = 1.0

    def drawn(seed: int, size: int) -> list[list[tuple[float, int]]]:
        sample = SampledValues(4, 64, seed)
        sample._room = 300
        for start in range(0, 3000, size):
            sample.add(values[start : start + size], start)
        return sample.entries()

    first = drawn(0, 3000)
    assert first == drawn(0, 17)
    assert [len(column) for column in first] == [64, 64, 64, 4]
    for column, entries in enumerate(first):
        assert len({row for _, row in entries}) == len(entries)
        assert all(values[row, column] == np.float32(value) and value > 0 for value, row in entries)
    assert sorted(row for _, row in first[3]) == [5, 6, 7, 8]
    # 100 draws of 64 of some 2100 rows: the mean of what is drawn is the mean of what there is.
    means = [np.mean([value for value, _ in drawn(seed, 500)[0]]) for seed in range(100)]
    positive = values[values[:, 0] > 0, 0]
    assert abs(np.mean(means) - positive.mean()) < 4 * positive.std() / np.sqrt(6400)


def test_mirroring_turns_the_order_about_and_loses_nothing() -> None:
    values = np.asarray([1e-38, 1e-6, 0.1, np.nextafter(np.float32(0.1), 1), 3.0, 1e30, 0.0, -2.0], dtype=np.float32)
    there = mirrored(values)
    assert (np.diff(there[:6]) < 0).all()
    assert (there[:6] > 0).all()
    assert (there[6:] == 0).all()
    assert mirrored(there)[:6].tolist() == values[:6].tolist()


def test_context_cut_and_few_inputs(tmp_path: Path) -> None:
    rows: list[Row] = [(0, 0, 4, [3.0, 0.0]), (0, 5, 9, [0.0, 0.0]), (1, 0, 3, [5.0, 0.0]), (1, 0, 0, [9.0, 9.0])]
    activations = written_set(tmp_path, ["Good food here", "bad"], rows)
    first, dead_but_for_a_special = TopKInputs(k=5, window=3)(identity(2), activations)
    assert [(e.before, e.word, e.after, e.activation) for e in first.examples] == [
        ("", "bad", "", 5.0),
        ("", "Good", " fo", 3.0),
    ]
    assert first.extreme == 9.0
    assert dead_but_for_a_special.examples == ()
    assert not dead_but_for_a_special.dead
    cut = TopKInputs(unit="text", longest=6)(identity(2), activations)[0]
    assert [e.word for e in cut.examples] == ["bad", "Good f"]
    only = TopKInputs()(identity(2), activations, concepts=[1])
    assert [each.concept for each in only] == [1]


def test_hidden_examples_hold_no_text(tmp_path: Path) -> None:
    (first, *_) = TopKInputs(unit="word")(identity(3), random_set(tmp_path))
    hidden = first.hidden()
    assert all(e.word.startswith("sha256:") and not e.before and not e.after for e in hidden.examples)
    assert [e.activation for e in hidden.examples] == [e.activation for e in first.examples]
    assert isinstance(hidden, ConceptInputs)
    assert hidden.to_dict()["examples"][0]["word"].startswith("sha256:")


@pytest.mark.parametrize("granularity", ["token", "all_tokens", "word", "sentence", "cls", "sample"])
def test_every_granularity_has_examples(
    tiny_model: Callable[..., TextModel], texts: list[str], granularity: str
) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    activations = split.get_activations(texts, granularity=granularity, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=4).fit(activations, progress=False)
    codes = dictionary.encode(activations)
    for bottom in (False, True):
        for concept, each in enumerate(TopKInputs(k=3, bottom=bottom)(dictionary, activations)):
            assert each.examples
            for example in each.examples:
                text = texts[example.text_index]
                assert example.before + example.word + example.after in text
                assert example.activation == pytest.approx(float(codes[example.row, concept]))
                assert (example.activation < 0) is bottom
    smaller = {"sentence": "word", "sample": "sentence", "cls": "token", "word": "token"}
    if granularity in smaller:
        with pytest.raises(InputError, match=f"on which {smaller[granularity]!r} of a row"):
            TopKInputs(unit=smaller[granularity])(dictionary, activations)


@pytest.mark.parametrize("granularity", ["token", "cls", "sample"])
def test_each_token_of_the_vocabulary_runs_alone(
    tiny_model: Callable[..., TextModel], texts: list[str], granularity: str
) -> None:
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    activations = split.get_activations(texts, granularity=granularity, progress=False)[1]
    dictionary = TopKSAEConcepts(n_concepts=5, k=3).fit(activations, progress=False)
    found = TopKInputs(vocabulary=True, k=6, token_budget=32)(dictionary, split=split)
    vocabulary = model.tokenizer.get_vocab()
    ordinary = [token for token in vocabulary if not token.startswith("[")]
    alone = split.get_activations(ordinary, granularity=granularity, progress=False)[1]
    codes = dictionary.encode(alone)
    for concept, each in enumerate(found):
        column = codes[:, concept]
        order = [i for i in torch.argsort(-column, stable=True).tolist()[:6] if column[i] > 0]
        assert [e.activation for e in each.examples] == pytest.approx([float(column[i]) for i in order], rel=1e-5)
        assert {(e.text_index, e.row) for e in each.examples} <= {(-1, i) for i in vocabulary.values()}
        assert all(model.tokenizer.decode([e.row]) == e.word for e in each.examples)
        assert each.density == pytest.approx(float((column > 0).double().mean()))
    spread = TopKInputs(vocabulary=True, k=6, quantiles=3)(dictionary, split=split, concepts=[0])
    assert {e.word for e in spread[0].examples} <= set(ordinary)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, not 0"),
        ({"window": -1}, "window must be"),
        ({"quantiles": 0}, "quantiles must be"),
        ({"vocabulary": True, "unit": "word"}, "the vocabulary's pieces are tokens"),
    ],
)
def test_parameters_that_cannot_be_used(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TopKInputs(**options)  # type: ignore[arg-type]


def test_what_is_missing_or_wrong_is_said(tmp_path: Path, tiny_model: Callable[..., TextModel]) -> None:
    with pytest.raises(UnknownNameError, match="unknown unit 'line'"):
        TopKInputs(unit="line")
    with pytest.raises(InputError, match="needs activations="):
        TopKInputs()(identity(2))
    with pytest.raises(InputError, match="needs split="):
        TopKInputs(vocabulary=True)(identity(2))
    activations = random_set(tmp_path)
    bad: list[Sequence[object]] = [[3], [-1], [True]]
    for concepts in bad:
        with pytest.raises(InputError, match="there is no concept"):
            TopKInputs()(identity(3), activations, concepts=concepts)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one concept"):
        TopKInputs()(identity(3), activations, concepts=[])
    with pytest.raises(InputError, match="named twice"):
        TopKInputs()(identity(3), activations, concepts=[1, 1])
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    harvested = split.get_activations(["good food"], progress=False)[1]
    dictionary = PCAConcepts(n_concepts=2).fit(harvested, progress=False)
    other = ModelWithSplitPoints(tiny_model("bert", seed=4), [1])
    with pytest.raises(IntegrityError, match="this is another one"):
        TopKInputs(vocabulary=True)(dictionary, split=other)


def test_the_registry_knows_it() -> None:
    assert INTERPRETATIONS.get("top_k_inputs") is TopKInputs
    assert TopKInputs().parameters["k"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"quantiles": 5}])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, options: dict[str, object]) -> None:
    peaks = []
    for n_texts in (50, 1000, 4000):
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(SYLLABLES, 6)) for _ in range(n_texts)]
        spans = [(number, m.start(), m.end()) for number, text in enumerate(texts) for m in re.finditer(r"\S+", text)]
        codes = rng.random((len(spans), 4)).tolist()
        activations = written_set(
            tmp_path / str(n_texts), texts, [(*span, row) for span, row in zip(spans, codes, strict=True)]
        )
        columns = (activations.texts, activations.text_ids, activations.spans)
        assert len(columns) == 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("interpreto_mlops.concepts.base._CHUNK_NUMBERS", 4000)
            patch.setattr("interpreto_mlops.concepts.activations._BUFFER_BYTES", 2**14)
            gc.collect()
            tracemalloc.start()
            TopKInputs(**options)(identity(4), activations)  # type: ignore[arg-type]
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # The first run only loads what is loaded once. A number a row would be 144 kB more.
    assert peaks[2] < 1.2 * peaks[1] + 50_000


def test_a_method_by_its_name(tmp_path: Path) -> None:
    activations = random_set(tmp_path)
    by_name = interpret(identity(3), "top_k_inputs", activations, options={"k": 2}, concepts=[1])
    assert by_name == TopKInputs(k=2)(identity(3), activations, concepts=[1])
    with pytest.raises(UnknownNameError, match="unknown concept interpretation 'top_words'"):
        interpret(identity(3), "top_words", activations)
    with pytest.raises(UnknownNameError, match="option of 'top_k_inputs' 'n'"):
        interpret(identity(3), "top_k_inputs", activations, options={"n": 2})


def test_parameters_are_plain_and_hold_no_text() -> None:
    for name, kind in INTERPRETATIONS.items():
        method: Interpretation[object] = kind()
        assert method.name == name
        assert json.loads(json.dumps(method.parameters)) == method.parameters
    inside = LLMLabels(inputs=TopKInputs(k=3), token_change=TokenChange(sequences=("a secret text",)))
    plain = json.dumps(inside.parameters)
    assert "secret" not in plain
    assert inside.parameters["inputs"]["k"] == 3
    assert inside.parameters["inputs"]["name"] == "top_k_inputs"


def test_words_that_one_token_covers_are_one_word(tmp_path: Path) -> None:
    text = "It is good. This isn't bad at all."
    spans = [(0, 2), (3, 5), (6, 10), (10, 11), (12, 16), (17, 22), (23, 26), (27, 29), (30, 33), (33, 34)]
    rows: list[Row] = [(0, *span, [float(i + 1)]) for i, span in enumerate(spans)]
    activations = written_set(tmp_path, [text], rows, "word")

    def found(unit: str) -> list[str]:
        (each,) = TopKInputs(k=10, unit=unit, unique=False)(identity(1), activations)
        return [example.word for example in each.examples][::-1]

    assert found("word") == [text[a:b] for a, b in spans]
    assert found("2-grams") == [
        "It", "It is", "is good", "good.", "This", "This isn't", "isn't bad", "bad at", "at all", "all.",
    ]  # fmt: skip
    assert found("3-grams")[-3:] == ["isn't bad at", "bad at all", "at all."]
    assert found("sentence") == ["It is good.", "This isn't bad at all."]
    tokens = written_set(tmp_path / "tokens", [text], rows, "token")
    (each,) = TopKInputs(k=10, unit="2-grams", unique=False)(identity(1), tokens)
    assert [example.word for example in each.examples][:3] == ["all.", "at all", "bad at"]
