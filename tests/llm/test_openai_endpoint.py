"""The OpenAI back end, through the real client and real sockets."""

from __future__ import annotations

import base64
import email.utils
import logging
import time
from collections.abc import Callable

import pytest

from interpreto_mlops.errors import (
    InputError,
    LanguageModelError,
    MissingDependencyError,
    RefusalError,
    TransientError,
    UnusableModelError,
)
from interpreto_mlops.llm import Answer, OpenAIModel, Price, Prompt
from interpreto_mlops.text.hiding import hiding_texts
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure, half, hanging, too_many

Factory = Callable[..., ScriptedServer]

KEY = "sk-test-0123456789abcdefghij"
QUESTION = Prompt("Answer in one word.", "What is soup?", max_tokens=7, temperature=0.5, seed=3)
SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return KEY


def ask(server: ScriptedServer, prompt: Prompt = QUESTION, **options: object) -> Answer:
    return OpenAIModel("small", base_url=server.base_url, **options).answer(prompt)  # type: ignore[arg-type]


def error_of(server: ScriptedServer, prompt: Prompt = QUESTION, **options: object) -> LanguageModelError:
    with pytest.raises(LanguageModelError) as caught:
        ask(server, prompt, **options)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert KEY not in str(caught.value)
    assert prompt.user not in str(caught.value)
    return caught.value


class TestAnswers:
    def test_the_question_is_sent_and_the_answer_read(self, scripted_server: Factory) -> None:
        server = scripted_server(Reply("food", prompt_tokens=12, answer_tokens=1))
        assert ask(server) == Answer("food", 12, 1, "stop")
        (request,) = server.requests
        assert request.path == "/v1/chat/completions"
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert request.body == {
            "model": "small",
            "messages": [
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": "What is soup?"},
            ],
            "max_tokens": 7,
            "temperature": 0.5,
            "seed": 3,
        }

    def test_without_usage_tokens_are_counted(self, scripted_server: Factory) -> None:
        found = ask(scripted_server(Reply("four words are here", prompt_tokens=None)), Prompt("12345678", "1234"))
        assert (found.prompt_tokens, found.answer_tokens) == (3, 5)

    def test_an_answer_that_was_cut_says_so(self, scripted_server: Factory) -> None:
        assert ask(scripted_server(Reply("fo", finish="length"))).finish == "length"
        assert ask(scripted_server(Reply(None, finish="length"))) == Answer("", 10, 5, "length")

    def test_text_in_parts_is_joined(self, scripted_server: Factory) -> None:
        raw = b'{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"text": "b"}]}}]}'
        assert ask(scripted_server(Reply(raw=raw))).text == "ab"

    def test_characters_that_cannot_be_sent_are_replaced(self, scripted_server: Factory) -> None:
        server = scripted_server("fine")
        ask(server, Prompt("s", "a\ud800b\0c\u2028d"))
        assert server.requests[0].user == "a?b\ufffdc\u2028d"

    def test_characters_that_cannot_be_kept_are_replaced(self, scripted_server: Factory) -> None:
        assert ask(scripted_server(Reply("a\ud800b\0"))).text == "a?b\ufffd"

    def test_a_refusal_is_one(self, scripted_server: Factory) -> None:
        for reply in (Reply(None, refusal="I will not"), Reply("", finish="content_filter"), Reply(None)):
            assert isinstance(error_of(scripted_server(reply)), RefusalError)


class TestFailures:
    @pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
    def test_what_may_pass(self, scripted_server: Factory, status: int) -> None:
        server = scripted_server(failure(status, "busy"))
        error = error_of(server)
        assert isinstance(error, TransientError)
        assert f"HTTP {status}: busy" in str(error)
        assert len(server.requests) == 1  # the client's own retries are off

    @pytest.mark.parametrize(("status", "kind"), [(401, UnusableModelError), (403, UnusableModelError)])
    def test_a_wrong_key_names_the_environment(
        self, scripted_server: Factory, status: int, kind: type[LanguageModelError]
    ) -> None:
        error = error_of(scripted_server(failure(status, f"Incorrect API key provided: {KEY[:8]}***{KEY[-4:]}")))
        assert type(error) is kind
        assert "environment" in str(error)
        assert KEY[-4:] not in str(error)

    def test_an_unknown_model(self, scripted_server: Factory) -> None:
        error = error_of(scripted_server(failure(404, "The model 'small' does not exist")))
        assert isinstance(error, UnusableModelError)
        assert "does not exist" in str(error)

    @pytest.mark.parametrize("reply", [failure(429, code="insufficient_quota"), failure(402), failure(405)])
    def test_what_is_no_matter_of_waiting(self, scripted_server: Factory, reply: Reply) -> None:
        assert isinstance(error_of(scripted_server(reply)), UnusableModelError)

    @pytest.mark.parametrize("status", [400, 413, 422, 501])
    def test_what_will_not_pass(self, scripted_server: Factory, status: int) -> None:
        error = error_of(scripted_server(failure(status, "maximum context length is 20 tokens")))
        assert type(error) is RefusalError
        assert "maximum context length" in str(error)

    @pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("0.25", 0.25), ("nonsense", None), ("-3", None)])
    def test_retry_after(self, scripted_server: Factory, header: str, seconds: float | None) -> None:
        error = error_of(scripted_server(too_many(header)))
        assert isinstance(error, TransientError)
        assert error.retry_after == seconds

    def test_retry_after_as_a_date(self, scripted_server: Factory) -> None:
        error = error_of(scripted_server(too_many(email.utils.formatdate(time.time() + 30, usegmt=True))))
        assert isinstance(error, TransientError)
        assert error.retry_after == pytest.approx(30, abs=3)

    def test_a_time_out(self, scripted_server: Factory) -> None:
        start = time.monotonic()
        error = error_of(scripted_server(hanging()), timeout=0.3)
        assert isinstance(error, TransientError)
        assert "0.3 seconds" in str(error)
        assert time.monotonic() - start < 5

    def test_a_server_that_trickles_has_no_more_time(self, scripted_server: Factory) -> None:
        start = time.monotonic()
        error = error_of(scripted_server(Reply("x" * 500, trickle=0.05)), timeout=0.4)
        assert isinstance(error, TransientError)
        assert time.monotonic() - start < 3

    def test_a_connection_that_is_closed_half_way(self, scripted_server: Factory) -> None:
        assert isinstance(error_of(scripted_server(half())), TransientError)

    def test_nobody_there(self, scripted_server: Factory) -> None:
        server = scripted_server("x")
        server.stop()
        assert isinstance(error_of(server), TransientError)

    @pytest.mark.parametrize(
        "raw",
        [b"", b"<html>", b"{", b"[]", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"\xff" * 9, b"[" * 10**5],
    )
    def test_what_is_no_answer(self, scripted_server: Factory, raw: bytes) -> None:
        assert isinstance(error_of(scripted_server(Reply(raw=raw))), TransientError)

    def test_a_message_that_quotes_the_question_is_left_out(self, scripted_server: Factory) -> None:
        error = error_of(scripted_server(failure(400, f"cannot take {QUESTION.user!r}")))
        assert "left out" in str(error)

    def test_nothing_that_the_server_says_is_shown_where_texts_are_hidden(self, scripted_server: Factory) -> None:
        with hiding_texts():
            assert "what soup" not in str(error_of(scripted_server(failure(400, "what soup"))))

    def test_a_long_message_with_control_characters_stays_short(self, scripted_server: Factory) -> None:
        text = str(error_of(scripted_server(failure(500, "a\x1b[2J\n" + "b" * 5000))))
        assert text.isprintable()
        assert len(text) < 400


class TestParametersThatAreNotTaken:
    """Each case: what the endpoint says, as such endpoints do, while the parameter is there."""

    @pytest.mark.parametrize(
        ("name", "reply"),
        [
            (
                "temperature",
                failure(
                    400,
                    "Unsupported value: 'temperature' does not support 0.5 with this model.",
                    param="temperature",
                    code="unsupported_value",
                ),
            ),
            ("seed", failure(422, "[{'loc': ['body', 'seed'], 'msg': 'Extra inputs are not permitted'}]")),
            ("seed", failure(400, 'Unknown name "seed": Cannot find field.')),
            ("response_format", failure(400, "Invalid schema for response_format 'answer'", param="response_format")),
            ("response_format", failure(400, "This model does not support structured output")),
        ],
    )
    def test_it_is_asked_without_and_says_so_once(
        self, scripted_server: Factory, caplog: pytest.LogCaptureFixture, name: str, reply: Reply
    ) -> None:
        server = scripted_server(lambda request: reply if name in request.body else "fine")
        model = OpenAIModel("small", base_url=server.base_url)
        prompt = Prompt("s", "u", temperature=0.5, schema=SCHEMA)
        assert [model.answer(prompt).text for _ in range(3)] == ["fine"] * 3
        assert [name in request.body for request in server.requests] == [True, False, False, False]
        assert [record.levelname for record in caplog.records if repr(name) in record.message] == ["WARNING"]

    def test_several(self, scripted_server: Factory) -> None:
        def script(request: Request) -> Reply | str:
            for name in ("max_tokens", "temperature", "seed"):
                if name in request.body:
                    return failure(400, f"Unsupported parameter: '{name}'", param=name, code="unsupported_parameter")
            return "fine"

        server = scripted_server(script)
        assert ask(server).text == "fine"
        assert server.requests[-1].body["max_completion_tokens"] == QUESTION.max_tokens
        assert len(server.requests) == 4

    def test_a_limit_is_never_dropped(self, scripted_server: Factory) -> None:
        def script(request: Request) -> Reply:
            name = "max_tokens" if "max_tokens" in request.body else "max_completion_tokens"
            return failure(400, f"Unsupported parameter: '{name}'", param=name, code="unsupported_parameter")

        server = scripted_server(script)
        assert isinstance(error_of(server), RefusalError)
        assert len(server.requests) == 2

    @pytest.mark.parametrize(
        "reply",
        [
            failure(400, "max_tokens is too large: this model takes 5", param="max_tokens"),
            failure(400, "temperature must be at most 0.2", param="temperature"),
            failure(400, "Unsupported parameter: 'messages'", param="messages"),
        ],
    )
    def test_a_wrong_value_is_not_an_unknown_parameter(self, scripted_server: Factory, reply: Reply) -> None:
        server = scripted_server(reply)
        assert isinstance(error_of(server), RefusalError)
        assert len(server.requests) == 1

    def test_the_schema_is_sent_where_it_is_asked_for(self, scripted_server: Factory) -> None:
        server = scripted_server('{"label": "soup"}')
        ask(server, Prompt("s", "u", schema=SCHEMA))
        form = server.requests[0].body["response_format"]
        assert form == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


class TestKeys:
    def test_a_local_endpoint_needs_none(self, scripted_server: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        server = scripted_server("fine")
        assert ask(server).text == "fine"
        assert "authorization" not in server.requests[0].headers

    def test_none_is_sent_where_none_is_wanted(self, scripted_server: Factory) -> None:
        server = scripted_server("fine")
        ask(server, key_variable=None)
        assert "authorization" not in server.requests[0].headers

    def test_another_variable(self, scripted_server: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTHER_KEY", "other")
        server = scripted_server("fine")
        ask(server, key_variable="OTHER_KEY")
        assert server.requests[0].headers["authorization"] == "Bearer other"

    def test_the_hosted_endpoint_needs_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(InputError, match="set OPENAI_API_KEY"):
            OpenAIModel("small")

    @pytest.mark.parametrize("key", ["sk-sesame\u2026", "sk-sesame\nX-Evil: 1", "sk-sesame\x7f"])
    def test_one_that_cannot_be_sent_is_not_quoted(self, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(InputError, match="in OPENAI_API_KEY holds characters") as caught:
            OpenAIModel("small")
        assert "sesame" not in str(caught.value)

    def test_the_address_of_the_environment(self, scripted_server: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
        server = scripted_server("fine")
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert OpenAIModel("small").answer(QUESTION).text == "fine"

    def test_is_nowhere_to_be_seen(self, scripted_server: Factory, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)

        def script(request: Request) -> Reply:
            echo = request.headers["authorization"]
            return [Reply(f"you sent {echo}"), failure(500, f"you sent {echo}"), half()][request.number]

        server = scripted_server(script)
        model = OpenAIModel("small", base_url=server.base_url)
        assert model.answer(QUESTION).text == "you sent Bearer ***"
        for _ in range(2):
            with pytest.raises(TransientError) as caught:
                model.answer(QUESTION)
            assert KEY not in repr(caught.value)
        assert caplog.records
        assert KEY not in caplog.text
        assert not [record for record in caplog.records if KEY in repr(vars(record))]
        assert KEY not in repr(model) + str(model) + repr(model.identity) + repr(vars(model))

    def test_a_short_key_is_a_word_like_any_other(
        self, scripted_server: Factory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "ollama")
        assert ask(scripted_server("an ollama")).text == "an ollama"

    def test_credentials_in_the_address_are_a_header_and_nothing_else(
        self, scripted_server: Factory, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        server = scripted_server(["fine", failure(500, "no")])
        address = server.base_url.replace("://", "://ann:s%40cret@")
        model = OpenAIModel("small", base_url=address)
        model.answer(QUESTION)
        sent = server.requests[0].headers["authorization"]
        assert base64.b64decode(sent.removeprefix("Basic ")) == b"ann:s@cret"
        with pytest.raises(TransientError) as caught:
            model.answer(QUESTION)
        seen = caplog.text + repr(model) + repr(model.identity) + str(caught.value)
        assert "cret" not in seen
        assert server.base_url in repr(model)


class TestArguments:
    @pytest.mark.parametrize(
        "address",
        [
            "localhost:80",
            "ftp://h/v1",
            "http://",
            "http://h/v1?key=sesame",
            "http://u:ses/ame@h/v1",
            "http://u:p@h:x/sesame",
        ],
    )
    def test_addresses_that_cannot_be_asked(self, address: str) -> None:
        with pytest.raises(InputError) as caught:
            OpenAIModel("small", base_url=address)
        assert "ses/ame" not in str(caught.value)
        assert "=sesame" not in str(caught.value)
        assert "u:p" not in str(caught.value)

    @pytest.mark.parametrize("options", [{"name": ""}, {"name": 3}, {"timeout": 0}, {"timeout": True}])
    def test_others(self, options: dict[str, object]) -> None:
        with pytest.raises(InputError):
            OpenAIModel(**{"name": "small", **options})  # type: ignore[arg-type]

    def test_a_missing_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "openai", None)
        with pytest.raises(MissingDependencyError, match=r"pip install interpreto-mlops\[llm\]"):
            OpenAIModel("small")

    def test_identity_and_price(self) -> None:
        model = OpenAIModel("small", base_url="http://h:1/v1/", price=Price(1.0, 2.0))
        assert model.identity == {"backend": "openai", "model": "small", "base_url": "http://h:1/v1"}
        assert model.price == Price(1.0, 2.0)
