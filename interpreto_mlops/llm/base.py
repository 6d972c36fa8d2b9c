"""What is asked of a language model and what it answers; a back end is one class with one method."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One question to a language model.

    Arguments:
        system: the protocol: what is to be done, and the form of the answer. Never holds text of a data set.
        user: what it is to be done with.
        max_tokens: the most tokens of the answer.
        temperature: 0 for the most likely answer.
        seed: of a model that draws, and what makes two equal questions two.
        schema: a JSON schema of the answer, for back ends that can hold the model to it; None for free text.
    """

    system: str
    user: str
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    schema: Mapping[str, Any] | None = None

    @property
    def sha256(self) -> str:
        """The hash of all that it says: equal questions have the same."""
        said = {**asdict(self), "temperature": float(self.temperature)}
        text = json.dumps(said, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What a language model answered.

    Arguments:
        text: the answer.
        prompt_tokens: that were read, as the back end counts them.
        answer_tokens: that were written.
        finish: why it ended: `stop`, `length`, or what else the back end says.
    """

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish: str = "stop"


@dataclass(frozen=True)
class Price:
    """What tokens cost, in the user's currency, for a million of them.

    Arguments:
        prompt: of a million tokens that are read.
        answer: of a million tokens that are written.
    """

    prompt: float
    answer: float

    def of(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return the cost of so many tokens."""
        return (prompt_tokens * self.prompt + answer_tokens * self.answer) / 1e6


class LanguageModel(ABC):
    """A back end: what answers one question at a time, from any thread.

    Arguments:
        name: the model, as runs and labels name it.
        price: of its tokens; None where it is not known.
    """

    name: str
    price: Price | None = None

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What its answers depend on besides the prompt, as plain JSON and without keys: part of the cache's key."""

    @abstractmethod
    def answer(self, prompt: Prompt) -> Answer:
        """Answer one question.

        Raises:
            TransientError: asking again may help.
            RefusalError: it will not.
            UnusableModelError: no question will be answered.
        """

    def count_tokens(self, text: str) -> int:
        """Return about how many tokens a text has: four bytes each, unless the back end knows better."""
        return -(-len(text.encode(errors="surrogatepass")) // 4)
