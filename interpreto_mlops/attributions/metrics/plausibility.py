"""Plausibility: do the elements with high scores agree with those that people marked?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from interpreto_mlops.attributions.base import as_integer
from interpreto_mlops.attributions.metrics.base import METRICS, Metric, nan_mean, share_beaten
from interpreto_mlops.attributions.metrics.rationales import (
    Mask,
    area_under_precision_recall,
    elements_in,
    rationale_spans,
    span_hits,
    token_f1,
)
from interpreto_mlops.attributions.metrics.results import Floats, MetricResult, MetricSet, f1, reduce_texts
from interpreto_mlops.attributions.results import Attribution, AttributionSet
from interpreto_mlops.attributions.sampling import as_number
from interpreto_mlops.errors import InputError


@METRICS.register("plausibility")
@dataclass(frozen=True, kw_only=True)
class Plausibility(Metric):
    """Agreement with human rationales, as the ERASER scorer measures it: high is good; it says nothing of faithfulness.

    It gives `plausibility/auprc` (area under the precision-recall curve of the scores), `plausibility/token_f1`,
    `plausibility/iou_f1` (macro) and `plausibility/iou_f1_micro`. The last three take the k elements with the highest
    scores, k the mean number of elements in a rationale. Runs of adjacent elements are spans; a predicted span hits
    when its intersection over union with a human one is at least `threshold`. Macro is the F1 of precision and recall
    averaged over texts, micro that of hits over all spans. Texts without a rationale are skipped and counted.
    Source: DeYoung et al. 2020, ERASER (arXiv 1911.03429), section 4.1, and its released scorer.

    Arguments:
        rationales: for each text pairs (start, end) of characters, end exclusive; None or empty where there is none. An
            element is in a rationale when they share a character.
        gold: the class, by id or name, whose scores are compared, for each text; by default the first explained one,
            which is the predicted class unless the explanations were asked for another.
        threshold: the least intersection over union of a hit.
        n_random: random rankings of each text: its scores permuted.
        seed: of the permutations.

    Raises:
        InputError: a parameter that cannot be used.
    """

    name: ClassVar[str] = "plausibility"
    higher_is_better: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    needs: ClassVar[str] = "rationales"

    rationales: Sequence[Any] = field(kw_only=False, repr=False)
    gold: Sequence[int | str] | None = None
    threshold: float = 0.5
    n_random: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_random", as_integer("n_random", self.n_random, 1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))
        if not 0 < as_number(self.threshold) <= 1:
            raise InputError(f"the threshold must be above 0 and up to 1, not {self.threshold!r}")

    def __call__(self, explanations: AttributionSet, *, progress: bool | None = False) -> MetricSet:
        """Compare the explanations with the rationales.

        Arguments:
            explanations: one method's attributions, one for each rationale.
            progress: there is nothing to wait for.

        Raises:
            InputError: not one rationale or gold class for each text, or a gold class that was not explained.
        """
        texts = self._texts(explanations)
        known = [text for text in texts if isinstance(text, _Text)]
        k = max(1, round(float(np.mean([text.truth.sum() for text in known])))) if known else 1
        return MetricSet([self._result(measure, texts, k, explanations.method) for measure in _MEASURES])

    def _texts(self, explanations: AttributionSet) -> list[_Text | str]:
        golds = [None] * len(explanations) if self.gold is None else list(self.gold)
        for what, given in (("rationales", self.rationales), ("gold classes", golds)):
            if len(given) != len(explanations):
                raise InputError(
                    f"{len(given)} {what} were given for {len(explanations)} texts; give one for each text"
                )
        rows = zip(explanations, self.rationales, golds, strict=True)
        return [self._text(item, rationale, gold) for item, rationale, gold in rows]

    def _text(self, item: Attribution, rationale: Any, gold: int | str | None) -> _Text | str:
        if item.is_hidden:
            raise InputError(f"text {item.index} is hidden, and its rationale cannot be laid over a hash")
        spans = rationale_spans(rationale, item.index, len(item.text))
        if not len(item) or not item.targets:
            return "no elements"
        scores = item.scores[_row(item, gold)]
        seen = ~np.isnan(scores)
        truth = elements_in(item.spans, spans)[seen]
        if not truth.any():
            return "no rationale" if not len(spans) else "no element in the rationale"
        return _Text(truth, np.concatenate([scores[None, seen], self._permuted(item, scores[seen])]))

    def _permuted(self, item: Attribution, scores: Floats) -> Floats:
        """Return the scores in random orders that depend on the seed and the text, shape (n_random, elements)."""
        digest = hashlib.sha256(f"{self.seed}:{item.text}".encode(errors="surrogatepass")).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:7], "big"))
        return rng.permuted(np.broadcast_to(scores, (self.n_random, len(scores))), axis=1)

    def _result(self, measure: _Measure, texts: list[_Text | str], k: int, method: str) -> MetricResult:
        shape = (len(texts), 1 + self.n_random, measure.n_parts)
        parts = np.full(shape, np.nan)
        for place, text in enumerate(texts):
            if isinstance(text, _Text):
                parts[place] = [measure.parts(text.truth, scores, k, self.threshold) for scores in text.scores]
        values = measure.values(parts)
        kept = ~np.isnan(values[:, 0])
        better = [share_beaten(row[0], row[1:]) for row in values]
        reasons = [text for text in texts if isinstance(text, str)]
        draws = [reduce_texts(measure.reduction, parts[kept, 1 + draw]) for draw in range(self.n_random)]
        return MetricResult(
            name=f"plausibility/{measure.name}",
            method=method,
            values=values[:, 0],
            random_values=nan_mean(values[:, 1:], axis=1),
            better_than_random=np.asarray(better, dtype=np.float64),
            higher_is_better=True,
            skipped={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            parameters={**self.parameters, "top_elements": k},
            bounds=self.bounds,
            random_draws=np.asarray(draws),
            reduction=measure.reduction,
            parts=None if measure.reduction == "mean" else parts[:, 0],
        )


@dataclass(frozen=True)
class _Text:
    """One text: which elements people marked, and their scores, its own first, then permuted."""

    truth: Mask
    scores: Floats  # (1 + n_random, elements)


@dataclass(frozen=True)
class _Measure:
    """One of the agreements: what it takes of a text, and how texts become one number."""

    name: str
    reduction: str
    n_parts: int

    def parts(self, truth: Mask, scores: Floats, k: int, threshold: float) -> tuple[float, ...]:
        """Return what the reduction takes of a text under some scores."""
        if self.name == "auprc":
            return (area_under_precision_recall(truth, scores),)
        chosen = np.zeros(len(scores), dtype=bool)
        chosen[np.argsort(-scores, kind="stable")[:k]] = True
        if self.name == "token_f1":
            return (token_f1(truth, chosen),)
        hits, predicted, human = span_hits(truth, chosen, threshold)
        return (hits / predicted, hits / human) if self.reduction == "macro_f1" else (hits, predicted, human)

    def values(self, parts: Floats) -> Floats:
        """Return each text's own value, shape (texts, rankings, parts) to (texts, rankings)."""
        if self.reduction == "mean":
            return parts[..., 0]
        if self.reduction == "micro_f1":
            parts = np.stack([parts[..., 0] / parts[..., 1], parts[..., 0] / parts[..., 2]], axis=-1)
        missing = np.isnan(parts).any(axis=-1)
        scores = np.asarray([f1(*pair) for pair in parts.reshape(-1, 2)]).reshape(missing.shape)
        return np.where(missing, np.nan, scores)


_MEASURES = (
    _Measure("auprc", "mean", 1),
    _Measure("token_f1", "mean", 1),
    _Measure("iou_f1", "macro_f1", 2),
    _Measure("iou_f1_micro", "micro_f1", 3),
)


def _row(item: Attribution, gold: int | str | None) -> int:
    """Return which target's scores are compared.

    Raises:
        InputError: the gold class was not explained.
    """
    if gold is None:
        return 0
    for row, target in enumerate(item.targets):
        if gold in (target.name, target.id) and not isinstance(gold, bool):
            return row
    known = ", ".join(f"{target.id} ({target.name})" for target in item.targets)
    raise InputError(f"text {item.index} has no explanation of the gold class {gold!r}; it has {known}")


def spans_of_characters(characters: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Turn marked characters, as some data sets give them, into spans (start, end), end exclusive."""
    places = np.unique(np.asarray(characters, dtype=np.int64))
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts, ends = np.append(0, breaks + 1), np.append(breaks, len(places) - 1)
    return [(int(places[a]), int(places[b]) + 1) for a, b in zip(starts, ends, strict=True)] if len(places) else []
