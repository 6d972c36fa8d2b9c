from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from interpreto_mlops.concepts.interpretation import Word
from interpreto_mlops.visuals import concepts_html
from tests.visuals.concept_samples import dead, description, hostile_descriptions, importance
from tests.visuals.hostile import HOSTILE, PAYLOADS, UNPRINTABLE, Page, assert_harmless

PLAIN = {"title": "Concepts", "facts": {"Layer": "encoder.layer.1"}, "metrics": {}}


def test_hostile_words_contexts_and_classes_do_nothing() -> None:
    descriptions = hostile_descriptions()
    values = np.random.default_rng(0).normal(size=(len(PAYLOADS), len(descriptions)))
    html = concepts_html.render_page(
        descriptions,
        importance(values, PAYLOADS),
        title=PAYLOADS[1],
        facts={PAYLOADS[0]: PAYLOADS[2]},
        metrics={PAYLOADS[3]: 0.5},
    )
    page = assert_harmless(html)
    marks = {text for _, text in page.find("mark")}
    assert marks >= set(HOSTILE) - {UNPRINTABLE}
    assert {text for _, text in page.find("h3")} >= set(PAYLOADS)


def test_a_context_reads_as_the_text_did() -> None:
    page = Page(concepts_html.render_page([description(0, ("good",))], None, **PLAIN))
    assert [text for _, text in page.find("li")] == ["such a good thing"]
    assert [text for _, text in page.find("mark")] == ["good"]


def test_concepts_of_the_largest_share_come_first() -> None:
    shares = importance(np.array([[1.0, -5.0, 0.5], [1.0, 0.2, 6.0]]))
    page = Page(concepts_html.render_page([description(i, (f"word{i}",)) for i in range(3)], shares, **PLAIN))
    assert [attributes["id"] for attributes, _ in page.find("section") if "id" in attributes] == [
        "concept-2",
        "concept-1",
        "concept-0",
    ]


def test_without_importance_the_given_order_stays() -> None:
    page = Page(concepts_html.render_page([description(i, (f"word{i}",)) for i in (4, 2, 9)], None, **PLAIN))
    assert [text for _, text in page.find("h3")] == ["word4", "word2", "word9"]


def test_bars_show_sign_and_size_of_the_share() -> None:
    html = concepts_html.render_page(
        [description(0), description(1)], importance(np.array([[3.0, -1.0]]), ("yes",)), **PLAIN
    )
    section = Page(html).find("section")[0][1]
    assert "+75 %" in section
    assert "−25 %" in section
    first = html[html.index("What speaks for each class") : html.index("The concepts")]
    assert re.findall(r'bar (for|against)" style="width:([\d.]+)%', first) == [("for", "100.0"), ("against", "33.3")]


def test_bars_lead_to_the_cards_that_are_there_and_to_no_other() -> None:
    shares = importance(np.array([[3.0, 2.0, 1.0]]), ("yes",))
    page = Page(concepts_html.render_page([description(i) for i in range(3)], shares, **PLAIN, max_concepts=2))
    targets = {attributes["href"] for attributes, _ in page.find("a")}
    assert targets == {"#concept-0", "#concept-1"}
    assert any("1 more concepts are left out" in text for _, text in page.find("p", "note"))


def test_dead_concepts_are_listed_and_have_no_card() -> None:
    page = Page(concepts_html.render_page([dead(3), description(4), dead(8)], None, **PLAIN))
    assert len(page.find("h3")) == 1
    assert "2 concepts are never active" in page.find("summary")[0][1]
    assert page.find("details")[0][1].endswith("3, 8")


@pytest.mark.parametrize("descriptions", [[], [dead(0)]])
def test_nothing_to_show_is_still_a_page(descriptions: list[object]) -> None:
    assert "There is no concept to show." in concepts_html.render_page(descriptions, None, **PLAIN)


def test_a_class_that_was_never_predicted_says_so() -> None:
    shares = importance(np.array([[1.0, 2.0], [np.nan, np.nan]]))
    page = Page(concepts_html.render_page([description(0), description(1)], shares, **PLAIN))
    assert "No text was predicted as this class" in page.find("section")[1][1]


def test_many_classes_are_cut_and_counted() -> None:
    shares = importance(np.ones((30, 1)), tuple(f"class {i}" for i in range(30)))
    html = concepts_html.render_page([description(0)], shares, **PLAIN)
    assert "6 more classes are left out" in html


def test_metrics_tell_their_direction_and_the_caller_may_add_some() -> None:
    page = Page(
        concepts_html.render_page(
            [description(0)],
            None,
            title="x",
            facts={},
            metrics={"reconstruction/r2": 0.9, "reconstruction/mse": float("nan"), "own/one": 1.0, "own/two": 2.0},
            higher_is_better={"own/one": True},
        )
    )
    names = [text for _, text in page.find("td", "name")]
    assert names == ["reconstruction/r2 ↑", "reconstruction/mse ↓", "own/one ↑", "own/two"]
    assert "n/a" in [text for _, text in page.find("td", "num")]


def test_activations_below_zero_are_red_and_explained() -> None:
    signed = replace(description(0), words=(Word("bad", -2.0, 1),))
    html = concepts_html.render_page([signed], None, **PLAIN)
    assert "A red bar is an activation below zero." in html
    assert 'class="bar against"' in html
    assert "A red bar" not in concepts_html.render_page([description(0)], None, **PLAIN)
