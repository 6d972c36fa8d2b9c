from __future__ import annotations

import re

import numpy as np
import pytest

from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.attributions.results import AttributionSet, Target
from interpreto_mlops.visuals import attributions_html
from tests.visuals.hostile import HOSTILE, PAYLOADS, UNPRINTABLE, Page, assert_harmless, attribution, continued


def result(
    name: str = "deletion", method: str = "occlusion", *, higher: bool = False, **changes: object
) -> MetricResult:
    curve = np.column_stack([np.linspace(0, 1, 5), np.linspace(0.9, 0.1, 5)])
    values: dict[str, object] = {
        "name": name,
        "method": method,
        "values": np.array([0.2, 0.3, np.nan]),
        "random_values": np.array([0.5, 0.6, np.nan]),
        "better_than_random": np.array([1.0, 0.5, np.nan]),
        "higher_is_better": higher,
        "curve": curve,
        "random_curve": curve,
        "skipped": {"no elements": 1},
    }
    return MetricResult(**{**values, **changes})  # type: ignore[arg-type]


def hostile_sets() -> list[AttributionSet]:
    return [
        AttributionSet(
            [attribution(text, index=i, method=method, seed=seed) for i, text in enumerate(HOSTILE)], seconds=1.25
        )
        for seed, method in enumerate(["occlusion", "<b>shap</b>"])
    ]


def test_hostile_texts_are_shown_whole_and_do_nothing() -> None:
    html = attributions_html.render_page(
        hostile_sets(), title=PAYLOADS[0], scores=[result()], facts={PAYLOADS[1]: PAYLOADS[2]}, max_texts=99
    )
    page = assert_harmless(html)
    blocks = page.texts()
    assert len(blocks) == 2 * len(HOSTILE)
    for i, text in enumerate(HOSTILE):
        if text != UNPRINTABLE:
            assert blocks[2 * i] == blocks[2 * i + 1] == text
    assert page.find("h1")[0][1] == PAYLOADS[0]


def test_the_page_forbids_scripts_and_everything_from_outside() -> None:
    html = attributions_html.render_page([AttributionSet([attribution("fine")])], title="x")
    policy = [attributes for attributes, _ in Page(html).find("meta") if "http-equiv" in attributes]
    assert [attributes["content"] for attributes in policy] == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ]
    assert html.index("charset") < html.index("<title>")
    assert not re.search(r"https?://", html)
    assert "<script" not in html


def test_every_element_is_a_span_whose_class_is_the_sign_of_its_score() -> None:
    item = attribution("good bad neutral odd", scores=np.array([[1.0, -1.0, 0.0, np.nan]]), standard_error=None)
    spans = Page(attributions_html.render_page([AttributionSet([item])], title="x")).find("span", "e")
    assert [(text, attributes["class"].split()[1]) for attributes, text in spans] == [
        ("good", "for"),
        ("bad", "against"),
        ("neutral", "zero"),
        ("odd", "unknown"),
    ]


def test_methods_of_the_same_text_stand_beneath_each_other() -> None:
    texts = ["good soup", "bad soup", "no soup"]
    first = AttributionSet([attribution(text, index=i) for i, text in enumerate(texts)])
    second = AttributionSet(
        [attribution(text, index=i, method="lime", seed=1) for i, text in reversed([*enumerate(texts)][1:])]
    )
    page = Page(attributions_html.render_page([first, second], title="x"))
    assert page.texts() == ["good soup", "bad soup", "bad soup", "no soup", "no soup"]
    assert [text for _, text in page.find("span", "method")] == ["occlusion", "occlusion", "lime", "occlusion", "lime"]


def test_parameters_that_all_methods_share_are_said_once() -> None:
    first = AttributionSet([attribution("a", parameters={"granularity": "word", "seed": 1})])
    second = AttributionSet([attribution("a", method="lime", parameters={"granularity": "word", "seed": 2})])
    page = Page(attributions_html.render_page([first, second], title="x"))
    assert [text for _, text in page.find("dt")] == ["granularity"]
    assert [text for _, text in page.find("span", "tag")] == ["seed 1", "seed 2"]


def test_too_many_texts_are_cut_and_counted() -> None:
    items = [attribution(f"text {i}", index=i) for i in range(60)]
    page = Page(attributions_html.render_page([AttributionSet(items)], title="x"))
    assert len(page.texts()) == 50
    assert any("10 more texts are left out" in text for _, text in page.find("p", "note"))
    assert sum("open" in attributes for attributes, _ in page.find("details")) == 10


def test_a_text_without_elements_or_targets_says_so() -> None:
    nothing = attribution("   ")
    untargeted = attribution(
        "",
        index=1,
        targets=(),
        scores=np.zeros((0, 0)),
        output=np.zeros(0),
        baseline_output=np.zeros(0),
        standard_error=None,
    )
    html = attributions_html.render_page([AttributionSet([nothing, untargeted])], title="x")
    assert html.count("Nothing to attribute") == 2
    assert Page(html).texts() == ["   ", ""]


def test_nothing_at_all_is_still_a_page() -> None:
    assert "There are no texts." in attributions_html.render_page([], title="x")
    assert "There are no texts." in attributions_html.render_page([AttributionSet([])], title="x")


def test_truncated_texts_are_marked() -> None:
    item = attribution("read this not that", truncated=True)
    cut = attribution(
        "read this not that",
        spans=item.spans[:2],
        elements=item.elements[:2],
        scores=item.scores[:, :2],
        standard_error=None,
        truncated=True,
    )
    page = Page(attributions_html.render_page([AttributionSet([cut])], title="x"))
    assert [text for _, text in page.find("span", "unseen")] == [" not that"]
    assert any("truncated" in text for _, text in page.find("span", "warn"))


def test_the_score_table_tells_direction_value_interval_random_and_skipped() -> None:
    scores = [result(), result(method="lime"), result("insertion", higher=True, curve=None)]
    page = Page(attributions_html.render_page([AttributionSet([attribution("a")])], title="x", scores=scores))
    metrics = [text for _, text in page.find("td", "metric")]
    assert len(metrics) == 2
    assert metrics[0].startswith("deletion ↓")
    assert metrics[1].startswith("insertion ↑")
    cells = [text for _, text in page.find("td", "num")]
    low, high = scores[0].interval()
    assert "0.250" in cells
    assert f"{low:.3f} … {high:.3f}" in cells
    assert "0.550" in cells
    assert "75 %" in cells
    assert any(attributes.get("title", "").startswith("no elements: 1") for attributes, _ in page.find("td"))
    assert len(page.find("img")) == 1


def test_marks_on_the_axis_lie_within_it_and_in_order() -> None:
    scores = [result(values=np.array([0.2, 0.4]), random_values=np.array([-0.5, -0.6]), better_than_random=np.ones(2))]
    html = attributions_html.render_page([AttributionSet([attribution("a")])], title="x", scores=scores)
    place = {name: float(left) for name, left in re.findall(r'<i class="(\w+)" style="left:([\d.]+)%', html)}
    assert 0 <= place["random"] < place["interval"] <= place["mean"] <= 100


def test_a_metric_that_skipped_every_text_has_no_mark() -> None:
    empty = np.full(2, np.nan)
    scores = [result(values=empty, random_values=empty, better_than_random=empty, curve=None)]
    html = attributions_html.render_page([AttributionSet([attribution("a")])], title="x", scores=scores)
    assert "n/a … n/a" in html
    assert '<i class="' not in html


def test_a_fragment_brings_its_style_and_no_page() -> None:
    html = attributions_html.render_fragment(
        AttributionSet([attribution(text, index=i) for i, text in enumerate(HOSTILE)])
    )
    page = assert_harmless(html)
    assert not page.find("html")
    assert page.texts() == list(HOSTILE[:10])
    assert f"{len(HOSTILE) - 10} more texts" in html


def test_a_set_shows_itself_in_a_notebook_and_plots() -> None:
    shown = AttributionSet([attribution("good soup")])
    assert Page(shown._repr_html_()).texts() == ["good soup"]
    assert len(shown.plot().axes) == 1


def test_the_same_results_give_the_same_page() -> None:
    pages = {attributions_html.render_page(hostile_sets(), title="x", scores=[result()]) for _ in range(2)}
    assert len(pages) == 1


@pytest.mark.parametrize(
    ("value", "written"),
    [("word", ["word"]), (0.01, ["0.01"]), (None, []), ([1, 2], ["1, 2"]), (True, ["True"]), (3, ["3"])],
)
def test_parameters_of_any_kind_are_written(value: object, written: list[str]) -> None:
    html = attributions_html.render_page([AttributionSet([attribution("a", parameters={"p": value})])], title="x")
    assert [text for _, text in Page(html).find("dd")] == written


def test_several_targets_are_a_matrix_whose_cells_say_their_scores() -> None:
    item = continued("Once upon a time ", "there was <b>Lily</b> & a dog")
    html = attributions_html.render_page([AttributionSet([item])], title="x")
    page = assert_harmless(html)
    cells = page.find("td", "cell")
    assert len(cells) == item.scores.size
    for (attributes, content), score in zip(cells, item.scores.ravel(), strict=True):
        assert content == ""
        if np.isnan(score):
            assert "nothing" in attributes["class"].split()
            assert attributes["title"].endswith(": nothing to attribute")
            assert "style" not in attributes
        else:
            assert attributes["title"].endswith(f": {score:+.3f}".replace("-", "−"))
            assert attributes["class"].split()[1] == ("for" if score > 0 else "against")
    heads = [text for _, text in page.find("th", "element")]
    assert heads == list(item.elements)
    assert [text for attributes, text in page.find("th", "begins")] == ["there"]


def test_each_target_is_shown_over_the_whole_text_with_what_it_explains_marked() -> None:
    item = continued("Once upon a time ", "there was Lily")
    page = Page(attributions_html.render_page([AttributionSet([item])], title="x"))
    assert page.texts() == [item.text] * 3
    marked = [text for _, text in page.find("span", "target")]
    assert marked == ["there", "was", "Lily"]
    assert [text for _, text in page.find("span", "begins")] == ["there"] * 3
    later = [text for _, text in page.find("span", "later")]
    assert later == ["there", "was", "Lily", "was", "Lily", "Lily"]
    assert any("there (1 of 3)" in text for _, text in page.find("summary"))


def test_a_contrast_and_a_name_of_white_space_can_be_read() -> None:
    targets = (Target(1, "\n", positions=(1,), contrast=(2,), contrast_name=" "), Target(2, "cat", positions=(2,)))
    item = continued("a b ", "c d", targets=targets)
    page = Page(attributions_html.render_page([AttributionSet([item])], title="x"))
    assert any("⏎ (1 of 2) rather than ␣" in text for _, text in page.find("summary"))


def test_hostile_continuations_and_targets_do_nothing() -> None:
    items = [continued(PAYLOADS[i - 1], text, index=i, method=PAYLOADS[0]) for i, text in enumerate(PAYLOADS)]
    page = assert_harmless(attributions_html.render_page([AttributionSet(items)], title="x"))
    shown = set(page.texts())
    assert {item.text for item in items} <= shown
    assert_harmless(f"<html>{attributions_html.render_fragment(AttributionSet(items))}</html>")


def test_many_targets_and_long_texts_stay_small_enough_and_say_what_is_left_out() -> None:
    item = continued("word " * 150, "more " * 60)
    html = attributions_html.render_page([AttributionSet([item])], title="x")
    page = Page(html)
    assert len(page.find("td", "cell")) == 40 * 80
    assert any(
        "20 more targets and 130 elements of smaller scores are left out" in t for _, t in page.find("p", "note")
    )
    many = AttributionSet([continued("word " * 100, "more " * 20, index=i) for i in range(40)])
    html = attributions_html.render_page([many], title="x")
    assert len(html) < 12e6
    assert "more texts are left out" in html


def test_the_page_says_what_a_method_asked_for_also_where_others_had_it_evaluated():
    counters = {"evaluations_asked": 75.0, "evaluations_run": 0.0}
    page = attributions_html.render_page([AttributionSet([], counters=counters)], title="…")
    assert '<td class="num">75</td>' in page
