"""JSON that is nested without end is refused before it is read: at the end of the stack anything may fail."""

from __future__ import annotations

import re

MOST = 100

_PIECES = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def check_nesting(text: str) -> None:
    """Refuse JSON whose brackets, those in strings left out, stand more than 100 deep in each other.

    Raises:
        ValueError: they do.
    """
    depth = 0
    for piece in _PIECES.finditer(text):
        first = piece[0][0]
        depth += (first in "[{") - (first in "]}")
        if depth > MOST:
            raise ValueError("it is nested too deeply")
