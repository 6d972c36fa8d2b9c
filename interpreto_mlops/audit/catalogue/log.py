"""The log: who did what to which object, each entry holding the hash of the one before it.

An entry's hash is the sha256 of its canonical JSON: sorted keys, no spaces, ASCII. Its number is not part of that: the
order is what the hashes of the entries before say it is.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update
from sqlalchemy.engine import RowMapping

from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.tables import LogHeadRow, LogRow
from interpreto_mlops.audit.catalogue.texts import storable
from interpreto_mlops.errors import CatalogueError, InputError
from interpreto_mlops.registry import Choice
from interpreto_mlops.tracking.addresses import redact

_SIGNED = ("at", "actor", "action", "object", "store", "before", "after", "previous")
_CHUNK = 1000
_MAX_OBJECT = 500


class Action(Choice):
    """What the log tells of."""

    REGISTER = "register"
    MOVE_ALIAS = "move_alias"
    AUDIT = "audit"
    PROMOTE = "promote"
    SETTING = "setting"


@dataclass(frozen=True)
class LogEntry:
    """One entry of the log.

    Arguments:
        sequence: its number, from 1.
        at: when, in UTC, by the clock of the machine that wrote it.
        actor: who.
        action: what was done.
        object: to what, such as `models:/reviews@champion`.
        store: the address of the MLflow store, without credentials.
        before, after: what the object was and is.
        previous: the hash of the entry before, zeros for the first.
        hash: of this entry.
    """

    sequence: int
    at: str
    actor: str
    action: str
    object: str
    store: str | None
    before: Any
    after: Any
    previous: str
    hash: str

    @classmethod
    def of(cls, row: RowMapping) -> LogEntry:
        """Return the entry of a row.

        Raises:
            CatalogueError: the row was edited so that it cannot be read.
        """
        values = dict(row)
        for name in ("before", "after"):
            try:
                values[name] = None if values[name] is None else json.loads(values[name])
            except ValueError:
                message = f"entry {values['sequence']} of the log was edited: {name!r} is no JSON; verify the log"
                raise CatalogueError(message) from None
        return cls(**values)


@dataclass(frozen=True)
class LogVerdict:
    """What looking through the log found.

    Arguments:
        ok: whether the chain is whole.
        entries: how many entries there are.
        head: the hash of the last one; kept elsewhere, it shows later that nothing was rewritten.
        first_bad: the number of the first entry that is not as it was written.
        problem: `edited`, `missing`, `reordered`, `added` or `rewritten`.
        message: one sentence.
    """

    ok: bool
    entries: int
    head: str
    first_bad: int | None
    problem: str | None
    message: str


def operating_system_user() -> str:
    """Return the name of the user that this process runs as, which no environment variable changes."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        pass
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return f"uid {os.getuid()}"


def append(
    database: Database,
    action: str,
    subject: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    actor: str | None = None,
    store: str | None = None,
) -> LogEntry:
    """Add an entry to the log; see `Catalogue.append`."""
    entry = prepared(action, subject, before=before, after=after, actor=actor, store=store)
    with database.writing() as connection:
        return append_to(connection, entry)


def prepared(
    action: str,
    subject: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    actor: str | None = None,
    store: str | None = None,
) -> dict[str, str | None]:
    """Return an entry as `append_to` takes it; the arguments are those of `Catalogue.append`.

    Raises:
        UnknownNameError: another action.
        InputError: no subject, or what is no JSON.
    """
    if not subject or len(subject) > _MAX_OBJECT:
        raise InputError(f"the object of a log entry must have 1 to {_MAX_OBJECT} characters, unlike {subject!r}")
    return {
        "actor": storable(actor or operating_system_user()),
        "action": Action.parse(action).value,
        "object": storable(redact(subject)),
        "store": None if store is None else storable(redact(store)),
        "before": _json(before, "before"),
        "after": _json(after, "after"),
    }


def hold(connection: Connection) -> Row[int, str]:
    """Return number and hash of the last entry; nobody else adds one before the end of the transaction."""
    return connection.execute(select(LogHeadRow.sequence, LogHeadRow.hash).with_for_update()).one()


def append_to(connection: Connection, entry: Mapping[str, str | None]) -> LogEntry:
    """Add an entry in a transaction that writes."""
    head = hold(connection)
    # The time is taken while others wait, so that it follows the order where the clocks agree.
    at = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    values = {**entry, "at": at, "sequence": int(head.sequence) + 1, "previous": str(head.hash)}
    values["hash"] = hash_of(values)
    connection.execute(insert(LogRow).values(values))
    connection.execute(
        update(LogHeadRow).where(LogHeadRow.id == 1).values(sequence=values["sequence"], hash=values["hash"])
    )
    row = connection.execute(select(LogRow.__table__).where(LogRow.sequence == values["sequence"])).mappings().one()
    return LogEntry.of(row)


def hash_of(entry: Mapping[Any, Any]) -> str:
    """Return the sha256 of an entry's canonical JSON."""
    text = json.dumps({name: entry[name] for name in _SIGNED}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def entries(database: Database, *, last: int | None = None) -> list[LogEntry]:
    """Return the entries in their order, or only the last ones."""
    table = LogRow.__table__
    statement = select(table).order_by(table.c.sequence.desc()).limit(last)
    with database.reading() as connection:
        rows = connection.execute(statement).mappings().all()
    return [LogEntry.of(row) for row in reversed(rows)]


def verify(database: Database, known: Mapping[int, str] | None = None) -> LogVerdict:
    """Look through the whole log; see `Catalogue.verify_log`."""
    for number in known or ():
        if number < 1:
            raise InputError(f"the entries of the log are numbered from 1, so none is kept of {number!r}")
    with database.reading() as connection:
        return _verify(connection, dict(known or {}))


def _verify(connection: Connection, known: dict[int, str]) -> LogVerdict:
    table = LogRow.__table__
    head = connection.execute(select(LogHeadRow.sequence, LogHeadRow.hash)).first()
    total, last = (int(head.sequence), str(head.hash)) if head else (0, "")
    statement = select(table).order_by(table.c.sequence).execution_options(yield_per=_CHUNK)
    previous, count = "0" * 64, 0
    rows = connection.execute(statement).mappings()
    for row in rows:
        problem = _problem_of(connection, row, count + 1, previous, total)
        if problem is None and count + 1 in known and known[count + 1] != row["hash"]:
            problem = (count + 1, "rewritten", "has another hash than the one that was kept of it")
        if problem is not None:
            rows.close()
            return _bad(connection, last, *problem)
        previous, count = str(row["hash"]), count + 1
    if missing := [number for number in (total, *known) if number > count]:
        kept = f"the log had {max(missing)} entries"
        return _bad(connection, last, count + 1, "missing", f"and what came after it are gone: {kept}")
    if total < count:
        return _bad(connection, last, total + 1, "added", f"was not added by this package: the head tells of {total}")
    if last != previous:
        return _bad(connection, last, count, "edited", "has another hash than the head of the log")
    return LogVerdict(True, count, previous, None, None, f"the log of {count} entries is whole")


def _problem_of(
    connection: Connection, row: RowMapping, expected: int, previous: str, total: int
) -> tuple[int, str, str] | None:
    """Return number, kind and words of what is wrong at a place of the log, if something is."""
    if row["sequence"] != expected:
        return expected, "missing", "is gone"
    if hash_of(row) != row["hash"]:
        return expected, "edited", "was edited: its content has another hash"
    if row["previous"] == previous:
        return None
    # What the entry names as the one before it: is it elsewhere, was it taken out, or was it changed with its hash?
    place = connection.scalar(select(LogRow.sequence).where(LogRow.hash == row["previous"]))
    if place is not None or row["previous"] == "0" * 64:
        follows = "is the first" if place is None else f"follows what is entry {place} now"
        return expected, "reordered", f"is not where it was written: it {follows}"
    if _count(connection) < total:
        return expected, "missing", "is gone, and those after it got other numbers"
    return max(expected - 1, 1), "edited", "was replaced: the entry after it names another hash"


def _bad(connection: Connection, head: str, first: int, problem: str, words: str) -> LogVerdict:
    return LogVerdict(False, _count(connection), head, first, problem, f"entry {first} of the log {words}")


def _count(connection: Connection) -> int:
    return int(connection.scalar(select(func.count()).select_from(LogRow)) or 0)


def _json(value: Mapping[str, Any] | None, name: str) -> str | None:
    if value is None:
        return None
    try:
        text = json.dumps(dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"what the log keeps as {name!r} must be plain JSON: {error}") from error
    return redact(text)
