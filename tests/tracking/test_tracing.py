"""Calls to language models as traces in a real store, which leave the process's own tracing alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Trace

from interpreto_mlops.llm import Answer, Backoff, OpenAIModel, Price, Prompt, Questioner
from interpreto_mlops.text.hiding import hidden, hiding_texts
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.tracking.tracing import traced
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure

pytestmark = pytest.mark.usefixtures("nobody")

Factory = Callable[..., ScriptedServer]
KEY = "sk-test-0123456789abcdefghij"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def script(request: Request) -> Any:
    if request.user == "broken":
        return failure(400, f"no {KEY}")
    return Reply(f"answer to {request.user}", prompt_tokens=7, answer_tokens=3)


def ask(server: ScriptedServer, users: list[str], **options: Any) -> list[Any]:
    model = OpenAIModel("small", base_url=server.base_url)
    options.setdefault("backoff", Backoff(0.01, 0.02))
    return Questioner(model, **options).ask([Prompt("the protocol", user, max_tokens=9, seed=2) for user in users])


def traces_of(store: Store, **options: Any) -> list[Trace]:
    return list(
        store.client.search_traces(locations=[store.experiment_id], include_spans=True, max_results=100, **options)
    )


class TestTraces:
    @pytest.mark.usefixtures("unchanged")
    def test_each_call_is_one(self, scripted_server: Factory, any_store: Store) -> None:
        log = traced(any_store, price=Price(prompt=1e6, answer=2e6))
        ask(scripted_server(script), ["soup", "broken"], observe=log)
        assert log.written == 2
        found = {trace.info.state.value: trace for trace in traces_of(any_store)}
        assert set(found) == {"OK", "ERROR"}
        right, wrong = found["OK"], found["ERROR"]
        (span,) = right.data.spans
        assert (span.name, span.span_type, span.parent_id) == ("ask small", "CHAT_MODEL", None)
        assert span.inputs["messages"] == [
            {"role": "system", "content": "the protocol"},
            {"role": "user", "content": "soup"},
        ]
        assert (span.inputs["max_tokens"], span.inputs["seed"]) == (9, 2)
        assert span.outputs == {"role": "assistant", "content": "answer to soup", "finish_reason": "stop"}
        assert span.end_time_ns > span.start_time_ns
        assert right.info.token_usage == {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
        assert json.loads(right.info.trace_metadata["mlflow.trace.cost"])["total_cost"] == pytest.approx(13.0)
        assert (right.info.request_preview, right.info.response_preview) == ("soup", "answer to soup")
        (span,) = wrong.data.spans
        assert span.status.status_code.value == "ERROR"
        assert "RefusalError" in span.outputs["error"]
        assert KEY not in repr([trace.to_dict() for trace in found.values()])

    def test_many_threads_write_all(self, scripted_server: Factory, store: Store) -> None:
        log = traced(store)
        ask(scripted_server(script), [f"number {k}" for k in range(30)], observe=log, concurrency=8)
        found = traces_of(store)
        assert {trace.data.spans[0].inputs["messages"][1]["content"] for trace in found} == {
            f"number {k}" for k in range(30)
        }
        assert log.written == 30

    def test_they_belong_to_the_run(self, scripted_server: Factory, store: Store) -> None:
        run = store.client.create_run(store.experiment_id).info.run_id
        ask(scripted_server(script), ["soup"], observe=traced(store, run_id=run))
        ask(scripted_server(script), ["stew"], observe=traced(store))
        (found,) = traces_of(store, run_id=run)
        assert found.info.request_preview == "soup"

    def test_by_default_where_a_run_would_go(self, scripted_server: Factory, database: str) -> None:
        mlflow.set_tracking_uri(database)
        mlflow.set_experiment("mine")
        with mlflow.start_run() as run:
            ask(scripted_server(script), ["soup"], observe=traced())
        found = mlflow.search_traces(run_id=run.info.run_id, return_type="list")
        assert [trace.info.request_preview for trace in found] == ["soup"]

    def test_an_own_span_of_the_user_stays_apart(self, scripted_server: Factory, database: str, store: Store) -> None:
        mlflow.set_tracking_uri(database)
        mlflow.set_experiment("mine")
        with mlflow.start_span("own") as own:
            ask(scripted_server(script), ["soup"], observe=traced(store))
            assert mlflow.get_current_active_span() is own
        mlflow.flush_trace_async_logging()
        assert [span.name for span in mlflow.get_trace(own.trace_id).data.spans] == ["own"]
        assert [trace.data.spans[0].name for trace in traces_of(store)] == ["ask small"]


def test_hidden_texts_are_hashes(scripted_server: Factory, store: Store, database: str) -> None:
    with hiding_texts():
        ask(scripted_server(script), ["a zanzibari soup", "broken"], observe=traced(store), concurrency=4)
    found = traces_of(store)
    assert b"zanzibari" not in Path(database.removeprefix("sqlite:///")).read_bytes()
    contents = {trace.data.spans[0].inputs["messages"][1]["content"] for trace in found}
    assert contents == {hidden("a zanzibari soup"), hidden("broken")}


def test_a_store_that_fails_costs_no_answer(
    scripted_server: Factory, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    log = traced(Store(store.client, "999999", "gone", store.tracking_uri, store.registry_uri))
    with caplog.at_level(logging.WARNING, "interpreto_mlops"):
        found = ask(scripted_server(script), ["a", "b", "c"], observe=log)
    assert all(isinstance(each, Answer) for each in found)
    assert log.written == 0
    assert [record.name for record in caplog.records].count("interpreto_mlops.tracking.tracing") == 1


def test_texts_that_a_database_cannot_hold(scripted_server: Factory, any_store: Store) -> None:
    log = traced(any_store)
    ask(scripted_server(script), ["nul \0 lone \ud800 " + "long " * 2000], observe=log)
    assert log.written == 1
    (found,) = traces_of(any_store)
    assert found.data.spans[0].inputs["messages"][1]["content"].startswith("nul \ufffd lone ? long")
