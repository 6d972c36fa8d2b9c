"""The catalogue as the rest of the package uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from interpreto_mlops.audit.catalogue import log, questions, rebuilding, registry_moves, writing
from interpreto_mlops.audit.catalogue.addresses import catalogue_url, store_address
from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.log import Action, LogEntry, LogVerdict
from interpreto_mlops.audit.catalogue.migrating import migrate
from interpreto_mlops.audit.catalogue.rebuilding import Rebuilt
from interpreto_mlops.audit.catalogue.registry_moves import Expected
from interpreto_mlops.errors import InputError
from interpreto_mlops.text.hiding import hidden_by_environment
from interpreto_mlops.tracking.store import Store

if TYPE_CHECKING:
    from interpreto_mlops.attributions.results import Attribution


class Catalogue:
    """A database beside MLflow that answers what MLflow cannot: on single texts, words and concepts, and who did what.

    All but the log can be derived again from MLflow (`rebuild`). One catalogue belongs to one MLflow store, since two
    stores have models of the same name: that whose evidence comes first, or whose alias is moved first; evidence and
    moves of another store are refused. `with Catalogue.connect() as catalogue:` closes it at the end.

    Arguments:
        database: with the tables of this package; `connect` makes them.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def connect(
        cls,
        uri: str | None = None,
        *,
        store: Store | None = None,
        hide_texts: bool | None = None,
        create: bool = True,
    ) -> Catalogue:
        """Open a catalogue, which is made where it is missing; any number of processes may do so at once.

        Arguments:
            uri: `sqlite:///path` or `postgresql://…`, where the tables are in the schema `interpreto`; None for
                `INTERPRETO_CATALOGUE_URI`, else `catalogue.db` beside the store's SQLite database, else
                `interpreto-runs/catalogue.db`.
            store: the MLflow store that the catalogue belongs to, where `uri` does not say which one it is.
            hide_texts: True hides the texts, as `hide_texts` does; None asks `INTERPRETO_HIDE_TEXTS`. A catalogue that
                hides its texts already goes on to do so.
            create: False for who reads what is to be there: a log that is gone must not look like an empty one.

        Raises:
            InputError: False for a catalogue that hides its texts, or a variable that says neither yes nor no.
            CatalogueError: an address of another kind, a database that does not answer, a newer catalogue, or none
                where none is to be made.
            MissingDependencyError: PostgreSQL's driver is not installed.
        """
        asked = hidden_by_environment() if hide_texts is None else hide_texts
        catalogue = cls(Database(catalogue_url(uri, store), create=create))
        try:
            migrate(catalogue.database, create=create)
            if asked:
                catalogue.hide_texts()
            elif hide_texts is False and catalogue.hides_texts:
                raise InputError(
                    f"the catalogue at {catalogue.shown!r} takes no texts any more; rebuild one at another address"
                )
        except BaseException:
            catalogue.close()
            raise
        return catalogue

    def __enter__(self) -> Catalogue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Catalogue({self.shown!r})"

    @property
    def shown(self) -> str:
        """The address without credentials."""
        return self.database.shown

    @property
    def hides_texts(self) -> bool:
        """Whether hashes stand for texts, words and the labels made of them."""
        with self.database.reading() as connection:
            return not writing.keeps_texts(connection, hold=False)

    def hide_texts(self) -> None:
        """Replace every text by its sha256, now and for all that is written later; who asks for a word still finds it.

        The sha256 of a word can be found by trying words, so this keeps texts from being read, not from being guessed.
        The log keeps what it was given, and MLflow's artifacts stay as they are.
        """
        if not self.hides_texts and writing.hide_texts(self.database):
            self.append(Action.SETTING, "texts", before={"texts": writing.KEPT}, after={"texts": writing.HASHED})

    def append(
        self,
        action: Action | str,
        subject: str,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        actor: str | None = None,
        store: Store | str | None = None,
    ) -> LogEntry:
        """Add an entry to the log.

        Arguments:
            action: one of `Action`.
            subject: what it was done to: `models:/name@alias` for an alias, `models:/name/3` for a version.
            before, after: what the subject was and is, as plain JSON; of an alias `{"uri": "models:/name/3"}`.
            actor: who; by default the user that the operating system runs this process as.
            store: where the subject is.

        Raises:
            UnknownNameError: another action.
            InputError: no subject, or what is no JSON.
            CatalogueError: the database fails.
        """
        place = store.shown if isinstance(store, Store) else store
        return log.append(self.database, action, subject, before=before, after=after, actor=actor, store=place)

    def note_registration(self, store: Store, name: str, version: str | int, *, actor: str | None = None) -> LogEntry:
        """Take over a version that was just registered, and log that it was.

        Raises:
            TrackingError: there is no such version, or the store fails.
            CatalogueError: the database fails, or the catalogue belongs to another store.
        """
        return registry_moves.note_registration(self.database, store, name, version, actor)

    def check_store(self, store: Store) -> None:
        """Refuse a store whose evidence the catalogue does not hold.

        Raises:
            CatalogueError: it holds that of another store, or the database fails.
        """
        with self.database.reading() as connection:
            writing.check_store(connection, store_address(store))

    def move_alias(
        self,
        store: Store,
        name: str,
        alias: str,
        version: str | int,
        *,
        action: Action | str = Action.MOVE_ALIAS,
        facts: Mapping[str, Any] | None = None,
        actor: str | None = None,
        expected: str | Expected | None = Expected.ANYTHING,
    ) -> LogEntry:
        """Let an alias of a registered model name another version, and log it: both, or neither.

        What is given is checked first. Then, in one transaction for which others who move an alias by this catalogue
        wait, the alias is read, the entry written, the alias moved and the transaction committed, so that the last
        entry says what the alias names. Where moving it fails there is no entry. Where the commit fails the alias is
        moved back, unless it names something else by then; a process that is killed between moving and committing
        leaves a move without an entry, and so does who moves an alias past the catalogue.

        Arguments:
            store: where the model is registered.
            name, alias, version: what is to name what.
            action: `move_alias`, or `promote` where an audit was passed.
            facts: what the entry says beside the version, such as the run of the audit.
            actor: who; by default the user that the operating system runs this process as.
            expected: the version that the alias names until now, None where it is to be a new one; by default anything.

        Raises:
            UnknownNameError: another action; nothing has moved then.
            InputError: facts that are no JSON, or an alias that names what is not expected; nothing has moved then.
            TrackingError: there is no such version, or the store fails; the message says where the alias may have moved
                nevertheless.
            CatalogueError: the database fails, or the catalogue belongs to another store, or is in the registry's own
                SQLite file, which has one writer at a time; the alias is where it was then.
        """
        return registry_moves.move_alias(
            self.database, store, name, alias, version, action=action, facts=facts, actor=actor, expected=expected
        )

    def entries(self, *, last: int | None = None) -> list[LogEntry]:
        """Return the log in its order, or only its last entries."""
        return log.entries(self.database, last=last)

    def verify_log(self, known: Mapping[int, str] | None = None) -> LogVerdict:
        """Look through the whole log, and name the first entry that was edited, deleted or moved.

        Found is every change of an entry or of the order; entries that are missing at the end, since the last entry's
        number and hash are kept apart; and entries that were added past this package.

        Not found is a change by somebody who may write to the database, drops its triggers, computes all hashes from
        the changed entry on anew and replaces the kept number and hash, too: nothing in the database tells that log
        from a true one. Deleting the last entries together with replacing the kept number and hash is such a change.
        Hashes of entries that were kept elsewhere (`known`) find it. Nor can be found what was never written, an actor
        that somebody gave as another's name, or a clock that was wrong.

        Arguments:
            known: hashes by the entries' numbers, as kept outside of the catalogue; the verdict's `head` is one.

        Raises:
            InputError: what is no entry's number.
            CatalogueError: the database fails.
        """
        return log.verify(self.database, known)

    def record_run(self, store: Store, run_id: str, *, explanations: Iterable[Attribution] | None = None) -> None:
        """Take over what a run holds, in the place of what was taken over before.

        Arguments:
            store: where the run is.
            run_id: of a run that explains a model, audits it or reports on it.
            explanations: all of the run's attributions, by all of its methods, where they are at hand; by default they
                are read from its artifacts.

        Raises:
            InputError: a run of another kind.
            DataError: artifacts that cannot be read.
            TrackingError: the store fails.
            CatalogueError: the database fails, or the catalogue belongs to another store; nothing was changed then.
        """
        rebuilding.record_run(self.database, store, run_id, explanations)

    def record_version(self, store: Store, name: str, version: str | int) -> None:
        """Take over a registered version, in the place of what was taken over before.

        Raises:
            TrackingError: there is no such version, or the store fails.
            CatalogueError: the database fails, or the catalogue belongs to another store; nothing was changed then.
        """
        rebuilding.record_version(self.database, store, name, version)

    def rebuild(self, store: Store) -> Rebuilt:
        """Derive everything but the log from a store's runs, logged models and registered versions.

        What was there of this store and is gone from MLflow goes; doing it again changes nothing.

        Raises:
            TrackingError: the store fails; what was read before is kept.
            CatalogueError: the database fails, or the catalogue belongs to another store.
        """
        return rebuilding.rebuild(self.database, store)

    def ask(self, question: str, **given: Any) -> pd.DataFrame:
        """Answer a named question; `questions.QUESTIONS` holds them, with their parameters.

        Raises:
            UnknownNameError: no such question or parameter.
            InputError: a parameter that is missing or cannot be used.
            CatalogueError: the database fails.
        """
        return questions.ask(self.database, question, given)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
