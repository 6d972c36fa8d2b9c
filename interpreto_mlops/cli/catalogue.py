"""Commands of the catalogue: rebuild it, read its log, ask it."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING

import click

from interpreto_mlops.cli.common import CATALOGUE, JSON, TRACKING, console_of, open_store, said_plainly
from interpreto_mlops.text.terminal import one_line

if TYPE_CHECKING:
    from interpreto_mlops.audit.catalogue import Catalogue, LogEntry
    from interpreto_mlops.tracking.store import Store


@click.group()
def catalogue() -> None:
    """Keep what MLflow cannot answer in a database beside it, with a log of who did what.

    Example: interpreto-mlops catalogue rebuild
    """


@catalogue.command()
@TRACKING
@CATALOGUE
@click.option("--hide-texts", is_flag=True, help="Keep hashes in the place of texts and words, from now on.")
def rebuild(tracking_uri: str | None, catalogue_uri: str | None, hide_texts: bool) -> None:
    """Derive everything but the log from MLflow's runs, models and artifacts.

    Example: interpreto-mlops catalogue rebuild --tracking-uri http://127.0.0.1:5000
    """
    with said_plainly():
        console_of(quiet=False)
        store = open_store(tracking_uri)
        with _catalogue(catalogue_uri, store, hide_texts=hide_texts or None) as book:
            found = book.rebuild(store)
            for what, why in found.skipped.items():
                click.echo(f"skipped {what}: {why}")
            held = f"{found.runs} runs, {found.dictionaries} dictionaries, {found.versions} versions"
            click.echo(f"{book.shown} holds {held}; {found.removed} rows of what is gone were removed")


@catalogue.command()
@TRACKING
@CATALOGUE
@click.option("--verify", "verified", is_flag=True, help="Check the chain of hashes; exit code 1 where it is broken.")
@click.option(
    "--known",
    multiple=True,
    metavar="NUMBER=HASH",
    help="An entry's hash that was kept elsewhere, to be checked, too; may be given several times.",
)
@click.option("--last", type=click.IntRange(min=1), help="At most so many entries, the newest [default: all].")
@JSON
def log(
    tracking_uri: str | None,
    catalogue_uri: str | None,
    verified: bool,
    known: tuple[str, ...],
    last: int | None,
    as_json: bool,
) -> None:
    """Show the log: who registered, audited, promoted and moved what.

    With --verify the last line, `head: NUMBER=HASH`, is what to keep elsewhere, and to give as --known later.

    Example: interpreto-mlops catalogue log --verify
    """
    with said_plainly():
        console_of(quiet=False)
        kept = _kept_hashes(known)
        with _there(catalogue_uri, tracking_uri) as book:
            if verified or kept:
                verdict = book.verify_log(kept)
                click.echo(json.dumps(vars(verdict), ensure_ascii=False) if as_json else verdict.message)
                if not as_json and verdict.ok and verdict.entries:
                    click.echo(f"head: {verdict.entries}={verdict.head}")
                sys.exit(0 if verdict.ok else 1)
            for entry in book.entries(last=last):
                click.echo(json.dumps(vars(entry), ensure_ascii=False) if as_json else _log_line(entry))


@catalogue.command()
@click.argument("uri")
@TRACKING
@CATALOGUE
def note(uri: str, tracking_uri: str | None, catalogue_uri: str | None) -> None:
    """Write the log's entry of the registered version at URI, such as models:/reviews/3, where it has none.

    Example: interpreto-mlops catalogue note models:/reviews/3
    """
    with said_plainly():
        console_of(quiet=False)
        from interpreto_mlops.errors import InputError

        name, _, version = uri.removeprefix("models:/").partition("/")
        if not uri.startswith("models:/") or not name or not version.isdecimal():
            raise InputError(f"a registered version is models:/name/3, not {uri!r}")
        store, subject = open_store(tracking_uri), f"models:/{name}/{int(version)}"
        with _catalogue(catalogue_uri, store) as book:
            if any(entry.action == "register" and entry.object == subject for entry in book.entries()):
                raise InputError(f"the log tells of the registration of {subject!r} already")
            click.echo(_log_line(book.note_registration(store, name, int(version))))


def _kept_hashes(given: tuple[str, ...]) -> dict[int, str]:
    from interpreto_mlops.errors import InputError

    kept: dict[int, str] = {}
    for each in given:
        match = re.fullmatch(r"0*([1-9]\d*)=([0-9a-fA-F]{64})", each)
        if match is None:
            raise InputError(f"a hash that was kept of the log is given as NUMBER=HASH, not {each!r}")
        number, value = int(match[1]), match[2].lower()
        if kept.setdefault(number, value) != value:
            raise InputError(f"entry {number} was given with two hashes, {kept[number]!r} and {value!r}; give one")
    return kept


def _log_line(entry: LogEntry) -> str:
    change = " -> ".join(json.dumps(value, ensure_ascii=False) for value in (entry.before, entry.after))
    return one_line(f"{entry.sequence} {entry.at} {entry.actor} {entry.action} {entry.object}: {change}")


@click.command()
@click.argument("question", required=False)
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@TRACKING
@CATALOGUE
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="Of the answer.",
)
def query(
    question: str | None, parameters: tuple[str, ...], tracking_uri: str | None, catalogue_uri: str | None, form: str
) -> None:
    """Ask the catalogue a named QUESTION; without one, list them with their parameters.

    Example: interpreto-mlops query texts_with_word word=plot version=models:/library-docs/1 k=3
    """
    with said_plainly():
        console_of(quiet=False)
        from interpreto_mlops.workflows.recipes import parse_pairs

        if question is None:
            _list_questions()
            return
        given = parse_pairs(parameters)
        with _there(catalogue_uri, tracking_uri) as book:
            answer = book.ask(question, **given)
        if form == "json":
            click.echo(answer.to_json(orient="records", force_ascii=False, indent=1))
        elif form == "csv":
            click.echo(answer.to_csv(index=False), nl=False)
        else:
            click.echo(answer.to_string(index=False) if len(answer) else "nothing")


def _list_questions() -> None:
    from interpreto_mlops.audit.catalogue import QUESTIONS, parameters

    for name in QUESTIONS.names():
        about = (QUESTIONS.get(name).__doc__ or "").strip().split("\n")[0]
        needs = " ".join(
            each.name + "=…" if each.required else f"[{each.name}={each.default}]" for each in parameters(name)
        )
        click.echo(f"{name} {needs}\n  {about}")


def _catalogue(uri: str | None, store: Store | None, hide_texts: bool | None = None, create: bool = True) -> Catalogue:
    from interpreto_mlops.audit.catalogue import Catalogue

    return Catalogue.connect(uri, store=store, hide_texts=hide_texts, create=create)


def _there(uri: str | None, tracking_uri: str | None) -> Catalogue:
    """Open a catalogue that is there: one that is gone must not look like an empty one."""
    return _catalogue(uri, _store_if_there(tracking_uri), create=False)


def _store_if_there(tracking_uri: str | None) -> Store | None:
    """Return the store that the catalogue's default address depends on; the catalogue itself needs none."""
    from interpreto_mlops.errors import TrackingError

    try:
        return open_store(tracking_uri)
    except TrackingError:
        if tracking_uri is not None:
            raise
        return None
