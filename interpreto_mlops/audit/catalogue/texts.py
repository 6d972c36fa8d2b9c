"""Texts and words as the catalogue keeps them: as they are, or as hashes only."""

from __future__ import annotations

from interpreto_mlops.concepts.interpretation import DEAD, NO_WORD
from interpreto_mlops.text.hiding import PREFIX as PREFIX
from interpreto_mlops.text.hiding import hidden as hidden
from interpreto_mlops.text.hiding import hidden_name as hidden_name
from interpreto_mlops.text.hiding import hidden_word as hidden_word
from interpreto_mlops.text.hiding import is_hash
from interpreto_mlops.text.hiding import sha256_of as sha256_of
from interpreto_mlops.text.hiding import storable as storable

MAX_WORD = 200


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


def hidden_label(label: str) -> str:
    """Return the hash that stands for a label; those of concepts without words say nothing of a text."""
    plain = plain_label(label)
    return plain if plain in (DEAD, NO_WORD) or is_hidden(plain) else hidden(plain)


def is_hidden(text: str) -> bool:
    """Return whether a text of the catalogue is a hash."""
    return text.startswith(PREFIX)


def taken_word(text: str) -> str:
    """Return a word of hidden texts: the hash that stands for it already."""
    return text if is_hash(text) else hidden_word(text)


def taken_name(text: str) -> str:
    """Return a name or label of hidden texts: the hash that stands for it already, or what says nothing of a text."""
    return text if is_hash(text) else hidden_label(text)
