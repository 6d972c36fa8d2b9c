"""Metrics of labels through a real client, real sockets and a server that answers by a script."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interpreto_mlops.concepts import Label, top_words
from interpreto_mlops.concepts import interpretation_metrics as m
from interpreto_mlops.errors import InputError
from interpreto_mlops.llm import Budget, OpenAIModel, Prompt, Questioner
from tests.concepts.planted_words import RARE, WordJudge, labels, planted
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure

Factory = Callable[..., ScriptedServer]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-0123456789abcdefghij")


def word_judge(request: Request) -> Reply:
    """What `WordJudge` says, in a fence, as many models answer."""
    schema = request.body["response_format"]["json_schema"]["schema"]
    said = WordJudge().said(Prompt(request.system, request.user, schema=schema))
    return Reply(f"```json\n{json.dumps(said)}\n```", prompt_tokens=100, answer_tokens=10)


def test_all_metrics_of_planted_labels(scripted_server: Factory) -> None:
    split, dictionary, rows = planted(150)
    server = scripted_server(word_judge)
    questioner = Questioner(OpenAIModel("judge", base_url=server.base_url), concurrency=4)
    names = ("detection", "fuzzing", "clarity", "responsiveness", "purity", "faithfulness")
    options = {
        "faithfulness": {"n_prompts": 3, "n_tokens": 3},
        "responsiveness": {"n_texts": 60},
        "purity": {"n_texts": 60},
    }
    scores = m.score_labels(questioner, dictionary, rows, labels(RARE[:4]), metrics=names, split=split, options=options)
    for name, score in scores.items():
        assert score.mean > 0.85, name
        assert score.shuffled_mean < 0.6, name
    asked = {name: score.cost for name, score in scores.items() if name != "interpretation/purity"}
    assert sum(cost.questions for cost in asked.values()) == len(server.requests)
    assert sum(cost.prompt_tokens for cost in asked.values()) == 100 * len(server.requests)
    assert len({request.system for request in server.requests}) == 4  # responsiveness and faithfulness ask alike


def test_a_server_that_fails_half_way_costs_no_answer_twice(scripted_server: Factory, tmp_path: Path) -> None:
    _, dictionary, rows = planted(100)
    calls: list[str] = []

    def failing(request: Request) -> Reply:
        calls.append(request.user)
        return failure(401, "wrong key") if len(calls) > 10 else word_judge(request)

    def metric(server: ScriptedServer) -> m.Detection:
        model = OpenAIModel("judge", base_url=server.base_url)
        return m.Detection(Questioner(model, cache=tmp_path, concurrency=1))

    first = scripted_server(failing)
    refused = metric(first)(dictionary, rows, labels(RARE[:4]))
    assert refused.metrics == {}
    assert refused.reason is not None
    assert "of the answers can be read" in refused.reason
    assert refused.cost.unanswered == refused.cost.questions - 10
    first.stop()
    second = ScriptedServer(word_judge, port=first.port)
    with second:
        score = metric(second)(dictionary, rows, labels(RARE[:4]))
    assert score.mean == 1.0
    assert not {request.user for request in second.requests} & set(calls[:10])
    assert len(second.requests) == score.cost.questions - 10


def test_what_is_more_than_the_budget_is_not_asked(scripted_server: Factory) -> None:
    _, dictionary, rows = planted(100)
    server = scripted_server(word_judge)
    questioner = Questioner(OpenAIModel("judge", base_url=server.base_url), budget=Budget(max_tokens=1000))
    metric = m.Detection(questioner)
    estimate = questioner.estimate(metric.questions(dictionary, rows, labels(RARE[:4])))
    assert estimate.tokens > 1000
    with pytest.raises(InputError, match="more than the budget"):
        metric(dictionary, rows, labels(RARE[:4]))
    assert server.requests == []


def test_a_model_that_chats_is_refused(scripted_server: Factory) -> None:
    split, dictionary, rows = planted(100)
    server = scripted_server("Of course! The first text is about food.")
    questioner = Questioner(OpenAIModel("judge", base_url=server.base_url))
    for name, score in m.score_labels(
        questioner, dictionary, rows, labels(RARE[:2]), metrics=["detection", "clarity"], split=split
    ).items():
        assert np.isnan(score.mean), name
        assert score.cost.repeated * 2 == score.cost.questions
        assert score.cost.unparsed == score.cost.repeated


def test_the_code_of_the_documentation_runs(
    scripted_server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "interpretation_metrics.md"
    _, code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    split, dictionary, rows = planted(80)
    given = labels(RARE[:4])
    described = top_words(dictionary, rows)
    dictionary.descriptions = [
        each.named(Label(given[each.concept], "human")) if each.concept in given else each for each in described
    ]
    monkeypatch.setenv("OPENAI_BASE_URL", scripted_server(word_judge).base_url)
    monkeypatch.chdir(tmp_path)
    exec(code, {"split": split, "dictionary": dictionary, "rows": rows})
    printed = capsys.readouterr().out
    assert "Estimate(" in printed
    assert "'interpretation/purity_shuffled'" in printed
    assert (tmp_path / "answers").exists()
