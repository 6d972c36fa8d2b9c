"""Reading what an endpoint answers; it may be anything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from interpreto_mlops.errors import LanguageModelError, RefusalError, TransientError
from interpreto_mlops.llm.base import Answer, Prompt
from interpreto_mlops.llm.nesting import check_nesting
from interpreto_mlops.text.hiding import storable

# An endpoint may say anything; what is no word of the protocol is not repeated.
_FINISH = re.compile(r"[a-z_]{1,32}")
_MOST_TOKENS = 10**9


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
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        check_nesting(text)
        message, finish, usage = _parts(json.loads(text))
    except (ValueError, LookupError, TypeError):
        return TransientError(f"{about} sent {len(body)} bytes that are no chat completion")
    said, refusal = _text(message.get("content")), message.get("refusal")
    if said is None and finish == "length":
        said = ""  # all its tokens went into what it thought
    if said is None or (not said and (refusal or finish == "content_filter")):
        reason = "says that it refuses" if refusal else f"gives no text (finish {finish!r})"
        return RefusalError(f"{about} {reason}")
    read = _tokens(usage, "prompt_tokens", lambda: count(prompt.system) + count(prompt.user))
    return Answer(said, read, _tokens(usage, "completion_tokens", lambda: count(said)), finish)


def _parts(reply: Any) -> tuple[Mapping[str, Any], str, Mapping[str, Any]]:
    choice = reply["choices"][0]
    message = choice["message"]
    usage = reply.get("usage")
    if not isinstance(message, Mapping):
        raise TypeError("a message is a mapping")
    finish = str(choice.get("finish_reason") or "stop")
    return message, finish if _FINISH.fullmatch(finish) else "unknown", usage if isinstance(usage, Mapping) else {}


def _text(content: Any) -> str | None:
    """The text of a message; some endpoints send it in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return storable("".join(part for part in parts if isinstance(part, str)))
    return storable(content) if isinstance(content, str) else None


def _tokens(usage: Mapping[str, Any], name: str, counted: Callable[[], int]) -> int:
    value = usage.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_TOKENS:
        return counted()
    return value
