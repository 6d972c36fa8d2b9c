"""From a file to a policy: plain YAML only, and one sentence about whatever cannot be used."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from interpreto_mlops.audit.policies.schema import RULES, Policy, Rule
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.tracking.addresses import first_line

_MOST = 2**20
_KEYS = ("name", "rules")
_SHOWN = 80
_DEEPEST = 20


def load_policy(path: str | Path) -> Policy:
    """Read a policy from a YAML file.

    Raises:
        InputError: it cannot be read, or is no policy; the sentence names the file and what is wrong in it.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _MOST:
            raise InputError(f"the policy {str(path)!r} is larger than {_MOST} bytes: it is none")
        # Line ends stay as they are, for the sha256 is that of the file.
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the policy {str(path)!r}: {first_line(error)}") from error
    return parse_policy(text, repr(str(path)))


def parse_policy(text: str, source: str = "given") -> Policy:
    """Read a policy from YAML.

    Arguments:
        text: the YAML.
        source: what messages call it.

    Raises:
        InputError: it is no policy.
        UnknownNameError: a key or a kind of rule that there is not; the message lists those there are.
    """
    values = _plain(text, source)
    if not isinstance(values, dict):
        raise InputError(f"the policy {source} must be a mapping with 'rules', not {_short(values)}")
    _check_keys(f"key of the policy {source}", values, _KEYS)
    rules = values.get("rules")
    if not isinstance(rules, list) or not rules:
        raise InputError(f"the policy {source} has no rules; list at least one under 'rules'")
    made = [_rule(entry, number, source) for number, entry in enumerate(rules, 1)]
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    name = {"name": values["name"]} if "name" in values else {}
    try:
        return Policy(**name, rules=made, text=text, sha256=sha256)  # type: ignore[arg-type]
    except ValidationError as error:
        raise InputError(f"the policy {source} cannot be used: {_said(error)}") from None


def _plain(text: str, source: str) -> Any:
    try:
        _check_plain(text, source)
        _check_twice(yaml.compose(text, Loader=yaml.SafeLoader), source)
        return yaml.safe_load(text)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(f"the policy {source} is no YAML: {' '.join(str(error).split())[:300]}") from None


def _check_plain(text: str, source: str) -> None:
    """Refuse what YAML allows and no policy needs: a reference can stand for gigabytes, and depth costs hours."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"the policy {source} refers to '*{event.anchor}'; write out what that stands for")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise InputError(f"the policy {source} is nested too deeply to be one")


def _check_twice(node: yaml.Node | None, source: str) -> None:
    """Refuse a key that is given twice, of which only the last would be read."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check_twice(each, source)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise InputError(f"the policy {source} gives {_short(key.value)} twice in one place; give it once")
                seen.add(key.value)
            _check_twice(value, source)


def _rule(entry: Any, number: int, source: str) -> Rule:
    where = f"rule {number} of the policy {source}"
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be a mapping with 'rule', not {_short(entry)}")
    kind = entry.get("rule")
    if not isinstance(kind, str) or kind not in RULES:
        raise UnknownNameError(f"kind of rule in {where}:", _value(kind), RULES)
    model = RULES[kind]
    _check_keys(f"key of the rule {kind!r} ({where})", entry, model.model_fields)
    try:
        return model.model_validate({key: _number(value) for key, value in entry.items()})
    except ValidationError as error:
        raise InputError(f"{where} ({kind!r}) cannot be used: {_said(error)}") from None


def _number(value: Any) -> Any:
    """Return a whole number that no float holds as infinite, which every rule refuses; anything else as it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return math.inf
    return value


def _check_keys(kind: str, given: Mapping[Any, Any], known: Iterable[str]) -> None:
    names = tuple(known)
    for key in given:
        if key not in names:
            raise UnknownNameError(kind, _value(key), names)


def _said(error: ValidationError) -> str:
    return "; ".join(_problem(each) for each in error.errors(include_url=False, include_context=False))


def _problem(problem: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    words = str(problem["msg"]).removeprefix("Value error, ")
    given = "" if not place else f", not {_short(problem['input'])}"
    hint = "; write it in quotes" if problem["type"] == "string_type" else ""
    return f"{place}: {words}{given}{hint}" if place else words


def _value(value: Any) -> Any:
    """Return what a message quotes: a long value is cut before it is."""
    return value if isinstance(value, int | float | None) else str(value)[:_SHOWN]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
