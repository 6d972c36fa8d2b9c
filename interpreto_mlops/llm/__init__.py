"""Language models that are asked questions: back ends, and how many questions are asked safely and cheaply."""

from interpreto_mlops.llm.base import Answer, LanguageModel, Price, Prompt
from interpreto_mlops.llm.questioner import Questioner

__all__ = [
    "Answer",
    "LanguageModel",
    "Price",
    "Prompt",
    "Questioner",
]
