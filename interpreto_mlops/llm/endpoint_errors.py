"""What an endpoint's failures mean: whether to ask again, when, and without what."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from interpreto_mlops.errors import LanguageModelError, RefusalError, TransientError, UnusableModelError
from interpreto_mlops.llm.base import Prompt
from interpreto_mlops.text.hiding import texts_are_hidden
from interpreto_mlops.text.redaction import redact
from interpreto_mlops.text.terminal import one_line

_MOST_SHOWN = 200
_QUOTE = 16
_COMPLAINT = re.compile(
    r"unsupported|not (?:\w+ )?support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|not available|"
    r"not implemented|invalid schema|additional ?propert|extra",
    re.IGNORECASE,
)
_NAMES = {
    "response_format": re.compile(r"response_format|json_schema|structured output|guided|grammar", re.IGNORECASE),
    "seed": re.compile(r"\bseed\b"),
    "temperature": re.compile(r"\btemperature\b"),
    "max_tokens": re.compile(r"\bmax_tokens\b"),
}


def status_of(error: Any) -> int:
    """Return the HTTP status of an error of the package openai."""
    return int(error.status_code)


def refused_parameter(error: Any, sent: Iterable[str]) -> str | None:
    """Return the name of the parameter that the endpoint says it does not take, or None.

    Arguments:
        error: of a request that it calls wrong.
        sent: the names of the parameters that the request had.
    """
    message, code = _message(error), str(getattr(error, "code", None) or "")
    param = str(getattr(error, "param", None) or "").partition(".")[0]
    if not _COMPLAINT.search(f"{code} {message}"):
        return None
    given = [name for name in _NAMES if name in sent]
    if param:
        return param if param in given else None
    return next((name for name in given if _NAMES[name].search(message)), None)


def explained(error: Any, about: str, prompt: Prompt, scrubbed: Callable[[str], str]) -> LanguageModelError:
    """Return what the status of a response means, as an error that may be shown and kept.

    Arguments:
        error: of the package openai, with a status.
        about: what was asked, as messages name it.
        prompt: the question, which is no part of the message.
        scrubbed: takes keys out of a text.
    """
    status = status_of(error)
    if status in (401, 403):
        # What is said of a key often quotes it.
        return UnusableModelError(f"{about} refuses the key (HTTP {status}): set the right one in the environment")
    said = _said(error, prompt, scrubbed)
    if status in (404, 405):
        return UnusableModelError(f"{about} is not there (HTTP {status}){said}")
    if status == 402 or (status == 429 and getattr(error, "code", None) == "insufficient_quota"):
        return UnusableModelError(f"{about} has no quota left (HTTP {status}){said}")
    if status in (408, 409, 425, 429) or (status >= 500 and status != 501):
        return TransientError(f"{about} answers HTTP {status}{said}", retry_after(error.response.headers))
    return RefusalError(f"{about} refuses the question (HTTP {status}){said}")


def transient(error: BaseException, about: str) -> TransientError:
    """Return the error of a connection that was not made, or was lost."""
    cause = error.__cause__ or error
    return TransientError(f"the connection to {about} failed: {type(cause).__name__}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds the response asks to wait, or None: `Retry-After` in seconds or as a date.

    Source:
        RFC 9110, section 10.2.3.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = str(headers.get(name) or "").strip()
        if re.fullmatch(r"\d{1,12}(\.\d{1,9})?", value):
            return float(value) * unit
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _message(error: Any) -> str:
    """The endpoint's own words."""
    body = error.body
    if isinstance(body, Mapping):
        body = next((body[name] for name in ("message", "detail", "error") if body.get(name)), body)
    return str(body or "")


def _said(error: Any, prompt: Prompt, scrubbed: Callable[[str], str]) -> str:
    """What may be shown of it: neither keys nor parts of the question, in one short line."""
    message = _message(error)
    if not message or texts_are_hidden():
        return ""
    if _quotes(message, prompt.user):
        return "; what it says quotes the question, and is left out"
    line = " ".join(one_line(redact(scrubbed(message))).split())
    return f": {line[:_MOST_SHOWN]}{'…' * (len(line) > _MOST_SHOWN)}"


def _quotes(message: str, question: str) -> bool:
    size = min(_QUOTE, max(4, len(question)))
    return any(message[k : k + size] in question for k in range(len(message) - size + 1))
