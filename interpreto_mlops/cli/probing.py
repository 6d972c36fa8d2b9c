"""The command that asks which layer knows what."""

from __future__ import annotations

import re
from typing import Any

import click

from interpreto_mlops.cli.common import LIST
from interpreto_mlops.cli.explaining import (
    ACTIVATION_DTYPE,
    AGGREGATION,
    AUTOCAST,
    LAYERS,
    OPTION,
    execute_recipe,
    source_options,
)


@click.command()
@source_options
@LAYERS
@click.option(
    "--label-columns",
    type=LIST,
    default="label",
    show_default=True,
    help="Columns of labels; each is probed by itself. Of a named data set: label.",
)
@click.option(
    "--methods",
    type=LIST,
    default="logistic,mean_difference",
    show_default=True,
    help="Families of probes (`interpreto-mlops methods` lists them).",
)
@click.option(
    "--granularity", default="sample", show_default=True, help="What a row is: sample (the text), token, word, cls, …"
)
@AGGREGATION
@ACTIVATION_DTYPE
@AUTOCAST
@click.option("--folds", type=int, default=5, show_default=True, help="Parts of the texts that are held out in turn.")
@click.option(
    "--repeats", type=int, default=2, show_default=True, help="Control tasks, and deals of the labels, to average."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of probes, folds and control tasks.")
@click.option(
    "--workspace", help="A folder for activations and fitted probes, from which a job that was killed goes on."
)
@click.option("--select-by", default="probing/selectivity", show_default=True, help="The metric that chooses the best.")
@click.option(
    "--register-best/--no-register", default=False, show_default=True, help="Register the best probe of each column."
)
@OPTION
def probe(quiet: bool, settings: tuple[str, ...], **values: Any) -> None:
    """Probe which layer knows what is labelled: scores on held-out texts beside control tasks.

    Example: interpreto-mlops probe --model ./reviews --data reviews.csv --label-columns stars --layers 0,1
    """
    values["layers"] = [int(layer) if re.fullmatch(r"-?[0-9]+", layer) else layer for layer in values["layers"]]
    execute_recipe({"kind": "probe", **values}, quiet, settings)
