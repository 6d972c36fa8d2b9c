from __future__ import annotations

import numpy as np
import pytest

from interpreto_mlops.attributions.results import Target
from interpreto_mlops.visuals.highlight import Tone, highlight
from tests.visuals.hostile import HOSTILE, attribution


@pytest.mark.parametrize("granularity", ["word", "sentence"])
@pytest.mark.parametrize("text", HOSTILE)
def test_pieces_join_to_the_text_and_hold_each_element_once_in_order(text: str, granularity: str) -> None:
    item = attribution(text, granularity=granularity)
    marks = highlight(item)
    assert "".join(piece.text for piece in marks.pieces) == text
    assert tuple(piece.text for piece in marks.pieces if piece.tones) == item.elements
    assert marks.outside == ()


@pytest.mark.parametrize("seed", range(20))
def test_any_spans_join_to_the_text_and_lose_no_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(list("ab <&"), size=40))
    spans = np.sort(rng.integers(0, 41, size=(12, 2)), axis=1)
    item = attribution(
        text,
        spans=spans,
        elements=tuple(text[a:b] for a, b in spans),
        scores=rng.normal(size=(1, 12)),
        standard_error=None,
    )
    marks = highlight(item)
    assert "".join(piece.text for piece in marks.pieces) == text
    drawn = [tone for piece in (*marks.pieces, *marks.outside) for tone in piece.tones]
    assert len(drawn) == 12
    assert sum(tone.sign == "for" for tone in drawn) == (item.scores > 0).sum()
    assert {piece.text for piece in marks.outside} <= {""}


def test_elements_on_the_same_characters_stand_side_by_side() -> None:
    item = attribution(
        "a 😀 b",
        spans=np.array([[0, 1], [2, 3], [2, 3], [4, 5]]),
        elements=("a", "😀", "😀", "b"),
        scores=np.array([[0.0, 1.0, -0.5, np.nan]]),
        standard_error=None,
    )
    pieces = [piece for piece in highlight(item).pieces if piece.tones]
    assert [piece.text for piece in pieces] == ["a", "😀", "b"]
    assert [tone.sign for tone in pieces[1].tones] == ["for", "against"]
    assert "0% 50%" in pieces[1].style
    assert "50% 100%" in pieces[1].style
    assert pieces[1].title.count("\n") == 1
    assert pieces[1].css_class == "shared"


def test_tokens_without_a_place_stand_beside_the_text() -> None:
    item = attribution(
        "good",
        spans=np.array([[0, 0], [0, 4], [0, 0]]),
        elements=("[CLS]", "good", "[SEP]"),
        scores=np.array([[0.1, 1.0, -0.2]]),
        standard_error=None,
    )
    marks = highlight(item)
    assert [piece.text for piece in marks.outside] == ["[CLS]", "[SEP]"]
    assert [piece.text for piece in marks.pieces] == ["good"]


def test_the_sign_follows_the_score_and_the_strength_its_size() -> None:
    scores = np.array([[2.0, -1.0, 0.0, np.nan, np.inf, 1.0]])
    item = attribution("a b c d e f", scores=scores, standard_error=None)
    pieces = [piece for piece in highlight(item).pieces if piece.tones]
    tones = [piece.tones[0] for piece in pieces]
    assert tones == [
        Tone("for", 1.0),
        Tone("against", 0.5),
        Tone("zero", 0.0),
        Tone("unknown", 0.0),
        Tone("unknown", 0.0),
        Tone("for", 0.5),
    ]
    assert "--for" in pieces[0].style
    assert "--against" in pieces[1].style
    assert "transparent" in pieces[2].style
    assert "--unknown" in pieces[3].style
    assert tones[0].opacity > tones[1].opacity == tones[5].opacity
    assert pieces[3].title == "no finite score"
    assert pieces[0].title.startswith("+2.000 · rank ")


def test_the_standard_error_is_in_the_title() -> None:
    item = attribution("good", scores=np.array([[0.5]]), standard_error=np.array([[0.012]]))
    assert highlight(item).pieces[0].title == "+0.500 ± 0.012 · rank 1 of 1"


def test_scores_that_are_all_zero_or_missing_divide_by_nothing() -> None:
    for value in (0.0, np.nan):
        item = attribution("a b", scores=np.full((1, 2), value), standard_error=None)
        marks = highlight(item)
        assert marks.speaks_for == marks.speaks_against == ()
        assert {tone.strength for piece in marks.pieces for tone in piece.tones} == {0.0}


def test_top_words_are_those_of_the_largest_scores_of_each_sign() -> None:
    scores = np.array([[1.0, 7, -3, 4, -9, 0, 2, 5, 6, np.nan]])
    marks = highlight(attribution("a b c d e f g h i j", scores=scores, standard_error=None))
    assert [(word.text, word.score) for word in marks.speaks_for] == [("b", 7), ("i", 6), ("h", 5), ("d", 4), ("g", 2)]
    assert [(word.text, word.score) for word in marks.speaks_against] == [("e", -9), ("c", -3)]


def test_each_target_has_its_own_colours() -> None:
    item = attribution(
        "a b",
        scores=np.array([[1.0, 0.0], [0.0, -1.0]]),
        standard_error=None,
        targets=(Target(0, "no"), Target(1, "yes")),
    )
    signs = [[tone.sign for piece in highlight(item, row).pieces for tone in piece.tones] for row in (0, 1)]
    assert signs == [["for", "zero"], ["zero", "against"]]


def test_the_end_that_the_model_did_not_read_is_told_apart() -> None:
    text = "seen part and the unseen rest"
    item = attribution(
        text,
        spans=np.array([[0, 4], [5, 9]]),
        elements=("seen", "part"),
        scores=np.ones((1, 2)),
        standard_error=None,
        truncated=True,
    )
    last = highlight(item).pieces[-1]
    assert (last.text, last.unseen) == (" and the unseen rest", True)
    assert not any(piece.unseen for piece in highlight(attribution(text)).pieces)
