"""Every error that a user can cause.

InterpretoError
 ├─ InputError (ValueError)            an argument that cannot be used
 │   ├─ UnknownNameError               a name that is not among the known ones
 │   └─ DataError                      a data set that cannot be read or used
 ├─ NotFittedError (RuntimeError)      a dictionary used before `fit`
 ├─ ModelLoadError (OSError)           a model that cannot be loaded
 │   └─ CodeNeededError                a model that its own code alone can load, which is not run unasked
 ├─ ModelOutputError (ArithmeticError) a model that returns NaN or infinity
 ├─ OutOfMemoryError (MemoryError)     a single row that does not fit in memory
 ├─ IntegrityError (ValueError)        stored evidence that is damaged or belongs to another model
 ├─ TrackingError (ConnectionError)    an MLflow server or store that does not answer
 ├─ CatalogueError (ConnectionError)   a catalogue's database that does not answer or cannot be used
 ├─ LanguageModelError (ConnectionError) a language model that gives no answer
 │   ├─ TransientError                 it may answer when it is asked again
 │   ├─ RefusalError                   it will not
 │   │   └─ UnusableModelError         it will not answer any other question either
 │   └─ NotAskedError                  a question that was not put to it
 └─ MissingDependencyError (ImportError) an optional package that is not there, or one that does not fit
"""

from __future__ import annotations

from collections.abc import Iterable


class InterpretoError(Exception):
    """The root of all errors that this package raises on purpose."""


class InputError(InterpretoError, ValueError):
    """An argument that cannot be used."""


class UnknownNameError(InputError):
    """A name that is not among the known ones; the message lists those."""

    def __init__(self, kind: str, given: object, known: Iterable[object]) -> None:
        self.kind, self.given, self.known = kind, given, tuple(known)
        choices = ", ".join(repr(name) for name in self.known) or "none"
        super().__init__(f"unknown {kind} {given!r}; known: {choices}")


class DataError(InputError):
    """A data set that cannot be read or used."""


class TextWarning(UserWarning):
    """Something about one text of many that a user should know: it was cut, or it has nothing to explain."""


class NotFittedError(InterpretoError, RuntimeError):
    """A dictionary that is used before `fit` or `load`."""


class ModelLoadError(InterpretoError, OSError):
    """A model or tokenizer that cannot be loaded."""


class CodeNeededError(ModelLoadError):
    """A model that only its own code or pickle can load, which is not run unless the environment allows it."""


class ModelOutputError(InterpretoError, ArithmeticError):
    """A model that returns NaN or infinity where a score is needed."""


class OutOfMemoryError(InterpretoError, MemoryError):
    """A single row that does not fit in the device's memory."""


class IntegrityError(InterpretoError, ValueError):
    """Stored evidence that is damaged, or that belongs to another model."""


class TrackingError(InterpretoError, ConnectionError):
    """An MLflow server or store that does not answer as it should."""


class CatalogueError(InterpretoError, ConnectionError):
    """A catalogue's database that does not answer as it should, or that cannot be used."""


class LanguageModelError(InterpretoError, ConnectionError):
    """A language model that gives no answer."""


class TransientError(LanguageModelError):
    """A failure that may pass: too many requests, a server's own error, a time-out, a lost connection.

    Arguments:
        message: what happened, without keys and without the prompt.
        retry_after: seconds that the server asks to wait, if it does.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusalError(LanguageModelError):
    """A failure that asking again does not mend, such as a prompt that is too long."""


class UnusableModelError(RefusalError):
    """A failure that every other question would meet too: a wrong key, an unknown model, a wrong address."""


class NotAskedError(LanguageModelError):
    """A question that was not asked: the budget was used up before, or the language model had stopped answering."""


class MissingDependencyError(InterpretoError, ImportError):
    """An optional package that is not installed, or one that does not fit the others."""
