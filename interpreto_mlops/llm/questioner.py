"""How many questions are asked of a language model."""

from __future__ import annotations

from collections.abc import Iterable

from interpreto_mlops.errors import LanguageModelError
from interpreto_mlops.llm.base import Answer, LanguageModel, Prompt


class Questioner:
    """Asks a language model many questions, and keeps what was asked and answered.

    Arguments:
        model: the back end.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.record: list[tuple[Prompt, Answer | LanguageModelError]] = []
        """Every question in the order asked, with its answer or why there is none."""

    def ask(self, prompts: Iterable[Prompt]) -> list[Answer | LanguageModelError]:
        """Ask all questions and return the answers in order; a question without an answer has its error."""
        found: list[Answer | LanguageModelError] = []
        for prompt in prompts:
            try:
                found.append(self.model.answer(prompt))
            except LanguageModelError as error:
                found.append(error)
            self.record.append((prompt, found[-1]))
        return found
