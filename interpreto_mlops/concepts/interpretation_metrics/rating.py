"""Responsiveness and purity: whether a concept is strong on natural texts that show its label, and on no others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.interpretation_metrics.base import (
    INTERPRETATION_METRICS,
    Case,
    RatingMetric,
    check_share,
)
from interpreto_mlops.concepts.interpretation_metrics.examples import Examples
from interpreto_mlops.concepts.interpretation_metrics.statistics import HIGHEST, purity, responsiveness
from interpreto_mlops.concepts.interpretation_metrics.subjects import Subjects, columns

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

RATINGS = (
    "You rate how clearly texts show what a description says. The description is of a feature of texts, found in a "
    "language model. For each text answer 2 if it clearly shows what is described, 1 if it does so partly or if you "
    "cannot tell, and 0 if it does not."
)
"""The protocol of ratings from 0 to 2."""


@dataclass(frozen=True, kw_only=True)
class NaturalRatings(RatingMetric):
    """Asks how clearly natural texts show a label.

    Arguments:
        per_question: texts in one question.
        n_texts: texts for each concept; as many as there are where there are fewer.
        top_share: of the texts that are those with the concept's largest activations; the others are random. Purity
            depends on it, for it decides how many texts show the concept: see `prevalence`.
        window: words of a text, where rows are tokens or words; the activation is that of the rows in it.
        least: a concept is skipped where there are fewer texts.
    """

    highest: ClassVar[int] = HIGHEST
    protocol: ClassVar[str] = RATINGS

    per_question: int = 15
    n_texts: int = 500
    top_share: float = 0.1
    window: int = 32
    least: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_texts", "window", "least"):
            check_integer(name, getattr(self, name), 1)
        check_share("top_share", self.top_share)

    def _cases(self, dictionary: ConceptDictionary, activations: ActivationSet, found: Subjects) -> dict[int, Case]:
        source = Examples(activations, self.window)
        if len(source) < self.least:
            reason = f"there are {len(source)} texts; {self.least} are needed"
            found.skipped.update(dict.fromkeys(found.labels, reason))
            return {}
        cases: dict[int, Case] = {}
        for concept, codes, _ in columns(dictionary, activations, found.labels):
            rng = self._rng(concept)
            shown = source.graded(codes, self.n_texts, rng, top_share=self.top_share)
            order = rng.permutation(len(shown)).tolist()
            cases[concept] = Case([(shown[i].text, ()) for i in order], [shown[i].activation for i in order])
        return cases


@INTERPRETATION_METRICS.register("interpretation/responsiveness")
@dataclass(frozen=True, kw_only=True)
class Responsiveness(NaturalRatings):
    """Rate natural texts by a label: how well the concept's activation separates those rated 2 from those rated 0.

    `score.scored_by(purity)` has the purity from the same ratings, without another question. A concept that is weaker
    on such texts scores, too: |2 · AUROC − 1| has no sign; `auroc` in `to_frame()` has it.

    Source: Puri et al. 2025 (FADE), section 3.
    """

    metric = responsiveness


@INTERPRETATION_METRICS.register("interpretation/purity")
@dataclass(frozen=True, kw_only=True)
class Purity(NaturalRatings):
    """Rate natural texts by a label: average precision of the concept's activation as a search for those rated 2.

    `score.scored_by(responsiveness)` has the responsiveness from the same ratings. Chance is `prevalence` in
    `to_frame()`, which depends on `top_share`.

    Source: Puri et al. 2025 (FADE), section 3.
    """

    metric = purity
