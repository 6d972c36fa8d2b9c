"""Texts and words as the catalogue keeps them: as they are, or as hashes only."""

from __future__ import annotations

import hashlib

from interpreto_mlops.concepts.interpretation import DEAD, NO_WORD

PREFIX = "sha256:"
MAX_WORD = 200


def storable(text: str) -> str:
    """Return the text without what PostgreSQL cannot hold: the character NUL and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def sha256_of(text: str) -> str:
    """Return the sha256 of a text's UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def plain_word(text: str) -> str:
    """Return a word as it is looked up: without the space around it, in folded case; a long one as its hash."""
    return plain_name(text.strip().casefold())


def plain_name(text: str) -> str:
    """Return a name as it is looked up, a long one as its hash."""
    name = storable(text)
    return hidden(name) if len(name) > MAX_WORD or is_hidden(name) else name


def plain_label(label: str) -> str:
    """Return a label as it is."""
    # A hash is told by its first letters, so what only begins like one is kept as its hash.
    return hidden(label) if is_hidden(label) else storable(label)


def hidden_word(text: str) -> str:
    """Return the hash that stands for a word, the same for all spellings that `plain_word` makes one."""
    return hidden_name(text.strip().casefold())


def hidden_name(text: str) -> str:
    """Return the hash that stands for a name."""
    name = plain_name(text)
    return name if is_hidden(name) else hidden(name)


def hidden_label(label: str) -> str:
    """Return the hash that stands for a label; those of concepts without words say nothing of a text."""
    plain = plain_label(label)
    return plain if plain in (DEAD, NO_WORD) or is_hidden(plain) else hidden(plain)


def hidden(text: str) -> str:
    """Return the hash that stands for a text."""
    return PREFIX + sha256_of(text)


def is_hidden(text: str) -> bool:
    """Return whether a text of the catalogue is a hash."""
    return text.startswith(PREFIX)
