"""What a method that says what concepts mean is: parameters, what it needs, and one call with a result a concept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.belonging import place_of
from interpreto_mlops.errors import InputError
from interpreto_mlops.llm.questioner import Questioner
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.registry import NamingRegistry, Registry, check_options

R = TypeVar("R")
T = TypeVar("T")

INTERPRETATIONS: Registry[type[Interpretation[Any]]] = NamingRegistry("concept interpretation")
"""The methods by name; a method is one file in `concepts/interpretation/`."""


@dataclass(frozen=True, eq=False)
class Given:
    """What a method is called with: see `Interpretation.__call__`."""

    dictionary: ConceptDictionary
    activations: ActivationSet | None
    split: Splitter | None
    labels: Sequence[str | None] | None
    questioner: Questioner | None
    concepts: tuple[int, ...]
    layer: int | str | None
    allow_mismatch: bool

    @property
    def granularity(self) -> str:
        """What the dictionary's rows are."""
        return str(self.dictionary.provenance.get("granularity", "token"))

    def place(self) -> tuple[Splitter, str]:
        """Return the split model and the dictionary's split point.

        Raises:
            InputError, IntegrityError: as `place_of`.
        """
        split = needed(self.split, "split", "the model, split at the dictionary's layer")
        return split, place_of(split, self.dictionary, self.layer, allow_mismatch=self.allow_mismatch)


def needed(value: T | None, name: str, what: str) -> T:
    """Return what was given.

    Raises:
        InputError: it was not.
    """
    if value is None:
        raise InputError(f"this interpretation needs {name}=…: {what}")
    return value


@dataclass(frozen=True, kw_only=True)
class Interpretation(ABC, Generic[R]):
    """A way to say what the concepts of a dictionary mean."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """The arguments of the call that it needs besides the dictionary."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments as plain values; of a method inside the method its name, and its own."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: {"name": value.name, **value.parameters} if isinstance(value, Interpretation) else value
            for name, value in values.items()
        }

    def __call__(
        self,
        dictionary: ConceptDictionary,
        activations: ActivationSet | None = None,
        split: Splitter | None = None,
        *,
        labels: Sequence[str | None] | None = None,
        questioner: Questioner | None = None,
        concepts: Sequence[int] | None = None,
        layer: int | str | None = None,
        allow_mismatch: bool = False,
    ) -> R:
        """Say what concepts mean; what the method does not need may be left out.

        Arguments:
            dictionary: fitted; it stays as it is.
            activations: of the layer that it was fitted on.
            split: the model, split there.
            labels: given names of the texts or rows of the activations, None where there is none.
            questioner: what asks a language model.
            concepts: those that are wanted; None for all.
            layer: the split point; None takes the dictionary's own layer, or the only split point.
            allow_mismatch: take activations or a model of another layer or model than the dictionary was fitted on.

        Returns:
            What the method says it returns, in the order of the concepts.

        Raises:
            InputError: something that it needs is not given, or a concept that there is not.
            NotFittedError: the dictionary is not fitted.
            IntegrityError: activations or a model that the dictionary was not fitted on.
        """
        dictionary.tensor(next(iter(dictionary.weights), ""))
        given = Given(
            dictionary,
            activations,
            split,
            labels,
            questioner,
            _chosen(dictionary, concepts),
            layer,
            allow_mismatch,
        )
        return self.interpret(given)

    @abstractmethod
    def interpret(self, given: Given) -> R:
        """Say what concepts mean; see `__call__`."""


def interpret(
    dictionary: ConceptDictionary,
    method: str,
    activations: ActivationSet | None = None,
    split: Splitter | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """Say what concepts mean by the method of that name.

    Arguments:
        dictionary: fitted.
        method: a name of `INTERPRETATIONS`.
        activations: as for `Interpretation.__call__`, as is all that follows.
        split: the split model.
        options: the method's parameters.
        given: the other arguments of the call.

    Returns:
        What the method returns.

    Raises:
        UnknownNameError: there is no such method, or it has no such parameter.
        InputError, NotFittedError, IntegrityError: as for the call.
    """
    kind = INTERPRETATIONS.get(method)
    check_options(kind, method, options or {})
    return kind(**(options or {}))(dictionary, activations, split, **given)


def _chosen(dictionary: ConceptDictionary, concepts: Sequence[int] | None) -> tuple[int, ...]:
    if concepts is None:
        return tuple(range(dictionary.n_concepts))
    if not len(concepts):
        raise InputError("give at least one concept, or leave concepts out for all of them")
    for concept in concepts:
        known = not isinstance(concept, bool) and isinstance(concept, int | np.integer)
        if not known or not 0 <= concept < dictionary.n_concepts:
            raise InputError(f"there is no concept {concept!r}: they are 0 to {dictionary.n_concepts - 1}")
    if len(set(concepts)) < len(concepts):
        raise InputError(f"a concept is named twice in {list(concepts)!r}")
    return tuple(int(concept) for concept in concepts)


@dataclass(frozen=True)
class TokenScore:
    """A token of the vocabulary, or a class, and what a concept does to it.

    Arguments:
        token: as it is written.
        token_id: its place in the vocabulary, or among the classes.
        score: how much.
    """

    token: str
    token_id: int
    score: float


class TokenNames:
    """How the tokens of a model are written: decoded, or as the vocabulary has them where decoded they are nothing."""

    def __init__(self, model: TextModel) -> None:
        self._tokenizer = model.tokenizer
        self._known: dict[int, str] = {}

    def scores(self, entries: Sequence[tuple[int, float]]) -> tuple[TokenScore, ...]:
        """Return tokens with their names."""
        return tuple(TokenScore(self.name(token), token, score) for token, score in entries)

    def name(self, token: int) -> str:
        """Return how a token is written."""
        if token not in self._known:
            decoded = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
            shown = decoded.strip() and "\ufffd" not in decoded
            self._known[token] = decoded if shown else str(self._tokenizer.convert_ids_to_tokens(token))
        return self._known[token]


def vocabulary_ids(model: TextModel) -> npt.NDArray[np.int64]:
    """Return the ids of all tokens of the tokenizer, in order."""
    return np.asarray(sorted(set(model.tokenizer.get_vocab().values())), dtype=np.int64)


def best(scores: npt.NDArray[np.float64], ids: npt.NDArray[np.int64], k: int) -> list[tuple[int, float]]:
    """Return the ids of the k largest scores with these, best first; of equal ones the smaller id first."""
    if len(scores) > k:
        kept = scores >= np.partition(scores, -k)[-k]
        scores, ids = scores[kept], ids[kept]
    order = np.lexsort((ids, -scores))[:k]
    return [(int(ids[place]), float(scores[place])) for place in order]


def extremes(
    scores: npt.NDArray[np.float64], ids: npt.NDArray[np.int64], k: int
) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Return the ids of the k largest scores, largest first, and those of the k smallest, smallest first."""
    return best(scores, ids, k), [(token, -score) for token, score in best(-scores, ids, k)]
