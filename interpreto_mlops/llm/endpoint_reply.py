"""Reading what an endpoint answers; it may be anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from interpreto_mlops.errors import LanguageModelError, RefusalError, TransientError
from interpreto_mlops.llm.base import Answer, Prompt
from interpreto_mlops.text.hiding import storable


def read_reply(body: bytes, prompt: Prompt, about: str, count: Callable[[str], int]) -> Answer | LanguageModelError:
    """Read the body of a chat completion.

    Arguments:
        body: of a response with status 200.
        prompt: what was asked.
        about: what was asked, as messages name it.
        count: how many tokens a text has, where the endpoint does not say.

    Returns:
        The answer; a `TransientError` for what is no chat completion, a `RefusalError` where the model refuses.
    """
    try:
        message, finish, usage = _parts(json.loads(body))
    except (ValueError, LookupError, TypeError, RecursionError):
        return TransientError(f"{about} sent {len(body)} bytes that are no chat completion")
    text, refusal = _text(message.get("content")), message.get("refusal")
    if text is None and finish == "length":
        text = ""  # all its tokens went into what it thought
    if text is None or (not text and (refusal or finish == "content_filter")):
        reason = "says that it refuses" if refusal else f"gives no text (finish {finish!r})"
        return RefusalError(f"{about} {reason}")
    read = _tokens(usage, "prompt_tokens", lambda: count(prompt.system) + count(prompt.user))
    return Answer(text, read, _tokens(usage, "completion_tokens", lambda: count(text)), finish)


def _parts(reply: Any) -> tuple[Mapping[str, Any], str, Mapping[str, Any]]:
    choice = reply["choices"][0]
    message = choice["message"]
    usage = reply.get("usage")
    if not isinstance(message, Mapping):
        raise TypeError("a message is a mapping")
    return message, str(choice.get("finish_reason") or "stop"), usage if isinstance(usage, Mapping) else {}


def _text(content: Any) -> str | None:
    """The text of a message; some endpoints send it in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return storable("".join(part for part in parts if isinstance(part, str)))
    return storable(content) if isinstance(content, str) else None


def _tokens(usage: Mapping[str, Any], name: str, counted: Callable[[], int]) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else counted()
