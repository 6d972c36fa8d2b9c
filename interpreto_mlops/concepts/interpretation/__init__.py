"""What concepts mean: what they respond to, what they do to the output, and the names that they are given."""

from interpreto_mlops.concepts.interpretation.description import (
    DEAD,
    FROM_WORDS,
    NO_WORD,
    ConceptDescription,
    Context,
    Label,
    Word,
)
from interpreto_mlops.concepts.interpretation.top_words import top_words

__all__ = ["DEAD", "FROM_WORDS", "NO_WORD", "ConceptDescription", "Context", "Label", "Word", "top_words"]
