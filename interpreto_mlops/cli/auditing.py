"""The command that judges a version by a policy."""

from __future__ import annotations

import json
import sys

import click

from interpreto_mlops.cli.common import CATALOGUE, EXPERIMENT, JSON, TRACKING, console_of, open_store, this_command
from interpreto_mlops.errors import IntegrityError, InterpretoError


class _Undecided(click.ClickException):
    """What keeps an audit from being made: nothing is decided then."""

    exit_code = 2


@click.command()
@click.argument("uri")
@click.option("--policy", required=True, help="A YAML file of rules, such as recipes/policy.yaml.")
@click.option("--against", help="The version to compare with, such as models:/reviews@champion.")
@click.option("--promote", metavar="ALIAS", help="The alias that is to name the version, once it has passed.")
@TRACKING
@EXPERIMENT
@CATALOGUE
@JSON
def audit(
    uri: str,
    policy: str,
    against: str | None,
    promote: str | None,
    tracking_uri: str | None,
    experiment: str | None,
    catalogue_uri: str | None,
    as_json: bool,
) -> None:
    """Judge the registered version at URI by a policy, and let an alias name it where it passes.

    The exit code is 0 where every rule passed, 1 where one failed or a due promotion did not come about, and 2 where
    evidence is missing or the audit could not be made. Failed goes before undecided.

    Example: interpreto-mlops audit models:/reviews/2 --policy recipes/policy.yaml --promote champion
    """
    try:
        console_of(quiet=False)
        from interpreto_mlops.audit.auditing import audit as make

        report = make(
            open_store(tracking_uri),
            uri,
            policy,
            against=against,
            promote=promote,
            catalogue=catalogue_uri,
            experiment=experiment,
            command=this_command(),
        )
    except IntegrityError as error:
        raise click.ClickException(str(error)) from error
    except InterpretoError as error:
        raise _Undecided(str(error)) from error
    except Exception as error:
        from interpreto_mlops.tracking.addresses import first_line

        # A traceback ends with 1, which a pipeline takes for a version that failed.
        said = f"the audit could not be made: {type(error).__name__}: {first_line(error)}"
        raise _Undecided(said) from error
    click.echo(json.dumps(report.to_dict(), indent=1, ensure_ascii=False) if as_json else "\n".join(report.lines()))
    sys.exit(report.exit_code)
