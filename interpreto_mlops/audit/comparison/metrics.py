"""Metrics of several subjects on the same texts, from plain frames: means with intervals, differences with tests."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from interpreto_mlops.attributions.comparison import ALPHA, holm, paired_tests
from interpreto_mlops.attributions.metrics.results import Floats
from interpreto_mlops.attributions.metrics.sanity import SanityCheck
from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.text.hiding import sha256_of

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

Pairing = Literal["digest", "content"]


def text_keys(sets: Sequence[tuple[str | None, Sequence[Attribution]]]) -> tuple[Pairing, list[list[str]]]:
    """Name the texts of several sets so that the same text has the same name in all of them.

    Where all sets are of data of one digest, and the same text stands wherever two of them have the same place, a text
    is named by its place. Else it is named by what it says, and a text that comes n times by n names, in order; of a
    prompt with its continuation only the prompt counts, if the prompts of all are known. A text that is kept as
    `sha256:…` alone has the name of the text with that hash.

    Arguments:
        sets: the digest of the data, None where it is not known, and the explained texts.

    Returns:
        How they were named, and the names of each set's texts, in its order.
    """
    digests = {digest for digest, _ in sets}
    # By what is known of all of them: of texts that earlier versions hid, the prompt is not.
    prompts = all(_prompt(item) is not None for _, items in sets for item in items)
    contents = [[(prompts and _prompt(item)) or item.text_sha256 for item in items] for _, items in sets]
    places = [[str(item.index) for item in items] for _, items in sets]
    if len(digests) == 1 and None not in digests and _are_names(places, contents):
        return "digest", places
    return "content", [_numbered(each) for each in contents]


def _are_names(places: Sequence[Sequence[str]], contents: Sequence[Sequence[str]]) -> bool:
    """Return whether a place stands for one text: a part of the data may have been explained, and counted from 0."""
    if any(len(set(each)) < len(each) for each in places):
        return False
    known: dict[str, str] = {}
    pairs = (pair for own, texts in zip(places, contents, strict=True) for pair in zip(own, texts, strict=True))
    return all(known.setdefault(place, text) == text for place, text in pairs)


def _prompt(item: Attribution) -> str | None:
    """Return the sha256 of what was given before a continuation, of a text without one its own, or None for unknown."""
    if item.prompt_tokens is None:
        return item.text_sha256
    return item.prompt_sha256 if item.is_hidden else sha256_of(item.text[: item.boundary])


def _numbered(contents: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for text in contents:
        seen[text] = seen.get(text, 0) + 1
        names.append(f"{seen[text]} {text}")
    return names


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
        held = [subject for subject in subjects if (group["subject"] == subject).any()]
        values, random = (_wide(group, name, held) for name in ("value", "random"))
        merit = _merit(metric, values)
        columns = {
            **{("value", subject): values[subject] for subject in held},
            **{("gain", subject): values[subject] - random[subject] for subject in held},
            **{(first, second): merit[first] - merit[second] for first, second in combinations(held, 2)},
        }
        tests = _tests(columns, level, seed)
        counts = group["subject"].value_counts()
        p_random = holm(np.asarray([tests["gain", subject].p_value for subject in held]))
        for subject, p_value in zip(held, p_random, strict=True):
            rows.append({**named, **_row(subject, tests["value", subject], random[subject], p_value, counts[subject])})
        pairs += [{**named, **_pair(a, b, tests[a, b], merit)} for a, b in combinations(held, 2)]
    table = pd.DataFrame(rows, columns=list(TABLE_COLUMNS))
    return table, _corrected(pd.DataFrame(pairs, columns=[*PAIR_COLUMNS, "higher_is_better"]))


def _wide(group: pd.DataFrame, name: str, subjects: Sequence[str]) -> pd.DataFrame:
    """Return a row for each text and a column for each subject; sorted, so that the order of the texts is nothing."""
    wide = group.pivot(index="text", columns="subject", values=name)
    return wide[list(subjects)].astype(np.float64).sort_index()


@dataclass(frozen=True)
class _Test:
    """What is known of one column: how many numbers, their mean, its interval, the p-value of the sign-flip test."""

    n: int = 0
    mean: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    p_value: float = float("nan")


def _tests(columns: Mapping[Any, pd.Series[float]], level: float, seed: int) -> dict[Any, _Test]:
    """Test each column over the rows where it has a number; columns of the same rows share what is drawn."""
    known = {name: np.isfinite(column.to_numpy()) for name, column in columns.items()}
    alike: dict[bytes, list[Any]] = {}
    for name, mask in known.items():
        alike.setdefault(mask.tobytes(), []).append(name)
    found: dict[Any, _Test] = {}
    for names in alike.values():
        mask = known[names[0]]
        if not mask.any():
            found.update(dict.fromkeys(names, _Test()))
            continue
        kept = np.stack([np.asarray(columns[name], dtype=np.float64)[mask] for name in names], axis=1)
        test = paired_tests(kept, level=level, seed=seed)
        parts = zip(test.n, test.mean, test.low, test.high, test.p_value, strict=True)
        found.update({name: _Test(int(n), *map(float, rest)) for name, (n, *rest) in zip(names, parts, strict=True)})
    return found


def _row(subject: str, test: _Test, random: pd.Series[float], p_random: float, texts: int) -> dict[str, Any]:
    return {
        "subject": subject,
        "mean": test.mean,
        "low": test.low,
        "high": test.high,
        "random_mean": float(random.mean()),
        "p_random": float(p_random),
        "texts": test.n,
        "skipped": int(texts) - test.n,
    }


def _pair(first: str, second: str, test: _Test, merit: pd.DataFrame) -> dict[str, Any]:
    return {
        "first": first,
        "second": second,
        "paired": test.n > 0,
        "texts": test.n,
        "difference": test.mean if test.n else float(merit[first].mean() - merit[second].mean()),
        "low": test.low,
        "high": test.high,
        "p_value": test.p_value,
    }


def _merit(metric: Hashable, values: pd.DataFrame) -> pd.DataFrame:
    return values.abs() if metric == SanityCheck.name else values


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


def mean_intervals(values: Floats, *, level: float = 0.95, seed: int = 0) -> list[tuple[float, float, float, int]]:
    """Return of each column the mean of the values that are numbers, its bootstrap interval, and how many they are.

    Arguments:
        values: shape (rows, columns).
        level: of the interval.
        seed: of the bootstrap.
    """
    tests = _tests({column: pd.Series(values[:, column]) for column in range(values.shape[1])}, level, seed)
    found = [tests[column] for column in range(values.shape[1])]
    return [(test.mean, test.low, test.high, test.n) for test in found]
