"""The questions by which a language model is asked for the names of concepts, and what of an answer is a name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from interpreto_mlops.concepts.interpretation.base import TokenScore
from interpreto_mlops.concepts.interpretation.token_change import TokenEffects
from interpreto_mlops.concepts.interpretation.top_k_inputs import ConceptInputs
from interpreto_mlops.concepts.interpretation.vocab_proj import VocabProjection
from interpreto_mlops.llm.answers import schema_of, strict_answer
from interpreto_mlops.llm.base import Answer, Prompt
from interpreto_mlops.llm.fences import MARKS, NOTE, fenced

_STRENGTHS = 10
_AGAIN = 0.7
_SYSTEM = """\
You name one feature of a text model. It is active on the piece between {opening} and {closing} of each text; lists \
that may follow say what they are. Find what those pieces have in common that other text has not.
{note}
Answer with one JSON object and nothing else: {{"label": a name on one line of at most {longest} characters, \
"explanation": one sentence of at most {sentence} characters}}"""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_REFUSAL = re.compile(
    r"\W*(?:sorry\b|i(?:['’]m| am) (?:sorry|unable|not able)|i (?:can(?:no|['’])t|cannot|won['’]t|must decline)"
    r"|unable to\b|as an ai\b|as a language model\b)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"</?texts-|texts-[0-9a-f]{8}")


class LabelAnswer(BaseModel):
    """What a language model must answer with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    label: str
    explanation: str


@dataclass(frozen=True)
class Evidence:
    """What is known of one concept.

    Arguments:
        inputs: what it fires on.
        silent: texts on which it does not.
        projection: the tokens, or classes, that its direction points to; or None.
        effects: the tokens that turning it changes, or None.
        n_tokens: the most tokens of each list.
    """

    inputs: ConceptInputs
    silent: Sequence[str] = ()
    projection: VocabProjection | None = None
    effects: TokenEffects | None = None
    n_tokens: int = 10

    @property
    def message(self) -> str:
        """What the language model is shown: our words outside of fences, all data inside."""
        examples = self.inputs.examples
        parts = [
            f"It is active on these, with the strengths {', '.join(map(str, self._strengths()))} of {_STRENGTHS}:",
            fenced(
                [each.before + each.word + each.after for each in examples],
                [[(len(each.before), len(each.before) + len(each.word))] for each in examples],
            ),
        ]
        for says, texts in self._more():
            parts += [says, fenced(texts)]
        return "\n".join(parts)

    def _strengths(self) -> list[int]:
        largest = max((abs(each.activation) for each in self.inputs.examples), default=0.0) or 1.0
        return [max(1, round(_STRENGTHS * abs(each.activation) / largest)) for each in self.inputs.examples]

    def _more(self) -> Iterator[tuple[str, Sequence[str]]]:
        if self.silent:
            yield "It is not active anywhere in these:", self.silent
        if self.projection is not None:
            yield f"Its direction makes these {self.projection.of} more likely:", self._tokens(self.projection.top)
            yield f"And these {self.projection.of} less likely:", self._tokens(self.projection.bottom)
        if self.effects is not None:
            yield "Turned up, it raises these next tokens:", self._tokens(self.effects.raised)
            yield "Turned up, it lowers these:", self._tokens(self.effects.lowered)
            yield "Turned down, it raises these:", self._tokens(self.effects.raised_down)
            yield "Turned down, it lowers these:", self._tokens(self.effects.lowered_down)

    def _tokens(self, entries: Sequence[TokenScore]) -> list[str]:
        return [entry.token for entry in entries[: self.n_tokens]]


@dataclass(frozen=True)
class LabelRules:
    """What a name must be like, and how it is asked for.

    Arguments:
        longest: the most characters of a name.
        sentence: the most characters of its explanation.
        max_tokens: the most tokens of an answer.
        temperature: of the language model.
    """

    longest: int
    sentence: int
    max_tokens: int
    temperature: float

    @property
    def system(self) -> str:
        """The protocol, the same for all concepts and data sets."""
        opening, closing = MARKS
        return _SYSTEM.format(opening=opening, closing=closing, note=NOTE, longest=self.longest, sentence=self.sentence)

    def prompt(self, evidence: Evidence, seed: int, *, again: bool = False) -> Prompt:
        """Return the question about one concept; a second one draws, for at temperature 0 it would bring the same."""
        temperature = max(self.temperature, _AGAIN) if again else self.temperature
        return Prompt(self.system, evidence.message, self.max_tokens, temperature, seed, schema_of(LabelAnswer))

    def read(self, answer: Answer) -> LabelAnswer | str:
        """Return the name in an answer, or what is wrong with it, in words that quote nothing of it."""
        found = strict_answer(answer, LabelAnswer)
        if not isinstance(found, LabelAnswer):
            return str(found)
        for name, value, most in (
            ("label", found.label, self.longest),
            ("explanation", found.explanation, self.sentence),
        ):
            problem = _problem(value.strip(), most)
            if problem:
                return f"the {name} {problem}"
        return LabelAnswer(label=found.label.strip(), explanation=found.explanation.strip())


def _problem(value: str, most: int) -> str | None:
    if not any(character.isalnum() for character in value):
        return "has no letter or digit"
    if len(value) > most:
        return f"has {len(value)} characters, and {most} is the most"
    if any(unicodedata.category(character) in _INVISIBLE for character in value):
        return "holds line breaks or control characters"
    if _FENCE.search(value) or any(mark in value for mark in MARKS):
        return "repeats the fence of the data"
    if _REFUSAL.match(value):
        return "is a refusal"
    return None
