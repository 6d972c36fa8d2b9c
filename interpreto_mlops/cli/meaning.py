"""Commands that ask a language model about a stored explanation: names of concepts, and simulatability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from interpreto_mlops.cli.common import (
    EXPERIMENT,
    HIDE_TEXTS,
    KEEP_CATALOGUE,
    LIST,
    NO_CATALOGUE,
    QUIET,
    TRACKING,
    console_of,
    said_plainly,
    this_command,
)
from interpreto_mlops.cli.explaining import OPTION

_ASKED = ("base_url", "key_variable", "price", "max_tokens", "max_cost", "concurrency", "timeout", "trace")


def _with(options: list[Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


TEXTS = [
    click.option("--text-column", default="text", show_default=True, help="The column of the texts."),
    click.option("--label-column", help="The column of the right classes, if there is one."),
    click.option("--split", default="test", show_default=True, help="Which part of a named data set."),
    click.option("--max-texts", type=int, help="At most so many texts, from the start [default: all]."),
]
STORE = [TRACKING, EXPERIMENT, KEEP_CATALOGUE, NO_CATALOGUE, HIDE_TEXTS, QUIET]
LANGUAGE_MODEL = [
    click.option("--llm", help="openai:NAME (any OpenAI-compatible endpoint), local:FOLDER or answers:FILE."),
    click.option("--base-url", help="The endpoint's address [default: OPENAI_BASE_URL, else OpenAI's own]."),
    click.option("--key-variable", help="The environment variable of the key [default: OPENAI_API_KEY]."),
    click.option("--price", type=LIST, metavar="READ,WRITTEN", help="Of a million tokens."),
    click.option("--max-tokens", type=int, help="The most tokens that may be spent."),
    click.option("--max-cost", type=float, help="The most that may be spent, in the currency of --price."),
    click.option("--concurrency", type=int, help="The most questions at a time [default: 8]."),
    click.option("--timeout", type=float, help="Seconds that one call may take [default: 60]."),
    click.option("--answers", help="The folder where answers are kept [default: interpreto-runs/answers]."),
    click.option("--no-answers", is_flag=True, help="Keep no answers: a second run asks and pays again."),
    click.option("--trace", is_flag=True, default=None, help="Keep each call as an MLflow trace."),
    click.option("--estimate", is_flag=True, help="Say how many questions and tokens it would take, and ask nothing."),
]
BASE_MODEL = click.option("--base-model", help="Where the explained model is, if the dictionary's address is gone.")


@click.command()
@click.argument("uri")
@click.option("--data", required=True, help="A CSV, TSV, JSONL or Parquet file, or a data set's name.")
@_with(TEXTS)
@_with(LANGUAGE_MODEL)
@click.option("--labels", help="A file of names that people gave: columns concept, label and perhaps explanation.")
@click.option("--by", help="Who gave the names of the file.")
@click.option("--concepts", type=LIST, help="The concepts to name, by number [default: all].")
@click.option("--n-examples", type=int, help="Examples of each concept that are shown [default: 10].")
@click.option("--n-silent", type=int, help="Texts without the concept that are shown [default: 5].")
@click.option("--evidence", type=LIST, help="What else is shown: vocab_proj, token_change [default: nothing].")
@click.option("--metrics", type=LIST, help="How names are scored [default: detection].")
@OPTION
@click.option("--shuffled/--no-shuffled", default=None, help="Score the names of other concepts, too [default: yes].")
@click.option("--holdout", type=float, help="Share of the texts that names are scored on [default: 0.3].")
@click.option("--seed", type=int, help="Of what is drawn [default: 0].")
@click.option("--name", help="Of the registered model, for a dictionary that has none.")
@click.option("--register/--no-register", "register_version", default=None, help="Register a version [default: yes].")
@BASE_MODEL
@_with(STORE)
def label(uri: str, estimate: bool, quiet: bool, settings: tuple[str, ...], **values: Any) -> None:
    """Name the concepts of the dictionary at URI, score the names, and register them as its next version.

    Example: interpreto-mlops label models:/reviews.1.topk_sae/1 --data reviews.csv --labels names.csv --by Ada
    """
    _execute({"kind": "label", "dictionary": uri, **values}, quiet, settings, estimate)


@click.command()
@click.argument("uri")
@click.option("--data", help="The texts: a file, or a data set's name; not needed for a run of attributions.")
@_with(TEXTS)
@_with(LANGUAGE_MODEL)
@click.option("--settings", "shown", type=LIST, help="What the reader is shown [default: L1,E1,L2,E2,E3,U1].")
@click.option("--seeds", type=int, help="Draws of texts [default: 5].")
@click.option("--n-learn", type=int, help="Texts that are shown with what the model says [default: 20].")
@click.option("--n-evaluate", type=int, help="Texts that are asked for [default: 20].")
@click.option("--mistakes", type=float, help="Share of both that the model gets wrong [default: 0.5].")
@click.option("--anonymous", is_flag=True, default=None, help="Call the classes Class_1, Class_2, ….")
@click.option("--answer-form", "answer_form", type=click.Choice(["lines", "json"]), help="[default: lines]")
@click.option("--importance", help="How concepts are weighed [default: gradient_x_activation].")
@click.option("--n-words", type=int, help="Of attributions, the most words of a class and a text [default: 10].")
@BASE_MODEL
@_with(STORE)
def consim(uri: str, estimate: bool, quiet: bool, **values: Any) -> None:
    """Ask a language model what the classifier says of texts, without and with the explanation at URI.

    URI is a dictionary, or a run of attributions (runs:/<run id>).

    Example: interpreto-mlops consim models:/reviews.1.topk_sae/1 --data reviews.csv --llm answers:answers.jsonl
    """
    values["settings"] = values.pop("shown")
    _execute({"kind": "consim", "subject": uri, **values}, quiet, (), estimate)


def _execute(values: dict[str, Any], quiet: bool, settings: tuple[str, ...], estimate: bool) -> None:
    with said_plainly():
        console = console_of(quiet)
        from interpreto_mlops.workflows.recipes import parse_options, parse_recipe
        from interpreto_mlops.workflows.running import carry_out

        given = _nested(values)
        if settings:
            given["options"] = parse_options(settings)
        carry_out(parse_recipe(given), command=this_command(), console=console, estimate_only=estimate)


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's values from those of a command: who is asked is a part of its own."""
    given = {name: value for name, value in values.items() if value is not None}
    given["catalogue"] = not given.pop("no_catalogue")
    asked = {name: given.pop(name) for name in _ASKED if name in given}
    # Both commands have answers of two kinds: where they are kept, and what form they have.
    if given.pop("no_answers"):
        given.pop("answers", None)
        asked["answers"] = False
    elif "answers" in given:
        asked["answers"] = given.pop("answers")
    if "answer_form" in given:
        given["answers"] = given.pop("answer_form")
    if "llm" in given:
        given["llm"] = {"model": given["llm"], **asked}
    elif asked:
        raise click.UsageError(f"--{next(iter(asked)).replace('_', '-')} needs --llm: who is asked")
    return given
