"""The command line: thin commands over workflows, tracking and audit."""

from __future__ import annotations

import os

import click

from interpreto_mlops import __version__
from interpreto_mlops.cli.about import doctor, methods
from interpreto_mlops.cli.auditing import audit
from interpreto_mlops.cli.catalogue import catalogue, query
from interpreto_mlops.cli.comparing import compare
from interpreto_mlops.cli.evidence import lineage, verify
from interpreto_mlops.cli.explaining import attribute, concepts, quickstart, run
from interpreto_mlops.cli.meaning import consim, label
from interpreto_mlops.cli.probing import probe

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="interpreto-mlops")
def main() -> None:
    """Explain HuggingFace text models and keep every explanation as MLflow evidence."""
    # Before torch is loaded: on a machine that is busy with other work, threads that wait by spinning make every small
    # matrix product wait for a turn (eight times slower was seen on two shared cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_COMMANDS = (
    quickstart,
    attribute,
    concepts,
    label,
    consim,
    probe,
    run,
    lineage,
    verify,
    compare,
    audit,
    catalogue,
    query,
    methods,
    doctor,
)
for _command in _COMMANDS:
    main.add_command(_command)
