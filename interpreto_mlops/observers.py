"""Who is told what explainers and dictionaries have made; what computes knows nothing of those who listen."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_quiet: ContextVar[bool] = ContextVar("interpreto_mlops_unobserved", default=False)


class Observers(Generic[T]):
    """Those who are told of one kind of event; any thread may add, remove and tell.

    Arguments:
        named: observers of a layer above, as `module:function`; they are imported when there is something to tell.
    """

    def __init__(self, *named: str) -> None:
        self._lock = threading.Lock()
        self._known: tuple[Callable[[T], object], ...] = tuple(_by_name(name) for name in named)

    def add(self, observer: Callable[[T], object]) -> None:
        """Tell an observer of every event from now on, in the thread of the event; what it raises is its caller's."""
        with self._lock:
            self._known = (*self._known, observer)

    def remove(self, observer: Callable[[T], object]) -> None:
        """Tell an observer no more; one that is not there is nothing to remove."""
        with self._lock:
            self._known = tuple(known for known in self._known if known != observer)

    def tell(self, event: T, *, always: bool = False) -> None:
        """Tell of an event; unless `always`, of none that is part of a larger one."""
        if self._known and (always or not _quiet.get()):
            with unobserved():
                for observer in self._known:
                    observer(event)


def _by_name(name: str) -> Callable[[T], object]:
    module, _, function = name.partition(":")

    def observer(event: T) -> object:
        return getattr(importlib.import_module(module), function)(event)

    return observer


@contextmanager
def unobserved() -> Iterator[None]:
    """Tell nobody of what this thread makes meanwhile: it is part of something larger, or is logged by who makes it."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def one_event(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function whose parts nobody is told of."""

    @functools.wraps(function)
    def whole(*args: P.args, **kwargs: P.kwargs) -> R:
        with unobserved():
            return function(*args, **kwargs)

    return whole
