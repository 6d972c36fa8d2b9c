"""Simulations through an OpenAI-compatible server: a real client, real sockets, and what goes wrong with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interpreto_mlops.errors import LanguageModelError
from interpreto_mlops.llm import Backoff, Budget, OpenAIModel, Prompt, Questioner
from interpreto_mlops.llm.simulation import Setting, Simulation, SimulationResult, Study
from tests.llm.readers import Rule, answer_text, at_random, by_importance, copy_labels, known, oracle, planted_study
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure, half, hanging, too_many

pytestmark = pytest.mark.slow

Factory = Callable[..., ScriptedServer]
CLASSES = ("very good", "very good indeed", "bad")
FAST: dict[str, Any] = {"backoff": Backoff(0.01, 0.02), "retries": 2, "concurrency": 4}


def answering(rule: Rule) -> Callable[[Request], str]:
    """A server's script: the rule, in the form that the request asks for."""

    def script(request: Request) -> str:
        asked = request.body.get("response_format")
        return answer_text(Prompt(request.system, request.user, schema={} if asked else None), rule)

    return script


def simulate(server: ScriptedServer, study: Study, cache: Path | None = None, **options: Any) -> SimulationResult:
    model = OpenAIModel("reader", base_url=server.base_url, timeout=5.0)
    return Simulation(**options).run(study, Questioner(model, cache=cache, **FAST))


@pytest.fixture
def study() -> Study:
    return planted_study(CLASSES)


class TestScores:
    @pytest.mark.parametrize("answers", ["lines", "json"])
    def test_always_right_scores_one(self, answers: str, study: Study, scripted_server: Factory) -> None:
        server = scripted_server(answering(oracle(known(study))))
        result = simulate(server, study, answers=answers)
        assert {each.score for each in result.settings.values()} == {1.0}
        assert len(server.requests) == result.cost.questions == 30
        assert result.cost.prompt_tokens == 300
        assert result.cost.answer_tokens == 150
        for request in server.requests:
            assert ("response_format" in request.body) == (answers == "json")
            assert not any(sample.text in request.system for sample in study.samples)

    @pytest.mark.parametrize("rule", [at_random, copy_labels])
    def test_who_draws_or_copies_scores_chance(self, rule: Rule, study: Study, scripted_server: Factory) -> None:
        result = simulate(scripted_server(answering(rule)), study, settings=["L2", "E3"], seeds=range(10))
        for each in result.settings.values():
            assert each.interval is not None
            assert each.interval[0] <= 1 / 3 <= each.interval[1]
        assert result.gain is not None
        assert result.gain.interval is not None
        assert result.gain.interval[0] <= 0 <= result.gain.interval[1]

    def test_who_reads_importances_alone_scores_by_how_good_they_are(self, scripted_server: Factory) -> None:
        server = scripted_server(answering(by_importance))
        scores = [simulate(server, planted_study(CLASSES, shuffled=bad)).score for bad in (False, True)]
        assert scores == [1.0, 0.0]


class TestTrouble:
    def test_failures_that_pass_change_nothing(self, study: Study, scripted_server: Factory) -> None:
        """Each question meets another trouble first: 429, 500, a lost connection, an answer that is no JSON."""
        right = answering(oracle(known(study)))
        met = Counter[str]()
        troubles = [too_many(0), failure(500), half(), Reply(raw=b"<html>busy</html>"), Reply(status=503, raw=b"")]

        def script(request: Request) -> Reply | str:
            met[request.user] += 1
            return troubles[len(met) % len(troubles)] if met[request.user] == 1 else right(request)

        result = simulate(scripted_server(script), study)
        assert result.score == 1.0
        assert result.cost.failures == result.cost.retries == 0
        assert set(met.values()) == {2}

    def test_malformed_answers_are_asked_again_with_another_seed(self, study: Study, scripted_server: Factory) -> None:
        right = answering(oracle(known(study)))
        bad = ["", "I cannot do that.", "Sample_1: good", "{", "Sample_99: bad", json.dumps({"Sample_1": 1})]
        seeds: dict[str, list[int]] = {}

        def script(request: Request) -> Reply | str:
            seeds.setdefault(request.user, []).append(request.body["seed"])
            return right(request) if len(seeds[request.user]) > 1 else bad[len(seeds) % len(bad)]

        result = simulate(scripted_server(script), study)
        assert result.score == 1.0
        assert result.cost.retries == 30
        assert all(len(set(each)) == 2 for each in seeds.values())

    def test_an_answer_that_never_comes_is_counted(self, study: Study, scripted_server: Factory) -> None:
        right = answering(oracle(known(study)))
        server = scripted_server(lambda request: hanging() if "reference" not in request.system else right(request))
        model = OpenAIModel("reader", base_url=server.base_url, timeout=0.3)
        asking = Questioner(model, backoff=Backoff(0.01, 0.02), retries=0)
        result = Simulation(settings=["L1", "L2"], seeds=[0, 1]).run(study, asking)
        assert result.settings[Setting.L2].score == 1.0
        assert result.settings[Setting.L1].score is None
        assert "0 of 40 answers" in (result.settings[Setting.L1].reason or "")
        assert result.cost.failures == 4

    def test_a_wrong_key_is_the_error(self, study: Study, scripted_server: Factory) -> None:
        server = scripted_server(failure(401, "Incorrect API key provided", code="invalid_api_key"))
        with pytest.raises(LanguageModelError, match="key"):
            simulate(server, study)
        assert len(server.requests) <= 4

    def test_a_server_that_stops_half_way_loses_no_paid_answer(
        self, study: Study, scripted_server: Factory, tmp_path: Path
    ) -> None:
        script = answering(by_importance)
        undisturbed = simulate(scripted_server(script), study)
        first = scripted_server(script, dies_after=12)
        broken = simulate(first, study, tmp_path)
        assert broken.settings[Setting.E3].score is None
        assert broken.cost.failures > 0
        paid = {q.user for q in broken.questions_frame().itertuples() if isinstance(q.answer, str)}
        assert 8 <= len(paid) <= 12
        with ScriptedServer(script, port=first.port) as second:
            resumed = simulate(second, study, tmp_path)
        asked = [request.user for request in second.requests]
        assert len(asked) == 30 - len(paid)
        assert not set(asked) & paid
        assert resumed.metrics == undisturbed.metrics
        assert resumed.to_frame().equals(undisturbed.to_frame())
        # A third run asks nothing.
        silent = scripted_server(failure(500))
        model = OpenAIModel("reader", base_url=first.base_url)
        assert Simulation().run(study, Questioner(model, cache=tmp_path)).metrics == undisturbed.metrics
        assert not silent.requests

    def test_a_budget_is_estimated_before_and_holds(self, study: Study, scripted_server: Factory) -> None:
        server = scripted_server(answering(oracle(known(study))))
        model = OpenAIModel("reader", base_url=server.base_url)
        prompts = Simulation(seeds=[0]).prompts(study)
        estimate = Questioner(model).estimate(prompts)
        assert estimate.to_ask == 6
        enough = Questioner(model, budget=Budget(max_tokens=estimate.tokens))
        assert Simulation(seeds=[0]).run(study, enough).score == 1.0
        with pytest.raises(ValueError, match="budget"):
            Simulation(seeds=[0]).run(study, Questioner(model, budget=Budget(max_tokens=estimate.tokens // 2)))
        assert len(server.requests) == 6
