"""Texts that must not be kept: whether they are to be hidden, and the hashes that then stand for them.

The sha256 of a word can be found by trying words: hashes keep texts from being read, not from being guessed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from interpreto_mlops.errors import InputError

VARIABLE = "INTERPRETO_HIDE_TEXTS"
PREFIX = "sha256:"

_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_HASH = re.compile(rf"{PREFIX}[0-9a-f]{{64}}")
_SHOWN = len(PREFIX) + 8

_asked: ContextVar[bool] = ContextVar("interpreto_mlops_hiding_texts", default=False)


def texts_are_hidden() -> bool:
    """Return whether what is written now must hold no texts: a job asks for it, or `INTERPRETO_HIDE_TEXTS` does.

    Raises:
        InputError: a variable that says neither yes nor no.
    """
    return _asked.get() or hidden_by_environment()


def hidden_by_environment() -> bool:
    """Return what `INTERPRETO_HIDE_TEXTS` says.

    Raises:
        InputError: it says neither yes nor no.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value not in (*_YES, *_NO):
        raise InputError(f"{VARIABLE} must be 1 or 0, not {value!r}")
    return value in _YES


@contextmanager
def hiding_texts(asked: bool = True) -> Iterator[None]:
    """Hide the texts in all that this thread writes meanwhile; False leaves it to what was asked before."""
    token = _asked.set(asked or _asked.get())
    try:
        yield
    finally:
        _asked.reset(token)


def storable(text: str) -> str:
    """Return the text without what PostgreSQL cannot hold: the character NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def sha256_of(text: str) -> str:
    """Return the sha256 of a text's UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hidden(text: str) -> str:
    """Return the hash that stands for a text, as it is."""
    return PREFIX + sha256_of(text)


def hidden_name(text: str) -> str:
    """Return the hash that stands for a name or a label."""
    return hidden(storable(text))


def hidden_word(text: str) -> str:
    """Return the hash that stands for a word: the same with space around it, and in upper or lower case."""
    return hidden_name(text.strip().casefold())


def is_hash(text: str) -> bool:
    """Return whether a text is such a hash, by its form."""
    return _HASH.fullmatch(text) is not None


def short(text: str) -> str:
    """Return a hash as people can look at it, and any other text as it is."""
    return f"{text[:_SHOWN]}…" if is_hash(text) else text
