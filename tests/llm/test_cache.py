"""Answers that are kept: runs that end half-way lose none, and nothing of a key is kept."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interpreto_mlops.errors import InputError
from interpreto_mlops.llm import Answer, AnswerCache, Backoff, OpenAIModel, Prompt, Questioner
from tests.llm.asking import KEY, echo, over, prompts, texts
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure

Factory = Callable[..., ScriptedServer]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


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

    def test_its_files_are_as_readable_as_others(self, tmp_path: Path) -> None:
        AnswerCache(tmp_path).put("ab" * 32, Answer("x"))
        (tmp_path / "other").write_text("x")
        (file,) = tmp_path.rglob("*.json")
        assert file.stat().st_mode == (tmp_path / "other").stat().st_mode

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
        assert asking.totals.asked == 1
        assert texts([asking.record[0][1]]) == ["0"]
