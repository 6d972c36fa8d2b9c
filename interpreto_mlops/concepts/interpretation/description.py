"""What is known of a concept's meaning: words, contexts, and the name that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from interpreto_mlops.text.hiding import hidden_name, hidden_word

DEAD = "dead"
NO_WORD = "(no word)"
FROM_WORDS = "words"

_WORDS_IN_LABEL = 3


@dataclass(frozen=True)
class Word:
    """A word that a concept responds to.

    Arguments:
        word: in lower case.
        activation: the concept's largest code on it (where a row holds many words: the mean over the top rows with it).
        count: the rows with this word on which the concept fires (where a row holds many words: the top rows with it).
    """

    word: str
    activation: float
    count: int


@dataclass(frozen=True)
class Context:
    """A place in a text where a concept is strong.

    Arguments:
        text_index: the text's place in the activation set.
        before: the raw text before the word.
        word: the word itself, as it stands there.
        after: the raw text after it.
        activation: the concept's code there.
    """

    text_index: int
    before: str
    word: str
    after: str
    activation: float


@dataclass(frozen=True)
class Label:
    """A name that a concept was given, and by whom.

    Arguments:
        text: the name, on one line.
        origin: how it was found: `llm`, `human`, `aligned`, …
        by: who or which model gave it.
        explanation: a sentence that says more, or nothing.
    """

    text: str
    origin: str
    by: str = ""
    explanation: str = ""


@dataclass(frozen=True)
class ConceptDescription:
    """What one concept responds to.

    Arguments:
        concept: its number in the dictionary.
        words: the words it responds to most, best first.
        contexts: its strongest places, each in another text.
        density: share of the rows on which its code is positive.
        max_activation: its largest code; 0 when no code is positive.
        hidden_label: the hash that stands for the label where texts are hidden; see `hidden`.
        given: the name that it was given; None where its words are its label.
    """

    concept: int
    words: tuple[Word, ...]
    contexts: tuple[Context, ...]
    density: float
    max_activation: float
    hidden_label: str | None = None
    given: Label | None = None

    @property
    def label(self) -> str:
        """The name that it was given, else the first words, or `dead` for a concept that never fires."""
        if self.hidden_label is not None:
            return self.hidden_label
        if self.given is not None:
            return self.given.text
        if self.density == 0.0:
            return DEAD
        return ", ".join(word.word for word in self.words[:_WORDS_IN_LABEL]) or NO_WORD

    @property
    def origin(self) -> str:
        """Where the label is from: `words`, or what `given` says."""
        return FROM_WORDS if self.given is None else self.given.origin

    def named(self, label: Label) -> ConceptDescription:
        """Return the same with another name."""
        return replace(self, given=label, hidden_label=None)

    def hidden(self) -> ConceptDescription:
        """Return the same without texts: hashes stand for words and label, and nothing is around a context's word.

        A word's hash is that of the word in folded case, and a label's that of the label, so that two labels can be
        compared. Labels of concepts without words stay: they say nothing of a text.
        """
        if self.hidden_label is not None:
            return self
        return replace(
            self,
            words=tuple(replace(each, word=hidden_word(each.word)) for each in self.words),
            contexts=tuple(replace(c, before="", word=hidden_word(c.word), after="") for c in self.contexts),
            hidden_label=self.label if self.label in (DEAD, NO_WORD) else hidden_name(self.label),
            given=self.given and replace(self.given, text=hidden_name(self.given.text), explanation=""),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists, for JSON."""
        plain = asdict(self)
        if self.hidden_label is None:
            del plain["hidden_label"]
        if self.given is None:
            del plain["given"]
        return {**plain, "label": self.label, "origin": self.origin}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConceptDescription:
        """Return what `to_dict` was given."""
        return cls(
            values["concept"],
            tuple(Word(**word) for word in values["words"]),
            tuple(Context(**context) for context in values["contexts"]),
            values["density"],
            values["max_activation"],
            values.get("hidden_label"),
            Label(**values["given"]) if values.get("given") else None,
        )
