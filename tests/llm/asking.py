"""What tests of many questions share: questions with numbers, servers that say them, and a quick `Questioner`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from interpreto_mlops.errors import LanguageModelError
from interpreto_mlops.llm import Answer, Backoff, LanguageModel, OpenAIModel, Price, Prompt, Questioner
from tests.llm.scripted_server import Request, ScriptedServer

KEY = "sk-test-0123456789abcdefghij"


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


def prompts(n: int) -> list[Prompt]:
    return [Prompt("Say the number.", f"number {k}", max_tokens=5) for k in range(n)]


def echo(request: Request) -> str:
    return request.user.removeprefix("number ")


def over(server: ScriptedServer, *, timeout: float = 20.0, **options: Any) -> Questioner:
    options.setdefault("backoff", Backoff(first=0.01, longest=0.02))
    return Questioner(OpenAIModel("small", base_url=server.base_url, timeout=timeout), **options)


def texts(found: list[Answer | LanguageModelError]) -> list[str]:
    return [each.text if isinstance(each, Answer) else type(each).__name__ for each in found]
