"""What questions cost: an estimate before, a limit meanwhile, and the sum after."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

from interpreto_mlops.errors import InputError
from interpreto_mlops.llm.base import Answer, LanguageModel, Price, Prompt

_AROUND = 8  # tokens that a chat format puts round a question, about


@dataclass(frozen=True)
class Budget:
    """The most that a `Questioner` may spend, over all that it asks.

    Arguments:
        max_tokens: read and written ones together; None for no limit.
        max_cost: in the currency of the model's price; None for no limit.

    Raises:
        InputError: a limit that is negative or no number.
    """

    max_tokens: int | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_cost"):
            limit = getattr(self, name)
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
            if limit is not None and not (number and 0 <= limit < float("inf")):
                raise InputError(f"a budget's {name} must be a number of at least 0, not {limit!r}")

    def allows(self, tokens: int, cost: float | None) -> bool:
        """Return whether so much is within the budget."""
        if self.max_tokens is not None and tokens > self.max_tokens:
            return False
        return self.max_cost is None or (cost is not None and cost <= self.max_cost)

    def __str__(self) -> str:
        limits = [] if self.max_tokens is None else [f"{self.max_tokens} tokens"]
        limits += [] if self.max_cost is None else [f"a cost of {self.max_cost:g}"]
        return " and ".join(limits) or "no limit"


@dataclass(frozen=True)
class Estimate:
    """What questions would take, if every answer were as long as it may be.

    Arguments:
        questions: all of them.
        cached: those that need not be asked: their answers are known, or they are equal to another one.
        to_ask: those that would be asked.
        prompt_tokens: that would be read, as the back end counts them or about.
        answer_tokens: that would be written at most.
        cost: of those; None where the model's price is not known.
    """

    questions: int
    cached: int
    to_ask: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None

    @property
    def tokens(self) -> int:
        """Read and written ones together."""
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True)
class Totals:
    """What has been asked so far.

    Arguments:
        questions: all of them.
        asked: those that were put to the model.
        cached: those that were answered without it: from the cache, or as another one was.
        retried: attempts beyond the first of each.
        failed: questions without an answer.
        prompt_tokens, answer_tokens: of all answers that came from the model.
        cost: of those; None where the model's price is not known. What failed attempts cost, nobody says.
        seconds: spent asking.
    """

    questions: int = 0
    asked: int = 0
    cached: int = 0
    retried: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Read and written ones together."""
        return self.prompt_tokens + self.answer_tokens


def most_tokens(model: LanguageModel, prompt: Prompt) -> tuple[int, int]:
    """Return about how many tokens a question has, and how many its answer has at most."""
    return model.count_tokens(prompt.system) + model.count_tokens(prompt.user) + _AROUND, prompt.max_tokens


class Ledger:
    """Keeps the sum of what is spent, and what may still be; from any thread.

    Arguments:
        price: of the model's tokens; None where it is not known.
        budget: the limit, or None.

    Raises:
        InputError: a limited cost, and no price.
    """

    def __init__(self, price: Price | None, budget: Budget | None) -> None:
        if budget is not None and budget.max_cost is not None and price is None:
            raise InputError(
                f"a cost of at most {budget.max_cost!r} needs the model's price; give Price(prompt, answer), or limit "
                "max_tokens"
            )
        self._price, self.budget = price, budget or Budget()
        self._lock = threading.Lock()
        self._reserved = (0, 0)
        self.totals = Totals(cost=None if price is None else 0.0)

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        """Return what so many tokens cost, or None where the price is not known."""
        return None if self._price is None else self._price.of(prompt_tokens, answer_tokens)

    def allows(self, prompt_tokens: int, answer_tokens: int) -> bool:
        """Return whether so much more is within the budget, after all that is spent or reserved."""
        read = self.totals.prompt_tokens + self._reserved[0] + prompt_tokens
        written = self.totals.answer_tokens + self._reserved[1] + answer_tokens
        return self.budget.allows(read + written, self.cost(read, written))

    def reserve(self, most: tuple[int, int]) -> bool:
        """Set aside what one question may take; return whether that is within the budget."""
        with self._lock:
            if not self.allows(*most):
                return False
            self._reserved = (self._reserved[0] + most[0], self._reserved[1] + most[1])
            return True

    def settle(self, most: tuple[int, int], answer: Answer | None, attempts: int) -> None:
        """Replace what was set aside for a question by what it took."""
        with self._lock:
            self._reserved = (self._reserved[0] - most[0], self._reserved[1] - most[1])
            now = self.totals
            read = now.prompt_tokens + (answer.prompt_tokens if answer else 0)
            written = now.answer_tokens + (answer.answer_tokens if answer else 0)
            self.totals = replace(
                now,
                asked=now.asked + (attempts > 0),
                retried=now.retried + max(0, attempts - 1),
                prompt_tokens=read,
                answer_tokens=written,
                cost=self.cost(read, written),
            )

    def count(self, questions: int, cached: int, failed: int, seconds: float) -> None:
        """Add what a round of questions came to."""
        with self._lock:
            now = self.totals
            self.totals = replace(
                now,
                questions=now.questions + questions,
                cached=now.cached + cached,
                failed=now.failed + failed,
                seconds=now.seconds + seconds,
            )
