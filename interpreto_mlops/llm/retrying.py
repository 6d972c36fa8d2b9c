"""Asking again: when, and how often."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

from interpreto_mlops.errors import InputError, LanguageModelError, NotAskedError, TransientError
from interpreto_mlops.llm.base import Answer, LanguageModel, Prompt


class Clock:
    """The time, and how to let it pass."""

    def now(self) -> float:
        """Return seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float, stopped: threading.Event) -> None:
        """Wait so long, or until the event is set."""
        stopped.wait(seconds)


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a question is asked again.

    Arguments:
        first: seconds before the second attempt; each further wait is twice as long.
        longest: seconds that no wait is longer than, unless the server asks for a longer one.
        jitter: the part of a wait that is drawn, so that questions which failed together do not come back together.
    """

    first: float = 0.5
    longest: float = 30.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.first <= self.longest and 0 <= self.jitter <= 1):
            raise InputError(f"a back-off needs 0 < first <= longest and 0 <= jitter <= 1, not {self!r}")

    def seconds(self, attempt: int, retry_after: float | None, drawn: float) -> float:
        """Return how long to wait.

        Arguments:
            attempt: how many attempts have failed, at least 1.
            retry_after: seconds that the server asks for; the wait is never shorter.
            drawn: a random number in [0, 1).
        """
        wait = min(self.longest, self.first * 2.0 ** min(attempt - 1, 60))
        if retry_after is not None:
            return max(wait, retry_after) * (1 + 0.1 * self.jitter * drawn)
        return wait * (1 - self.jitter * drawn)


class Retrier:
    """Asks a question until there is an answer, or no hope; from any thread.

    Arguments:
        model: the back end.
        retries: how many times a question is asked again.
        timeout: seconds after its first attempt when a question is not asked again any more.
        backoff: how long to wait between.
        clock: the time.
    """

    def __init__(self, model: LanguageModel, retries: int, timeout: float, backoff: Backoff, clock: Clock) -> None:
        self._model, self._retries, self._timeout = model, retries, timeout
        self._backoff, self._clock = backoff, clock
        self._random = random.SystemRandom()
        self._lock = threading.Lock()
        self._resume = float("-inf")

    def ask(self, prompt: Prompt, stopped: threading.Event) -> tuple[Answer | LanguageModelError, int]:
        """Return the answer or the last error, and how many attempts were made.

        Arguments:
            prompt: the question.
            stopped: set when no more is to be asked.
        """
        first, attempt = self._clock.now(), 0
        last: LanguageModelError = NotAskedError("the question was not asked: the run was stopped")
        while True:
            self._let_the_server_rest(stopped)
            if stopped.is_set():
                return last, attempt
            attempt += 1
            try:
                return self._model.answer(prompt), attempt
            except TransientError as error:
                # Errors are kept; what their frames hold need not be.
                last, asked_for = error.with_traceback(None), error.retry_after
            except LanguageModelError as error:
                return error.with_traceback(None), attempt
            wait = self._backoff.seconds(attempt, asked_for, self._random.random())
            now = self._clock.now()
            if attempt > self._retries or now + wait > first + self._timeout:
                return last, attempt
            if asked_for is not None:
                with self._lock:
                    self._resume = max(self._resume, now + asked_for)
            self._clock.sleep(wait, stopped)

    def _let_the_server_rest(self, stopped: threading.Event) -> None:
        """Wait as long as the server has asked anyone to: its limits are of all questions together."""
        with self._lock:
            wait = self._resume - self._clock.now()
        if wait > 0 and not stopped.is_set():
            self._clock.sleep(wait, stopped)
