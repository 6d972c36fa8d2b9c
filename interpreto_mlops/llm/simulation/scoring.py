"""From the answers of a simulation to its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interpreto_mlops.llm.base import Price
from interpreto_mlops.llm.simulation.importances import WEAK, kept
from interpreto_mlops.llm.simulation.results import (
    Chance,
    Cost,
    Floats,
    SettingResult,
    SimulationResult,
    Trial,
    bootstrap,
    compare,
    mean,
    right,
)
from interpreto_mlops.llm.simulation.sampling import Phases
from interpreto_mlops.llm.simulation.settings import BASELINE, SCORE, Setting
from interpreto_mlops.llm.simulation.study import Study

_PLACES = ("model", "of_concepts", "label", "answer")


def scored(
    study: Study,
    trials: Sequence[Trial],
    drawn: Mapping[int, Phases],
    *,
    name: str,
    model: str,
    price: Price | None,
    parameters: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> SimulationResult:
    """Score the answers of all settings and seeds.

    Arguments:
        study: the texts and the model's predictions.
        trials: one for each setting and seed.
        drawn: the texts of each seed.
        name: of the score.
        model: the reader's name.
        price: of its tokens.
        parameters: of the simulation; `min_parsed` is read.
        notes: what else is to be said.
    """
    samples = _samples(study, trials)
    asked = list(dict.fromkeys(trial.setting for trial in trials))
    settings = {each: _setting(each, samples, trials, parameters["min_parsed"], price) for each in asked}
    both = SCORE in settings and BASELINE in settings
    return SimulationResult(
        name=name,
        model=model,
        settings=settings,
        gain=compare(samples, settings[SCORE], settings[BASELINE]) if both else None,
        chance=_chance(study, drawn),
        cost=_cost(trials, price),
        trials=tuple(trials),
        notes=(*_notes(study, drawn, asked), *notes),
        parameters=parameters,
        samples=samples,
    )


def _samples(study: Study, trials: Sequence[Trial]) -> pd.DataFrame:
    rows = []
    for trial in trials:
        for number, (place, answer) in enumerate(zip(trial.places, trial.predicted, strict=True), 1):
            sample = study.samples[place]
            rows.append(
                {"setting": trial.setting.value, "seed": trial.seed, "number": number, "text_index": sample.index}
                | {"model": sample.prediction, "of_concepts": sample.of_concepts, "label": sample.label}
                | {"answer": answer}
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(_PLACES, "Int64"))


def _setting(
    setting: Setting, samples: pd.DataFrame, trials: Sequence[Trial], least: float, price: Price | None
) -> SettingResult:
    hits, own = right(samples, setting), [trial for trial in trials if trial.setting is setting]
    n_parsed = int((~np.isnan(hits)).sum())
    reason = None
    if not n_parsed or n_parsed < least * hits.size - 1e-9:
        reason = (
            f"{n_parsed} of {hits.size} answers have one clear class, and a score needs {least:.0%}; {_problems(own)}"
        )
    told = reason is None
    is_right = _model_is_right(samples, setting, hits.shape)
    return SettingResult(
        setting=setting,
        score=mean(hits) if told else None,
        interval=bootstrap(hits) if told else None,
        values=tuple(mean(row) for row in hits),
        n_asked=hits.size,
        n_parsed=n_parsed,
        lowest=float(np.nan_to_num(hits).sum() / hits.size),
        cost=_cost(own, price),
        of_concepts=_known(mean(right(samples, setting, "of_concepts"))) if told else None,
        on_right=_known(mean(hits[is_right == 1])) if told else None,
        on_wrong=_known(mean(hits[is_right == 0])) if told else None,
        reason=reason,
    )


def _model_is_right(samples: pd.DataFrame, setting: Setting, shape: tuple[int, ...]) -> Floats:
    """Return whether the model says the right class, NaN where that is not known."""
    own = samples[samples["setting"] == setting.value]
    said, label = (own[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("model", "label"))
    return np.where(np.isnan(label), np.nan, said == label).reshape(shape)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _problems(trials: Sequence[Trial]) -> str:
    """Say what was wrong with answers, by how often."""
    attempts = [attempt for trial in trials for attempt in trial.attempts]
    errors = [attempt.error for attempt in attempts if attempt.error is not None]
    cut = sum(attempt.answer is not None and attempt.answer.finish == "length" for attempt in attempts)
    counts = Counter({"questions without an answer": len(errors), "answers cut at max_tokens": cut})
    for attempt in attempts:
        counts.update({f"{kind.replace('_', ' ')}": len(each) for kind, each in attempt.problems.items()})
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "texts were left out"
    return f"of {len(attempts)} questions: {said}" + (f"; the first error: {errors[0]}" if errors else "")


def _chance(study: Study, drawn: Mapping[int, Phases]) -> Chance:
    shares = []
    for phases in drawn.values():
        counts = Counter(study.samples[place].prediction for place in phases.evaluate)
        shares.append(max(counts.values()) / len(phases.evaluate))
    return Chance(1 / len(study.classes), float(np.mean(shares)))


def _cost(trials: Sequence[Trial], price: Price | None) -> Cost:
    attempts = [attempt for trial in trials for attempt in trial.attempts]
    answers = [attempt.answer for attempt in attempts if attempt.answer is not None]
    read, written = (sum(getattr(each, name) for each in answers) for name in ("prompt_tokens", "answer_tokens"))
    return Cost(
        questions=len(attempts),
        retries=len(attempts) - len(trials),
        failures=len(attempts) - len(answers),
        prompt_tokens=read,
        answer_tokens=written,
        price=None if price is None else price.of(read, written),
    )


def _notes(study: Study, drawn: Mapping[int, Phases], asked: Sequence[Setting]) -> tuple[str, ...]:
    notes = [note for phases in drawn.values() for note in phases.notes]
    if not study.is_labelled:
        notes.append("the right classes are not known, so the texts are not balanced over right and wrong predictions")
    if any(setting.explains for setting in asked):
        places, limit = kept(study.explanation.importance)
        if not len(places):
            notes.append("no importance differs from 0, so the explanation says nothing")
        elif limit < WEAK:
            notes.append(f"no importance has a share above {WEAK}, so those above {limit:g} are told")
    return tuple(dict.fromkeys(notes))
