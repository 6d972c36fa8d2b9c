"""Metrics of several subjects on the same texts, from plain frames: means with intervals, differences with tests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from interpreto_mlops.attributions.comparison import ALPHA, holm, paired_tests
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.sanity import SanityCheck
from interpreto_mlops.attributions.results import Attribution

SCORE_COLUMNS = ("subject", "method", "metric", "higher_is_better", "text", "value", "random")
TABLE_COLUMNS = (
    "method",
    "metric",
    "higher_is_better",
    "subject",
    "mean",
    "low",
    "high",
    "random_mean",
    "p_random",
    "texts",
    "skipped",
)
PAIR_COLUMNS = (
    "method",
    "metric",
    "first",
    "second",
    "paired",
    "texts",
    "difference",
    "low",
    "high",
    "p_value",
    "p_holm",
    "better",
)

_HASH = re.compile(r"sha256:[0-9a-f]{64}")

Pairing = Literal["digest", "content"]


def text_keys(sets: Sequence[tuple[str | None, Sequence[Attribution]]]) -> tuple[Pairing, list[list[str]]]:
    """Name the texts of several sets so that the same text has the same name in all of them.

    Where all sets are of data of one digest, a text is named by its place in them. Else it is named by what it says,
    and a text that comes n times by n names, in order; of a prompt with its continuation only the prompt counts. A text
    that is kept as `sha256:…` alone has the name of the text with that hash.

    Arguments:
        sets: the digest of the data, None where it is not known, and the explained texts.

    Returns:
        How they were named, and the names of each set's texts, in its order.
    """
    digests = {digest for digest, _ in sets}
    places = [[str(item.index) for item in items] for _, items in sets]
    if len(digests) == 1 and None not in digests and all(len(set(each)) == len(each) for each in places):
        return "digest", places
    return "content", [_contents(items) for _, items in sets]


def _contents(items: Sequence[Attribution]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for item in items:
        text = sha256_name(
            item.text if item.prompt_tokens is None or is_hash(item.text) else item.text[: item.boundary]
        )
        seen[text] = seen.get(text, 0) + 1
        names.append(f"{seen[text]} {text}")
    return names


def is_hash(text: str) -> bool:
    """Return whether a hash stands for a text that is not kept."""
    return _HASH.fullmatch(text) is not None


def sha256_name(text: str) -> str:
    """Return the hash that stands for a text, the same for the text and for its hash."""
    return text if is_hash(text) else f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def compare_scores(
    scores: pd.DataFrame, subjects: Sequence[str], *, level: float = 0.95, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare subjects by metrics that each text has a value of.

    For subjects a and b with the values aᵢ and bᵢ of text i, over the n texts that both have a value of, the difference
    is Σᵢ (aᵢ − bᵢ) / n; its interval resamples texts, its p-value flips signs (`paired_tests`), and is corrected by
    Holm over all pairs of subjects and methods of the metric. Without a shared text it is mean(a) − mean(b), with
    neither interval nor p-value. Of the sanity check, whose both sides of 0 are bad, |aᵢ| − |bᵢ| is compared.

    Arguments:
        scores: the columns `SCORE_COLUMNS`, at most one row for each subject, method, metric and text; NaN where a
            metric does not judge a text.
        subjects: their order.
        level: of the intervals.
        seed: of intervals and tests.

    Returns:
        A row for each method, metric and subject (`TABLE_COLUMNS`): the mean over the subject's own texts, its
        bootstrap interval, the mean of random rankings of the same texts, and the p-value of the paired test against
        them, Holm over the subjects. And a row for each method, metric and pair (`PAIR_COLUMNS`).
    """
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for (method, metric), group in scores.groupby(["method", "metric"], sort=False):
        named = {"method": method, "metric": metric, "higher_is_better": bool(group["higher_is_better"].iloc[0])}
        columns = dict(_of_subjects(group, subjects))
        rows += _rows(named, columns, level, seed)
        pairs += _pairs(named, columns, level, seed)
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    return table, _corrected(pd.DataFrame(pairs, columns=[*PAIR_COLUMNS, "higher_is_better"]))


def _of_subjects(group: pd.DataFrame, subjects: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    for subject in subjects:
        own = group[group["subject"] == subject]
        if len(own):
            yield subject, own.set_index("text")[["value", "random"]].astype(np.float64)


def _rows(named: dict[str, Any], columns: dict[str, pd.DataFrame], level: float, seed: int) -> Iterator[dict[str, Any]]:
    against = [_tested((own["value"] - own["random"]).to_numpy(), level, seed)["p_value"] for own in columns.values()]
    for (subject, own), p_random in zip(columns.items(), holm(np.asarray(against)), strict=True):
        values = own["value"].to_numpy()
        found = _tested(values, level, seed)
        random = own["random"].to_numpy()
        known = random[np.isfinite(random)]
        yield {
            **named,
            "subject": subject,
            "mean": found["mean"],
            "low": found["low"],
            "high": found["high"],
            "random_mean": float(known.mean()) if len(known) else np.nan,
            "p_random": float(p_random),
            "texts": found["n"],
            "skipped": len(values) - found["n"],
        }


def _pairs(
    named: dict[str, Any], columns: dict[str, pd.DataFrame], level: float, seed: int
) -> Iterator[dict[str, Any]]:
    for first, second in combinations(columns, 2):
        a, b = (_merit(named["metric"], columns[name]["value"]) for name in (first, second))
        # Sorted: the same texts in another order are the same comparison.
        shared = sorted(a.dropna().index.intersection(b.dropna().index), key=str)
        found = _tested(np.asarray(a[shared] - b[shared], dtype=np.float64), level, seed)
        difference = found["mean"] if shared else float(a.mean() - b.mean())
        yield {
            **named,
            "first": first,
            "second": second,
            "paired": bool(shared),
            "texts": len(shared),
            "difference": difference,
            "low": found["low"],
            "high": found["high"],
            "p_value": found["p_value"],
        }


def _merit(metric: Hashable, values: pd.Series[float]) -> pd.Series[float]:
    return values.abs() if metric == SanityCheck.name else values


def _tested(values: Floats, level: float, seed: int) -> dict[str, Any]:
    kept = values[np.isfinite(values)]
    if not len(kept):
        return {"n": 0, "mean": np.nan, "low": np.nan, "high": np.nan, "p_value": np.nan}
    found = paired_tests(kept[:, None], level=level, seed=seed)
    return {
        "n": len(kept),
        **{name: float(getattr(found, name)[0]) for name in ("mean", "low", "high", "p_value")},
    }


def _corrected(pairs: pd.DataFrame) -> pd.DataFrame:
    """Correct the p-values over all pairs of a metric, and name the better subject where they differ."""
    for _, group in pairs.groupby("metric", sort=False):
        corrected = holm(group["p_value"].to_numpy(dtype=np.float64))
        pairs.loc[group.index, "p_holm"] = corrected
    pairs["p_holm"] = pairs["p_holm"].astype(np.float64)
    pairs["better"] = [_better(row) for row in pairs.to_dict("records")]
    return pairs[list(PAIR_COLUMNS)]


def _better(row: dict[Hashable, Any]) -> str:
    # A sanity check is better the nearer it is to 0, and says so: its direction is down.
    if not row["p_holm"] < ALPHA:
        return ""
    return str(row["first"] if (row["difference"] > 0) == row["higher_is_better"] else row["second"])


def mean_interval(values: Floats, *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float, int]:
    """Return the mean of the values that are numbers, its bootstrap interval, and how many they are."""
    found = _tested(values, level, seed)
    return found["mean"], found["low"], found["high"], found["n"]
