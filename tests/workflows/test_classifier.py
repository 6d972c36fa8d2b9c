"""The small classifier: it learns, by seed, is saved and loaded whole, and changes nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from interpreto_mlops.errors import DataError, InputError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.library_docs import LABELS, library_docs
from interpreto_mlops.workflows.classifier import TrainedClassifier, train_classifier, train_tokenizer

TOPICS = {
    "sea": "ship wave harbour captain sailor anchor tide island storm fish".split(),
    "kitchen": "soup onion oven butter knife salt recipe plate boil garlic".split(),
    "sky": "cloud star moon rocket orbit telescope planet comet pilot wing".split(),
}
FILLERS = "the a very old and then we saw some of it near this with every".split()


def topics(rows: int, seed: int) -> TextDataset:
    """Texts of a dozen words, two of which belong to the label's topic."""
    draw = random.Random(seed)
    labels = [draw.choice(sorted(TOPICS)) for _ in range(rows)]
    texts = []
    for label in labels:
        words = draw.choices(FILLERS, k=10) + draw.choices(TOPICS[label], k=2)
        draw.shuffle(words)
        texts.append(" ".join(words) + ".")
    return TextDataset("topics", tuple(texts), tuple(labels))


def train_small(*, seed: int = 0, epochs: int = 6) -> TrainedClassifier:
    sizes = {"width": 32, "layers": 2, "max_length": 24, "vocab_size": 200}
    return train_classifier(topics(600, 1), topics(100, 2), seed=seed, epochs=epochs, learning_rate=3e-3, **sizes)


@pytest.fixture(scope="module")
def small() -> TrainedClassifier:
    return train_small()


def test_it_learns_what_can_be_learnt(small: TrainedClassifier) -> None:
    assert small.accuracy > 0.95
    assert [entry["epoch"] for entry in small.history] == [1, 2, 3, 4, 5, 6]
    assert small.history[-1]["loss"] < small.history[0]["loss"]
    assert 0 < small.history[0]["seconds"] < small.history[-1]["seconds"] <= small.seconds


def test_the_accuracy_is_that_of_the_model_returned_on_texts_one_by_one(small: TrainedClassifier) -> None:
    test = topics(100, 2)
    right = 0
    for text, label in zip(test.texts, test.labels or (), strict=True):
        with torch.no_grad():
            logits = small.model(**small.tokenizer(text, return_tensors="pt")).logits
        right += small.model.config.id2label[int(logits.argmax())] == label
    assert right / len(test) == small.accuracy


def test_the_model_is_ready_for_use(small: TrainedClassifier) -> None:
    config = small.model.config
    assert not small.model.training
    assert config.label2id == {"kitchen": 0, "sea": 1, "sky": 2}
    assert config.vocab_size == len(small.tokenizer)
    assert config.pad_token_id == small.tokenizer.pad_token_id == 0
    assert small.tokenizer.model_max_length == config.max_position_embeddings == 24
    assert all(parameter.grad is None for parameter in small.model.parameters())


def test_mask_tokens_are_known_to_the_model(small: TrainedClassifier) -> None:
    """All fillers masked, the two topic words left: the model still sees the topic."""
    test = topics(100, 3)
    right = 0
    for text, label in zip(test.texts, test.labels or (), strict=True):
        masked = " ".join("[MASK]" if word in FILLERS else word for word in text.rstrip(".").split())
        encoded = small.tokenizer(masked, return_tensors="pt")
        assert int((encoded["input_ids"] == small.tokenizer.mask_token_id).sum()) == 10
        with torch.no_grad():
            right += small.model.config.id2label[int(small.model(**encoded).logits.argmax())] == label
    assert right > 90


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (train_small(seed=seed, epochs=1) for seed in (5, 5, 6))
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    weights, again, different = (trained.model.state_dict() for trained in (first, second, other))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert any(not torch.equal(weights[name], different[name]) for name in weights)


def test_no_global_state_is_touched() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    with torch.no_grad():
        train_small(epochs=1)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert (threads, grad) == (torch.get_num_threads(), torch.is_grad_enabled())


def test_saved_and_loaded_it_is_the_same(small: TrainedClassifier, tmp_path: Path) -> None:
    small.model.save_pretrained(tmp_path)
    small.tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    texts = [*topics(5, 4).texts, "Unheard-of wørds, émigrés & 漢字!", "", "the " * 40]
    options = {"truncation": True, "padding": True, "return_tensors": "pt"}
    expected, given = small.tokenizer(texts, **options), tokenizer(texts, **options)
    assert set(expected) == set(given)
    assert torch.equal(expected["input_ids"], given["input_ids"])
    assert given["input_ids"].shape[1] == 24
    with torch.no_grad():
        assert torch.equal(small.model(**expected).logits, model(**given).logits)
    for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "model_max_length"):
        assert getattr(tokenizer, name) == getattr(small.tokenizer, name)
    assert len(tokenizer) == len(small.tokenizer)


def test_the_tokenizer_cuts_lower_cased_words_into_pieces_with_offsets() -> None:
    tokenizer = train_tokenizer(topics(200, 1).texts, vocab_size=150, max_length=16)
    encoded = tokenizer("The SHIP sails", "a star", return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"])[:3] == ["[CLS]", "the", "ship"]
    assert encoded["offset_mapping"][1:3] == [(0, 3), (4, 8)]
    assert encoded["token_type_ids"][-1] == 1
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True).startswith("the ship sails")


def test_labels_are_needed() -> None:
    labelled = topics(20, 1)
    with pytest.raises(DataError, match="'topics' has no labels"):
        train_classifier(replace(labelled, labels=None), labelled)
    with pytest.raises(DataError, match="'topics' has no labels"):
        train_classifier(labelled, replace(labelled, labels=None))


def test_labels_must_differ_and_be_known() -> None:
    labelled = topics(20, 1)
    with pytest.raises(DataError, match="the one label 'sea'"):
        train_classifier(replace(labelled, labels=("sea",) * 20), labelled)
    with pytest.raises(DataError, match="'forest' is not among the training labels: kitchen, sea, sky"):
        train_classifier(labelled, replace(labelled, labels=("forest",) * 20))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"width": 100}, "width must be a multiple of 32, not 100"),
        ({"max_length": 2}, "max_length must be at least 3"),
        ({"vocab_size": -1}, "vocab_size must be at least 1, not -1"),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_classifier(topics(20, 1), topics(20, 2), **sizes)


def test_the_vocabulary_is_the_same_in_another_process() -> None:
    """Random words tie all the time, and each process orders its hash maps in another way."""
    code = """
import random
from interpreto_mlops.workflows.classifier import train_tokenizer
draw = random.Random(0)
words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(2000)]
print(sorted(train_tokenizer([" ".join(words), " ".join(words)], vocab_size=400, max_length=64).get_vocab().items()))
"""
    command = [sys.executable, "-c", code]
    root = Path(__file__).resolve().parents[2]
    first, second = (subprocess.run(command, capture_output=True, text=True, cwd=root, check=True) for _ in range(2))
    assert first.stdout == second.stdout
    assert first.stdout.count("##") > 100


@pytest.mark.slow
def test_the_corpus_of_docstrings_is_learnt() -> None:
    trained = train_classifier(library_docs("train"), library_docs("test"))
    assert trained.accuracy > 0.80
    assert set(trained.model.config.label2id) == set(LABELS)
