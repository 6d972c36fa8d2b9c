"""What this package does to a store goes into the store's catalogue as it happens: registrations, and finished runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from interpreto_mlops.audit.catalogue.addresses import VARIABLE, catalogue_url, is_off
from interpreto_mlops.audit.catalogue.catalogue import Catalogue
from interpreto_mlops.errors import CatalogueError, InterpretoError
from interpreto_mlops.tracking.addresses import first_line, sqlite_file
from interpreto_mlops.tracking.attribution_evidence import keepable
from interpreto_mlops.tracking.logged_models import Registration
from interpreto_mlops.tracking.store import Store

if TYPE_CHECKING:
    from interpreto_mlops.attributions.results import AttributionSet

SWITCH_ON = f"--catalogue-uri, or {VARIABLE}, switches a catalogue on"

_log = logging.getLogger(__name__)


def has_catalogue(store: Store, uri: str | None = None) -> bool:
    """Return whether what is done to a store goes into a catalogue: one that is named, else that beside a SQLite file.

    Arguments:
        store: where runs and models are.
        uri: of a catalogue, or `none` for none; None for `INTERPRETO_CATALOGUE_URI`, which may say the same.

    Raises:
        CatalogueError: an address that no catalogue can have.
    """
    given = uri or os.environ.get(VARIABLE)
    if not given:
        return sqlite_file(store.tracking_uri) is not None
    if is_off(given):
        return False
    catalogue_url(given)
    return True


class Keeper:
    """Writes registrations and runs into a store's catalogue; what fails is kept to be told of, and never raised.

    The evidence itself is in MLflow, and stays there whatever becomes of the catalogue.

    Arguments:
        store: where runs and models are.
        uri: as for `has_catalogue`.
        wanted: False writes nothing.

    Raises:
        CatalogueError: an address that no catalogue can have.
    """

    def __init__(self, store: Store, uri: str | None = None, *, wanted: bool = True) -> None:
        self.store = store
        self.on = wanted and has_catalogue(store, uri)
        self.unlogged: dict[str, str] = {}
        self.untaken: dict[str, str] = {}
        self._uri = uri
        self._catalogue: Catalogue | None = None
        self._down = ""

    def note(self, registration: Registration) -> None:
        """Write a registration into the log, or remember why that was not possible."""
        subject = registration.uri
        self._attempt(
            self.unlogged,
            subject,
            lambda book: book.note_registration(registration.store, registration.name, registration.version),
        )

    def take_over(self, run_id: str, explanations: AttributionSet | None = None) -> None:
        """Take over what a run holds, or remember why that was not possible."""
        if explanations is not None:
            explanations = keepable(explanations)
        self._attempt(self.untaken, run_id, lambda book: book.record_run(self.store, run_id, explanations=explanations))

    def _attempt(self, failed: dict[str, str], subject: str, write: Callable[[Catalogue], object]) -> None:
        if not self.on:
            return
        if self._down:
            failed[subject] = self._down
            return
        try:
            write(self._opened())
        except Exception as error:  # noqa: BLE001 - whatever fails here, what it tells of has been done
            said = str(error) if isinstance(error, InterpretoError) else f"{type(error).__name__}: {first_line(error)}"
            failed[subject] = said
            # One that is locked lets everybody wait; once is enough.
            self._down = said if isinstance(error, CatalogueError) else ""

    def _opened(self) -> Catalogue:
        if self._catalogue is None:
            self._catalogue = Catalogue.connect(self._uri, store=self.store)
        return self._catalogue

    def close(self) -> None:
        """Close the catalogue."""
        if self._catalogue is not None:
            self._catalogue.close()

    @property
    def missing_entries(self) -> str | None:
        """One sentence about registrations that the log does not tell of, or None where there are none."""
        if not self.unlogged:
            return None
        uri, why = next(iter(self.unlogged.items()))
        others = f" and {len(self.unlogged) - 1} more" if len(self.unlogged) > 1 else ""
        return (
            f"{uri}{others} is registered but not in the log: {why}; write the missing entry by: "
            f"interpreto-mlops catalogue note {uri}"
        )

    @property
    def missing_runs(self) -> str | None:
        """One sentence about runs that the catalogue does not hold, or None where there are none."""
        if not self.untaken:
            return None
        why = next(iter(self.untaken.values()))
        return f"{len(self.untaken)} finished runs are not in the catalogue: {why}; `catalogue rebuild` takes them over"


_current: ContextVar[Keeper | None] = ContextVar("interpreto_mlops_keeper", default=None)


@contextmanager
def kept_by(keeper: Keeper) -> Iterator[Keeper]:
    """Let a keeper write what is registered meanwhile in this thread, and close it at the end."""
    token = _current.set(keeper)
    try:
        yield keeper
    finally:
        _current.reset(token)
        keeper.close()


def note_registration(registration: Registration) -> None:
    """Write a registration into the log of its store's catalogue; where that fails there is a warning."""
    keeper = _current.get()
    if keeper is not None and keeper.store.tracking_uri == registration.store.tracking_uri:
        keeper.note(registration)
        return
    try:
        own = Keeper(registration.store)
    except CatalogueError as error:
        warn(f"{registration.uri} is registered but not in the log: {error}")
        return
    own.note(registration)
    own.close()
    if own.missing_entries is not None:
        warn(own.missing_entries)


def warn(message: str) -> None:
    """Warn of what a catalogue lacks; what has been done is not undone by that."""
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:
        # Where warnings are errors, this one would still break what has succeeded.
        _log.warning("%s", message)
