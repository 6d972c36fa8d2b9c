"""Strict answers: one JSON object of a known form, or a refusal that says why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from interpreto_mlops.errors import LanguageModelError, RefusalError
from interpreto_mlops.llm.base import Answer
from interpreto_mlops.llm.nesting import check_nesting

Form = TypeVar("Form", bound=BaseModel)

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
_MOST_SHOWN = 3


def strict_answer(answer: Answer | LanguageModelError, form: type[Form]) -> Form | LanguageModelError:
    """Read an answer that must be one JSON object.

    The object may stand alone, in one ```json fence, or with words around it. Everything else is refused: no object or
    several of them, one that was cut, a name that comes twice, values that the form does not take.

    Arguments:
        answer: as `Questioner.ask` returns it.
        form: a pydantic model of the object.

    Returns:
        The object; where there was no answer, its error; else a `RefusalError` with the reason, which quotes nothing
        of the answer.
    """
    if isinstance(answer, LanguageModelError):
        return answer
    cut = " (it was cut at its limit of tokens)" if answer.finish == "length" else ""
    try:
        return form.model_validate(_only_object(answer.text), strict=False)
    except ValidationError as error:
        return RefusalError(f"the answer has not the form that was asked for{cut}: {_reasons(error)}")
    except ValueError as error:
        return RefusalError(f"the answer is not one JSON object{cut}: {error}")


def schema_of(form: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a form for `Prompt.schema`: all names required, no others allowed.

    Endpoints that hold a model to a schema ask for both.
    """
    schema: dict[str, Any] = _closed(form.model_json_schema())
    return schema


def _only_object(text: str) -> Mapping[str, Any]:
    """Return the one JSON object in a text.

    Raises:
        ValueError: there is none, or there is something else that looks like one.
    """
    check_nesting(text)
    whole = text.strip()
    fences = _FENCE.findall(whole)
    if len(fences) == 1 and "{" not in _FENCE.sub("", whole):
        whole = fences[0].strip()
    try:
        value = _read(whole)
    except json.JSONDecodeError:
        value = _among_words(whole)
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}")
    return value


def _among_words(text: str) -> Any:
    """Return the object that stands among words; every brace must belong to it, or a part could pass for the whole."""
    start = text.find("{")
    if start < 0:
        raise ValueError("there is none")
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise ValueError("what begins like one cannot be read") from error
    if set("{}") & set(text[end:]):
        raise ValueError("there are several, or braces around it")
    if text[:start].rstrip().endswith(("[", ",")) or text[end:].lstrip().startswith(("]", ",")):
        raise ValueError("it is part of a list")
    return value


def _read(text: str) -> Any:
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise json.JSONDecodeError("more than one value", text, end)
    return value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_once_each, parse_constant=_no_constant)


def _reasons(error: ValidationError) -> str:
    """What is wrong where: neither values nor names of the answer, which are not ours to repeat."""
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    shown = [f"{_place(fault['loc'], fault['type'])}: {fault['type']}" for fault in faults[:_MOST_SHOWN]]
    more = len(faults) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


def _place(where: Sequence[Any], kind: str) -> str:
    """The field of the form; further inside may be names of the answer's own."""
    return "the object" if not where or kind == "extra_forbidden" else str(where[0])


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _closed(each) for name, each in schema.items() if name != "default"}
    if isinstance(found.get("properties"), dict):
        found.update(required=list(found["properties"]), additionalProperties=False)
    return found
