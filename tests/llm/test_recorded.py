"""Answers in a file: recorded, replayed, written by hand, and wrong in every way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interpreto_mlops.errors import DataError, InputError, RefusalError
from interpreto_mlops.llm import (
    Answer,
    Budget,
    OpenAIModel,
    Prompt,
    Questioner,
    RecordedAnswers,
    write_answers,
)
from interpreto_mlops.text.hiding import hiding_texts
from tests.llm.scripted_server import Request, ScriptedServer, failure

Factory = Callable[..., ScriptedServer]

KEY = "sk-test-0123456789abcdefghij"
QUESTIONS = [
    Prompt("s", "plain"),
    Prompt("s", 'ü \u2028 \x85 \ud800 \0 \n " \\ 😀', max_tokens=3, temperature=0.25, seed=9),
    Prompt("", "", schema={"type": "object", "properties": {"a": {"enum": [1, None, "x"]}}}),
]


def asked(server: ScriptedServer, **options: Any) -> Questioner:
    return Questioner(OpenAIModel("small", base_url=server.base_url), **options)


class TestReplay:
    def test_a_run_is_repeated_without_server_or_key(
        self, scripted_server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        server = scripted_server(lambda request: f"answer {request.number} «ü\u2028»")
        asking = asked(server)
        found = asking.ask([*QUESTIONS, QUESTIONS[0]])
        path = asking.save_answers(tmp_path / "new" / "answers.jsonl")
        monkeypatch.delenv("OPENAI_API_KEY")
        server.stop()
        model = RecordedAnswers(path)
        assert (model.name, len(model)) == ("small", 3)
        replay = Questioner(model, budget=Budget(max_cost=0.0))
        assert replay.ask([*QUESTIONS, QUESTIONS[0]]) == found
        assert (replay.totals.failed, replay.totals.cost) == (0, 0.0)
        assert KEY.encode() not in path.read_bytes()

    def test_the_same_record_is_the_same_file(self, tmp_path: Path) -> None:
        record = [(prompt, Answer(prompt.user)) for prompt in QUESTIONS]
        first, second = (write_answers(tmp_path / name, record, model="m") for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
        assert RecordedAnswers(first).identity == RecordedAnswers(second).identity
        third = write_answers(tmp_path / "c", record[:2], model="m")
        assert RecordedAnswers(third).identity != RecordedAnswers(first).identity

    def test_a_temperature_is_a_number_however_it_is_written(self, tmp_path: Path) -> None:
        whole = Prompt("s", "u", temperature=1)
        path = write_answers(tmp_path / "answers", [(whole, Answer("x"))])
        assert RecordedAnswers(path).answer(Prompt("s", "u", temperature=1.0)) == Answer("x")

    def test_what_failed_is_left_out_and_refused_in_the_replay(self, scripted_server: Factory, tmp_path: Path) -> None:
        def script(request: Request) -> Any:
            return failure(400) if request.user == "plain" else "fine"

        asking = asked(scripted_server(script))
        asking.ask(QUESTIONS)
        model = RecordedAnswers(asking.save_answers(tmp_path / "answers"))
        assert len(model) == 2
        with pytest.raises(RefusalError, match=f"no answer to the question with sha256 {QUESTIONS[0].sha256}"):
            model.answer(QUESTIONS[0])

    def test_hidden_texts_are_not_written(self, tmp_path: Path) -> None:
        record = [(Prompt("s", "a secret text"), Answer("label"))]
        with hiding_texts():
            path = write_answers(tmp_path / "answers", record)
        assert b"secret" not in path.read_bytes()
        assert RecordedAnswers(path).answer(record[0][0]) == record[0][1]

    def test_a_file_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="cannot write answers"):
            write_answers(tmp_path / "file" / "below", [])


class TestByHand:
    def test_a_person_may_write_it(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        lines = [
            {"prompt": {"system": "s", "user": "plain"}, "answer": "by hand"},
            {"sha256": QUESTIONS[2].sha256, "answer": "by hash"},
        ]
        path.write_bytes(b"\xef\xbb\xbf\r\n" + b"\r\n\n".join(json.dumps(line).encode() for line in lines))
        model = RecordedAnswers(path)
        assert model.name == "mine"
        assert model.answer(QUESTIONS[0]) == Answer("by hand")
        assert model.answer(QUESTIONS[2]) == Answer("by hash")
        assert RecordedAnswers(path, name="me").name == "me"

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("{", "not JSON"),
            ("[1]", "line"),
            ("[" * 100_000, "not JSON"),
            ('{"answer": "a"}', "neither 'prompt' nor 'sha256'"),
            ('{"sha256": "12", "answer": "a"}', "sha256"),
            (json.dumps({"sha256": "0" * 64}), "answer"),
            (json.dumps({"sha256": "0" * 64, "answer": 3}), "answer"),
            (json.dumps({"sha256": "0" * 64, "answer": "a", "more": 1}), "more"),
            (json.dumps({"sha256": "0" * 64, "answer": "a", "prompt_tokens": -1}), "prompt_tokens"),
            (json.dumps({"prompt": {"user": "u"}, "answer": "a"}), r"prompt\.system"),
            (json.dumps({"prompt": {"system": "s", "user": "u"}, "answer": "a", "sha256": "0" * 64}), "not that of"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path: Path, line: str, why: str) -> None:
        path = write_answers(tmp_path / "answers", [(QUESTIONS[0], Answer("x"))])
        path.write_text(path.read_text() + "\n" + line + "\n")
        with pytest.raises(DataError, match=rf"line 3 of .*{why}"):
            RecordedAnswers(path)

    def test_two_answers_to_one_question(self, tmp_path: Path) -> None:
        path = write_answers(tmp_path / "answers", [(QUESTIONS[0], Answer("x"))])
        text = path.read_text()
        path.write_text(text + text)
        assert len(RecordedAnswers(path)) == 1
        path.write_text(text + text.replace('"x"', '"y"'))
        with pytest.raises(DataError, match=r"line 2 .* another answer than line 1"):
            RecordedAnswers(path)

    def test_no_file_and_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot read answers"):
            RecordedAnswers(tmp_path / "none")
        (tmp_path / "latin").write_bytes(b"\xff")
        with pytest.raises(DataError, match="UTF-8"):
            RecordedAnswers(tmp_path / "latin")
