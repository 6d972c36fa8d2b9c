"""Named registries: a method registers itself where it is defined, and nothing else names it."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Generic, TypeVar

from interpreto_mlops.errors import InputError, UnknownNameError

T = TypeVar("T")
C = TypeVar("C")
E = TypeVar("E", bound="Choice")


class Choice(str, Enum):
    """A closed set of names; a member is its own string."""

    @classmethod
    def parse(cls: type[E], value: str | E) -> E:
        """Return the member of that name.

        Raises:
            UnknownNameError: there is none; the message lists those there are.
        """
        try:
            return cls(value)
        except ValueError:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
            raise UnknownNameError(kind, value, [member.value for member in cls]) from None


class Registry(Generic[T]):
    """Objects of one kind by their snake-case name.

    Arguments:
        kind: what the objects are, in words, for error messages ("attribution method").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Decorate a class or function to make it known as `name`.

        Raises:
            InputError: the name is taken.
        """

        def decorate(item: C) -> C:
            if self._items.get(name, item) is not item:
                raise InputError(f"the {self.kind} {name!r} is registered twice")
            self._items[name] = item  # type: ignore[assignment]
            return item

        return decorate

    def get(self, name: str) -> T:
        """Return the object of that name.

        Raises:
            UnknownNameError: there is none; the message lists those there are.
        """
        if name not in self._items:
            raise UnknownNameError(self.kind, name, self.names())
        return self._items[name]

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self._items))

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield (name, object) pairs sorted by name."""
        return iter(sorted(self._items.items()))

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __len__(self) -> int:
        return len(self._items)


class NamingRegistry(Registry[T]):
    """A registry that tells each class the name it is registered by, as its `name`."""

    def register(self, name: str) -> Callable[[C], C]:
        """Decorate a class to make it known as `name`, and to tell it so.

        Raises:
            InputError: the name is taken.
        """
        remember = super().register(name)

        def decorate(item: C) -> C:
            item.name = name  # type: ignore[attr-defined]
            return remember(item)

        return decorate


_NO_PARAMETERS = {"model", "explainer", "rationales", "targets"}


def check_options(kind: Any, name: str, options: Iterable[str]) -> None:
    """Refuse parameters that a method, metric or dictionary does not have.

    Raises:
        UnknownNameError: one of them; the message lists those there are.
    """
    known = parameters_of(kind)
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name!r}", option, known)


def parameters_of(kind: Any) -> list[str]:
    """Return the names of the parameters that a method, metric or dictionary can be given, sorted."""
    return sorted({each.name for each in dataclasses.fields(kind) if each.init} - _NO_PARAMETERS)


def discover(package: str) -> None:
    """Import every module of `package`, so that what they define is registered."""
    folder = importlib.import_module(package)
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{package}.{module.name}")
