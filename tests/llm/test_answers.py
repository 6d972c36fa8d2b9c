"""Answers that are one JSON object of the right form, and everything else, which is refused."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ConfigDict

from interpreto_mlops.errors import NotAskedError, RefusalError
from interpreto_mlops.llm import Answer
from interpreto_mlops.llm.answers import schema_of, strict_answer


class Named(BaseModel):
    model_config = ConfigDict(extra="forbid")

    label: str
    scores: list[int] = []


GOOD = '{"label": "so {up}", "scores": [1, 2]}'


def read(text: str, finish: str = "stop") -> Named | Exception:
    return strict_answer(Answer(text, finish=finish), Named)


class TestAccepted:
    @pytest.mark.parametrize(
        "text",
        [
            GOOD,
            f"  \n{GOOD}\n",
            f"```json\n{GOOD}\n```",
            f"```\n{GOOD}\n```",
            f"Here you are:\n```json\n{GOOD}\n```\nAnything else?",
            f"Sure! {GOOD} Hope that helps.",
            json.dumps(json.loads(GOOD), indent=2),
        ],
    )
    def test_one_object(self, text: str) -> None:
        assert read(text) == Named(label="so {up}", scores=[1, 2])


class TestRefused:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "soup",
            "null",
            "3",
            "[]",
            f"[{GOOD}]",
            f"The list: [{GOOD}]",
            f"[1, {GOOD}, 2]",
            json.dumps(GOOD),
            f"{GOOD} {GOOD}",
            f"{GOOD}\n{{",
            f"{{x}} {GOOD}",
            f"```json\n{GOOD}\n```\n```json\n{GOOD}\n```",
            f"{GOOD}\n```json\n{GOOD}\n```",
            '{"answer": {"label": "a"}',
            '{"label": "a", "label": "b"}',
            '{"label": "a", "scores": [NaN]}',
            '{"label": "a"',
            "{'label': 'a'}",
            '{"label": 3}',
            '{"label": null}',
            '{"scores": []}',
            '{"label": "a", "also": "b"}',
            '{"label": "a", "scores": ["many"]}',
            '{"label":' * 100_000,
            "[" * 100_000,
            "{" * 1_000_000,
        ],
    )
    def test_everything_else(self, text: str) -> None:
        error = read(text)
        assert isinstance(error, RefusalError)
        assert str(error).startswith("the answer ")
        assert len(str(error)) < 300

    def test_the_reason_is_given(self) -> None:
        assert "label: missing" in str(read("{}"))
        assert "several" in str(read(f"{GOOD} {GOOD}"))
        assert "cut at its limit" in str(read('{"label": "so', finish="length"))

    def test_the_reason_quotes_nothing_of_the_answer(self) -> None:
        for text in (
            '{"secret": "sesame", "label": 1}',
            "sesame",
            '{"label": {"sesame": 1}}',
            '{"sesame": 1, "sesame": 2}',
            '{"label": "a", "sesame": 2}',
            '{"label": "a", "scores": {"sesame": 2}}',
        ):
            error = read(text)
            assert isinstance(error, RefusalError)
            assert "sesame" not in str(error)

    def test_a_question_without_an_answer_stays_one(self) -> None:
        error = NotAskedError("no budget")
        assert strict_answer(error, Named) is error


def test_the_schema_is_as_strict_as_endpoints_ask_for() -> None:
    class Outer(BaseModel):
        first: Named
        rest: list[Named] = []

    schema = schema_of(Outer)
    for each in (schema, schema["$defs"]["Named"]):
        assert each["additionalProperties"] is False
        assert each["required"] == list(each["properties"])
    assert "default" not in json.dumps(schema)
    assert isinstance(read('{"label": "a", "scores": []}'), Named)
