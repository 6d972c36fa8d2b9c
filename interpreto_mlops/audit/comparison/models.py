"""How alike the attributions of two models are, text by text, and which concepts' importance shifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import gammaln
from scipy.stats import kendalltau, rankdata

from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.audit.comparison.metrics import mean_intervals
from interpreto_mlops.text.hiding import short

TEXT_COLUMNS = ("text", "index_first", "index_second", "elements", "spearman", "kendall", "overlap", "overlap_random")
TARGET_COLUMNS = ("text", "index_first", "index_second", "target_first", "target_second")
SUMMARY_COLUMNS = ("measure", "mean", "low", "high", "texts", "random")
SHIFT_COLUMNS = ("class", "concept_first", "concept_second", "share_first", "share_second", "shift")

MEASURES = ("spearman", "kendall", "overlap")

_WORDS = 3
_TARGETS = 5


@dataclass(frozen=True)
class Agreement:
    """How alike two explanations of the same texts are.

    Arguments:
        texts: a row for each text that both explained for the same targets by the same elements; NaN where a measure is
            not defined.
        targets: a row for each text whose target differs, as when another class is predicted.
        shared: how many texts are the same.
        other_elements: how many of these were cut into other elements, and have the same target.
        k: how many elements `overlap` looks at.
    """

    texts: pd.DataFrame = field(repr=False)
    targets: pd.DataFrame = field(repr=False)
    shared: int
    other_elements: int
    k: int

    @property
    def unranked(self) -> int:
        """How many texts of `texts` have too few elements, or scores that are all equal, to be ranked."""
        return int(self.texts["spearman"].isna().sum())

    def summary(self, *, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Return a row for each measure: mean over texts, bootstrap interval, texts, and what chance gives."""
        rows = []
        values = self.texts[list(MEASURES)].to_numpy(dtype=np.float64)
        found = mean_intervals(values, level=level, seed=seed)
        for measure, (mean, low, high, texts) in zip(MEASURES, found, strict=True):
            chance = self.texts.loc[self.texts["overlap"].notna(), "overlap_random"].mean()
            random = 0.0 if measure != "overlap" else float(chance)
            rows.append(dict(zip(SUMMARY_COLUMNS, (measure, mean, low, high, texts, random), strict=True)))
        return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def agreement(first: Mapping[str, Attribution], second: Mapping[str, Attribution], *, k: int = 3) -> Agreement:
    """Compare how two models, or two methods, rank the elements of the same texts.

    For a text whose n elements have the scores a and b for the same target, with the ranks r(a) and r(b), mean ranks
    for ties:

    - spearman: the correlation of the ranks, cov(r(a), r(b)) / √(var r(a) · var r(b));
    - kendall: τ-b = (C − D) / √((P − Tₐ)(P − T_b)), of P = n(n − 1)/2 pairs of elements C in the same and D in the
      opposite order, Tₐ and T_b tied;
    - overlap: Σᵢ wᵢ(a) wᵢ(b) / k, where wᵢ is 1 for an element among the k with the highest signed scores, and 0 for
      others; of t elements that tie for the last s of these places, each has w = s / t, as if the places were drawn.
      Without such a tie that is |topₖ(a) ∩ topₖ(b)| / k. The same ranking is 1, ties or not.

    By chance, with the same scores on shuffled elements, the first two are 0. The overlap is k / n, and where both have
    the same ties p (1 − Σᵢ wᵢ² / k) more, with the chance p = Πⱼ tⱼ! / n! that the ranking is the same, of groups of tⱼ
    equal scores: nothing to speak of but where nearly all scores are equal.

    None is defined where one side's scores are all equal, the first two not for fewer than two elements, the third not
    for n ≤ k. Of several targets of a text it is the mean over those for which it is defined. Elements without a number
    in one of the two are left out. A text with another target says nothing about the ranking, and is listed instead.

    Arguments:
        first, second: the explanations by the name of their text.
        k: see above.
    """
    rows, targets, other = [], [], 0
    shared = [name for name in first if name in second]
    for name in shared:
        a, b = first[name], second[name]
        if a.is_hidden or b.is_hidden:
            # The hash of a word is the same wherever it was kept.
            a, b = a.hidden(), b.hidden()
        named = {"text": name, "index_first": a.index, "index_second": b.index}
        if _targets(a) != _targets(b):
            targets.append({**named, "target_first": _said(a), "target_second": _said(b)})
        elif not same_elements(a, b):
            other += 1
        else:
            rows.append({**named, "elements": len(a), **_agreement(a, b, k)})
    texts = pd.DataFrame(rows, columns=list(TEXT_COLUMNS))
    return Agreement(texts, pd.DataFrame(targets, columns=list(TARGET_COLUMNS)), len(shared), other, k)


def same_elements(first: Attribution, second: Attribution) -> bool:
    """Return whether two explanations score the same elements at the same places."""
    return first.elements == second.elements and np.array_equal(first.spans, second.spans)


def _targets(item: Attribution) -> list[tuple[Any, ...]]:
    # Ids of classes may be numbered anew between versions; what they are called is what is read. Tokens have no class.
    return [(target.name, target.positions, target.ids, target.contrast_name) for target in item.targets]


def _said(item: Attribution) -> str:
    names = [target.title for target in item.targets]
    return ", ".join(names[:_TARGETS]) + (", …" if len(names) > _TARGETS else "")


def _agreement(first: Attribution, second: Attribution, k: int) -> dict[str, float]:
    rows = []
    for a, b in zip(first.scores, second.scores, strict=True):
        known = np.isfinite(a) & np.isfinite(b)
        rows.append(rank_agreement(a[known], b[known], k))
    return {name: _mean([row[name] for row in rows]) for name in (*MEASURES, "overlap_random")}


def rank_agreement(first: Floats, second: Floats, k: int) -> dict[str, float]:
    """Return the measures of one ranking, see `agreement`.

    Arguments:
        first, second: scores of the same elements, shape (n,).
        k: how many elements `overlap` looks at.
    """
    ranks, others = rankdata(first), rankdata(second)
    spearman = kendall = overlap = random = np.nan
    if len(first) > 1 and np.ptp(ranks) > 0 and np.ptp(others) > 0:
        # The same ranking is 1, without the rounding of a quotient.
        same = bool(np.array_equal(ranks, others))
        spearman = 1.0 if same else float(np.corrcoef(ranks, others)[0, 1])
        kendall = 1.0 if same else float(kendalltau(ranks, others).statistic)
        if len(first) > k:
            overlap = 1.0 if same else float(_places(first, k) @ _places(second, k)) / k
            random = _chance(ranks, others, _places(first, k), k)
    return {"spearman": spearman, "kendall": kendall, "overlap": overlap, "overlap_random": random}


def _places(scores: Floats, k: int) -> Floats:
    """Return how much of one of the k highest places each element has, which sum to k; k < n."""
    edge = np.sort(scores)[-k]
    above, tied = scores > edge, scores == edge
    shared: Floats = above + tied * ((k - above.sum()) / tied.sum())
    return shared


def _chance(ranks: Floats, others: Floats, places: Floats, k: int) -> float:
    """Return the mean overlap over all orders of one side's scores."""
    n = len(ranks)
    if not np.array_equal(np.sort(ranks), np.sort(others)):
        return k / n
    ties = np.unique(ranks, return_counts=True)[1]
    alike = np.exp(gammaln(ties + 1.0).sum() - gammaln(n + 1.0))
    return k / n + float(alike) * (1.0 - float(places @ places) / k)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def most_changed(found: Agreement, n: int) -> pd.DataFrame:
    """Return the n texts whose explanation changed most: the smallest Spearman correlation, then τ, then overlap.

    Texts whose words are ranked as before have not changed.
    """
    ranked = found.texts.dropna(subset=["spearman"])
    ranked = ranked[ranked["spearman"] < 1]
    return ranked.sort_values(["spearman", "kendall", "overlap"], kind="stable").head(n)


def top_words(item: Attribution, n: int = _WORDS) -> str:
    """Return the elements that speak most for the first target, with their scores, as text."""
    if not item.targets:
        return ""
    return ", ".join(
        f"{short(item.elements[place])} {item.scores[0, place]:+.3f}" for place in item.ranking()[:n].tolist()
    )


def importance_shift(
    first: pd.DataFrame, second: pd.DataFrame, pairs: npt.NDArray[np.int64] | Sequence[tuple[int, int]]
) -> pd.DataFrame:
    """Return how much more, or less, of each class hangs on each concept of the second dictionary than of the first.

    With the importance I(c, j) of concept j for class c, its share is s(c, j) = I(c, j) / Σ_k |I(c, k)|, and the shift
    of a matched pair (i, j) is s₂(c, j) − s₁(c, i). Shares are of the whole dictionary, so that a concept without a
    match counts in the sum.

    Arguments:
        first, second: the columns `class`, `concept` and `share`.
        pairs: concepts of the first and of the second that are the same, shape (pairs, 2).

    Returns:
        A row for each class that both have and each pair, the largest |shift| first; NaN shares (of a class that is
        nobody's target) are left out.
    """
    matched = pd.DataFrame(
        np.asarray(pairs, dtype=np.int64).reshape(-1, 2), columns=["concept_first", "concept_second"]
    )
    named = ["class", "concept", "share"]
    left = first[named].rename(columns={"concept": "concept_first", "share": "share_first"})
    right = second[named].rename(columns={"concept": "concept_second", "share": "share_second"})
    joined = matched.merge(left, on="concept_first").merge(right, on=["class", "concept_second"])
    joined["shift"] = joined["share_second"] - joined["share_first"]
    order = joined["shift"].abs().sort_values(ascending=False, kind="stable").index
    return joined.loc[order, list(SHIFT_COLUMNS)].dropna(subset=["shift"]).reset_index(drop=True)
