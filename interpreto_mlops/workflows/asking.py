"""Which language model a job asks, within what limits, and what asking it would cost."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from interpreto_mlops.errors import InputError, LanguageModelError, NotAskedError, UnknownNameError
from interpreto_mlops.llm import (
    Answer,
    Budget,
    Estimate,
    LanguageModel,
    LocalModel,
    OpenAIModel,
    Price,
    Prompt,
    Questioner,
    RecordedAnswers,
    write_answers,
)
from interpreto_mlops.models.loading import load_model
from interpreto_mlops.text.hiding import texts_are_hidden
from interpreto_mlops.text.terminal import one_line
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.tracking.tracing import traced

if TYPE_CHECKING:
    from interpreto_mlops.workflows.job import Console

BACK_ENDS = ("openai", "local", "answers")
DEFAULT_ANSWERS = "interpreto-runs/answers"
"""Where answers are kept when nobody says so: a job that is started again asks nothing twice."""


class Asked(BaseModel):
    """The language model of a recipe.

    Arguments:
        model: `openai:NAME` for any OpenAI-compatible endpoint, `local:FOLDER` or `local:HUB_ID` for a model that runs
            here, `answers:FILE` for recorded answers.
        base_url: of the endpoint, such as `http://localhost:11434/v1`; by default `OPENAI_BASE_URL`, else OpenAI's own.
        key_variable: the environment variable that holds the endpoint's key.
        price: of a million tokens that are read, and of a million that are written.
        max_tokens: that may be spent, read and written ones together.
        max_cost: that may be spent, in the currency of the price.
        concurrency: the most questions at a time.
        retries: how many times a question is asked again after a failure that may pass.
        timeout: seconds that one call may take.
        answers: the folder where answers are kept, or False to keep none.
        trace: whether each call is kept as an MLflow trace.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    price: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_cost: Annotated[float, Field(gt=0)] | None = None
    concurrency: Annotated[int, Field(ge=1)] = 8
    retries: Annotated[int, Field(ge=0)] = 5
    timeout: Annotated[float, Field(gt=0)] = 60.0
    answers: str | Literal[False] = DEFAULT_ANSWERS
    trace: bool = False

    def check(self) -> None:
        """Refuse a model that is not `back end:name`, and what does not go with the back end.

        Raises:
            InputError: such a model, an address of something that has none, or a limited cost without a price.
            UnknownNameError: another back end.
        """
        kind, colon, name = self.model.partition(":")
        if not colon or not name.strip():
            raise InputError(f"a language model is openai:NAME, local:FOLDER or answers:FILE, not {self.model!r}")
        if kind not in BACK_ENDS:
            raise UnknownNameError("language model's back end", kind, BACK_ENDS)
        if kind != "openai" and self.base_url is not None:
            raise InputError(f"{self.model!r} has no address to be asked at; leave out base_url")
        if kind == "openai" and self.max_cost is not None and self.price is None:
            raise InputError(f"to spend at most {self.max_cost!r} the price of the tokens must be known: give price")


def language_model(asked: Asked) -> LanguageModel:
    """Return the back end that is asked.

    Raises:
        InputError: a name, an address or a key that cannot be used.
        DataError: a file of answers that cannot be read.
        ModelLoadError: a local model that cannot be loaded.
        MissingDependencyError: the endpoint's client is not installed.
    """
    asked.check()
    kind, _, name = asked.model.partition(":")
    if kind == "answers":
        return RecordedAnswers(name)
    if kind == "local":
        return LocalModel(load_model(name))
    price = None if asked.price is None else Price(*asked.price)
    return OpenAIModel(
        name, base_url=asked.base_url, key_variable=asked.key_variable, timeout=asked.timeout, price=price
    )


def questioner(asked: Asked, console: Console, *, estimate_only: bool = False) -> Questioner:
    """Return what asks the language model.

    Arguments:
        asked: whom, and within what limits.
        console: says whether there is a progress bar.
        estimate_only: whether nothing is asked, and only counted; see `Estimating`.

    Raises:
        InputError, DataError, ModelLoadError, MissingDependencyError: as `language_model`.
    """
    limited = asked.max_tokens is not None or asked.max_cost is not None
    return (Estimating if estimate_only else Questioner)(
        language_model(asked),
        cache=asked.answers or None,
        concurrency=asked.concurrency,
        retries=asked.retries,
        budget=Budget(asked.max_tokens, asked.max_cost) if limited and not estimate_only else None,
        progress=console.progress,
    )


def trace_into(log: RunLog, asked: Asked, asker: Questioner) -> None:
    """Keep each call from now on as a trace of a run, where that is wanted."""
    if asked.trace:
        asker.observe = traced(log.store, run_id=log.run_id, price=asker.model.price)


class Estimating(Questioner):
    """Counts what it is to ask, and asks nothing: every question is answered by an error that says so."""

    def ask(self, prompts: Iterable[Prompt]) -> list[Answer | LanguageModelError]:
        """Return an error for each question that has no answer yet, and remember the question."""
        asked = list(prompts)
        nothing = NotAskedError("nothing is asked: this is an estimate")
        self.record += [(prompt, nothing) for prompt in asked]
        return [nothing for _ in asked]

    def counted(self) -> Estimate:
        """Return what all questions so far would take."""
        return self.estimate(prompt for prompt, _ in self.record)


def estimate_line(estimate: Estimate) -> str:
    """Return what questions would take, in one line."""
    cost = "no price is known" if estimate.cost is None else f"a cost of at most {estimate.cost:.4g}"
    return (
        f"{estimate.questions} questions, {estimate.cached} of them answered already: about {estimate.prompt_tokens} "
        f"tokens to read and at most {estimate.answer_tokens} to write; {cost}"
    )


def totals_line(asker: Questioner) -> str:
    """Return what was asked and spent, in one line."""
    spent = asker.totals
    cost = "" if spent.cost is None else f", at a cost of {spent.cost:.4g}"
    return (
        f"{one_line(asker.model.name)} was asked {spent.asked} questions ({spent.cached} were answered already, "
        f"{spent.failed} have no answer): {spent.prompt_tokens} tokens read, {spent.answer_tokens} written{cost}"
    )


def write_questions(log: RunLog, asker: Questioner) -> None:
    """Write every question with its answer into a run, as a file that `answers:FILE` asks again; not hidden texts."""
    if texts_are_hidden():
        return
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        file = write_answers(Path(scratch) / "answers.jsonl", asker.record, model=asker.model.name)
        log.folder(file.parent, schema.QUESTIONS_FOLDER)


def question_costs(asker: Questioner) -> dict[str, float]:
    """Return what was asked and spent, by the run schema's keys."""
    spent = asker.totals
    found = {"questions": spent.questions, "questions_asked": spent.asked, "questions_failed": spent.failed}
    found |= {"tokens_read": spent.prompt_tokens, "tokens_written": spent.answer_tokens}
    values = {f"{schema.COST}/{name}": float(value) for name, value in found.items()}
    return values if spent.cost is None else {**values, f"{schema.COST}/price": spent.cost}
