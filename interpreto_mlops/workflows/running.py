"""Any recipe, carried out."""

from __future__ import annotations

import pandas as pd

from interpreto_mlops.concepts.interpretation_metrics import InterpretationScore
from interpreto_mlops.errors import CatalogueError, InputError
from interpreto_mlops.text.terminal import one_line
from interpreto_mlops.tracking.links import run_url
from interpreto_mlops.workflows.asking import estimate_line
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.job import Console
from interpreto_mlops.workflows.labelling import Labelled, label
from interpreto_mlops.workflows.meaning_recipes import ConsimRecipe, LabelRecipe
from interpreto_mlops.workflows.recipes import Recipe
from interpreto_mlops.workflows.simulating import Simulated, simulate

_SHOWN = 5


def carry_out(recipe: Recipe, *, command: str, console: Console, estimate_only: bool = False) -> None:
    """Carry a recipe out, and say what came of it.

    Arguments:
        recipe: what to do.
        command: what repeats it, for the record.
        console: where to report.
        estimate_only: whether questions to a language model are only counted.

    Raises:
        InterpretoError: whatever stops it.
        CatalogueError: all is done, but the log does not tell of what was registered.
    """
    if isinstance(recipe, LabelRecipe):
        _say_names(console, label(recipe, command=command, console=console, estimate_only=estimate_only))
    elif isinstance(recipe, ConsimRecipe):
        _say_scores(console, simulate(recipe, command=command, console=console, estimate_only=estimate_only))
    elif estimate_only:
        raise InputError(f"a recipe of the kind {recipe.kind!r} asks no language model; there is nothing to estimate")
    else:
        execute(recipe, command=command, console=console)


def _say_names(console: Console, done: Labelled) -> None:
    if done.estimate is not None:
        console.say(estimate_line(done.estimate))
        return
    named = [each for each in done.descriptions if each.given is not None]
    console.say(f"{len(named)} of {len(done.descriptions)} concepts have a label that was given")
    for concept, why in list(done.unlabelled.items())[:_SHOWN]:
        console.say(f"  concept {concept} keeps its words: {one_line(why)}")
    if done.scores:
        console.table(pd.DataFrame([_score_row(score) for score in done.scores.values()]))
    if done.version is not None:
        console.say("registered: models:/{}/{}".format(*done.version))
    console.say(f"run: {run_url(done.store, done.run_id)}")
    if done.unlogged is not None:
        raise CatalogueError(done.unlogged)


def _score_row(score: InterpretationScore) -> dict[str, object]:
    low, high = score.interval
    row = {"metric": score.name, "mean": score.mean, "low": low, "high": high, "random": score.random}
    return {**row, "shuffled": score.shuffled_mean, "concepts": len(score.values), "refused": score.reason or ""}


def _say_scores(console: Console, done: Simulated) -> None:
    if done.estimate is not None:
        console.say(estimate_line(done.estimate))
        return
    for name, result in done.results.items():
        console.say(f"{name}, read by {one_line(result.model)}:")
        columns = ["setting", "score", "low", "high", "gain", "gain_low", "gain_high", "parse_share"]
        console.table(result.to_frame()[columns])
        for note in result.notes:
            console.say(f"  {one_line(note)}")
    console.say(f"run: {run_url(done.store, done.run_id)}")
