"""The command that compares what a store knows of two or more things."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from interpreto_mlops.cli.common import JSON, TRACKING, console_of, open_store, said_plainly, this_command

if TYPE_CHECKING:
    import pandas as pd

    from interpreto_mlops.audit.comparison import EvidenceComparison
    from interpreto_mlops.workflows.job import Console


@click.command()
@click.argument("uris", nargs=-1, required=True, metavar="A B [C]...")
@TRACKING
@click.option("--data", help="Texts on which the codes of dictionaries are compared: a file, or a data set's name.")
@click.option("--text-column", default="text", show_default=True, help="The column of these texts.")
@click.option("--split", default="test", show_default=True, help="Which part of a named data set.")
@click.option("--max-texts", type=int, help="At most so many of them, from the start [default: all].")
@click.option(
    "--match-by",
    type=click.Choice(["auto", "directions", "activations"]),
    default="auto",
    show_default=True,
    help="How concepts are matched; auto takes directions for one layer of one model.",
)
@click.option("--threshold", type=float, default=0.7, show_default=True, help="Concepts as alike as this are the same.")
@click.option(
    "--top-k", type=int, default=3, show_default=True, help="Words that the overlap of explanations looks at."
)
@click.option("--n-changed", type=int, default=10, show_default=True, help="Texts listed that changed most.")
@click.option("--level", type=float, default=0.95, show_default=True, help="Of the intervals.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of intervals and tests.")
@click.option("--log/--no-log", default=True, show_default=True, help="Write a report run with the page and its JSON.")
@JSON
def compare(
    uris: tuple[str, ...],
    tracking_uri: str | None,
    data: str | None,
    text_column: str,
    split: str,
    max_texts: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare runs, suites, versions of models, or dictionaries on the same texts.

    Each is runs:/<run id>, the id of a suite, models:/name@alias, models:/name/3 or models:/m-<id>.

    Example: interpreto-mlops compare models:/reviews@champion models:/reviews@challenger
    """
    with said_plainly():
        console = console_of(quiet=False)
        from interpreto_mlops.audit.comparison import compare_evidence
        from interpreto_mlops.text.datasets import load_dataset
        from interpreto_mlops.tracking.links import run_url

        store = open_store(tracking_uri)
        texts = None
        if data is not None:
            texts = load_dataset(data, text_column=text_column, split=split).head(max_texts)
        progress = False if as_json else console.progress
        found = compare_evidence(store, uris, texts=texts, command=this_command(), progress=progress, **options)
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
        shown = ["method", "metric", "subject", "mean", "low", "high", "random_mean", "texts"]
        console.table(_safe(found.table[shown]))
    if len(found.pairs):
        shown = ["method", "metric", "first", "second", "texts", "difference", "low", "high", "p_holm", "better"]
        console.table(_safe(found.pairs[shown]))
    if len(found.single):
        console.table(_safe(found.single[["method", "metric", "subject", "value", "random"]]))
    if len(found.agreement):
        console.table(_safe(found.agreement))
    for row in found.pairing.to_dict("records"):
        if row["other_targets"]:
            what = f"{row['other_targets']} of {row['shared']} texts are explained for another target"
            console.say(_line(f"{row['method']}: {what} in {row['first']} than in {row['second']}"))
    for match in found.dictionaries:
        same, new, gone = (len(rows) for rows in (match.match.matched, match.match.new, match.match.vanished))
        console.say(
            _line(
                f"{match.method}: {match.first} and {match.second} have {same} concepts in common; new: {new}, "
                f"vanished: {gone}; mean similarity {match.match.mean:.3f}, by chance {match.match.random_mean:.3f}"
            )
        )
    for note in found.notes:
        console.say(_line(note))


def _safe(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda value: _line(value) if isinstance(value, str) else value)


def _line(text: str) -> str:
    # Names come from whoever may write to the store: they stay on their line and control no terminal.
    return "".join(char if char.isprintable() else " " for char in text)
