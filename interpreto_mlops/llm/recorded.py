"""Answers in a file: a run that anyone can repeat without a key, and answers that a person writes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interpreto_mlops.errors import DataError, InputError, LanguageModelError, RefusalError
from interpreto_mlops.llm.base import Answer, LanguageModel, Price, Prompt
from interpreto_mlops.llm.cache import write_whole
from interpreto_mlops.llm.nesting import check_nesting
from interpreto_mlops.text.hiding import sha256_of, texts_are_hidden
from interpreto_mlops.text.terminal import one_line


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    system: str
    user: str
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    response_schema: dict[str, Any] | None = Field(default=None, alias="schema")

    def prompt(self) -> Prompt:
        return Prompt(self.system, self.user, self.max_tokens, self.temperature, self.seed, self.response_schema)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    prompt: _Question | None = None
    answer: str
    prompt_tokens: int = Field(default=0, ge=0)
    answer_tokens: int = Field(default=0, ge=0)
    finish: str = "stop"
    model: str | None = None


class RecordedAnswers(LanguageModel):
    """Answers from a file, by the hash of the question; a question that is not in it is refused.

    Each line of the file is a JSON object with `answer` and the question: as `prompt` (`system`, `user`, and where they
    are not the usual ones `max_tokens`, `temperature`, `seed`, `schema`), as `sha256` of the prompt, or both.
    `prompt_tokens`, `answer_tokens`, `finish` and `model` may be there. Empty lines are nothing.

    Arguments:
        path: the file, as `write_answers` or a person wrote it.
        name: of the model that answered; by default as the file says, else the file's name.

    Raises:
        DataError: a file that cannot be read, or a line that is wrong; the message names it.
    """

    price = Price(0.0, 0.0)

    def __init__(self, path: str | Path, *, name: str | None = None) -> None:
        self.path = Path(path)
        text = _text(self.path)
        self._sha256 = sha256_of(text)
        self._answers: dict[str, Answer] = {}
        names = dict.fromkeys(one_line(line.model) for line in self._lines(text) if line.model is not None)
        self.name = name or (next(iter(names)) if len(names) == 1 else self.path.stem)

    def __repr__(self) -> str:
        return f"RecordedAnswers({str(self.path)!r}, {len(self)} answers)"

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The hash of the file."""
        return {"backend": "recorded", "sha256": self._sha256}

    def answer(self, prompt: Prompt) -> Answer:
        """Return the answer that the file has.

        Raises:
            RefusalError: it has none.
        """
        key = prompt.sha256
        if key not in self._answers:
            raise RefusalError(
                f"{str(self.path)!r} has no answer to the question with sha256 {key}; record it anew, or add the line"
            )
        return self._answers[key]

    def _lines(self, text: str) -> Iterator[_Line]:
        seen: dict[str, int] = {}
        # Only line feeds end a line: JSON strings may hold what else splits lines.
        for number, raw in enumerate(text.split("\n"), 1):
            if not raw.strip():
                continue
            line, key = _read(raw, self.path, number)
            answer = Answer(line.answer, line.prompt_tokens, line.answer_tokens, line.finish)
            if self._answers.setdefault(key, answer) != answer:
                raise _wrong(self.path, number, f"it has another answer than line {seen[key]} to the same question")
            seen.setdefault(key, number)
            yield line


def write_answers(
    path: str | Path, record: Iterable[tuple[Prompt, Answer | LanguageModelError]], *, model: str | None = None
) -> Path:
    """Write the answers of a record for `RecordedAnswers`; questions without an answer are left out.

    Where texts are hidden, the file holds each question's hash and not the question. Answers are as they are.

    Arguments:
        path: the file, which is replaced if it is there.
        record: questions with what came of them, such as `Questioner.record`.
        model: the name of the model that answered.

    Raises:
        InputError: the file cannot be written.
    """
    lines: dict[str, str] = {}
    for prompt, answer in record:
        if isinstance(answer, Answer):
            lines.setdefault(prompt.sha256, _written(prompt, answer, model))
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, "".join(f"{line}\n" for line in lines.values()))
    except OSError as error:
        raise InputError(f"cannot write answers to {str(path)!r}: {error.strerror or error}") from error
    return target


def _written(prompt: Prompt, answer: Answer, model: str | None) -> str:
    line: dict[str, Any] = {"sha256": prompt.sha256}
    if not texts_are_hidden():
        line["prompt"] = asdict(prompt)
    line.update(
        answer=answer.text,
        prompt_tokens=answer.prompt_tokens,
        answer_tokens=answer.answer_tokens,
        finish=answer.finish,
    )
    if model is not None:
        line["model"] = model
    return json.dumps(line, ensure_ascii=True)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read answers from {str(path)!r}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the answers in {str(path)!r} are not in UTF-8; save the file as such") from error


def _read(raw: str, path: Path, number: int) -> tuple[_Line, str]:
    """Return a line and the hash of its question."""
    try:
        check_nesting(raw)
        line = _Line.model_validate(json.loads(raw))
    except (ValidationError, ValueError) as error:
        raise _wrong(path, number, _fault(error)) from None
    if line.prompt is None:
        if line.sha256 is None:
            raise _wrong(path, number, "it has neither 'prompt' nor 'sha256'")
        return line, line.sha256
    key = line.prompt.prompt().sha256
    if line.sha256 not in (None, key):
        raise _wrong(path, number, "its sha256 is not that of its prompt; leave out the one that is wrong")
    return line, key


def _wrong(path: Path, number: int, why: str) -> DataError:
    return DataError(f"line {number} of {str(path)!r} is no recorded answer: {why}")


def _fault(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}"
    return (
        f"it is not JSON ({error.msg} at character {error.pos + 1})"
        if isinstance(error, json.JSONDecodeError)
        else "it is not JSON"
    )
