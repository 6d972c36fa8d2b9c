"""Commands that explain: attributions, concepts, recipes, the quickstart."""

from __future__ import annotations

import re
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

OPTION = click.option(
    "--option",
    "settings",
    multiple=True,
    metavar="METHOD.NAME=VALUE",
    help="A method's or metric's own parameter, a value as in YAML; can be given again.",
)

CONTRAST = click.option("--contrast", help="A class, or a token, against which the target is explained.")
GENERATE = click.option(
    "--generate",
    "generation",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of a language model's own generation, such as max_new_tokens=20; can be given again.",
)


LAYERS = click.option(
    "--layers",
    type=LIST,
    required=True,
    help="Layer numbers (negative ones from the end), 1.attention, 1.mlp, head (what the head reads) or module paths.",
)
AGGREGATION = click.option(
    "--aggregation", default="mean", show_default=True, help="How a row's tokens become one: mean, max, sum, first, …"
)
ACTIVATION_DTYPE = click.option(
    "--activation-dtype", default="float32", show_default=True, help="Of the activations on disk."
)
AUTOCAST = click.option("--autocast", help="bfloat16 or float16: run the model in half precision.")
LABEL_COLUMN = click.option("--label-column", help="The column of the labels, if there is one.")


def source_options(command: Any) -> Any:
    """The options that commands on a model and texts share."""
    for option in reversed(
        [
            click.option("--model", required=True, help="A hub id, a folder, or models:/name@alias, models:/name/3."),
            click.option("--data", required=True, help="A CSV, TSV, JSONL or Parquet file, or a data set's name."),
            click.option("--text-column", default="text", show_default=True, help="The column of the texts."),
            click.option("--split", default="test", show_default=True, help="Which part of a named data set."),
            click.option("--max-texts", type=int, help="At most so many texts, from the start [default: all]."),
            click.option("--dtype", help="Of the model's weights: float32, bfloat16, … [default: the checkpoint's]."),
            TRACKING,
            EXPERIMENT,
            KEEP_CATALOGUE,
            NO_CATALOGUE,
            HIDE_TEXTS,
            QUIET,
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.option("--folder", default="interpreto-quickstart", show_default=True, help="Of the embedded store.")
@TRACKING
@EXPERIMENT
@KEEP_CATALOGUE
@NO_CATALOGUE
@HIDE_TEXTS
@QUIET
def quickstart(
    folder: str,
    tracking_uri: str | None,
    experiment: str | None,
    catalogue_uri: str | None,
    no_catalogue: bool,
    hide_texts: bool,
    quiet: bool,
) -> None:
    """Run the main job on real text: train, explain, learn concepts, compare, register.

    Example: interpreto-mlops quickstart
    """
    with said_plainly():
        console = console_of(quiet)
        from interpreto_mlops.workflows.quickstart import quickstart as run_quickstart

        run_quickstart(
            folder=folder,
            tracking_uri=tracking_uri,
            experiment=experiment,
            catalogue_uri=catalogue_uri,
            catalogue=not no_catalogue,
            hide_texts=hide_texts,
            command=this_command(),
            console=console,
        )


@click.command()
@source_options
@LABEL_COLUMN
@click.option(
    "--methods",
    type=LIST,
    default="occlusion,integrated_gradients,kernel_shap",
    show_default=True,
    help="Attribution methods (`interpreto-mlops methods` lists them).",
)
@click.option(
    "--metrics",
    type=LIST,
    default="insertion,deletion,comprehensiveness,sufficiency",
    show_default=True,
    help="Metrics of their faithfulness.",
)
@click.option(
    "--granularity", default="word", show_default=True, help="word, token, sentence, 2-grams, … or all_tokens."
)
@click.option("--inference-mode", default="logits", show_default=True, help="logits, softmax or log_softmax.")
@click.option("--replacement", default="auto", show_default=True, help="auto, mask, pad, unk or remove.")
@click.option("--target", help="The class to explain, by name, or a continuation [default: what the model says].")
@click.option("--target-column", help="The column that says for each text what --target says for all.")
@CONTRAST
@click.option("--dictionary", help="A concept dictionary of the model: explain its concepts instead of a target.")
@click.option("--concepts", type=LIST, help="The numbers of the concepts to explain.")
@click.option(
    "--concept-aggregation",
    type=click.Choice(["max", "mean", "sum"]),
    default="max",
    show_default=True,
    help="How a text's rows become one number for each concept.",
)
@GENERATE
@click.option(
    "--target-granularity",
    default="token",
    show_default=True,
    help="What of a continuation is explained as one: token, word or sentence.",
)
@click.option("--truncation", is_flag=True, help="Cut a prompt that is too long on the left instead of refusing it.")
@click.option("--autocast", help="bfloat16 or float16: run in half precision what torch's autocast does.")
@click.option("--compile", is_flag=True, help="Run scores through torch.compile, which pays for long jobs.")
@OPTION
@click.option("--seed", type=int, default=0, show_default=True, help="Of methods and random rankings.")
@click.option("--n-random", type=int, default=20, show_default=True, help="Random rankings of each text.")
def attribute(quiet: bool, settings: tuple[str, ...], generation: tuple[str, ...], **values: Any) -> None:
    """Explain texts by attributions, score how faithful they are, and compare the methods.

    Example: interpreto-mlops attribute --model ./reviews --data reviews.csv --text-column text
    """
    execute_recipe({"kind": "attribute", **values}, quiet, settings, generation)


@click.command()
@source_options
@LABEL_COLUMN
@LAYERS
@click.option(
    "--methods",
    type=LIST,
    default="pca,topk_sae",
    show_default=True,
    help="Dictionary families (`interpreto-mlops methods` lists them).",
)
@click.option("--n-concepts", type=LIST, default="64", show_default=True, help="Sizes; every one is fitted.")
@click.option("--seeds", type=int, default=2, show_default=True, help="Fits of each size; two give a stability.")
@click.option(
    "--granularity", default="token", show_default=True, help="What a row is: token, word, sentence, sample, cls, …"
)
@AGGREGATION
@ACTIVATION_DTYPE
@AUTOCAST
@click.option(
    "--importance",
    default="gradient_x_activation",
    show_default=True,
    help="How concepts are weighed (`interpreto-mlops methods` lists the ways).",
)
@click.option("--target", help="What importance explains: a class, or a continuation [default: what the model says].")
@CONTRAST
@GENERATE
@click.option(
    "--effect-texts", type=int, default=200, show_default=True, help="Texts on which the layer is replaced; 0 for none."
)
@click.option(
    "--workspace",
    help="A folder for activations, checkpoints and dictionaries, from which a job that was killed goes on.",
)
@click.option("--holdout", type=float, default=0.2, show_default=True, help="Share of the texts to score on.")
@click.option("--select-by", default="reconstruction/r2", show_default=True, help="The metric that chooses the best.")
@click.option("--register-best/--no-register", default=True, help="Register the best dictionary of each layer.")
@OPTION
def concepts(quiet: bool, settings: tuple[str, ...], generation: tuple[str, ...], **values: Any) -> None:
    """Learn concept dictionaries of layers; score, label and register them.

    Example: interpreto-mlops concepts --model ./reviews --data reviews.csv --layers 0,1 --n-concepts 64
    """
    values["layers"] = [int(layer) if re.fullmatch(r"-?[0-9]+", layer) else layer for layer in values["layers"]]
    execute_recipe({"kind": "concepts", **values}, quiet, settings, generation)


@click.command()
@click.argument("recipe")
@KEEP_CATALOGUE
@NO_CATALOGUE
@HIDE_TEXTS
@QUIET
def run(recipe: str, catalogue_uri: str | None, no_catalogue: bool, hide_texts: bool, quiet: bool) -> None:
    """Carry out a RECIPE, such as the recipe.yaml of a run; options go before what it says.

    Example: interpreto-mlops run recipes/attribute.yaml
    """
    with said_plainly():
        console = console_of(quiet)
        from interpreto_mlops.workflows.recipes import load_recipe
        from interpreto_mlops.workflows.running import carry_out

        loaded = load_recipe(recipe)
        given: dict[str, Any] = {} if catalogue_uri is None else {"catalogue_uri": catalogue_uri}
        given |= {"catalogue": False} if no_catalogue else {}
        given |= {"hide_texts": True} if hide_texts else {}
        carry_out(loaded.model_copy(update=given), command=this_command(), console=console)


def execute_recipe(
    values: dict[str, Any], quiet: bool, settings: tuple[str, ...], generation: tuple[str, ...] = ()
) -> None:
    """Carry out the recipe that a command's options make."""
    with said_plainly():
        console = console_of(quiet)
        from interpreto_mlops.workflows.recipes import parse_options, parse_recipe, parse_settings
        from interpreto_mlops.workflows.running import carry_out

        given = {key: value for key, value in values.items() if value is not None}
        given["catalogue"] = not given.pop("no_catalogue")
        given["options"] = parse_options(settings)
        if generation:
            given["generate"] = parse_settings(generation)
        carry_out(parse_recipe(given), command=this_command(), console=console)
