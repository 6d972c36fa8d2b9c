"""Which evidence of one subject is compared with which of another: the same method with the same settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from interpreto_mlops.audit.comparison.subjects import AttributionEvidence, ConceptEvidence

E = TypeVar("E", bound=AttributionEvidence | ConceptEvidence)


@dataclass(frozen=True)
class Group(Generic[E]):
    """Evidence that is compared.

    Arguments:
        label: the method, with the settings that tell it from other groups.
        members: by subject, at least two.
        alike: whether method and settings are the same; else each subject has nothing else.
    """

    label: str
    members: Mapping[str, E] = field(repr=False)
    alike: bool = True


@dataclass(frozen=True)
class Grouped(Generic[E]):
    """What is compared, and what is not.

    Arguments:
        groups: in the order in which the first subject has them, newest first.
        alone: for each subject the labels of what no other subject has.
        older: for each subject how much was left out for something newer of the same kind.
    """

    groups: tuple[Group[E], ...]
    alone: Mapping[str, tuple[str, ...]]
    older: Mapping[str, int]


def group_attributions(evidence: Mapping[str, Sequence[AttributionEvidence]]) -> Grouped[AttributionEvidence]:
    """Group attributions by method and settings.

    Of several that a subject has of the same kind, the newest is taken among those of data that most other subjects
    have, too.

    Arguments:
        evidence: by subject, newest first.
    """

    def choose(candidates: Mapping[str, Sequence[AttributionEvidence]], subject: str) -> AttributionEvidence:
        digests = {name: {each.digest for each in given} for name, given in candidates.items()}

        def shared(each: AttributionEvidence) -> int:
            others = (held for name, held in digests.items() if name != subject)
            return 0 if each.digest is None else sum(each.digest in held for held in others)

        return max(candidates[subject], key=shared)

    return _group(evidence, lambda each: (each.method, tuple(sorted(each.settings.items()))), choose)


def group_concepts(evidence: Mapping[str, Sequence[ConceptEvidence]]) -> Grouped[ConceptEvidence]:
    """Group dictionaries by family, layer and settings; of several of the same kind the newest is taken.

    Arguments:
        evidence: by subject, newest first.
    """
    return _group(
        evidence,
        lambda each: (each.method, each.layer, tuple(sorted(each.settings.items()))),
        lambda candidates, subject: candidates[subject][0],
    )


def _group(
    evidence: Mapping[str, Sequence[E]],
    key: Callable[[E], Hashable],
    choose: Callable[[Mapping[str, Sequence[E]], str], E],
) -> Grouped[E]:
    found: dict[Hashable, dict[str, list[E]]] = {}
    for subject, given in evidence.items():
        for each in given:
            found.setdefault(key(each), {}).setdefault(subject, []).append(each)
    if all(len(given) == 1 for given in evidence.values()):
        # Nothing else can be meant than to compare the one with the other.
        members = {subject: given[0] for subject, given in evidence.items()}
        titles = dict.fromkeys(_titles(list(members.values())))
        return Grouped((Group(" / ".join(titles), members, alike=len(found) == 1),), {}, {})
    compared = {name: held for name, held in found.items() if len(held) > 1}
    titled = _titled(found) | _titled(compared)
    groups: list[Group[E]] = []
    alone: dict[str, tuple[str, ...]] = {}
    older: dict[str, int] = {}
    for name, held in found.items():
        if len(held) > 1:
            groups.append(Group(titled[name], {subject: choose(held, subject) for subject in held}))
            for subject, candidates in held.items():
                older[subject] = older.get(subject, 0) + len(candidates) - 1
        else:
            (subject,) = held
            alone[subject] = (*alone.get(subject, ()), titled[name])
    return Grouped(tuple(groups), alone, {subject: count for subject, count in older.items() if count})


def _titled(found: Mapping[Hashable, Mapping[str, Sequence[E]]]) -> dict[Hashable, str]:
    titles = _titles([next(iter(held.values()))[0] for held in found.values()])
    return dict(zip(found, titles, strict=True))


def _titles(evidence: Sequence[E]) -> list[str]:
    """Name each by its method, and by the settings in which those of the same method differ."""
    settings = [_settings(each) for each in evidence]
    titles = []
    for each, own in zip(evidence, settings, strict=True):
        rivals = [other for rival, other in zip(evidence, settings, strict=True) if rival.method == each.method]
        names = sorted({name for other in rivals for name in {*other, *own} if other.get(name) != own.get(name)})
        said = ", ".join(f"{name} {own[name]}" for name in names if name in own)
        titles.append(f"{each.method} ({said})" if said else each.method)
    return titles


def _settings(each: AttributionEvidence | ConceptEvidence) -> dict[str, str]:
    layer = {"layer": each.layer} if isinstance(each, ConceptEvidence) else {}
    return {**each.settings, **layer}
