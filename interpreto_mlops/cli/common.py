"""What the commands share: options, how they report, how errors are said."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from interpreto_mlops.errors import InterpretoError

if TYPE_CHECKING:
    from interpreto_mlops.tracking.store import Store
    from interpreto_mlops.workflows.job import Console


class _List(click.ParamType):  # type: ignore[type-arg]
    """Values with commas between them."""

    name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        return value if isinstance(value, list) else [part.strip() for part in str(value).split(",") if part.strip()]


LIST = _List()


@contextmanager
def said_plainly() -> Iterator[None]:
    """Turn what a user can cause into one sentence and exit code 1."""
    try:
        yield
    except InterpretoError as error:
        raise click.ClickException(str(error)) from error


def console_of(quiet: bool) -> Console:
    """Silence the libraries beneath, which report their own progress, and say warnings in one line."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import transformers

    from interpreto_mlops.workflows.job import Console

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _one_line
    return Console(quiet=quiet, write=click.echo)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def this_command() -> str:
    """Return the command line that is being run, for the record: without the credentials in its addresses."""
    from interpreto_mlops.text.redaction import redact_value

    return shlex.join(["interpreto-mlops", *map(redact_value, sys.argv[1:])])


QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
TRACKING = click.option(
    "--tracking-uri",
    help="A server's address or sqlite:///path [default: MLFLOW_TRACKING_URI, else a local file].",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
EXPERIMENT = click.option("--experiment", help="The MLflow experiment; created where it is missing.")
CATALOGUE = click.option(
    "--catalogue-uri",
    help="sqlite:///path or postgresql://… [default: INTERPRETO_CATALOGUE_URI, else beside the store].",
)

KEEP_CATALOGUE = click.option(
    "--catalogue-uri",
    help="Of the catalogue that is written: sqlite:///path or postgresql://… [default: INTERPRETO_CATALOGUE_URI, else "
    "beside a SQLite store, else none].",
)
NO_CATALOGUE = click.option("--no-catalogue", is_flag=True, help="Write neither the catalogue nor its log.")
HIDE_TEXTS = click.option(
    "--hide-texts",
    is_flag=True,
    help="Keep hashes in the place of texts and words, in MLflow and the catalogue [default: INTERPRETO_HIDE_TEXTS].",
)


def open_store(tracking_uri: str | None) -> Store:
    """Open the store that a command reads; nothing is made there."""
    from interpreto_mlops.tracking.store import existing_store
    from interpreto_mlops.workflows.job import DEFAULT_STORE

    return existing_store(tracking_uri, default=DEFAULT_STORE)
