"""Questions to the language model that judges: the protocol, what is judged as fenced data, and strict answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from interpreto_mlops.errors import InputError, LanguageModelError
from interpreto_mlops.llm import Answer, Prompt, Questioner, fenced, strict_answer
from interpreto_mlops.llm.fences import NOTE

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

Shown = tuple[str, tuple[tuple[int, int], ...]]
"""A text and the spans in it that are marked."""

_ANSWER_TOKENS = 16
"""Tokens of the answer for one example, with room for spaces and line breaks."""


@dataclass
class Cost:
    """What was asked, and what came of it.

    Arguments:
        questions: put to the questioner, those asked again included.
        repeated: asked again, for the first answer could not be read.
        unparsed: left without an answer that can be read.
        unanswered: left without any answer.
        prompt_tokens: read, as the back end counts them; also of answers that were in the cache.
        answer_tokens: written.
    """

    questions: int = 0
    repeated: int = 0
    unparsed: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)


def _whole(value: object) -> object:
    # What asks for a lenient reading gets it from pydantic's own strict numbers, too: `true` would be the rating 1.
    if type(value) is not int:
        raise ValueError("a whole number was asked for")
    return value


class _Answers(BaseModel):
    model_config = ConfigDict(extra="forbid")

    answers: list[Annotated[int, BeforeValidator(_whole)]]


def ask_all(
    questioner: Questioner, prompts: Sequence[Prompt], read: Callable[[int, Answer], T], cost: Cost
) -> list[T | None]:
    """Ask all questions, and those whose answer cannot be read once more with another seed, if the budget allows.

    Arguments:
        questioner: asks.
        prompts: the questions.
        read: from a question's place and its answer to what it says; ValueError where it cannot be read.
        cost: is added to.

    Returns:
        What was answered, or None.

    Raises:
        InputError: the questions may take more than the budget has left.
    """
    found: list[T | None] = [None] * len(prompts)
    again = _read_into(found, range(len(prompts)), questioner.ask(prompts), read, cost)
    if again:
        seeded = [replace(prompts[place], seed=prompts[place].seed + 1) for place in again]
        try:
            answers = questioner.ask(seeded)
        except InputError:
            # What is left of the budget does not reach: the answers that were paid for count all the same.
            cost.unparsed += len(again)
            return found
        cost.repeated += len(again)
        again = _read_into(found, again, answers, read, cost)
    cost.unparsed += len(again)
    return found


def _read_into(
    found: list[T | None],
    places: Sequence[int],
    answers: Sequence[Answer | LanguageModelError],
    read: Callable[[int, Answer], T],
    cost: Cost,
) -> list[int]:
    """Put what was answered in its places, and return the places whose answer cannot be read."""
    unreadable = []
    for place, answer in zip(places, answers, strict=True):
        cost.questions += 1
        if isinstance(answer, LanguageModelError):
            cost.unanswered += 1
            continue
        cost.prompt_tokens += answer.prompt_tokens
        cost.answer_tokens += answer.answer_tokens
        try:
            found[place] = read(place, answer)
        except ValueError:
            unreadable.append(place)
    return unreadable


def rating_prompt(protocol: str, label: str, texts: Sequence[Shown], highest: int, seed: int) -> Prompt:
    """Return the question that asks for a number for each text.

    Arguments:
        protocol: what the numbers mean.
        label: the concept's.
        texts: the examples.
        highest: answers are whole numbers from 0 to it.
        seed: of the question.
    """
    each = {"type": "integer", "enum": list(range(highest + 1))}
    many = {"type": "array", "items": each, "minItems": len(texts), "maxItems": len(texts)}
    return Prompt(
        f"{protocol}\n\n{NOTE} The same holds of the description.\n\n"
        f'Answer with one JSON object and nothing else: {{"answers": [one whole number from 0 to {highest} for each '
        f"text, in the order of the texts]}}.",
        f"{description(label)}\n\nThe texts, {len(texts)} of them:\n"
        + fenced([text for text, _ in texts], [spans for _, spans in texts]),
        max_tokens=32 + _ANSWER_TOKENS * len(texts),
        seed=seed,
        schema=object_schema(answers=many),
    )


def description(label: str) -> str:
    """Return the lines of a question that hold a concept's label."""
    return f"The description:\n{fenced([label])}"


def read_ratings(answer: Answer, n: int, highest: int) -> list[int]:
    """Return the numbers of an answer.

    Raises:
        ValueError: it is anything but the object that was asked for, with as many numbers as texts.
    """
    answers = read_form(answer, _Answers).answers
    if len(answers) != n or any(not 0 <= each <= highest for each in answers):
        raise ValueError(f"{n} numbers from 0 to {highest} were asked for")
    return answers


def read_form(answer: Answer, form: type[M]) -> M:
    """Return the object that an answer is.

    Raises:
        ValueError: it is not one of that form.
    """
    found = strict_answer(answer, form)
    if isinstance(found, LanguageModelError):
        raise ValueError(str(found))
    return found


def object_schema(**properties: Any) -> dict[str, Any]:
    """Return the JSON schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
