"""Evidence that a store holds, compared: from addresses to tables, and into a run of the kind `report`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from interpreto_mlops.audit.comparison.grouping import Group, Grouped, group_attributions, group_concepts
from interpreto_mlops.audit.comparison.metrics import SCORE_COLUMNS, compare_scores, text_keys
from interpreto_mlops.audit.comparison.results import (
    GROUP_COLUMNS,
    PAIRING_COLUMNS,
    SINGLE_COLUMNS,
    EvidenceComparison,
    frame,
)
from interpreto_mlops.audit.comparison.subjects import (
    AttributionEvidence,
    ConceptEvidence,
    Subject,
    attributions_of,
    concepts_of,
    subjects_of,
)
from interpreto_mlops.audit.comparison.writing import write_comparison
from interpreto_mlops.concepts.metrics import METRICS as CONCEPT_METRICS
from interpreto_mlops.errors import InputError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.store import Store

Keys = Mapping[str, list[str]]


def compare_evidence(
    store: Store,
    uris: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
    log: bool = True,
    command: str | None = None,
) -> EvidenceComparison:
    """Compare what a store knows of runs, suites, versions of models, or dictionaries.

    Attributions are compared method by method: the same method with the same parameters but seed and precision, on the
    same texts. Where each subject has just one method, those are compared even if they differ.

    Arguments:
        store: where they are.
        uris: at least two of `runs:/<run id>`, `suite:<id>` (or the id alone), `models:/name@alias`, `models:/name/3`
            and `models:/m-…`.
        level: of the intervals.
        seed: of intervals and tests.
        log: whether a run of the kind `report` is written, with the page and its JSON.
        command: what repeats the comparison, for that run.

    Raises:
        InputError: fewer than two addresses, an unknown suite, dictionaries beside models, or nothing to compare.
        ModelLoadError: there is no such run, model or dictionary.
        DataError: evidence that cannot be read.
        TrackingError: the store fails.
    """
    if not 0 < level < 1:
        raise InputError(f"the level of an interval lies between 0 and 1, not at {level!r}")
    subjects = subjects_of(store, uris)
    attributions = {each.label: attributions_of(store, each) for each in subjects}
    concepts = {each.label: concepts_of(store, each) for each in subjects}
    _check_any(subjects, attributions, concepts)
    methods, dictionaries = _both(group_attributions, attributions), _both(group_concepts, concepts)
    if not methods.groups and not dictionaries.groups:
        raise InputError(_nothing_shared(subjects, methods, dictionaries))
    named = {group.label: _keys(group) for group in methods.groups}
    labels = [each.label for each in subjects]
    table, pairs = compare_scores(_scores(methods.groups, named), labels, level=level, seed=seed)
    pairing = [row for group in methods.groups for row in _pairing(group, *named[group.label])]
    comparison = EvidenceComparison(
        tuple(each.to_dict() for each in subjects),
        frame(GROUP_COLUMNS, [row for group in methods.groups for row in _group_rows(group)]),
        frame(PAIRING_COLUMNS, pairing),
        table,
        pairs,
        frame(SINGLE_COLUMNS, [row for group in dictionaries.groups for row in _single_rows(group)]),
        tuple(_notes(subjects, methods, dictionaries, pairing)),
        {"level": level, "seed": seed},
    )
    return write_comparison(store, subjects, comparison, command) if log else comparison


def _both(group: Any, evidence: Mapping[str, Sequence[Any]]) -> Any:
    """Group what at least two subjects have."""
    held = {subject: given for subject, given in evidence.items() if given}
    return group(held) if len(held) > 1 else Grouped((), {}, {})


def _check_any(
    subjects: Sequence[Subject],
    attributions: Mapping[str, Sequence[AttributionEvidence]],
    concepts: Mapping[str, Sequence[ConceptEvidence]],
) -> None:
    for subject in subjects:
        if not attributions[subject.label] and not concepts[subject.label]:
            what = {
                "model": "was not explained yet: no run holds attributions or a dictionary of it",
                "dictionary": "cannot be read as a dictionary",
            }.get(subject.kind, "holds neither attributions nor a dictionary")
            raise InputError(f"the {subject.kind} {subject.given!r} {what}; `interpreto-mlops attribute` makes some")


def _nothing_shared(
    subjects: Sequence[Subject], methods: Grouped[AttributionEvidence], dictionaries: Grouped[ConceptEvidence]
) -> str:
    held = []
    for subject in subjects:
        own = [*methods.alone.get(subject.label, ()), *dictionaries.alone.get(subject.label, ())]
        held.append(f"{subject.given!r} has {', '.join(own) or 'evidence of another kind'}")
    return f"there is nothing to compare: {'; '.join(held)}; explain both by the same method with the same parameters"


def _keys(group: Group[AttributionEvidence]) -> tuple[str, Keys]:
    given = [(each.digest, each.explanations) for each in group.members.values()]
    by, keys = text_keys(given)
    return by, dict(zip(group.members, keys, strict=True))


def _scores(groups: Sequence[Group[AttributionEvidence]], named: Mapping[str, tuple[str, Keys]]) -> pd.DataFrame:
    frames = []
    for group in groups:
        for subject, each in group.members.items():
            scores = each.scores
            # A metric's rows are in the order of the explanations.
            place = scores.groupby("metric", sort=False).cumcount()
            keys = named[group.label][1][subject]
            frames.append(
                scores.assign(subject=subject, method=group.label, text=[keys[i] for i in place])[list(SCORE_COLUMNS)]
            )
    kept = [each for each in frames if len(each)]
    return pd.concat(kept, ignore_index=True) if kept else frame(SCORE_COLUMNS)


def _group_rows(group: Group[AttributionEvidence]) -> Iterator[dict[str, Any]]:
    for subject, each in group.members.items():
        yield {
            "method": group.label,
            "subject": subject,
            "run": each.run_id,
            "link": each.link,
            "data": each.data_name,
            "digest": each.digest,
            "texts": len(each.explanations),
            "settings": {"method": each.method, **each.settings},
        }


def _pairing(group: Group[AttributionEvidence], by: str, keys: Keys) -> Iterator[dict[str, Any]]:
    for first, second in combinations(group.members, 2):
        a, b = set(keys[first]), set(keys[second])
        yield {
            "method": group.label,
            "first": first,
            "second": second,
            "by": by,
            "shared": len(a & b),
            "only_first": len(a - b),
            "only_second": len(b - a),
        }


def _single_rows(group: Group[ConceptEvidence]) -> Iterator[dict[str, Any]]:
    names = dict.fromkeys(name for each in group.members.values() for name in each.metrics)
    for name in names:
        # The same metric of chance stands beside its metric, not in a row of its own.
        if name.endswith(schema.RANDOM) and name.removesuffix(schema.RANDOM) in names:
            continue
        known = CONCEPT_METRICS.get(name).higher_is_better if name in CONCEPT_METRICS else None
        for subject, each in group.members.items():
            yield {
                "method": group.label,
                "metric": name,
                "higher_is_better": known,
                "subject": subject,
                "value": each.metrics.get(name),
                "random": each.metrics.get(name + schema.RANDOM),
                "run": each.run_id,
                "link": each.link,
            }


def _notes(
    subjects: Sequence[Subject],
    methods: Grouped[AttributionEvidence],
    dictionaries: Grouped[ConceptEvidence],
    pairing: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    pinned: dict[str, str] = {}
    for subject in subjects:
        if subject.pinned in pinned:
            yield f"{pinned[subject.pinned]} and {subject.label} are the same: {subject.pinned}."
        pinned.setdefault(subject.pinned, subject.label)
    unlike = [each.label for each in methods.groups if not each.alike]
    unlike += [each.label for each in dictionaries.groups if not each.alike]
    for label in unlike:
        yield f"{label}: the methods or their settings differ, and so may what makes the difference."
    for row in pairing:
        if not row["shared"]:
            yield (
                f"{row['method']}: {row['first']} and {row['second']} have no text in common; their means are shown "
                "side by side, and no test can tell whether they differ."
            )
    for grouped in (methods, dictionaries):
        for subject_label, titles in grouped.alone.items():
            yield f"Only {subject_label} has {', '.join(titles)}."
        for subject_label, count in grouped.older.items():
            yield f"{subject_label}: {count} more of the same kind, older or of other data, were left out."
