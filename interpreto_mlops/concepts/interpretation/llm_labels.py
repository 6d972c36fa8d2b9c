"""Names of concepts by a language model, from what they fire on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import check_integer, check_number
from interpreto_mlops.concepts.interpretation.base import INTERPRETATIONS, Given, Interpretation, needed
from interpreto_mlops.concepts.interpretation.description import ConceptDescription, Label
from interpreto_mlops.concepts.interpretation.label_prompts import Evidence, LabelAnswer, LabelRules
from interpreto_mlops.concepts.interpretation.pooled_codes import pooled_codes
from interpreto_mlops.concepts.interpretation.token_change import TokenChange
from interpreto_mlops.concepts.interpretation.top_k_inputs import TopKInputs
from interpreto_mlops.concepts.interpretation.top_words import top_words
from interpreto_mlops.concepts.interpretation.vocab_proj import VocabProj
from interpreto_mlops.errors import InputError, LanguageModelError, RefusalError
from interpreto_mlops.llm.base import Answer, Prompt
from interpreto_mlops.llm.questioner import Questioner
from interpreto_mlops.text.hiding import hidden, sha256_of

LLM = "llm"

_SILENT_TEXTS = 256
_WORD_ROWS = ("token", "all_tokens", "word")


@dataclass(frozen=True)
class LabelAttempt:
    """One question about a concept, and what came of it.

    Arguments:
        concept: its number in the dictionary.
        prompt: what was asked.
        answer: what was answered; None where there was no answer.
        problem: why the answer was not taken, or why there is none; empty where it was.
        prompt_sha256: the hash of the question.
        answer_sha256: the hash of the answer's text; empty where there was no answer.
    """

    concept: int
    prompt: Prompt
    answer: Answer | None
    problem: str
    prompt_sha256: str
    answer_sha256: str

    def hidden(self) -> LabelAttempt:
        """Return the same with hashes in place of the data that was shown and of the answer."""
        answer = self.answer and replace(self.answer, text=hidden(self.answer.text))
        return replace(self, prompt=replace(self.prompt, user=hidden(self.prompt.user)), answer=answer)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for a table."""
        answer = self.answer or Answer("", finish="")
        return {
            "concept": self.concept,
            "system": self.prompt.system,
            "user": self.prompt.user,
            "seed": self.prompt.seed,
            "answer": answer.text,
            "finish": answer.finish,
            "prompt_tokens": answer.prompt_tokens,
            "answer_tokens": answer.answer_tokens,
            "problem": self.problem,
            "prompt_sha256": self.prompt_sha256,
            "answer_sha256": self.answer_sha256,
        }


@dataclass(frozen=True)
class LabelledConcepts:
    """What a language model calls concepts.

    Arguments:
        descriptions: of all concepts of the dictionary, in order; those that were given a name have it.
        model: the language model.
        attempts: all that was asked and answered, in order.
        unlabelled: why each other concept that was wanted has no name, by its number.
        n_asked: concepts that were asked about.
        n_refused: answers that were not taken.
        cost: of what was put to the model, in the currency of its price; answers that were known cost nothing. None
            where the price is not known.
    """

    descriptions: tuple[ConceptDescription, ...]
    model: str
    attempts: tuple[LabelAttempt, ...]
    unlabelled: Mapping[int, str]
    n_asked: int
    n_refused: int
    cost: float | None

    @property
    def n_labelled(self) -> int:
        """Concepts that were given a name."""
        return sum(not attempt.problem for attempt in self.attempts)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read."""
        return sum(attempt.answer.prompt_tokens for attempt in self.attempts if attempt.answer)

    @property
    def answer_tokens(self) -> int:
        """Tokens that were written."""
        return sum(attempt.answer.answer_tokens for attempt in self.attempts if attempt.answer)

    def to_frame(self) -> pd.DataFrame:
        """Return the record as a frame, a row for each attempt; columns as `LabelAttempt.to_dict`."""
        return pd.DataFrame([attempt.to_dict() for attempt in self.attempts])

    def hidden(self) -> LabelledConcepts:
        """Return the same without texts: hashes stand for words, names, what was shown, and answers."""
        return replace(
            self,
            descriptions=tuple(each.hidden() for each in self.descriptions),
            attempts=tuple(each.hidden() for each in self.attempts),
        )


@INTERPRETATIONS.register("llm_labels")
@dataclass(frozen=True, kw_only=True)
class LLMLabels(Interpretation[LabelledConcepts]):
    """Ask a language model what the examples of each concept have in common.

    One question a concept. Texts of the data set are data between fences; the answer must be a JSON object with a label
    of one line and an explanation of one sentence. What is something else is refused and asked for once more, with
    another seed and a temperature of at least 0.7; then the concept keeps the words that it has. Concepts that never
    fire are not asked about.

    Arguments:
        inputs: how examples are chosen; None for 10 words, or where a row is more than a word, 10 rows.
        n_silent: how many texts on which the concept does not fire are shown beside them.
        vocab_proj: how the tokens that it points to are found, to be shown too; None to leave them out.
        token_change: how the tokens that turning it changes are found, to be shown too; None to leave them out.
        n_tokens: the most tokens of each list that are shown.
        longest: the most characters of a label.
        sentence: the most characters of an explanation.
        max_tokens: the most tokens of an answer.
        temperature: of the language model.
        attempts: how often a concept is asked about, at most.
        seed: of the first attempt, and of the choice of silent texts.

    Returns:
        One `LabelledConcepts`.

    Source: Bills et al. 2023; examples and contrast as in Paulo et al. 2025; the ensemble with VocabProj and
    TokenChange as in Gur-Arieh et al. 2025.
    """

    needs: ClassVar[tuple[str, ...]] = ("activations", "questioner")

    inputs: TopKInputs | None = None
    n_silent: int = 0
    vocab_proj: VocabProj | None = None
    token_change: TokenChange | None = None
    n_tokens: int = 10
    longest: int = 60
    sentence: int = 300
    max_tokens: int = 200
    temperature: float = 0.0
    attempts: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_tokens", "longest", "sentence", "max_tokens", "attempts"):
            check_integer(name, getattr(self, name), 1)
        check_integer("n_silent", self.n_silent, 0)
        check_integer("seed", self.seed, 0)
        check_number("temperature", self.temperature, 0.0)

    def interpret(self, given: Given) -> LabelledConcepts:
        """Ask for the names; see the class."""
        questioner = needed(given.questioner, "questioner", "a Questioner, with the language model to ask")
        activations = needed(given.activations, "activations", "those of the dictionary's layer")
        dictionary = given.dictionary
        descriptions = dictionary.descriptions or top_words(dictionary, activations)
        evidence, unlabelled = self._evidence(given, activations)
        asking = _Asking(questioner, LabelRules(self.longest, self.sentence, self.max_tokens, self.temperature))
        before = questioner.totals
        asking.ask(evidence, self.seed, self.attempts)
        unlabelled.update({concept: asking.problems[concept] for concept in evidence if concept not in asking.names})
        return LabelledConcepts(
            tuple(asking.named(each) for each in descriptions),
            questioner.model.name,
            tuple(asking.attempts),
            dict(sorted(unlabelled.items())),
            len(evidence),
            sum(bool(each.problem) and each.answer is not None for each in asking.attempts),
            None if questioner.totals.cost is None else questioner.totals.cost - (before.cost or 0.0),
        )

    def _evidence(self, given: Given, activations: ActivationSet) -> tuple[dict[int, Evidence], dict[int, str]]:
        """Return what is shown of each concept that is asked about, and why others are not."""
        chosen = self.inputs or TopKInputs(unit="word" if activations.granularity in _WORD_ROWS else None)
        unlabelled, asked = dict[int, str](), dict[int, Evidence]()
        for inputs in chosen.interpret(given):
            if inputs.dead:
                unlabelled[inputs.concept] = "it never fires"
            elif not inputs.examples:
                unlabelled[inputs.concept] = "it fires on no piece of text that could be shown"
            else:
                asked[inputs.concept] = Evidence(inputs, n_tokens=self.n_tokens)
        wanted = replace(given, concepts=tuple(asked))
        for concept, texts in self._silent(wanted, activations).items():
            asked[concept] = replace(asked[concept], silent=texts)
        for projection in self.vocab_proj.interpret(wanted) if self.vocab_proj else ():
            asked[projection.concept] = replace(asked[projection.concept], projection=projection)
        for effects in self.token_change.interpret(wanted) if self.token_change else ():
            asked[effects.concept] = replace(asked[effects.concept], effects=effects)
        return asked, unlabelled

    def _silent(self, given: Given, activations: ActivationSet) -> dict[int, list[str]]:
        """Draw texts, and find for each concept those in which no row fires."""
        if not self.n_silent or not given.concepts:
            return {}
        with_rows = np.unique(activations.text_ids)
        drawn = np.random.default_rng(self.seed).permutation(with_rows)[:_SILENT_TEXTS]
        place = np.full(len(activations.texts), -1, dtype=np.int64)
        place[drawn] = np.arange(len(drawn))
        codes = pooled_codes(
            given.dictionary,
            activations,
            place[activations.text_ids],
            len(drawn),
            given.concepts,
            allow_mismatch=given.allow_mismatch,
        )
        longest = self.inputs.longest if self.inputs else TopKInputs().longest
        found: dict[int, list[str]] = {}
        for column, concept in enumerate(given.concepts):
            silent = drawn[codes[:, column] <= 0][: self.n_silent]
            found[concept] = [activations.texts[index][:longest] for index in silent.tolist()]
        return found


class _Asking:
    """Questions about concepts, and the names that came of them."""

    def __init__(self, questioner: Questioner, rules: LabelRules) -> None:
        self._questioner, self._rules = questioner, rules
        self.attempts: list[LabelAttempt] = []
        self.names: dict[int, LabelAnswer] = {}
        self.problems: dict[int, str] = {}

    def ask(self, evidence: Mapping[int, Evidence], seed: int, attempts: int) -> None:
        """Ask about all concepts, and again about those whose answer is refused."""
        waiting: Sequence[int] = list(evidence)
        for attempt in range(attempts):
            if not waiting:
                return
            prompts = [self._rules.prompt(evidence[each], seed + attempt, again=attempt > 0) for each in waiting]
            try:
                answers = self._questioner.ask(prompts)
            except InputError as error:
                if not attempt:
                    raise
                # What the first answers said is not lost because the budget ends here.
                for concept in waiting:
                    self.problems[concept] += f"; it was not asked again: {error}"
                return
            outcomes = zip(waiting, prompts, answers, strict=True)
            waiting = [concept for concept, prompt, answer in outcomes if self._is_refused(concept, prompt, answer)]

    def _is_refused(self, concept: int, prompt: Prompt, answer: Answer | LanguageModelError) -> bool:
        """Note what came of a question; return whether it is worth asking again with another seed."""
        if isinstance(answer, Answer):
            read = self._rules.read(answer)
            found, problem, digest = answer, read if isinstance(read, str) else "", sha256_of(answer.text)
            if isinstance(read, LabelAnswer):
                self.names[concept] = read
        else:
            found, problem, digest = None, f"there is no answer: {answer}", ""
        self.problems[concept] = problem
        self.attempts.append(LabelAttempt(concept, prompt, found, problem, prompt.sha256, digest))
        return bool(problem) and (found is not None or type(answer) is RefusalError)

    def named(self, description: ConceptDescription) -> ConceptDescription:
        """Return a description with the name that its concept was given, if it was."""
        name = self.names.get(description.concept)
        if name is None:
            return description
        return description.named(Label(name.label, LLM, self._questioner.model.name, name.explanation))
