"""Words and sentences on raw text, and tokens grouped into them."""

from __future__ import annotations

import numpy as np
import pytest

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.text.granularity import (
    NO_ELEMENT,
    Granularity,
    elements_of,
    ngram_spans,
    parse_grain,
    sentence_spans,
    word_spans,
)


def words(text):
    return [text[a:b] for a, b in word_spans(text)]


def sentences(text):
    return [text[a:b] for a, b in sentence_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop.", ["Don", "'", "t", "stop", "."]),
        ("naïve café 3.5€", ["naïve", "café", "3", ".", "5", "€"]),
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("日本語 ok", ["日", "本", "語", "ok"]),
        ("👩\u200d💻!", ["👩\u200d", "💻", "!"]),
        ("❤\ufe0f", ["❤\ufe0f"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("a_b", ["a", "_", "b"]),
        ("  \t\n\u200b", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs 3.5 dollars. Cheap!", ["It costs 3.5 dollars.", "Cheap!"]),
        ("Mr. Smith met Dr. Jones. They ate.", ["Mr. Smith met Dr. Jones.", "They ate."]),
        ('He said "no." She left?', ['He said "no."', "She left?"]),
        ("one\ntwo\n\nthree", ["one", "two", "three"]),
        ("e.g. this one... yes", ["e.g. this one...", "yes"]),
        ("no end", ["no end"]),
        ("  ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


def elements(text, offsets, granularity, special=None):
    offsets = np.array(offsets).reshape(-1, 2)
    special = np.zeros(len(offsets), dtype=bool) if special is None else np.array(special, dtype=bool)
    return elements_of(text, Granularity(granularity), offsets, special, tuple(f"t{i}" for i in range(len(offsets))))


def test_pieces_of_one_word_join():
    found = elements("unhappy dog", [(0, 0), (0, 2), (2, 7), (8, 11), (0, 0)], "word", [1, 0, 0, 0, 1])
    assert found.names == ("unhappy", "dog")
    assert found.of_token.tolist() == [NO_ELEMENT, 0, 0, 1, NO_ELEMENT]


def test_offsets_with_leading_space_belong_to_the_word_behind_it():
    found = elements("a dog", [(0, 1), (1, 5)], "word")
    assert found.names == ("a", "dog")


def test_a_token_over_two_words_joins_them():
    found = elements("in the end", [(0, 6), (7, 10)], "word")
    assert found.names == ("in the", "end")


def test_the_byte_tokens_of_one_emoji_are_one_word_but_several_tokens():
    spans = [(0, 1)] * 3
    assert elements("😀", spans, "word").of_token.tolist() == [0, 0, 0]
    assert elements("😀", spans, "token").names == ("😀", "😀", "😀")


def test_white_space_is_no_element():
    assert elements("a  ", [(0, 1), (1, 2), (2, 3)], "token").of_token.tolist() == [0, NO_ELEMENT, NO_ELEMENT]


def test_special_tokens_are_elements_only_when_all_tokens_are_asked_for():
    found = elements("a", [(0, 0), (0, 1)], "all_tokens", [1, 0])
    assert found.names == ("t0", "a")
    assert elements("a", [(0, 0), (0, 1)], "token", [1, 0]).names == ("a",)


def test_words_after_the_cut_are_no_elements():
    assert elements("good food here", [(0, 4), (5, 9)], "word").names == ("good", "food")


def test_without_offsets_only_tokens_work():
    special = np.array([True, False])
    found = elements_of("x", Granularity.TOKEN, None, special, ("[CLS]", "x"))
    assert found.names == ("x",)
    with pytest.raises(InputError, match="'word' needs character offsets"):
        elements_of("x", Granularity.WORD, None, special, ("[CLS]", "x"))


def test_an_unknown_granularity_names_the_known():
    with pytest.raises(UnknownNameError, match="'all_tokens', 'token', 'word', 'sentence'"):
        Granularity.parse("paragraph")


@pytest.mark.parametrize("n", [1, 2, 3, 50])
def test_ngrams_are_runs_of_words_that_end_with_their_sentence(n):
    text = "The food was great. We loved it, really! 3.5 stars\nnever again"
    runs = ngram_spans(text, n).tolist()
    for start, end in sentence_spans(text).tolist():
        words = word_spans(text[start:end]) + start
        inside = [run for run in runs if start <= run[0] and run[1] <= end]
        assert [run[0] for run in inside] == words[::n, 0].tolist()
        assert [run[1] for run in inside] == [
            *words[n - 1 :: n, 1].tolist(),
            *([words[-1, 1]] if len(words) % n else []),
        ]
    assert len(runs) == sum(-(-len(word_spans(text[a:b])) // n) for a, b in sentence_spans(text).tolist())


@pytest.mark.parametrize("name", ["0-grams", "-1-grams", "grams", "2 grams", "words", "x-grams"])
def test_an_unknown_granularity_is_refused_with_the_known_ones(name):
    with pytest.raises(UnknownNameError, match=f"unknown granularity '{name}'; known: 'all_tokens', .*'2-grams'"):
        parse_grain(name)
