"""What a reader has answered: one class for each text by its number, or nothing where that is not clear."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from interpreto_mlops.errors import InputError
from interpreto_mlops.llm.nesting import check_nesting

_LINE = re.compile(r"^[\s>*#•\-\"'`_]*sample[\s_]*(\d+)[\"'`*_]*\s*[:：=]\s*(.*)$", re.IGNORECASE)
_ID = re.compile(r"^sample[\s_]*(\d+)$", re.IGNORECASE)
_BLOCK = "```"
# What comes before is what a model says to itself.
_THOUGHT = "</think>"
_ESCAPED = re.compile(r"\\u(00[0-9a-f]{2}|20[0-9a-f]{2}|feff)", re.IGNORECASE)
_WRAPPERS = "\"'`*“”‘’ \t"
# What may follow a name: quotes, then the end, punctuation that no word goes on after, or a remark after a space.
_ENDING = re.compile(r"[\"'`*”’]*(?:\s*$|\s*[.,;:!?|—–](?!\w)|\s+(?:[(\[—–#]|-\s|//))")


@dataclass
class Parsed:
    """What could be read of an answer.

    Arguments:
        classes: of each text that has one clear answer, the place of the class; by the text's number.
        duplicates: numbers that were answered more than once, which counts as no answer.
        unknown_ids: what was answered for texts that were not asked for.
        unknown_classes: what was answered that is no class.
    """

    classes: dict[int, int] = field(default_factory=dict)
    duplicates: list[int] = field(default_factory=list)
    unknown_ids: list[str] = field(default_factory=list)
    unknown_classes: list[str] = field(default_factory=list)


class ClassNames:
    """Recognises the full names of classes, whatever their case, spacing, quotes and Unicode form.

    Arguments:
        names: of the classes.

    Raises:
        InputError: two classes have the same name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._form = self._loosest(names)
        self._places = {self._form(name): place for place, name in enumerate(names)}
        self._longest_first = sorted(self._places, key=len, reverse=True)

    @staticmethod
    def _loosest(names: Sequence[str]) -> Callable[[str], str]:
        for form in (_folded, _spaced):
            if len({form(name) for name in names}) == len(names) and all(form(name) for name in names):
                return form
        (name, _) = Counter(_spaced(name) for name in names).most_common(1)[0]
        raise InputError(f"the classes cannot be told apart by their names: {name!r}; show them as anonymous=True does")

    def place(self, answer: str) -> int | None:
        """Return the class that an answer names, or None: the longest name that it starts with and that ends there."""
        form = self._form(_unescaped(answer))
        for text in (form, form.strip(_WRAPPERS)):
            if text in self._places:
                return self._places[text]
            for name in self._longest_first:
                if text.startswith(name) and self._ends(name, text[len(name) :]):
                    return self._places[name]
        return None

    def _ends(self, name: str, rest: str) -> bool:
        """Whether a name ends here, and no other class is named after it."""
        if not _ENDING.match(rest):
            return False
        others = (other for other in self._longest_first if other != name)
        return not any(re.search(rf"(?<!\w){re.escape(other)}(?!\w)", rest) for other in others)


def _unescaped(answer: str) -> str:
    """Return the characters that prompts show escaped, such as brackets in the name of a class."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), answer)


def parse_answer(text: str, names: ClassNames, n_samples: int) -> Parsed:
    """Read lines such as `Sample_3: class`, or a JSON object of them.

    Arguments:
        text: the answer.
        names: of the classes.
        n_samples: how many texts were asked for; their numbers start at 1.
    """
    parsed, seen = Parsed(), Counter[int]()
    for identity, number, answer in _pairs(text):
        if not 1 <= number <= n_samples:
            parsed.unknown_ids.append(identity)
            continue
        seen[number] += 1
        said = _told(answer)
        place = names.place(said)
        if place is None:
            parsed.unknown_classes.append(said)
        else:
            parsed.classes[number] = place
    parsed.duplicates = sorted(number for number, times in seen.items() if times > 1)
    for number in parsed.duplicates:
        parsed.classes.pop(number, None)
    return parsed


def _told(answer: Any) -> str:
    """Return what stands for an answer of JSON: a class may be called 1, or true."""
    if isinstance(answer, str):
        return answer
    return "[…]" if isinstance(answer, list | dict) else json.dumps(answer)


def _pairs(text: str) -> list[tuple[str, int, Any]]:
    """Return what was answered for which text: (as it was written, number, answer); -1 for what is no number."""
    inner = text.rpartition(_THOUGHT)[2].strip()
    if inner.startswith(_BLOCK) and inner.endswith(_BLOCK):
        inner = inner.removesuffix(_BLOCK).partition("\n")[2]
    if inner.lstrip().startswith("{"):
        try:
            check_nesting(inner)
            found = json.loads(inner, object_pairs_hook=_Object)
        except ValueError:
            found = None
        if isinstance(found, _Object):
            return [(key, _number(key), value) for key, value in found]
    lines = (_LINE.match(line) for line in inner.splitlines())
    return [(f"Sample_{each[1]}", _integer(each[1]), each[2]) for each in lines if each]


class _Object(list[tuple[str, Any]]):
    """A JSON object whose keys may come twice."""


def _number(key: str) -> int:
    found = _ID.match(key.strip())
    return _integer(found[1]) if found else -1


def _integer(digits: str) -> int:
    return int(digits) if len(digits) < 10 else -1


def _spaced(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).split())


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())
