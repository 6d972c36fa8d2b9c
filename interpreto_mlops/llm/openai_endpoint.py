"""Language models behind an OpenAI-compatible endpoint: hosted ones, vLLM, Ollama, MLflow's AI gateway."""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from interpreto_mlops.errors import (
    InputError,
    LanguageModelError,
    MissingDependencyError,
    TransientError,
)
from interpreto_mlops.llm.base import Answer, LanguageModel, Price, Prompt
from interpreto_mlops.llm.endpoint_address import EndpointAddress
from interpreto_mlops.llm.endpoint_errors import explained, refused_parameter, status_of, transient
from interpreto_mlops.llm.endpoint_reply import read_reply
from interpreto_mlops.text.hiding import storable

_log = logging.getLogger(__name__)

HOSTED = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
_LONG_KEY = 16
_HIDDEN = "***"


class OpenAIModel(LanguageModel):
    """A chat model behind any OpenAI-compatible endpoint.

    What an endpoint does not take is left out after it has said so once: a schema of the answer (`response_format`),
    `seed`, `temperature`; newer models take `max_completion_tokens` in place of `max_tokens`.

    Arguments:
        name: the model, as the endpoint calls it.
        base_url: the endpoint, such as `http://localhost:11434/v1`; None for `OPENAI_BASE_URL`, else OpenAI's own.
        key_variable: the environment variable that holds the key; None to send none. An endpoint other than OpenAI's
            own is asked without a key where the variable is not set.
        timeout: seconds until the answer must be whole; one that stops in the middle is given up after as long again.
        price: of its tokens; None where it is not known.

    Raises:
        InputError: a name, address, time-out or key that cannot be used.
        MissingDependencyError: the package `openai` is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        key_variable: str | None = KEY_VARIABLE,
        timeout: float = 60.0,
        price: Price | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"the name of a language model must be a string that is not empty, not {name!r}")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
            raise InputError(f"timeout must be a positive number of seconds, not {timeout!r}")
        self.name, self.timeout, self.price = name, float(timeout), price
        self._address = EndpointAddress.of(base_url or os.environ.get("OPENAI_BASE_URL") or HOSTED)
        self._openai: Any = _package()
        key = self._key(key_variable)
        self._extra = {} if key or self._address.authorization else {"Authorization": self._openai.Omit()}
        secrets = [each for each in (key, *self._address.secrets) if each]
        self._scrubbed = _scrubber(secrets)
        # The key of a local endpoint may be a word like any other, which an answer may hold.
        self._without_keys = _scrubber([each for each in secrets if len(each) >= _LONG_KEY])
        self._client = self._connected(key)
        weakref.finalize(self, self._client.close)
        # The HTTP library below the package, by whatever name: its errors come through where an answer is read.
        self._http: Any = importlib.import_module(type(self._client.base_url).__module__.partition(".")[0])
        self._lock = threading.Lock()
        self._without: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"OpenAIModel({self.name!r}, base_url={self._address.url!r})"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's name and the endpoint's address, without credentials."""
        return {"backend": "openai", "model": self.name, "base_url": self._address.url}

    def close(self) -> None:
        """Close the connections to the endpoint; a call after that fails."""
        self._client.close()

    def answer(self, prompt: Prompt) -> Answer:
        """Ask the endpoint once, and again only without a parameter that it says it does not take.

        Raises:
            TransientError: too many requests, an error of the server, a time-out, a lost connection, a broken answer.
            UnusableModelError: a wrong key, an unknown model or address.
            RefusalError: the endpoint or the model refuses this question.
        """
        without = self._without
        while True:
            found = self._once(prompt, without)
            if isinstance(found, Answer):
                return found
            if isinstance(found, LanguageModelError):
                raise found
            without = self._leave_out(found)

    def _once(self, prompt: Prompt, without: frozenset[str]) -> Answer | LanguageModelError | str:
        """Ask once; return the answer, the error, or the name of the parameter that is refused."""
        arguments = _arguments(self.name, prompt, without)
        # What is raised holds request and headers: only what may be shown of it leaves this function.
        try:
            body = self._body(arguments)
        except self._openai.APIStatusError as error:
            name = refused_parameter(error, arguments) if status_of(error) in (400, 422) else None
            return name or explained(error, self._about, prompt, self._scrubbed)
        except (self._openai.APITimeoutError, self._http.TimeoutException):
            return TransientError(f"{self._about} gave no whole answer within {self.timeout:g} seconds")
        except (self._openai.OpenAIError, self._http.HTTPError) as error:
            return transient(error, self._about)
        found = read_reply(body, prompt, self._about, self.count_tokens)
        if isinstance(found, Answer):
            return Answer(self._without_keys(found.text), found.prompt_tokens, found.answer_tokens, found.finish)
        return found

    def _body(self, arguments: Mapping[str, Any]) -> bytes:
        """Return the body of the answer; a server that sends it byte by byte has no more time than others."""
        end = time.monotonic() + self.timeout
        parts: list[bytes] = []
        create = self._client.chat.completions.with_streaming_response.create
        with create(**arguments, extra_headers=self._extra) as response:
            for part in response.iter_bytes():
                parts.append(part)
                if time.monotonic() > end:
                    raise self._http.TimeoutException("the answer takes too long")
        return b"".join(parts)

    def _leave_out(self, name: str) -> frozenset[str]:
        with self._lock:
            known, self._without = self._without, self._without | {name}
        if name not in known:
            _log.warning("%s does not take %r: it is asked without it", self._about, name)
        return self._without

    @property
    def _about(self) -> str:
        return f"the language model {self.name!r} at {self._address.url!r}"

    def _key(self, variable: str | None) -> str | None:
        key = (os.environ.get(variable) or "").strip() if variable else ""
        if variable and not key and self._address.url == HOSTED:
            raise InputError(f"the key of {HOSTED!r} is read from the environment: set {variable}")
        if not (key.isascii() and (not key or key.isprintable())):
            # What fails to send it would quote it.
            raise InputError(f"the key in {variable} holds characters that no key has; set it anew")
        return key or None

    def _connected(self, key: str | None) -> Any:
        headers = {"Authorization": self._address.authorization} if self._address.authorization else {}
        try:
            return self._openai.OpenAI(
                api_key=key or "-",  # without one it would look for keys of its own
                base_url=self._address.url,
                timeout=self.timeout,
                max_retries=0,
                default_headers=headers,
            )
        except self._openai.OpenAIError:
            pass
        raise InputError(f"the package openai cannot connect to {self._address.url!r}")


def _scrubber(secrets: Sequence[str]) -> Callable[[str], str]:
    """Return what takes secrets out of a text; a function shows nothing of what it knows."""

    def scrubbed(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, _HIDDEN)
        return text

    return scrubbed


def _package() -> Any:
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise MissingDependencyError(
            "OpenAI-compatible endpoints need the package 'openai': pip install interpreto-mlops[llm]"
        ) from error


def _arguments(model: str, prompt: Prompt, without: frozenset[str]) -> dict[str, Any]:
    messages = [{"role": "system", "content": storable(prompt.system)}] if prompt.system else []
    messages.append({"role": "user", "content": storable(prompt.user)})
    limit = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
    optional: dict[str, Any] = {"temperature": prompt.temperature, "seed": prompt.seed}
    found = {name: value for name, value in optional.items() if name not in without}
    if prompt.schema is not None and "response_format" not in without:
        schema = json.loads(json.dumps(prompt.schema))
        form = {"name": "answer", "schema": schema, "strict": True}
        found["response_format"] = {"type": "json_schema", "json_schema": form}
    return {"model": model, "messages": messages, limit: prompt.max_tokens, **found}
