"""Which concepts are scored, by which labels, and their codes column by column in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.interpretation import DEAD, NO_WORD, ConceptDescription, Label
from interpreto_mlops.errors import InputError

if TYPE_CHECKING:
    from interpreto_mlops.concepts.activations import ActivationSet
    from interpreto_mlops.concepts.base import ConceptDictionary

# Codes that are held at a time, in numbers: some 64 MiB.
_COLUMN_NUMBERS = 2**24

# Cosines below it are those of directions that have nothing to do with each other, up to rounding.
_NO_ANGLE = 1e-6

Codes = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Named = ConceptDescription | Label | str
Labels = Sequence[Named] | Mapping[int, Named]


@dataclass
class Subjects:
    """The concepts that are scored.

    Arguments:
        labels: the label of each concept that can be scored, in order of the concepts.
        largest: the largest code of every concept of the dictionary.
        skipped: why the others of those asked for are not scored.
    """

    labels: dict[int, str]
    largest: npt.NDArray[np.float64]
    skipped: dict[int, str] = field(default_factory=dict)


def subjects(
    dictionary: ConceptDictionary,
    activations: ActivationSet,
    labels: Labels | None,
    concepts: Iterable[int] | None,
) -> Subjects:
    """Find the concepts that are alive and have a label that says something.

    Raises:
        InputError: no labels, too many or too few, or concepts that there are not.
    """
    named = _named(dictionary, labels)
    asked = sorted(named) if concepts is None else _checked(concepts, dictionary.n_concepts)
    largest = np.full(dictionary.n_concepts, -np.inf)
    for _, codes in dictionary.encode_chunks(activations):
        largest = np.maximum(largest, codes.amax(dim=0).double().numpy())
    found = Subjects({}, largest)
    for concept in asked:
        label, reason = _label(named.get(concept))
        if largest[concept] <= 0:
            reason = "it is active nowhere in these texts"
        if reason:
            found.skipped[concept] = reason
        else:
            found.labels[concept] = label
    return found


def _named(dictionary: ConceptDictionary, labels: Labels | None) -> Mapping[int, Named]:
    if labels is None:
        labels = dictionary.descriptions
    if labels is None:
        raise InputError("the dictionary has no descriptions; give labels, or set descriptions = top_words(…)")
    if isinstance(labels, Mapping):
        _checked(labels, dictionary.n_concepts)
        return labels
    if isinstance(labels, str) or len(labels) != dictionary.n_concepts:
        given = repr(labels) if isinstance(labels, str) else f"{len(labels)} labels"
        raise InputError(f"{dictionary.n_concepts} concepts need as many labels, or a mapping, not {given}")
    return dict(enumerate(labels))


def _checked(concepts: Iterable[int], n_concepts: int) -> list[int]:
    asked = list(concepts)
    for concept in asked:
        known = isinstance(concept, int | np.integer) and not isinstance(concept, bool)
        if not known or not 0 <= concept < n_concepts:
            raise InputError(f"there is no concept {concept!r}: they are 0 to {n_concepts - 1}")
    return sorted({int(concept) for concept in asked})


def _label(named: Named | None) -> tuple[str, str]:
    """Return a concept's label, and why it is none."""
    if named is None:
        return "", "it has no label"
    if isinstance(named, ConceptDescription):
        if named.hidden_label is not None:
            return "", "its label is hidden"
        named = named.label
    if isinstance(named, Label):
        named = named.text
    if not isinstance(named, str):
        raise InputError(f"a label is a string, a Label or a ConceptDescription, not {named!r}")
    # Half a character cannot be sent to anybody.
    named = named.encode("utf-8", "replace").decode()
    return named.strip(), "it has no label" if named.strip() in ("", DEAD, NO_WORD) else ""


def columns(
    dictionary: ConceptDictionary,
    activations: ActivationSet,
    concepts: Iterable[int],
    beside: Mapping[int, Sequence[int]] | None = None,
) -> Iterator[tuple[int, Codes, Mask | None]]:
    """Yield each concept's codes, shape (rows,), and on which rows one of the concepts `beside` it is active.

    As many concepts are read in one pass over the rows as fit in bounded memory.
    """
    todo = list(concepts)
    while todo:
        wanted: list[int] = []
        now: list[int] = []
        for concept in todo:
            more = [c for c in (concept, *(beside or {}).get(concept, ())) if c not in wanted]
            if now and (len(wanted) + len(more)) * len(activations) > _COLUMN_NUMBERS:
                break
            wanted, now = wanted + more, [*now, concept]
        todo = todo[len(now) :]
        place = {concept: i for i, concept in enumerate(wanted)}
        codes = _read(dictionary, activations, wanted)
        for concept in now:
            near: Mask | None = None
            if beside is not None:
                near = np.any(codes[[place[c] for c in beside.get(concept, ())]] > 0, axis=0)
            yield concept, codes[place[concept]], near


def _read(dictionary: ConceptDictionary, activations: ActivationSet, wanted: list[int]) -> Codes:
    codes = np.empty((len(wanted), len(activations)), dtype=np.float32)
    start = 0
    for _, chunk in dictionary.encode_chunks(activations):
        codes[:, start : start + len(chunk)] = chunk[:, wanted].T.numpy()
        start += len(chunk)
    return codes


def neighbours(dictionary: ConceptDictionary, concepts: Iterable[int], n: int) -> dict[int, list[int]]:
    """Return for each concept up to `n` others: those of the directions with the largest positive cosines."""
    directions = torch.nn.functional.normalize(dictionary.dictionary.detach().float(), dim=1)
    found = {}
    for concept in concepts:
        cosines = directions @ directions[concept]
        cosines[concept] = 0.0
        order = torch.argsort(-cosines, stable=True)[:n]
        found[concept] = [int(each) for each in order if cosines[each] > _NO_ANGLE]
    return found


def other_labels(labels: Mapping[int, str], seed: int) -> dict[int, str]:
    """Give every concept the label of another one, which says something else.

    Concepts whose label more than half of them share may stay without.

    Arguments:
        labels: of the concepts.
        seed: decides whose.
    """
    rng = np.random.default_rng([seed, len(labels)])
    groups: dict[str, list[int]] = {}
    for concept in sorted(labels):
        groups.setdefault(labels[concept].casefold(), []).append(concept)
    # One label's concepts stand together; further away than the largest group stands another label.
    names = list(groups)
    order = [concept for i in rng.permutation(len(names)) for concept in rng.permutation(groups[names[i]]).tolist()]
    shift = max((len(group) for group in groups.values()), default=0)
    partners = {concept: order[(i + shift) % len(order)] for i, concept in enumerate(order)}
    return {
        concept: labels[partner]
        for concept, partner in sorted(partners.items())
        if labels[concept].casefold() != labels[partner].casefold()
    }
