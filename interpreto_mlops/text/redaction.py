"""Addresses and errors as they may be shown: without credentials."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(?<=://)[^/\s'\"]*@")


def redact(text: str) -> str:
    """Return the text with `user:password@` of every address in it replaced by `***@`."""
    return _USER_INFO.sub("***@", text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none, without credentials."""
    lines = str(error).strip().splitlines()
    return redact(lines[0]) if lines else type(error).__name__
