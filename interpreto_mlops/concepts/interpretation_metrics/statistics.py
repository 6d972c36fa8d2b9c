"""How answers become numbers: the six metrics of labels, what is told beside them, and when they are not defined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from interpreto_mlops.concepts.metrics.registry import ConceptMetric, metric

Floats = npt.NDArray[np.float64]

HIGHEST = 2
"""The rating of a text that shows a concept clearly; 0 is that of one that does not, 1 lies between."""


@dataclass(frozen=True)
class Judged:
    """One concept's examples: what the concept does there, and what the language model said.

    Arguments:
        given: of each example that has an answer: whether the concept is active (1 or 0), its activation, or the
            multiple that it was set to; shape (answered,).
        said: the answer: yes or no (1 or 0), a rating, or whether the language model wrote the text (1 or 0).
        asked: how many examples were asked about or for, answered or not.
        answered: how many of them have an answer that could be read; None for as many as there are in `said`.
    """

    given: Floats
    said: Floats
    asked: int
    answered: int | None = None

    @property
    def parsed(self) -> float:
        """The share of the examples whose answer could be read."""
        return self.n_answered / self.asked if self.asked else 0.0

    @property
    def n_answered(self) -> int:
        """How many examples have an answer that could be read."""
        return len(self.said) if self.answered is None else self.answered

    def permuted(self, rng: np.random.Generator) -> Judged:
        """Return the same answers, each given to a random example."""
        return replace(self, said=rng.permutation(self.said))

    def resampled(self, rng: np.random.Generator, fixed: str) -> Judged:
        """Draw as many examples with replacement; of each value of the `fixed` side as many as there are."""
        values = np.zeros(len(self.said)) if not fixed else getattr(self, fixed)
        drawn = [rng.choice(np.flatnonzero(values == each), (values == each).sum()) for each in np.unique(values)]
        rows = np.concatenate(drawn) if drawn else np.zeros(0, dtype=np.int64)
        return replace(self, given=self.given[rows], said=self.said[rows])


class AnswerMetric(ConceptMetric):
    """A metric of labels: call it with what is known of examples and what was answered, shape (examples,) each."""

    needs: ClassVar[str] = "answers"

    def __call__(self, given: npt.ArrayLike, said: npt.ArrayLike) -> float:
        """Compute it; NaN where it is not defined."""
        known, answers = np.asarray(given, dtype=np.float64), np.asarray(said, dtype=np.float64)
        return self.compute(Judged(known, answers, len(answers)))

    @property
    def fixed(self) -> str:
        """Which side's numbers of examples are a choice, not a finding: the bootstrap keeps them."""
        return _FIXED.get(self.name, "")

    def details(self, judged: Judged) -> dict[str, float]:
        """Return what belongs beside the value of a concept, by name."""
        return _DETAILS[self.name](judged)

    @property
    def told(self) -> tuple[str, ...]:
        """Which details the value cannot be read without: the direction of a value without sign, and its chance."""
        return _TOLD.get(self.name, ())

    @property
    def undefined(self) -> str:
        """Why it has no value, when it has none although all answers could be read."""
        return _UNDEFINED[self.name]


def auroc(values: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Return the chance that a positive has a larger value than a negative, ties counting half; NaN without either."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    ranks = rankdata(values)[positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def _rates(judged: Judged) -> tuple[float, float]:
    """Return the shares of the active and of the inactive examples that were told right."""
    active, yes = judged.given == 1, judged.said == 1
    if active.all() or not active.any():
        return float("nan"), float("nan")
    return float(yes[active].mean()), float(1 - yes[~active].mean())


def _of_yes_and_no(judged: Judged) -> dict[str, float]:
    recall, specificity = _rates(judged)
    active, yes = judged.given == 1, judged.said == 1
    both = active.sum() + yes.sum()
    return {
        "recall": recall,
        "specificity": specificity,
        "f1": float(2 * (active & yes).sum() / both) if both else float("nan"),
        "n_active": float(active.sum()),
        "n_inactive": float((~active).sum()),
    }


@metric(AnswerMetric, "interpretation/detection", higher_is_better=True, bounds=(0.0, 1.0))
def detection(judged: Judged) -> float:
    """Balanced accuracy of telling by its label where a concept is active; chance is 0.5.

    Source: Paulo et al. 2025 (automatically interpreting millions of features), section 3: detection.
    """
    return float(np.mean(_rates(judged)))


@metric(AnswerMetric, "interpretation/fuzzing", higher_is_better=True, bounds=(0.0, 1.0))
def fuzzing(judged: Judged) -> float:
    """Balanced accuracy of telling by its label whether the marked words make a concept active; chance is 0.5.

    Source: Paulo et al. 2025, section 3: fuzzing.
    """
    return float(np.mean(_rates(judged)))


@metric(AnswerMetric, "interpretation/clarity", higher_is_better=True, bounds=(0.0, 1.0))
def clarity(judged: Judged) -> float:
    """How well a concept's activation separates texts written for its label from natural ones: |2 · AUROC − 1|.

    Source: Puri et al. 2025 (FADE), section 3: clarity.
    """
    return abs(2 * auroc(judged.given, judged.said == 1) - 1)


def _ends(judged: Judged) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the activations of the texts that were rated at either end, and which of them are at the upper one."""
    kept = (judged.said == 0) | (judged.said == HIGHEST)
    return judged.given[kept], judged.said[kept] == HIGHEST


@metric(AnswerMetric, "interpretation/responsiveness", higher_is_better=True, bounds=(0.0, 1.0))
def responsiveness(judged: Judged) -> float:
    """How well a concept's activation separates natural texts that show its label from others: |2 · AUROC − 1|.

    Source: Puri et al. 2025 (FADE), section 3: responsiveness.
    """
    return abs(2 * auroc(*_ends(judged)) - 1)


@metric(AnswerMetric, "interpretation/purity", higher_is_better=True, bounds=(0.0, 1.0))
def purity(judged: Judged) -> float:
    """Average precision of a concept's activation as a search for natural texts that show its label.

    Chance is the prevalence: the share of such texts among those rated at either end.

    Source: Puri et al. 2025 (FADE), section 3: purity.
    """
    values, positive = _ends(judged)
    if positive.all() or not positive.any():
        return float("nan")
    return float(average_precision_score(positive, values))


def _of_ratings(judged: Judged) -> dict[str, float]:
    values, positive = _ends(judged)
    return {
        "auroc": auroc(values, positive),
        "prevalence": float(positive.mean()) if len(positive) else float("nan"),
        **{f"n_rated_{rating}": float((judged.said == rating).sum()) for rating in range(HIGHEST + 1)},
    }


def _of_written(judged: Judged) -> dict[str, float]:
    written = judged.said == 1
    return {
        "auroc": auroc(judged.given, written),
        "n_written": float(written.sum()),
        "n_natural": float((~written).sum()),
    }


def shares(judged: Judged) -> dict[float, float]:
    """Return the share of continuations rated highest at each multiple."""
    multiples = np.unique(judged.given).tolist()
    return {each: float((judged.said[judged.given == each] == HIGHEST).mean()) for each in multiples}


@metric(AnswerMetric, "interpretation/faithfulness", higher_is_better=True, bounds=(0.0, 1.0))
def faithfulness(judged: Judged) -> float:
    """How much more often a model's own words show a label when its concept is set: max(0, max c − c₀) / (1 − c₀).

    c is the share of continuations that show the label clearly, at the best multiple of the concept's largest natural
    activation; c₀ is that share with the concept set to 0.

    Source: Puri et al. 2025 (FADE), section 3: faithfulness.
    """
    found = shares(judged)
    if 0.0 not in found or len(found) < 2 or found[0.0] == 1.0:
        return float("nan")
    return max(0.0, max(found.values()) - found[0.0]) / (1 - found[0.0])


def _of_shares(judged: Judged) -> dict[str, float]:
    found = shares(judged)
    best = max(found, key=lambda multiple: (found[multiple], -abs(multiple)), default=float("nan"))
    return {
        "share_at_0": found.get(0.0, float("nan")),
        "best_share": found.get(best, float("nan")),
        "best_multiple": best,
    }


_FIXED = {
    "interpretation/detection": "given",
    "interpretation/fuzzing": "given",
    "interpretation/clarity": "said",
    "interpretation/faithfulness": "given",
}
_DETAILS: dict[str, Callable[[Judged], dict[str, float]]] = {
    "interpretation/detection": _of_yes_and_no,
    "interpretation/fuzzing": _of_yes_and_no,
    "interpretation/clarity": _of_written,
    "interpretation/responsiveness": _of_ratings,
    "interpretation/purity": _of_ratings,
    "interpretation/faithfulness": _of_shares,
}
_TOLD = {
    "interpretation/clarity": ("auroc",),
    "interpretation/responsiveness": ("auroc",),
    "interpretation/purity": ("prevalence",),
}
_ONE_KIND = "no active or no inactive example has an answer"
_ONE_END = "no text was rated 0, or none was rated 2"
_UNDEFINED = {
    "interpretation/detection": _ONE_KIND,
    "interpretation/fuzzing": _ONE_KIND,
    "interpretation/clarity": "no text was written for the label",
    "interpretation/responsiveness": _ONE_END,
    "interpretation/purity": _ONE_END,
    "interpretation/faithfulness": "all continuations show the label when the concept is 0, or one multiple is left",
}
