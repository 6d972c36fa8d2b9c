"""What concepts fire on: examples of their codes, from the top, from the bottom, or from all quantiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from interpreto_mlops.concepts.base import check_integer
from interpreto_mlops.concepts.interpretation.base import INTERPRETATIONS, Given, Interpretation, TokenNames, needed
from interpreto_mlops.concepts.interpretation.description import Context
from interpreto_mlops.concepts.interpretation.units import Units, check_unit
from interpreto_mlops.concepts.interpretation.vocabulary import ordinary_ids, rows_of_tokens
from interpreto_mlops.concepts.ranking import SampledValues, TopKeys, mirrored
from interpreto_mlops.errors import InputError
from interpreto_mlops.text.hiding import hidden_word

Integers = npt.NDArray[np.int64]
Codes = npt.NDArray[np.float32]

_NO_TEXT = -1
_MOST_SAMPLED, _SAMPLED_NUMBERS = 512, 2**21


@dataclass(frozen=True)
class Example(Context):
    """A place on which a concept fires; `text_index` is -1 where it is a token of the vocabulary.

    Arguments:
        row: its row of the activations; a token's id where it is of the vocabulary.
        quantile: which part of the concept's codes it is from, 0 being the strongest; None where only the top was
            asked for.
    """

    row: int = 0
    quantile: int | None = None


@dataclass(frozen=True)
class ConceptInputs:
    """What one concept fires on.

    Arguments:
        concept: its number in the dictionary.
        examples: the strongest first, or from the bottom the weakest (of signed codes the most negative).
        density: share of the rows on which its code is positive, or negative where that side was asked for.
        extreme: its largest code there, or its most negative one; 0 where there is none.
    """

    concept: int
    examples: tuple[Example, ...]
    density: float
    extreme: float

    @property
    def dead(self) -> bool:
        """Whether it never fires."""
        return self.density == 0.0

    def hidden(self) -> ConceptInputs:
        """Return the same without texts: hashes stand for units, and nothing is around them."""
        examples = (replace(each, before="", word=hidden_word(each.word), after="") for each in self.examples)
        return replace(self, examples=tuple(examples))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists, for JSON."""
        return asdict(self)


@INTERPRETATIONS.register("top_k_inputs")
@dataclass(frozen=True, kw_only=True)
class TopKInputs(Interpretation[tuple[ConceptInputs, ...]]):
    """Show the pieces of text on which each concept's code is largest, or a spread of all on which it fires.

    The code of a piece is the largest of its rows. A concept that fires on fewer than k pieces has fewer examples.
    Rows that are nowhere in their text, as special tokens are, are not shown. Memory does not grow with the rows.

    Arguments:
        k: the most examples of a concept.
        unit: what an example is: `token`, `word`, `2-grams` (`3-grams`, …: the words that end with the row's, in one
            sentence), `sentence` or `text`; None for what a row is. Rows that hold more than the unit are refused.
        unique: whether the same characters, upper and lower case alike, are one example, in their strongest place.
        window: characters of context on each side.
        longest: the most characters of an example; longer ones are cut.
        quantiles: into how many parts of equal size the codes on which a concept fires are cut, from each of which
            comes the same number of examples, drawn by the seed; None for the top alone. Parts are those of a uniform
            sample of up to 512 codes of each concept (fewer from 4096 concepts on), and exact for concepts that fire
            less often.
        bottom: the other end: the most negative codes of a signed dictionary, else the weakest positive ones.
        vocabulary: instead of the activations' rows, each token of the tokenizer's vocabulary, run alone through the
            model between the tokenizer's special tokens; needs `split`.
        token_budget: the most tokens of a batch when the vocabulary is run.
        seed: of the draw from quantiles.

    Returns:
        For each concept its `ConceptInputs`.

    Source: the maximally activating inputs of Bills et al. 2023; quantiles as in Paulo et al. 2025, section 3.
    """

    needs: ClassVar[tuple[str, ...]] = ("activations",)

    k: int = 10
    unit: str | None = None
    unique: bool = True
    window: int = 60
    longest: int = 400
    quantiles: int | None = None
    bottom: bool = False
    vocabulary: bool = False
    token_budget: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("k", 1), ("window", 0), ("longest", 1), ("token_budget", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), least)
        if self.quantiles is not None:
            check_integer("quantiles", self.quantiles, 1)
        check_unit(self.unit)
        if self.vocabulary and self.unit not in (None, "token"):
            raise InputError(f"the vocabulary's pieces are tokens, so the unit cannot be {self.unit!r}")

    def interpret(self, given: Given) -> tuple[ConceptInputs, ...]:
        """Gather the examples; see the class."""
        if self.bottom and self.quantiles is not None and not given.dictionary.signed:
            raise InputError(
                f"the codes of {given.dictionary.name!r} have one side, which quantiles cover to the bottom; leave out "
                "bottom=True"
            )
        source = _Vocabulary(self, given) if self.vocabulary else _Rows(self, given)
        gathered = _Gathered(self, source, given)
        chosen = gathered.top if self.quantiles is None else gathered.spread
        return tuple(
            ConceptInputs(concept, chosen(place), *gathered.statistics(place))
            for place, concept in enumerate(given.concepts)
        )


class _Source(ABC):
    """Codes that stream by, and what their rows stand for."""

    n_rows: int

    @abstractmethod
    def stream(self) -> Iterator[Codes]:
        """Yield the codes of the wanted concepts, chunk by chunk in order."""

    @abstractmethod
    def keys(self, start: int, stop: int) -> Integers:
        """Return a number for each row, the same for rows of which one is shown; -1 for rows that cannot be shown."""

    @abstractmethod
    def example(self, row: int, value: float, quantile: int | None) -> Example:
        """Show a row."""


class _Rows(_Source):
    def __init__(self, method: TopKInputs, given: Given) -> None:
        self._method, self._given = method, given
        self._activations = needed(given.activations, "activations", "those of the dictionary's layer")
        self._units = Units(self._activations, method.unit)
        self.n_rows = len(self._activations)

    def stream(self) -> Iterator[Codes]:
        wanted = list(self._given.concepts)
        chunks = self._given.dictionary.encode_chunks(self._activations, allow_mismatch=self._given.allow_mismatch)
        for _, codes in chunks:
            yield codes.numpy() if len(wanted) == codes.shape[1] else codes[:, wanted].numpy()

    def keys(self, start: int, stop: int) -> Integers:
        return self._units.keys(start, stop, unique=self._method.unique)

    def example(self, row: int, value: float, quantile: int | None) -> Example:
        index, begin, end = self._units.place(row)
        text, window = self._units.text(index), self._method.window
        shown = min(end, begin + self._method.longest)
        before, after = text[max(0, begin - window) : begin], text[shown : shown + window if shown == end else shown]
        return Example(index, before, text[begin:shown], after, value, row, quantile)


class _Vocabulary(_Source):
    def __init__(self, method: TopKInputs, given: Given) -> None:
        self._given, self._budget = given, method.token_budget
        self._split, self._path = given.place()
        self._names = TokenNames(self._split.model)
        self._ids = ordinary_ids(self._split.model)
        self.n_rows = len(self._ids)

    def stream(self) -> Iterator[Codes]:
        wanted = list(self._given.concepts)
        for rows in rows_of_tokens(self._split, self._path, self._ids, self._given.granularity, self._budget):
            yield self._given.dictionary.encode(rows)[:, wanted].numpy()

    def keys(self, start: int, stop: int) -> Integers:
        return self._ids[start:stop]

    def example(self, row: int, value: float, quantile: int | None) -> Example:
        token = int(self._ids[row])
        return Example(_NO_TEXT, "", self._names.name(token), "", value, token, quantile)


class _Gathered:
    """What one pass over the codes leaves of each concept."""

    def __init__(self, method: TopKInputs, source: _Source, given: Given) -> None:
        self._method, self._source = method, source
        self._signed = given.dictionary.signed
        n_concepts, spread = len(given.concepts), method.quantiles is not None
        self._n_active = np.zeros(n_concepts, dtype=np.int64)
        self._largest = np.zeros(n_concepts, dtype=np.float32)
        self._best = TopKeys(n_concepts, 0 if spread else method.k)
        size = max(4 * method.k, min(_MOST_SAMPLED, _SAMPLED_NUMBERS // max(1, n_concepts)))
        self._sample = SampledValues(n_concepts, size, method.seed)
        start = 0
        for codes in source.stream():
            side = -codes if method.bottom and self._signed else codes
            self._n_active += (side > 0).sum(axis=0)
            self._largest = np.maximum(self._largest, side.max(axis=0))
            keys = source.keys(start, start + len(codes))
            if spread:
                self._sample.add(np.where(keys[:, None] >= 0, side, 0), start)
            else:
                self._best.add(keys, mirrored(side) if self._mirrors else side, start)
            start += len(codes)
        self._drawn = self._sample.entries() if spread else []

    @property
    def _mirrors(self) -> bool:
        return self._method.bottom and not self._signed

    def statistics(self, place: int) -> tuple[float, float]:
        """Return the share of rows on which a concept fires, and its largest code."""
        return float(self._n_active[place] / max(1, self._source.n_rows)), self._own(float(self._largest[place]))

    def _own(self, value: float) -> float:
        """Return a code of the side that was looked at as the dictionary has it."""
        return -value if self._method.bottom and self._signed and value else value

    def top(self, place: int) -> tuple[Example, ...]:
        """Return the strongest examples of a concept, or the weakest."""
        entries = [(value, row) for _, value, row in self._best.entries(place)]
        if self._mirrors:
            values = mirrored(np.asarray([value for value, _ in entries], dtype=np.float32)).tolist()
            entries = [(value, row) for value, (_, row) in zip(values, entries, strict=True)]
        return tuple(self._source.example(row, self._own(value), None) for value, row in entries)

    def spread(self, place: int) -> tuple[Example, ...]:
        """Return examples from all quantiles of a concept, the strongest first."""
        n_parts = self._method.quantiles or 1
        drawn = self._drawn[place]
        order = sorted(range(len(drawn)), key=lambda i: (-drawn[i][0], drawn[i][1]))
        parts = np.array_split(np.asarray(order, dtype=np.int64), n_parts)
        taken: set[int] = set()
        found: list[Example] = []
        for part, room in zip(range(n_parts), _shares(self._method.k, n_parts), strict=True):
            # The places in the sample are in the order in which they were drawn, which is random.
            chosen = self._distinct([drawn[i] for i in sorted(parts[part].tolist())], taken, room)
            chosen.sort(key=lambda entry: (-entry[0], entry[1]))
            found += [self._source.example(row, self._own(value), part) for value, row in chosen]
        return tuple(found)

    def _distinct(self, entries: Sequence[tuple[float, int]], taken: set[int], room: int) -> list[tuple[float, int]]:
        chosen: list[tuple[float, int]] = []
        for value, row in entries:
            if len(chosen) == room:
                break
            key = int(self._source.keys(row, row + 1)[0])
            if key not in taken:
                taken.add(key)
                chosen.append((value, row))
        return chosen


def _shares(k: int, parts: int) -> list[int]:
    """Divide k examples among parts, the first ones having one more."""
    return [k // parts + (part < k % parts) for part in range(parts)]
