"""The page of an audit shows what the report says, and nothing that it shows can do anything."""

from __future__ import annotations

from typing import Any

import pytest

from interpreto_mlops.errors import InputError
from interpreto_mlops.visuals.audit_html import render_audit
from tests.visuals.hostile import PAYLOADS, assert_harmless


def report(text: str, n_hits: int = 3) -> dict[str, Any]:
    """An audit as its JSON has it, all texts of which are this one."""
    hits = [{"word": text, "text_index": place, "class_name": text, "rank": 1, "score": 0.5} for place in range(n_hits)]
    facts = [
        {"verdict": "failed", "run": "abc", "method": text, "texts_of_class": {text: 3}, "hits": hits, "odd": None}
    ]
    rule = {"rule": "words", "title": text, "verdict": "failed", "detail": text, "evidence": ["runs:/abc/x", text]}
    return {
        "uri": text,
        "pinned": text,
        "subject": "model",
        "against": None,
        "policy": text,
        "policy_sha256": "0" * 64,
        "promote": None,
        "at": "2026-01-01T00:00:00+00:00",
        "verdict": "failed",
        "rules": [{**rule, "facts": facts}],
        "set_aside": [{"run": "def", "why": text}],
    }


@pytest.mark.parametrize("text", PAYLOADS)
def test_hostile_texts_do_nothing(text: str) -> None:
    page = assert_harmless(render_audit(report(text), links={"abc": "https://host/run"}, policy=text, command=text))
    links = [attributes["href"] for attributes, _ in page.find("a") if not attributes["href"].startswith("#")]
    assert set(links) == {"https://host/run"}
    assert [shown for _, shown in page.find("pre")] == [text, text]


def test_the_verdict_and_what_decided_it_are_shown() -> None:
    page = assert_harmless(render_audit(report("she"), links={"abc": "https://host/run"}, policy="rules: []"))
    assert [shown for _, shown in page.find("p", "lead")] == ["she fails the policy."]
    assert [shown for _, shown in page.find("h2")] == ["Rules", "1. she", "Runs that are no evidence", "Policy"]
    assert [shown for _, shown in page.find("td", "second")] == ["failed", "failed"]


def test_of_many_hits_the_first_are_shown() -> None:
    page = assert_harmless(render_audit(report("she", 1000), links={}, policy=""))
    assert any("the first 200 of 1000" in shown for _, shown in page.find("summary"))


def test_a_link_that_could_run_code_is_refused() -> None:
    with pytest.raises(InputError, match="javascript"):
        render_audit(report("she"), links={"abc": "javascript:alert(1)"}, policy="")
