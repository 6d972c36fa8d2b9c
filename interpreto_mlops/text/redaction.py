"""Addresses and errors as they may be shown: without credentials."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# A password may hold quotes; where one ends a string, as in JSON, the address ends too.
_USER_INFO = re.compile(r"""(?<=://)(?:[^/\s'"]|['"](?![\s,:;)\]}]))*@""")
_OF_VALUE = re.compile(r"(?<=://)[^/]*@")


def redact(text: str) -> str:
    """Return the text with `user:password@` of every address in it replaced by `***@`."""
    return _USER_INFO.sub("***@", text)


def redact_value(value: Any) -> Any:
    """Return plain values, in lists and mappings too, with the credentials of each text's addresses replaced.

    A text here is one value, such as an argument of a command, so that its password may hold anything but a slash.
    """
    if isinstance(value, str):
        return _OF_VALUE.sub("***@", value)
    if isinstance(value, Mapping):
        return {name: redact_value(each) for name, each in value.items()}
    return [redact_value(each) for each in value] if isinstance(value, (list, tuple)) else value


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none, without credentials."""
    lines = str(error).strip().splitlines()
    return redact(lines[0]) if lines else type(error).__name__
