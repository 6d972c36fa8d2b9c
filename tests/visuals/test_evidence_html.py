"""The page of a comparison of evidence shows what its plain data say, whatever that is."""

from __future__ import annotations

from interpreto_mlops.visuals.evidence_html import lead, render_page
from tests.visuals.hostile import PAYLOADS, assert_harmless

X = PAYLOADS[0]
EMPTY = {
    name: []
    for name in (
        *("subjects", "groups", "pairing", "table", "pairs", "single", "agreement", "changed", "targets"),
        *("dictionaries", "shifts", "notes"),
    )
}
PAIR = {"method": X, "first": "A", "second": "B"}


def content(**changes):
    return {**EMPTY, **changes}


def score(subject, mean, **changes):
    values = {"low": None, "high": None, "random_mean": None, "p_random": None, "texts": 3, "skipped": 1}
    named = {"method": X, "metric": "deletion", "higher_is_better": False, "subject": subject, "mean": mean}
    return {**named, **values, **changes}


def body(given):
    return assert_harmless(render_page(given, X, X)).find("body")[0][1]


def test_a_page_of_nothing_says_nothing_and_is_a_page():
    assert "How to repeat it" in body(content())


def test_means_differences_and_what_was_not_tested():
    pair = {**PAIR, "metric": "deletion", "low": None, "high": None, "p_value": None, "p_holm": None, "better": ""}
    table = [
        score("A", 0.25),
        score("B", None, texts=0),
        score("C", 0.5, low=0.4, high=0.6, random_mean=0.3, p_random=1e-5),
    ]
    pairs = [
        {**pair, "paired": False, "texts": 0, "difference": None},
        {**pair, "second": "C", "paired": True, "texts": 9, "difference": -0.25, "low": -0.3, "high": -0.2}
        | {"p_holm": 0.004, "better": "A"},
    ]
    shown = body(content(table=table, pairs=pairs, notes=[X]))
    for words in (
        "other texts: not tested",
        "\u22120.250",
        "p 0.004, 9 texts",
        "A is better",
        "random 0.300 (p < 0.001)",
    ):
        assert words in shown
    assert "3 texts, 1 not judged" in shown
    assert X in shown
    assert lead(content(pairs=pairs)) == "1 of 1 differences between metrics on the same texts are significant."


def test_agreement_and_the_texts_that_changed_with_hostile_words():
    agreement = [
        {**PAIR, "measure": "spearman", "mean": 0.5, "low": 0.25, "high": 0.75, "texts": 4, "random": 0.0},
        {**PAIR, "measure": "overlap", "mean": None, "low": None, "high": None, "texts": 0, "random": None},
    ]
    text = {"index_first": 0, "index_second": 1, "text": PAYLOADS[2]}
    changed = [{**PAIR, **text, "target": X, "words_first": PAYLOADS[3], "words_second": X, "spearman": -1.0}]
    changed[0] |= {"kendall": -1.0, "overlap": None}
    targets = [{**PAIR, **text, "target_first": PAYLOADS[5], "target_second": X}] * 300
    shown = body(content(agreement=agreement, changed=changed, targets=targets))
    assert "chance 0.000, 4 texts" in shown
    assert PAYLOADS[3] in shown
    assert "The first 200 of 300; the JSON has all." in shown
    assert "A and B rank words alike by 0.500" in lead(content(agreement=agreement))


def test_concepts_and_importance_with_hostile_labels():
    matched = {
        "first": 0,
        "second": 3,
        "similarity": 0.9,
        "label_first": X,
        "label_second": None,
        "label_changed": None,
    }
    changed = {**matched, "first": 1, "label_second": PAYLOADS[1], "label_changed": True}
    new = {"concept": 7, "label": PAYLOADS[4], "nearest": 1, "nearest_label": None, "similarity": 0.1}
    match = {**PAIR, "uri_first": "models:/a/1", "uri_second": X, "by": "activations", "threshold": 0.7, "mean": 0.6}
    match |= {"random_mean": 0.2, "n_pairs": 2, "n_changed_labels": 1, "silent": [0, 4], "rows": 1234, "unit": "texts"}
    match |= {"matched": [matched, changed], "new": [new], "vanished": []}
    shift = {**PAIR, "class": X, "concept_first": 0, "label_first": X, "concept_second": 3, "label_second": None}
    shift |= {"share_first": 0.1, "share_second": -0.1, "shift": -0.2}
    shown = body(content(dictionaries=[match], shifts=[shift]))
    for words in ("correlation of codes, on 1,234 texts", "0 / 4", "chance 0.200, 2 pairs", PAYLOADS[4], "\u22120.200"):
        assert words in shown
    assert shown.index("another") < shown.index("missing")
    assert "have 2 concepts in common; new: 1, vanished: 0." in lead(content(dictionaries=[match]))


def test_metrics_of_dictionaries_stand_side_by_side_without_interval():
    row = {"method": X, "metric": "reconstruction/r2", "higher_is_better": True, "run": None, "link": None}
    rows = [{**row, "subject": "A", "value": 0.5, "random": None}, {**row, "subject": X, "value": None, "random": 0.1}]
    shown = body(content(single=rows))
    assert "it has no interval and no test" in shown
    assert "reconstruction/r2 ↑" in shown
    assert "n/a" in shown
