"""Text of others on a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return a text that stays on its line and controls no terminal: what cannot be printed becomes a space.

    Names come from whoever may write to a store.
    """
    return "".join(char if char.isprintable() else " " for char in text)
