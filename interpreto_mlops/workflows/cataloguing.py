"""What a job has made goes into the catalogue: each registration at once, the runs when all are finished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from interpreto_mlops.attributions import AttributionSet
from interpreto_mlops.audit.cataloguing import SWITCH_ON, Keeper, kept_by, warn
from interpreto_mlops.errors import CatalogueError
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.workflows.job import Console


@contextmanager
def catalogued(store: Store, console: Console, uri: str | None = None, *, wanted: bool = True) -> Iterator[Keeper]:
    """Let what is registered inside go into the log of the store's catalogue.

    Where the job fails, registrations that are not in the log become a warning.

    Arguments:
        store: where the job's runs go.
        console: is told where nothing is written, and how that is changed.
        uri: of the catalogue; by default `INTERPRETO_CATALOGUE_URI`, else the file beside a SQLite store, else none.
        wanted: False writes nothing.

    Raises:
        CatalogueError: an address that no catalogue can have, before anything runs.
    """
    keeper = Keeper(store, uri, wanted=wanted)
    if wanted and not keeper.on:
        console.say(f"no catalogue: {SWITCH_ON}")
    with kept_by(keeper):
        try:
            yield keeper
        except BaseException:
            if keeper.missing_entries is not None:
                warn(keeper.missing_entries)
            raise


def take_over(keeper: Keeper, console: Console, runs: Iterable[tuple[str, AttributionSet | None]]) -> None:
    """Write finished runs into the catalogue, their attributions from memory; what fails becomes a warning."""
    with console.stage("catalogue"):
        for run_id, explanations in runs:
            keeper.take_over(run_id, explanations)
    if keeper.missing_runs is not None:
        warn(keeper.missing_runs)


def check_log(keeper: Keeper) -> None:
    """Refuse to end well when something was registered that the log does not tell of: no rebuild can derive that.

    Raises:
        CatalogueError: so it is; the runs and the versions are there all the same.
    """
    if keeper.missing_entries is not None:
        raise CatalogueError(keeper.missing_entries)
