"""Commands that ask what evidence there is, and whether it is untouched."""

from __future__ import annotations

import json
import sys

import click

from interpreto_mlops.cli.common import JSON, TRACKING, console_of, open_store, said_plainly
from interpreto_mlops.text.terminal import one_line


@click.command()
@click.argument("uri")
@TRACKING
@JSON
def lineage(uri: str, tracking_uri: str | None, as_json: bool) -> None:
    """Show what the model, dictionary or run at URI comes from, and what was made of it.

    Example: interpreto-mlops lineage models:/reviews@champion
    """
    with said_plainly():
        console_of(quiet=False)
        from interpreto_mlops.tracking.lineage import lineage as find

        tree = find(open_store(tracking_uri), uri)
        click.echo(json.dumps(tree.to_dict(), indent=1, ensure_ascii=False) if as_json else "\n".join(tree.lines()))


@click.command()
@click.argument("uri")
@TRACKING
@JSON
def verify(uri: str, tracking_uri: str | None, as_json: bool) -> None:
    """Compare the evidence at URI, a model, dictionary or run, with the sha256 that were kept when it was logged.

    The exit code is 0 where all is as it was, 1 where something was changed or is gone, 2 where it cannot be told.

    Example: interpreto-mlops verify models:/reviews/3
    """
    with said_plainly():
        console_of(quiet=False)
        from interpreto_mlops.tracking.verification import verify_evidence

        found = verify_evidence(open_store(tracking_uri), uri)
        if as_json:
            click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
        else:
            for finding in found.findings:
                click.echo(one_line(f"{finding.verdict}: {finding.subject}: {finding.detail}"))
            click.echo(f"{found.pinned} is {found.verdict}: {found.n_files} files compared")
        sys.exit({"intact": 0, "broken": 1, "undecided": 2}[found.verdict])
