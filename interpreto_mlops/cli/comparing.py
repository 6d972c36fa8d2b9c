"""The command that compares what a store knows of two or more things."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from interpreto_mlops.cli.common import JSON, TRACKING, console_of, open_store, said_plainly, this_command

if TYPE_CHECKING:
    from interpreto_mlops.audit.comparison import EvidenceComparison
    from interpreto_mlops.workflows.job import Console


@click.command()
@click.argument("uris", nargs=-1, required=True, metavar="A B [C]...")
@TRACKING
@click.option("--level", type=float, default=0.95, show_default=True, help="Of the intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of intervals and tests.")
@click.option("--log/--no-log", default=True, show_default=True, help="Write a report run with the page and its JSON.")
@JSON
def compare(uris: tuple[str, ...], tracking_uri: str | None, level: float, seed: int, log: bool, as_json: bool) -> None:
    """Compare runs, suites, versions of models, or dictionaries on the same texts.

    Each is runs:/<run id>, the id of a suite, models:/name@alias, models:/name/3 or models:/m-<id>.

    Example: interpreto-mlops compare models:/reviews@champion models:/reviews@challenger
    """
    with said_plainly():
        console = console_of(quiet=False)
        from interpreto_mlops.audit.comparison import compare_evidence
        from interpreto_mlops.tracking.links import run_url

        store = open_store(tracking_uri)
        found = compare_evidence(store, uris, level=level, seed=seed, log=log, command=this_command())
        if as_json:
            click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
            return
        _say(console, found)
        if found.report_run_id is not None:
            console.say(f"report: {run_url(store, found.report_run_id)}")


def _say(console: Console, found: EvidenceComparison) -> None:
    for subject in found.subjects:
        console.say(_line(f"{subject['label']}: {subject['pinned']}"))
    if len(found.table):
        console.table(found.table[["method", "metric", "subject", "mean", "low", "high", "random_mean", "texts"]])
    if len(found.pairs):
        shown = ["method", "metric", "first", "second", "texts", "difference", "low", "high", "p_holm", "better"]
        console.table(found.pairs[shown])
    if len(found.single):
        console.table(found.single[["method", "metric", "subject", "value", "random"]])
    for note in found.notes:
        console.say(_line(note))


def _line(text: str) -> str:
    # Names come from whoever may write to the store: they stay on their line and control no terminal.
    return "".join(char if char.isprintable() else " " for char in text)
