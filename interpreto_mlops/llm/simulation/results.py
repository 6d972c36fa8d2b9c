"""What a simulation has found: scores with intervals, what they cost, and every question and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from interpreto_mlops.llm.base import Answer, Prompt
from interpreto_mlops.llm.simulation.settings import BASELINE, SCORE, Setting
from interpreto_mlops.text.hiding import hidden

Floats = npt.NDArray[np.float64]

_PREFIX = "simulatability"
_DRAWS = 1000


@dataclass(frozen=True)
class Attempt:
    """One question and what came of it.

    Arguments:
        prompt: the question.
        answer: or None, where there is none.
        error: why there is none.
        unparsed: how many texts have no clear class in it.
        problems: ids answered twice, ids and classes that are unknown, as they were written.
    """

    prompt: Prompt
    answer: Answer | None
    error: str | None
    unparsed: int
    problems: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One setting of one seed.

    Arguments:
        setting: what the prompt held.
        seed: of the draw.
        places: of the texts that were asked for, in the study, in the order of their numbers.
        predicted: the class that the reader said of each, or None.
        attempts: the first, and the second where the first left something open.
    """

    setting: Setting
    seed: int
    places: tuple[int, ...]
    predicted: tuple[int | None, ...]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Cost:
    """What the answers cost.

    Arguments:
        questions: that were asked, second attempts included.
        retries: second attempts.
        failures: questions without an answer.
        prompt_tokens: read.
        answer_tokens: written.
        price: in the user's currency, or None where the back end has no price; answers from a cache count as paid.
    """

    questions: int
    retries: int
    failures: int
    prompt_tokens: int
    answer_tokens: int
    price: float | None


@dataclass(frozen=True)
class SettingResult:
    """The score of one setting.

    Arguments:
        setting: what the prompt held.
        score: the share of the answers that say what the model says, over all seeds; None where too few were parsed.
        interval: of the score, by a bootstrap over seeds and texts.
        values: the score of each seed; NaN where it has no answer.
        n_asked: answers that were asked for, over all seeds.
        n_parsed: those with one clear class.
        lowest: the score where all that was not parsed counts as wrong.
        cost: of the answers.
        of_concepts: the share that says what the model says with the reconstruction in the layer's place, or None.
        on_right: the score on the texts that the model gets right, or None.
        on_wrong: the score on those that it gets wrong, or None.
        reason: why there is no score.
    """

    setting: Setting
    score: float | None
    interval: tuple[float, float] | None
    values: tuple[float, ...]
    n_asked: int
    n_parsed: int
    lowest: float
    cost: Cost
    of_concepts: float | None = None
    on_right: float | None = None
    on_wrong: float | None = None
    reason: str | None = None

    @property
    def parse_share(self) -> float:
        """The share of the answers that have one clear class."""
        return self.n_parsed / max(1, self.n_asked)


@dataclass(frozen=True)
class Gain:
    """By how much one setting beats another on the same texts.

    Arguments:
        setting: the one.
        over: the other.
        score: mean difference; None where one of both has no score, or they share no text.
        interval: by a paired bootstrap over seeds and texts.
        values: of each seed; NaN where both have no text in common.
        n: texts that both have an answer for, over all seeds.
        reason: why there is no score.
    """

    setting: Setting
    over: Setting
    score: float | None
    interval: tuple[float, float] | None
    values: tuple[float, ...]
    n: int
    reason: str | None = None


@dataclass(frozen=True)
class Chance:
    """What a reader scores that knows nothing of the texts.

    Arguments:
        uniform: by drawing a class.
        majority: by always saying the class that is most frequent among the texts of each seed.
    """

    uniform: float
    majority: float


@dataclass(frozen=True)
class SimulationResult:
    """How well a reader says what a model says, with and without its explanation.

    Arguments:
        name: the score's name: `consim`, or `attributions`.
        model: the reader.
        settings: the results, by setting.
        gain: of E3 over L2, where both were asked.
        chance: what a reader scores that knows nothing.
        cost: of the answers.
        trials: every question and answer.
        notes: what could not be balanced, and what else a reader of the scores should know.
        parameters: of the simulation.
        samples: a row for each setting, seed and text that was asked for; see `samples_frame`.
    """

    name: str
    model: str
    settings: Mapping[Setting, SettingResult]
    gain: Gain | None
    chance: Chance
    cost: Cost
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]
    parameters: Mapping[str, Any]
    samples: pd.DataFrame = field(compare=False)

    @property
    def score(self) -> float | None:
        """The score of the explanation, that of E3; None where it was not asked or too few answers were parsed."""
        return self.settings[SCORE].score if SCORE in self.settings else None

    @property
    def metrics(self) -> dict[str, float]:
        """The scores as runs call them; without those that are refused."""
        found: dict[str, float | None] = {f"{_PREFIX}/{self.name}": self.score}
        if self.gain is not None:
            found[f"{_PREFIX}/{self.name}_gain"] = self.gain.score
        lead = f"{_PREFIX}/" if self.name == "consim" else f"{_PREFIX}/{self.name}_"
        found |= {f"{lead}{setting.value}": result.score for setting, result in self.settings.items()}
        found |= {f"{lead}chance_{kind}": value for kind, value in asdict(self.chance).items()}
        return {name: value for name, value in found.items() if value is not None}

    def to_frame(self) -> pd.DataFrame:
        """Return one row a setting.

        Columns: setting, score, low, high, lowest, gain (over L2), gain_low, gain_high, of_concepts, on_right,
        on_wrong, n_asked, n_parsed, parse_share, questions, retries, failures, prompt_tokens, answer_tokens, price,
        reason.
        """
        rows = []
        for setting, each in self.settings.items():
            low, high = each.interval or (None, None)
            gain = compare(self.samples, each, self.settings.get(BASELINE))
            gain_low, gain_high = gain.interval or (None, None)
            rows.append(
                {"setting": setting.value, "score": each.score, "low": low, "high": high, "lowest": each.lowest}
                | {"gain": gain.score, "gain_low": gain_low, "gain_high": gain_high}
                | {"of_concepts": each.of_concepts, "on_right": each.on_right, "on_wrong": each.on_wrong}
                | {"n_asked": each.n_asked, "n_parsed": each.n_parsed, "parse_share": each.parse_share}
                | asdict(each.cost)
                | {"reason": each.reason}
            )
        frame = pd.DataFrame(rows)
        numbers = [name for name in frame.columns if name not in ("setting", "reason")]
        return frame.astype(dict.fromkeys(numbers, "float64"))

    def samples_frame(self) -> pd.DataFrame:
        """Return one row for each setting, seed and text that was asked for.

        Columns: setting, seed, number (in the prompt), text_index, model, of_concepts, label, answer (class places,
        missing where there is none).
        """
        return self.samples.copy()

    def questions_frame(self) -> pd.DataFrame:
        """Return one row a question: setting, seed, attempt, system, user, answer, error, unparsed, tokens, sha256."""
        rows = []
        for trial in self.trials:
            for number, attempt in enumerate(trial.attempts, 1):
                answer = attempt.answer
                rows.append(
                    {"setting": trial.setting.value, "seed": trial.seed, "attempt": number}
                    | {"system": attempt.prompt.system, "user": attempt.prompt.user}
                    | {"answer": None if answer is None else answer.text, "error": attempt.error}
                    | {"unparsed": attempt.unparsed, "prompt_tokens": answer.prompt_tokens if answer else 0}
                    | {"answer_tokens": answer.answer_tokens if answer else 0, "sha256": attempt.prompt.sha256}
                )
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as plain JSON (no NaN), without questions and answers, which frames hold."""
        return {
            "name": self.name,
            "model": self.model,
            "score": self.score,
            "settings": [_plain(asdict(each) | {"parse_share": each.parse_share}) for each in self.settings.values()],
            "gain": self.gain and _plain(asdict(self.gain)),
            "chance": asdict(self.chance),
            "cost": asdict(self.cost),
            "notes": list(self.notes),
            "parameters": dict(self.parameters),
        }

    def hidden(self) -> SimulationResult:
        """Return the same without texts: hashes stand for what was asked and answered."""
        return replace(self, trials=tuple(_hidden(trial) for trial in self.trials))

    def __repr__(self) -> str:
        said = "no score" if self.score is None else f"{self.score:.3f}"
        gain = "" if self.gain is None or self.gain.score is None else f", {self.gain.score:+.3f} over {BASELINE.value}"
        return f"SimulationResult({self.name} by {self.model}: {said}{gain}; chance {self.chance.majority:.3f})"


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in entry.items()}


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return _plain(value)
    if isinstance(value, tuple):
        return [_number(each) for each in value]
    if isinstance(value, Setting):
        return value.value
    return None if isinstance(value, float) and np.isnan(value) else value


def _hidden(trial: Trial) -> Trial:
    return replace(trial, attempts=tuple(_hidden_attempt(attempt) for attempt in trial.attempts))


def _hidden_attempt(attempt: Attempt) -> Attempt:
    """An answer or an error may repeat what was asked, so all of them go."""
    return replace(
        attempt,
        prompt=replace(attempt.prompt, user=hidden(attempt.prompt.user), schema=None),
        answer=attempt.answer and replace(attempt.answer, text=hidden(attempt.answer.text)),
        error=attempt.error and attempt.error.partition(":")[0],
        problems={kind: tuple(hidden(str(each)) for each in found) for kind, found in attempt.problems.items()},
    )


def right(samples: pd.DataFrame, setting: Setting, against: str = "model") -> Floats:
    """Return whether each answer is what `against` says, NaN where there is none, shape (seeds, texts)."""
    own = samples[samples["setting"] == setting.value]
    answers, truth = (own[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("answer", against))
    same = np.where(np.isnan(answers) | np.isnan(truth), np.nan, answers == truth)
    return same.reshape(own["seed"].nunique(), -1)


def compare(samples: pd.DataFrame, one: SettingResult, other: SettingResult | None, seed: int = 0) -> Gain:
    """Return by how much a setting beats another on the texts that both have an answer for."""
    if other is None:
        return Gain(one.setting, BASELINE, None, None, (), 0, f"{BASELINE.value} was not asked")
    difference = right(samples, one.setting) - right(samples, other.setting)
    n = int((~np.isnan(difference)).sum())
    values = tuple(mean(row) for row in difference)
    for each in (one, other):
        if each.score is None:
            reason = f"{each.setting.value} has no score: {each.reason}"
            return Gain(one.setting, other.setting, None, None, values, n, reason)
    if not n:
        return Gain(one.setting, other.setting, None, None, values, n, "both have no text in common")
    return Gain(one.setting, other.setting, mean(difference), bootstrap(difference, seed=seed), values, n)


def mean(values: Floats) -> float:
    """Return the mean of what is not NaN; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def bootstrap(values: Floats, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (1,000 draws of seeds, and of texts within each).

    Of five seeds a 95 % interval holds the mean in 94 % of cases where seeds differ (by a standard deviation of 0.1),
    and in 99 % where they do not.

    Arguments:
        values: NaN where there is none, shape (seeds, texts).
        level: of the interval.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n_seeds, n_texts = values.shape
    rows = rng.integers(0, n_seeds, (_DRAWS, n_seeds, 1))
    drawn = values[rows, rng.integers(0, n_texts, (_DRAWS, n_seeds, n_texts))]
    known = ~np.isnan(drawn)
    counts = known.sum(axis=(1, 2))
    means = np.where(known, drawn, 0.0).sum(axis=(1, 2))[counts > 0] / counts[counts > 0]
    if not means.size:
        return float("nan"), float("nan")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
