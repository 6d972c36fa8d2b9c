"""Many questions: order, concurrency, retries, budget, and who is told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interpreto_mlops.errors import InputError, NotAskedError, RefusalError, TransientError, UnusableModelError
from interpreto_mlops.llm import Answer, Backoff, Budget, Call, Clock, Price, Prompt, Questioner
from interpreto_mlops.text.hiding import hiding_texts, texts_are_hidden
from tests.llm.asking import KEY, Scripted, echo, over, prompts, texts
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure, half, hanging, too_many

Factory = Callable[..., ScriptedServer]


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


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


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

    def test_one_that_fails_costs_no_answer(self, scripted_server: Factory, tmp_path: Path) -> None:
        def fail(call: Call) -> None:
            raise ZeroDivisionError

        server = scripted_server(echo)
        with pytest.raises(ZeroDivisionError):
            over(server, cache=tmp_path, observe=fail, concurrency=1).ask(prompts(3))
        assert len(list(tmp_path.rglob("*.json"))) == len(server.requests) == 1
        assert texts(over(server, cache=tmp_path).ask(prompts(3))) == ["0", "1", "2"]
        assert len(server.requests) == 3

    def test_progress_is_shown_on_request(self, scripted_server: Factory, capsys: pytest.CaptureFixture[str]) -> None:
        server = scripted_server(echo)
        over(server).ask(prompts(2))
        assert capsys.readouterr().err == ""
        over(server, progress=True).ask(prompts(2))
        assert "small" in capsys.readouterr().err
