"""How many questions are asked of a language model."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from interpreto_mlops.errors import InputError, LanguageModelError, NotAskedError, TransientError, UnusableModelError
from interpreto_mlops.llm.base import Answer, LanguageModel, Prompt
from interpreto_mlops.llm.cache import AnswerCache
from interpreto_mlops.llm.recorded import write_answers
from interpreto_mlops.llm.retrying import Backoff, Clock, Retrier
from interpreto_mlops.llm.spending import Budget, Estimate, Ledger, Totals, most_tokens

_HOPELESS = 16  # questions one after the other that got no answer in all their attempts


@dataclass(frozen=True)
class Call:
    """A question that was put to the model, when it is over.

    Arguments:
        model: the back end's name.
        prompt: the question.
        outcome: the answer, or why there is none.
        attempts: how often it was asked.
        started, ended: when, in nanoseconds since 1970.
    """

    model: str
    prompt: Prompt
    outcome: Answer | LanguageModelError
    attempts: int
    started: int
    ended: int


@dataclass
class _Round:
    """One call of `ask`: what is known, by the questions' hashes, and whether it goes on."""

    found: dict[str, Answer | LanguageModelError] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    reason: str = "the run was stopped"
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _unanswered: int = 0

    def stop(self, reason: str) -> None:
        """Ask no more; the first reason is the one that counts."""
        with self._lock:
            if not self.stopped.is_set():
                self.reason = reason
                self.stopped.set()

    def judge(self, outcome: Answer | LanguageModelError) -> None:
        """Stop where further questions have no hope."""
        if isinstance(outcome, UnusableModelError):
            self.stop(str(outcome))
        with self._lock:
            self._unanswered = self._unanswered + 1 if isinstance(outcome, TransientError) else 0
            hopeless = self._unanswered >= _HOPELESS
        if hopeless:
            self.stop(f"{_HOPELESS} questions in a row got no answer, the last one: {outcome}")


class Questioner:
    """Asks a language model many questions, and keeps what was asked and answered.

    An answer is put into the cache the moment it comes: a run that is killed and started again asks the rest. Equal
    questions are asked once. A question that gets no answer leaves the others; where the key is wrong, or nothing has
    been answered for long, the rest is not asked.

    Arguments:
        model: the back end.
        cache: a folder or an `AnswerCache` of answers; None for none.
        concurrency: the most questions at a time.
        retries: how many times a question is asked again after a failure that may pass.
        timeout: seconds after its first attempt when a question is not asked again any more. How long one attempt may
            take is the back end's.
        budget: the most that may be spent; None for no limit.
        observe: called with a `Call` when one is over, in the thread that made it.
        progress: True for a progress bar, False for none, None for one when the output is a terminal.
        backoff: how long to wait before a question is asked again.
        clock: the time, which tests may replace.

    Raises:
        InputError: a number that cannot be used, or a limited cost of a model without a price.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        cache: AnswerCache | str | Path | None = None,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 600.0,
        budget: Budget | None = None,
        observe: Callable[[Call], object] | None = None,
        progress: bool | None = False,
        backoff: Backoff | None = None,
        clock: Clock | None = None,
    ) -> None:
        _check(concurrency=(concurrency, 1), retries=(retries, 0))
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise InputError(f"timeout must be a number of seconds, not {timeout!r}")
        self.model, self.concurrency, self.progress, self.observe = model, concurrency, progress, observe
        self.cache = AnswerCache(cache) if isinstance(cache, (str, Path)) else cache
        self._ledger = Ledger(model.price, budget)
        self._retrier = Retrier(model, retries, timeout, backoff or Backoff(), clock or Clock())
        self._known: dict[str, Answer] = {}
        self.record: list[tuple[Prompt, Answer | LanguageModelError]] = []
        """Every question in the order asked, with its answer or why there is none."""

    @property
    def totals(self) -> Totals:
        """What has been asked so far, and what it took."""
        return self._ledger.totals

    def estimate(self, prompts: Iterable[Prompt]) -> Estimate:
        """Return what questions would take, without asking any.

        Raises:
            InputError: something other than a `Prompt` among them.
        """
        asked = _checked(prompts)
        return self._estimate(len(asked), self._unknown({prompt.sha256: prompt for prompt in asked}))

    def ask(self, prompts: Iterable[Prompt]) -> list[Answer | LanguageModelError]:
        """Ask all questions and return the answers in order; a question without an answer has its error.

        Raises:
            InputError: something other than a `Prompt` among them; questions that may take more than is left of the
                budget, of which none is asked then; or a cache that cannot be written to.
        """
        start = time.monotonic()
        asked = _checked(prompts)
        hashes = [prompt.sha256 for prompt in asked]
        todo = self._unknown(dict(zip(hashes, asked, strict=True)))
        self._refuse_too_much(self._estimate(len(asked), todo))
        this = _Round({key: self._known[key] for key in hashes if key in self._known})
        try:
            self._run(todo, this)
        finally:
            pairs = [(each, this.found[key]) for each, key in zip(asked, hashes, strict=True) if key in this.found]
            self.record += pairs
            failed = sum(not isinstance(outcome, Answer) for _, outcome in pairs)
            put = {key for key in todo if isinstance(this.found.get(key), Answer)}
            cached = len(pairs) - failed - len(put)
            self._ledger.count(len(pairs), cached, failed, time.monotonic() - start)
        return [outcome for _, outcome in pairs]

    def save_answers(self, path: str | Path) -> Path:
        """Write all answers of the record to a file that `RecordedAnswers` replays, and return its path.

        Raises:
            InputError: it cannot be written.
        """
        return write_answers(path, self.record, model=self.model.name)

    def _run(self, todo: Mapping[str, Prompt], this: _Round) -> None:
        """Ask in threads; what is in flight when this is interrupted is waited for, since it is paid for."""
        if not todo:
            return
        pool = ThreadPoolExecutor(min(self.concurrency, len(todo)), thread_name_prefix="interpreto-ask")
        hide = None if self.progress is None else not self.progress
        try:
            # Each thread sees what is set where `ask` is called, such as that texts are hidden.
            made: list[Future[None]] = [
                pool.submit(contextvars.copy_context().run, self._one, key, prompt, this)
                for key, prompt in todo.items()
            ]
            for future in tqdm(as_completed(made), total=len(made), desc=self.model.name, disable=hide, leave=False):
                future.result()
        except BaseException:
            this.stop("the run was interrupted")
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _one(self, key: str, prompt: Prompt, this: _Round) -> None:
        try:
            self._answered(key, prompt, this)
        except BaseException:
            # Such as a cache that cannot be written to: what is answered from now on would be lost.
            this.stop("the run failed")
            raise

    def _answered(self, key: str, prompt: Prompt, this: _Round) -> None:
        most = most_tokens(self.model, prompt)
        if this.stopped.is_set() or not self._ledger.reserve(most):
            this.stop(f"the budget of {self._ledger.budget} is used up")
            this.found[key] = NotAskedError(f"the question was not asked: {this.reason}")
            return
        started, (outcome, attempts) = time.time_ns(), self._retrier.ask(prompt, this.stopped)
        if not attempts:
            outcome = NotAskedError(f"the question was not asked: {this.reason}")
        this.found[key] = outcome
        answer = outcome if isinstance(outcome, Answer) else None
        try:
            if answer is not None:
                self._keep(key, prompt, answer)
        finally:
            self._ledger.settle(most, answer, attempts)
        this.judge(outcome)
        if self.observe is not None and attempts:
            self.observe(Call(self.model.name, prompt, outcome, attempts, started, time.time_ns()))

    def _keep(self, key: str, prompt: Prompt, answer: Answer) -> None:
        self._known[key] = answer
        if self.cache is not None:
            self.cache.put(self.cache.key(self.model.identity, prompt), answer)

    def _unknown(self, prompts: Mapping[str, Prompt]) -> dict[str, Prompt]:
        """Return the questions whose answers are not known; what the cache has becomes known."""
        for key, prompt in prompts.items():
            if self.cache is not None and key not in self._known:
                answer = self.cache.get(self.cache.key(self.model.identity, prompt))
                if answer is not None:
                    self._known[key] = answer
        return {key: prompt for key, prompt in prompts.items() if key not in self._known}

    def _estimate(self, questions: int, todo: Mapping[str, Prompt]) -> Estimate:
        most = [most_tokens(self.model, prompt) for prompt in todo.values()]
        read, written = sum(each[0] for each in most), sum(each[1] for each in most)
        return Estimate(questions, questions - len(todo), len(todo), read, written, self._ledger.cost(read, written))

    def _refuse_too_much(self, estimate: Estimate) -> None:
        if not estimate.to_ask or self._ledger.allows(estimate.prompt_tokens, estimate.answer_tokens):
            return
        spent, cost = self.totals, "" if estimate.cost is None else f" and cost {estimate.cost:.4g}"
        before = "" if spent.cost is None else f" and a cost of {spent.cost:.4g}"
        raise InputError(
            f"{estimate.to_ask} questions may take {estimate.tokens} tokens ({estimate.prompt_tokens} read, at most "
            f"{estimate.answer_tokens} written){cost}, and {spent.tokens} tokens{before} are spent: more than the "
            f"budget of {self._ledger.budget}; ask fewer, lower max_tokens of the answers, or raise the budget"
        )


def _check(**numbers: tuple[object, int]) -> None:
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _checked(prompts: Iterable[Prompt]) -> list[Prompt]:
    found = list(prompts)
    for k, prompt in enumerate(found):
        if not isinstance(prompt, Prompt):
            raise InputError(f"question {k} must be a Prompt, not a {type(prompt).__name__}")
    return found
