"""Language models that are asked questions: back ends, and how many questions are asked safely and cheaply."""

from typing import TYPE_CHECKING

from interpreto_mlops.lazy import lazily
from interpreto_mlops.llm.answers import schema_of, strict_answer
from interpreto_mlops.llm.base import Answer, LanguageModel, Price, Prompt
from interpreto_mlops.llm.cache import AnswerCache
from interpreto_mlops.llm.fences import fenced
from interpreto_mlops.llm.openai_endpoint import OpenAIModel
from interpreto_mlops.llm.questioner import Call, Questioner
from interpreto_mlops.llm.recorded import RecordedAnswers, write_answers
from interpreto_mlops.llm.retrying import Backoff, Clock
from interpreto_mlops.llm.spending import Budget, Estimate, Totals

if TYPE_CHECKING:
    from interpreto_mlops.llm.local import LocalModel

# A model in this process needs torch, which the others do without.
__getattr__ = lazily(__name__, {"LocalModel": "interpreto_mlops.llm.local"})

__all__ = [
    "Answer",
    "AnswerCache",
    "Backoff",
    "Budget",
    "Call",
    "Clock",
    "Estimate",
    "LanguageModel",
    "LocalModel",
    "OpenAIModel",
    "Price",
    "Prompt",
    "Questioner",
    "RecordedAnswers",
    "Totals",
    "fenced",
    "schema_of",
    "strict_answer",
    "write_answers",
]
