"""Evidence without a line of code: every explanation and every fitted dictionary is logged as it is made."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import mlflow

from interpreto_mlops.attributions.base import EXPLAINED, Attributor
from interpreto_mlops.attributions.results import AttributionSet
from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.learner import Trainable
from interpreto_mlops.concepts.training import FITTED
from interpreto_mlops.tracking import evidence
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.tracking.store import current_store_for

_log = logging.getLogger(__name__)
_switch = threading.Lock()
_writing = threading.Lock()
# From the warning back to the line that called an explainer.
_CALLER = 6
# Texts on a page that nobody may ever open; all scores are beside it.
_SHOWN_TEXTS = 4


@dataclass(frozen=True, eq=False)
class _Autologger:
    """Logs what it is told of.

    Arguments:
        silent: whether what cannot be logged is passed over in silence.
        draw: whether pictures are drawn.
    """

    silent: bool
    draw: bool

    def explained(self, event: tuple[Attributor, AttributionSet]) -> None:
        """Log one method's explanations; of no texts there is nothing to log."""
        explainer, explanations = event
        if not len(explanations):
            return
        self._attempt(
            f"the explanations by {explainer.name!r}",
            lambda: evidence.log_attributions(
                explanations,
                model=explainer.model,
                new_run=_open_run_holds("attributions"),
                draw=self.draw,
                shown=_SHOWN_TEXTS,
            ),
        )

    def fitted(self, dictionaries: tuple[Trainable, ...]) -> None:
        """Log fitted dictionaries, each in a run of its own but the first where a run is open."""
        known = [each for each in dictionaries if isinstance(each, ConceptDictionary)]
        names = ", ".join(repr(each.name) for each in known)
        self._attempt(f"the dictionaries by {names}", lambda: _log_dictionaries(known, self.draw))

    def _attempt(self, what: str, log: Callable[[], object]) -> None:
        try:
            # One at a time: a run that two threads adopt would be taken twice.
            with _writing:
                log()
        except Exception as error:  # noqa: BLE001 - whatever fails here, the user's own call has succeeded
            if not self.silent:
                _warn(f"autolog could not log {what}: {first_line(error)}; autolog(disable=True) switches it off")


_active: _Autologger | None = None


def autolog(
    disable: bool = False,
    *,
    log_attributions: bool = True,
    log_dictionaries: bool = True,
    draw: bool = False,
    silent: bool = False,
) -> None:
    """Log every call of an attribution method and every fit of a concept dictionary from now on, in all threads.

    Evidence goes where `log_attributions` and `log_dictionary` would write it: into the open MLflow run, which stays
    open, or, where none is open or that one already holds such evidence, into a run of its own. Results and errors of
    the calls stay as they are; what cannot be logged becomes a warning. All of it is there when the call returns: the
    scores of all texts, and a page that shows the first few. What metrics, jobs and evaluations explain or
    fit for themselves is not logged: it is part of their own evidence.

    Arguments:
        disable: True switches it off.
        log_attributions: whether explanations are logged.
        log_dictionaries: whether fitted dictionaries are logged.
        draw: whether pictures are drawn, too, which doubles what logging costs; the pages show the same without them.
        silent: whether there is no warning either when something cannot be logged.
    """
    global _active
    with _switch:
        if _active is not None:
            EXPLAINED.remove(_active.explained)
            FITTED.remove(_active.fitted)
        _active = None if disable else _Autologger(silent, draw)
        if _active is not None and log_attributions:
            EXPLAINED.add(_active.explained)
        if _active is not None and log_dictionaries:
            FITTED.add(_active.fitted)


def _log_dictionaries(dictionaries: Iterable[ConceptDictionary], draw: bool) -> None:
    for dictionary in dictionaries:
        evidence.log_dictionary(dictionary, new_run=_open_run_holds("concepts"), draw=draw)


def _open_run_holds(kind: str) -> bool:
    """Return whether a run is open that already holds such evidence, so that this one needs its own."""
    if mlflow.active_run() is None and not os.environ.get("MLFLOW_RUN_ID"):
        return False
    store, found = current_store_for(None)
    return found is not None and kind in evidence.held_kinds(RunLog(store, found, shared_as=kind))


def _warn(message: str) -> None:
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=_CALLER)
    except RuntimeWarning:
        # Where warnings are errors, this one would still break a call that has succeeded.
        _log.warning("%s", message)
