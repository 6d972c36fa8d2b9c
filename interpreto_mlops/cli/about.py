"""Commands about the package itself."""

from __future__ import annotations

from typing import Any

import click

from interpreto_mlops.cli.common import said_plainly


@click.command()
def methods() -> None:
    """List methods, metrics, dictionaries and data sets by the names that commands and recipes take.

    Example: interpreto-mlops methods
    """
    with said_plainly():
        from interpreto_mlops.attributions import METHODS
        from interpreto_mlops.attributions.metrics import METRICS
        from interpreto_mlops.concepts import DICTIONARIES, IMPORTANCE, INTERPRETATIONS, PROBES
        from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
        from interpreto_mlops.text.datasets import DATASETS

        for title, registry in (
            ("attribution methods", METHODS),
            ("attribution metrics", METRICS),
            ("concept dictionaries", DICTIONARIES),
            ("probes", PROBES),
            ("concept importance", IMPORTANCE),
            ("concept interpretations", INTERPRETATIONS),
            ("concept metrics", CONCEPT_METRICS),
            ("data sets", DATASETS),
        ):
            click.echo(f"{title}:")
            for name in registry.names():
                item: Any = registry.get(name)
                about = getattr(item, "description", None) or (item.__doc__ or "").strip().split("\n")[0]
                click.echo(f"  {name:28} {about}")


@click.command()
def doctor() -> None:
    """Check that the installed packages fit together.

    Example: interpreto-mlops doctor
    """
    with said_plainly():
        from interpreto_mlops.models.environment import report

        for line in report():
            click.echo(line)
