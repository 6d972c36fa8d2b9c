"""Many questions: order, concurrency, retries, budget, and runs that end half-way."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interpreto_mlops.errors import (
    InputError,
    LanguageModelError,
    NotAskedError,
    RefusalError,
    TransientError,
    UnusableModelError,
)
from interpreto_mlops.llm import (
    Answer,
    AnswerCache,
    Backoff,
    Budget,
    Call,
    Clock,
    LanguageModel,
    OpenAIModel,
    Price,
    Prompt,
    Questioner,
)
from interpreto_mlops.text.hiding import hiding_texts, texts_are_hidden
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure, half, hanging, too_many

Factory = Callable[..., ScriptedServer]

KEY = "sk-test-0123456789abcdefghij"
ROOT = Path(__file__).resolve().parents[2]


class FakeClock(Clock):
    """Time that passes only where somebody waits; one thread at a time."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float, stopped: threading.Event) -> None:
        self.slept.append(seconds)
        self.time += seconds


class Scripted(LanguageModel):
    """A back end in this process, for what is no matter of sockets."""

    name = "scripted"

    def __init__(self, script: Callable[[Prompt], Answer], price: Price | None = None) -> None:
        self.script, self.price = script, price

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "scripted"}

    def answer(self, prompt: Prompt) -> Answer:
        return self.script(prompt)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def prompts(n: int) -> list[Prompt]:
    return [Prompt("Say the number.", f"number {k}", max_tokens=5) for k in range(n)]


def echo(request: Request) -> str:
    return request.user.removeprefix("number ")


def over(server: ScriptedServer, *, timeout: float = 20.0, **options: Any) -> Questioner:
    options.setdefault("backoff", Backoff(first=0.01, longest=0.02))
    return Questioner(OpenAIModel("small", base_url=server.base_url, timeout=timeout), **options)


def texts(found: list[Answer | LanguageModelError]) -> list[str]:
    return [each.text if isinstance(each, Answer) else type(each).__name__ for each in found]


class TestOrder:
    def test_answers_are_in_the_order_of_the_questions(self, scripted_server: Factory) -> None:
        server = scripted_server(lambda request: Reply(echo(request), delay=0.2 - 0.01 * int(echo(request))))
        calls: list[Call] = []
        asking = over(server, concurrency=20, observe=calls.append)
        found = asking.ask(prompts(20))
        assert texts(found) == [str(k) for k in range(20)]
        assert [call.prompt for call in calls] != prompts(20)  # they came in another order
        assert [(prompt.user, answer) for prompt, answer in asking.record] == [
            (prompt.user, answer) for prompt, answer in zip(prompts(20), found, strict=True)
        ]

    def test_the_failure_of_one_leaves_the_others(self, scripted_server: Factory) -> None:
        server = scripted_server(lambda request: failure(400, "no") if echo(request) in "25" else echo(request))
        asking = over(server)
        assert texts(asking.ask(prompts(8))) == ["0", "1", "RefusalError", "3", "4", "RefusalError", "6", "7"]
        assert (asking.totals.asked, asking.totals.failed, asking.totals.retried) == (8, 2, 0)

    def test_no_questions(self, scripted_server: Factory) -> None:
        server = scripted_server("x")
        assert over(server).ask([]) == []
        assert server.requests == []

    def test_equal_questions_are_asked_once(self, scripted_server: Factory) -> None:
        server = scripted_server(echo)
        asking = over(server)
        assert texts(asking.ask([*prompts(3), *prompts(3)])) == ["0", "1", "2"] * 2
        assert texts(asking.ask(prompts(4))) == ["0", "1", "2", "3"]
        assert len(server.requests) == 4
        totals = asking.totals
        assert (totals.questions, totals.asked, totals.cached, totals.failed) == (10, 4, 6, 0)
        assert (totals.prompt_tokens, totals.answer_tokens, totals.tokens) == (40, 20, 60)
        assert totals.seconds > 0

    def test_another_seed_is_another_question(self, scripted_server: Factory) -> None:
        server = scripted_server(echo)
        over(server).ask([Prompt("s", "u", seed=seed) for seed in (0, 1, 0)])
        assert sorted(request.body["seed"] for request in server.requests) == [0, 1]

    def test_what_is_no_question(self) -> None:
        with pytest.raises(InputError, match="question 1 must be a Prompt, not a str"):
            Questioner(Scripted(lambda prompt: Answer("x"))).ask([Prompt("s", "u"), "u"])  # type: ignore[list-item]


class TestConcurrency:
    @pytest.mark.parametrize("limit", [1, 3])
    def test_no_more_are_in_flight_than_allowed(self, scripted_server: Factory, limit: int) -> None:
        server = scripted_server(lambda request: Reply(echo(request), delay=0.03))
        over(server, concurrency=limit).ask(prompts(12))
        assert server.most_in_flight == limit

    def test_threads_see_what_was_set_where_it_was_asked(self) -> None:
        seen: list[bool] = []

        def script(prompt: Prompt) -> Answer:
            seen.append(texts_are_hidden())
            return Answer("x")

        with hiding_texts():
            Questioner(Scripted(script), concurrency=4).ask(prompts(6))
        assert seen == [True] * 6

    def test_an_error_of_another_kind_is_not_swallowed(self) -> None:
        def script(prompt: Prompt) -> Answer:
            if prompt.user == "number 1":
                raise ZeroDivisionError
            return Answer("x")

        asking = Questioner(Scripted(script), concurrency=1)
        with pytest.raises(ZeroDivisionError):
            asking.ask(prompts(3))
        assert [prompt.user for prompt, _ in asking.record][:1] == ["number 0"]


class TestRetries:
    def test_what_passes_is_asked_again(self, scripted_server: Factory) -> None:
        replies = [failure(500), too_many(), failure(503), half(), Reply(raw=b"{"), "at last"]
        server = scripted_server(replies)
        asking = over(server, retries=5)
        assert texts(asking.ask(prompts(1))) == ["at last"]
        assert len(server.requests) == 6
        assert (asking.totals.asked, asking.totals.retried, asking.totals.failed) == (1, 5, 0)

    def test_a_hanging_call_is_asked_again(self, scripted_server: Factory) -> None:
        server = scripted_server([hanging(), "in time"])
        assert texts(over(server, timeout=0.3).ask(prompts(1))) == ["in time"]

    @pytest.mark.parametrize("retries", [0, 2])
    def test_only_so_often(self, scripted_server: Factory, retries: int) -> None:
        server = scripted_server(failure(500, "broken"))
        (error,) = over(server, retries=retries).ask(prompts(1))
        assert isinstance(error, TransientError)
        assert len(server.requests) == 1 + retries

    def test_a_refusal_is_not_asked_again(self, scripted_server: Factory) -> None:
        server = scripted_server(failure(400))
        (error,) = over(server).ask(prompts(1))
        assert type(error) is RefusalError
        assert len(server.requests) == 1

    def test_waits_double_up_to_the_longest_with_jitter(self, scripted_server: Factory) -> None:
        clock = FakeClock()
        server = scripted_server(failure(500))
        over(server, retries=6, clock=clock, backoff=Backoff(first=1, longest=8, jitter=0.5)).ask(prompts(1))
        assert len(clock.slept) == 6
        for wait, whole in zip(clock.slept, [1, 2, 4, 8, 8, 8], strict=True):
            assert whole / 2 < wait <= whole
        assert len(set(clock.slept)) == 6

    def test_retry_after_is_waited_for(self, scripted_server: Factory) -> None:
        clock = FakeClock()
        over(scripted_server([too_many(45), "x"]), clock=clock, backoff=Backoff(first=1, longest=2)).ask(prompts(1))
        assert 45 <= sum(clock.slept) <= 47.5

    def test_all_threads_wait_when_the_server_asks_one_to(self, scripted_server: Factory) -> None:
        times: list[float] = []

        def script(request: Request) -> Reply | str:
            times.append(time.monotonic())
            return too_many(0.5) if request.number == 0 else echo(request)

        server = scripted_server(script)
        asking = over(server, concurrency=1)
        both = threading.Thread(target=asking.ask, args=(prompts(1),))
        both.start()
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.1)
        asking.ask(prompts(3)[1:])
        both.join()
        assert min(times[1:]) - times[0] >= 0.45

    def test_a_wait_beyond_the_time_out_is_not_waited_for(self, scripted_server: Factory) -> None:
        clock = FakeClock()
        server = scripted_server(too_many(3600))
        (error,) = over(server, clock=clock, timeout=20).ask(prompts(1))
        assert isinstance(error, TransientError)
        assert clock.slept == []

    def test_a_question_is_not_asked_again_after_its_time(self) -> None:
        clock = FakeClock()

        def script(prompt: Prompt) -> Answer:
            clock.time += 30
            raise TransientError("slow")

        asking = Questioner(Scripted(script), clock=clock, timeout=100, retries=50, backoff=Backoff(1, 1, 0))
        asking.ask(prompts(1))
        assert asking.totals.retried == 3

    def test_a_wrong_key_stops_the_rest(self, scripted_server: Factory) -> None:
        server = scripted_server(failure(401))
        found = over(server, concurrency=2).ask(prompts(30))
        assert type(found[0]) is UnusableModelError
        assert len(server.requests) <= 2
        assert {type(each) for each in found[2:]} == {NotAskedError}
        assert "refuses the key" in str(found[-1])

    def test_a_dead_server_stops_the_rest(self, scripted_server: Factory) -> None:
        server = scripted_server(failure(500, "broken"))
        found = over(server, concurrency=2, retries=1).ask(prompts(60))
        assert Counter(texts(found))["TransientError"] < 20
        assert texts(found)[-1] == "NotAskedError"

    @pytest.mark.parametrize("options", [{"concurrency": 0}, {"concurrency": 1.5}, {"retries": -1}, {"timeout": "x"}])
    def test_numbers_that_cannot_be(self, options: dict[str, Any]) -> None:
        with pytest.raises(InputError):
            Questioner(Scripted(lambda prompt: Answer("x")), **options)


class TestBudget:
    def test_the_estimate_counts_what_would_be_asked(self, scripted_server: Factory, tmp_path: Path) -> None:
        server = scripted_server(echo)
        asking = over(server, cache=tmp_path / "answers")
        asking.model.price = Price(prompt=1e6, answer=2e6)
        asking = Questioner(asking.model, cache=tmp_path / "answers")
        asking.ask(prompts(2))
        found = asking.estimate([*prompts(5), *prompts(5)])
        assert (found.questions, found.cached, found.to_ask) == (10, 7, 3)
        assert found.answer_tokens == 15
        assert found.prompt_tokens >= 3 * 7
        assert found.tokens == found.prompt_tokens + 15
        assert found.cost == pytest.approx(found.prompt_tokens * 1.0 + 15 * 2.0)
        assert asking.totals.cost == pytest.approx(20 * 1.0 + 10 * 2.0)
        assert len(server.requests) == 2

    def test_too_much_is_refused_before_anything_is_asked(self, scripted_server: Factory) -> None:
        server = scripted_server(echo)
        asking = over(server, budget=Budget(max_tokens=50))
        with pytest.raises(InputError, match=r"10 questions may take \d+ tokens .* budget of 50 tokens"):
            asking.ask(prompts(10))
        assert server.requests == []
        assert texts(asking.ask(prompts(2))) == ["0", "1"]

    def test_a_cost_is_held(self) -> None:
        model = Scripted(lambda prompt: Answer("x", 10, 5), Price(prompt=100.0, answer=200.0))
        asking = Questioner(model, budget=Budget(max_cost=0.01), concurrency=1)
        assert texts(asking.ask(prompts(2))) == ["x", "x"]
        assert asking.totals.cost == pytest.approx((20 * 100 + 10 * 200) / 1e6)
        with pytest.raises(InputError, match=r"a cost of 0\.01"):
            asking.ask(prompts(40))

    def test_the_run_stops_when_answers_take_more_than_was_estimated(self) -> None:
        asked: list[str] = []

        def script(prompt: Prompt) -> Answer:
            asked.append(prompt.user)
            return Answer("x", 1000, 5)

        asking = Questioner(Scripted(script), budget=Budget(max_tokens=2500), concurrency=1)
        found = asking.ask(prompts(10))
        assert texts(found) == ["x"] * len(asked) + ["NotAskedError"] * (10 - len(asked))
        assert len(asked) == 3  # the third was within what was left, by its estimate
        assert "budget of 2500 tokens is used up" in str(found[-1])
        assert asking.totals.failed == 7
        with pytest.raises(InputError, match="3015 tokens"):
            asking.ask(prompts(10))

    def test_what_is_cached_costs_nothing(self, tmp_path: Path) -> None:
        model = Scripted(lambda prompt: Answer("x", 10, 5))
        Questioner(model, cache=tmp_path).ask(prompts(5))
        asking = Questioner(model, cache=tmp_path, budget=Budget(max_tokens=0))
        assert texts(asking.ask(prompts(5))) == ["x"] * 5
        assert (asking.totals.cached, asking.totals.asked, asking.totals.tokens) == (5, 0, 0)

    def test_a_limited_cost_needs_a_price(self) -> None:
        with pytest.raises(InputError, match="needs the model's price"):
            Questioner(Scripted(lambda prompt: Answer("x")), budget=Budget(max_cost=1.0))

    @pytest.mark.parametrize("limit", [-1, float("nan"), float("inf"), "9", True])
    def test_limits_that_cannot_be(self, limit: Any) -> None:
        with pytest.raises(InputError, match="max_tokens must be"):
            Budget(max_tokens=limit)


class TestRunsThatEndHalfWay:
    def test_a_run_goes_on_from_its_cache(self, scripted_server: Factory, tmp_path: Path) -> None:
        """The server dies; a second one serves the rest: no answer that arrived is asked for again."""
        first = scripted_server(echo, dies_after=25)
        model = OpenAIModel("small", base_url=first.base_url)
        options: dict[str, Any] = {"cache": tmp_path, "retries": 1, "backoff": Backoff(0.01, 0.02), "concurrency": 4}
        found = Questioner(model, **options).ask(prompts(60))
        paid = {prompt.user for prompt, each in zip(prompts(60), found, strict=True) if isinstance(each, Answer)}
        assert 20 <= len(paid) < 60
        # The same address, as after a restart.
        with ScriptedServer(echo, port=first.port) as second:
            asking = Questioner(OpenAIModel("small", base_url=first.base_url), **options)
            assert texts(asking.ask(prompts(60))) == [str(k) for k in range(60)]
        again = [request.user for request in second.requests]
        assert not set(again) & paid
        assert len(again) == 60 - len(paid)
        assert asking.totals.cached == len(paid)

    @pytest.mark.slow
    def test_a_process_that_is_killed_loses_no_answer(self, scripted_server: Factory, tmp_path: Path) -> None:
        """SIGKILL while it asks: what the server has answered and the process has read is there for the next."""
        server = scripted_server(lambda request: Reply(echo(request), delay=0.02))
        process = start(server, tmp_path / "answers")
        while server.answered < 20:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        before = server.answered
        asking = Questioner(OpenAIModel("small", base_url=server.base_url), cache=tmp_path / "answers")
        kept = asking.estimate(prompts(200)).cached
        # Those in flight at that moment, at most four, could not be written by anybody.
        assert before - 8 <= kept < 200
        assert texts(asking.ask(prompts(200))) == [str(k) for k in range(200)]
        assert not list((tmp_path / "answers").rglob("*.json.*"))

    @pytest.mark.slow
    def test_an_interrupt_leaves_the_cache_whole(self, scripted_server: Factory, tmp_path: Path) -> None:
        """Ctrl-C: what is in flight is waited for and kept, and nothing more is asked."""
        server = scripted_server(lambda request: Reply(echo(request), delay=0.05))
        process = start(server, tmp_path / "answers")
        while server.answered < 12:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert "KeyboardInterrupt" in out
        seen = len(server.requests)
        assert seen < 200
        files = list((tmp_path / "answers").rglob("*.json"))
        assert len(files) == seen  # every request was waited for
        assert f"recorded {seen}" in out
        for file in files:
            json.loads(file.read_text())
        assert not list((tmp_path / "answers").rglob(".*"))

    @pytest.mark.slow
    def test_two_processes_share_a_cache(self, scripted_server: Factory, tmp_path: Path) -> None:
        server = scripted_server(echo)
        both = [start(server, tmp_path / "answers", n=40) for _ in range(2)]
        outs = [process.communicate(timeout=60)[0] for process in both]
        assert all("answered 40" in out for out in outs), outs
        assert len(list((tmp_path / "answers").rglob("*.json"))) == 40


def start(server: ScriptedServer, cache: Path, n: int = 200) -> subprocess.Popen[str]:
    code = f"""
        import sys
        from interpreto_mlops.llm import Answer, OpenAIModel, Prompt, Questioner
        asking = Questioner(OpenAIModel("small", base_url={server.base_url!r}), cache={str(cache)!r}, concurrency=4)
        prompts = [Prompt("Say the number.", f"number {{k}}", max_tokens=5) for k in range({n})]
        try:
            found = asking.ask(prompts)
            print("answered", sum(isinstance(each, Answer) for each in found))
        except KeyboardInterrupt as error:
            print("KeyboardInterrupt, recorded", sum(isinstance(each, Answer) for _, each in asking.record))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


class TestObservers:
    def test_each_call_is_told_of(self, scripted_server: Factory, tmp_path: Path) -> None:
        server = scripted_server(lambda request: failure(400) if echo(request) == "1" else echo(request))
        calls: list[Call] = []
        over(server, cache=tmp_path, observe=calls.append).ask(prompts(3))
        assert sorted(call.prompt.user for call in calls) == [f"number {k}" for k in range(3)]
        assert {type(call.outcome).__name__ for call in calls} == {"Answer", "RefusalError"}
        assert all(call.model == "small" and call.attempts == 1 and call.started <= call.ended for call in calls)
        calls.clear()
        over(server, cache=tmp_path, observe=calls.append).ask(prompts(3)[:1])
        assert calls == []  # nobody was asked

    def test_progress_is_shown_on_request(self, scripted_server: Factory, capsys: pytest.CaptureFixture[str]) -> None:
        server = scripted_server(echo)
        over(server).ask(prompts(2))
        assert capsys.readouterr().err == ""
        over(server, progress=True).ask(prompts(2))
        assert "small" in capsys.readouterr().err


def test_keys_are_in_no_file_and_no_log(
    scripted_server: Factory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def script(request: Request) -> Reply:
        echoed = f"you sent {request.headers['authorization']}"
        return [Reply(echoed), failure(500, echoed), failure(401, echoed), Reply(echoed)][request.number % 4]

    asking = over(scripted_server(script), cache=tmp_path, concurrency=1, retries=1)
    found = asking.ask(prompts(3))
    assert isinstance(found[0], Answer)
    held = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert held
    assert KEY.encode() not in held
    assert KEY not in repr(asking.record) + repr(found) + repr(asking.totals) + caplog.text
    assert KEY not in "".join(str(error) + repr(vars(error)) for error in found if isinstance(error, Exception))


class TestCache:
    def test_the_key_is_of_model_and_question(self) -> None:
        question = Prompt("s", "u")
        keys = {
            AnswerCache.key({"backend": "a"}, question),
            AnswerCache.key({"backend": "b"}, question),
            AnswerCache.key({"backend": "a"}, Prompt("s", "v")),
            AnswerCache.key({"backend": "a"}, Prompt("s", "u", temperature=1.0)),
        }
        assert len(keys) == 4
        assert AnswerCache.key({"a": 1, "b": 2}, question) == AnswerCache.key({"b": 2, "a": 1}, question)

    def test_what_is_put_is_got(self, tmp_path: Path) -> None:
        cache = AnswerCache(tmp_path / "new" / "folder")
        answer = Answer("ü \u2028 \ud800 \0 soup", 3, 4, "length")
        assert cache.get("ab" * 32) is None
        cache.put("ab" * 32, answer)
        assert cache.get("ab" * 32) == answer

    @pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"key": 3}'])
    def test_what_is_damaged_is_asked_again(self, scripted_server: Factory, tmp_path: Path, damage: bytes) -> None:
        server = scripted_server(echo)
        over(server, cache=tmp_path).ask(prompts(3))
        victim, other, _ = sorted(tmp_path.rglob("*.json"))
        victim.write_bytes(damage)
        assert texts(over(server, cache=tmp_path).ask(prompts(3))) == ["0", "1", "2"]
        assert len(server.requests) == 4
        # An answer that was changed, and one that belongs to another question.
        other.write_bytes(other.read_bytes().replace(b'"text": "', b'"text": "9'))
        victim.write_bytes(sorted(tmp_path.rglob("*.json"))[2].read_bytes())
        assert texts(over(server, cache=tmp_path).ask(prompts(3))) == ["0", "1", "2"]
        assert len(server.requests) == 6

    def test_failures_are_not_kept(self, scripted_server: Factory, tmp_path: Path) -> None:
        server = scripted_server([failure(400), "x"])
        assert texts(over(server, cache=tmp_path).ask(prompts(1))) == ["RefusalError"]
        assert texts(over(server, cache=tmp_path).ask(prompts(1))) == ["x"]

    def test_it_holds_no_question(self, scripted_server: Factory, tmp_path: Path) -> None:
        over(scripted_server("x"), cache=tmp_path).ask(prompts(1))
        assert b"number" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="is a file"):
            AnswerCache(tmp_path / "file")

    def test_a_folder_that_cannot_be_written_to_stops_the_run(self, scripted_server: Factory, tmp_path: Path) -> None:
        asking = over(scripted_server(echo), cache=tmp_path / "answers", concurrency=1)
        (tmp_path / "answers").write_text("in the way")
        with pytest.raises(InputError, match="cannot keep answers"):
            asking.ask(prompts(5))
        assert texts([asking.record[0][1]]) == ["0"]
