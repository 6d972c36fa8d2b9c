"""Evidence that a store holds, compared: from addresses to tables, and into a run of the kind `report`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.audit.comparison.dictionaries import WAYS
from interpreto_mlops.audit.comparison.grouping import E, Group, Grouped, group_attributions, group_concepts
from interpreto_mlops.audit.comparison.learned import Dictionaries, compare_concepts
from interpreto_mlops.audit.comparison.metrics import SCORE_COLUMNS, compare_scores, text_keys
from interpreto_mlops.audit.comparison.models import Agreement, agreement, most_changed, top_words
from interpreto_mlops.audit.comparison.results import (
    AGREEMENT_COLUMNS,
    CHANGED_COLUMNS,
    GROUP_COLUMNS,
    PAIRING_COLUMNS,
    SINGLE_COLUMNS,
    TARGETS_COLUMNS,
    EvidenceComparison,
    frame,
)
from interpreto_mlops.audit.comparison.subjects import (
    DICTIONARY,
    AttributionEvidence,
    ConceptEvidence,
    Subject,
    attributions_of,
    concepts_of,
    subjects_of,
)
from interpreto_mlops.audit.comparison.writing import write_comparison
from interpreto_mlops.concepts.metrics import METRICS as CONCEPT_METRICS
from interpreto_mlops.concepts.metrics.stability import SHARED
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.attribution_evidence import keepable
from interpreto_mlops.tracking.store import Store

Rows = list[dict[str, Any]]


def compare_evidence(
    store: Store,
    uris: Sequence[str],
    *,
    texts: TextDataset | None = None,
    match_by: str = "auto",
    threshold: float = SHARED,
    top_k: int = 3,
    n_changed: int = 10,
    level: float = 0.95,
    seed: int = 0,
    log: bool = True,
    command: str | None = None,
    progress: bool | None = None,
) -> EvidenceComparison:
    """Compare what a store knows of runs, suites, versions of models, or dictionaries.

    Attributions are compared method by method: the same method with the same parameters but seed and precision, on the
    same texts. Where each subject has just one method, those are compared even if they differ. Dictionaries are
    compared family by family in the same way, and their concepts matched.

    Arguments:
        store: where they are.
        uris: at least two of `runs:/<run id>`, `suite:<id>` (or the id alone), `models:/name@alias`, `models:/name/3`
            and `models:/m-…`.
        texts: on which the codes of dictionaries are compared that are not of one layer of one model; by default the
            texts that the subjects' attributions have in common.
        match_by: `directions` or `activations` decides how concepts are matched, `auto` takes directions where both
            dictionaries are of the same layer of the same model.
        threshold: from which similarity (cosine or correlation) on two concepts are the same; 0.7 as for
            `stability/shared_fraction`.
        top_k: how many words of the highest scores the overlap of two explanations looks at.
        n_changed: how many of the texts are listed whose explanation changed most.
        level: of the intervals.
        seed: of intervals, tests and baselines.
        log: whether a run of the kind `report` is written, with the page and its JSON.
        command: what repeats the comparison, for that run.
        progress: whether bars are shown; None for when the output is a terminal.

    Raises:
        InputError: fewer than two addresses, an unknown suite, dictionaries beside models, nothing to compare, or
            dictionaries that need texts.
        ModelLoadError: there is no such run, model or dictionary.
        IntegrityError: a dictionary, or the model that it belongs to, was changed.
        DataError: evidence that cannot be read.
        TrackingError: the store fails.
    """
    _check(level, threshold, match_by, top_k, n_changed)
    subjects = subjects_of(store, uris)
    attributions = {each.label: attributions_of(store, each) for each in subjects}
    concepts = {each.label: concepts_of(store, each) for each in subjects}
    _check_any(subjects, attributions, concepts)
    methods, families = _both(group_attributions, attributions), _both(group_concepts, concepts)
    if not methods.groups and not families.groups:
        raise InputError(_nothing_shared(subjects, attributions, concepts))
    paired = [_Paired.of(group) for group in methods.groups]
    labels = [each.label for each in subjects]
    table, pairs = compare_scores(_scores(paired), labels, level=level, seed=seed)
    found = _agreements(paired, top_k, n_changed, level, seed)
    held = Dictionaries(store, texts or _common_texts(paired), match_by, threshold, seed, progress)
    # Who names dictionaries wants their concepts; of models there is more to see.
    must = all(each.kind == DICTIONARY for each in subjects) or not methods.groups
    matched, shifts, unmatched = compare_concepts(held, families.groups, must=must)
    comparison = EvidenceComparison(
        tuple(each.to_dict() for each in subjects),
        frame(GROUP_COLUMNS, [row for group in methods.groups for row in _group_rows(group)]),
        frame(PAIRING_COLUMNS, found.pairing),
        table,
        pairs,
        frame(SINGLE_COLUMNS, [row for group in families.groups for row in _single_rows(group)]),
        frame(AGREEMENT_COLUMNS, found.agreement),
        frame(CHANGED_COLUMNS, found.changed),
        frame(TARGETS_COLUMNS, found.targets),
        tuple(matched),
        shifts,
        (*_notes(subjects, methods, families, found.pairing), *unmatched),
        {"level": level, "seed": seed, "threshold": threshold, "match_by": match_by, "top_k": top_k},
    )
    return write_comparison(store, subjects, comparison, command) if log else comparison


def _check(level: float, threshold: float, match_by: str, top_k: int, n_changed: int) -> None:
    if not 0 < level < 1:
        raise InputError(f"the level of an interval lies between 0 and 1, not at {level!r}")
    if not -1 <= threshold <= 1:
        raise InputError(f"the threshold of a cosine or correlation lies between -1 and 1, not at {threshold!r}")
    if match_by not in WAYS:
        raise UnknownNameError("way to match concepts", match_by, WAYS)
    if top_k < 1 or n_changed < 0:
        raise InputError(f"top_k must be at least 1 and n_changed at least 0, not {top_k!r} and {n_changed!r}")


def _both(group: Callable[[Mapping[str, Sequence[E]]], Grouped[E]], evidence: Mapping[str, Sequence[E]]) -> Grouped[E]:
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
            said = "".join(f" ({remark})" for remark in subject.remarks)
            raise InputError(
                f"the {subject.kind} {subject.given!r} {what}{said}; `interpreto-mlops attribute` makes some"
            )


def _nothing_shared(
    subjects: Sequence[Subject],
    attributions: Mapping[str, Sequence[AttributionEvidence]],
    concepts: Mapping[str, Sequence[ConceptEvidence]],
) -> str:
    held = []
    for subject in subjects:
        parts = (("attributions by", attributions[subject.label]), ("dictionaries by", concepts[subject.label]))
        own = [f"{what} {', '.join(dict.fromkeys(each.method for each in found))}" for what, found in parts if found]
        held.append(f"{subject.given!r} has {' and '.join(own)}")
    return f"there is nothing to compare: {'; '.join(held)}; explain both by the same method with the same parameters"


@dataclass(frozen=True)
class _Paired:
    """A group of attributions whose texts have names, the same text the same one.

    Arguments:
        group: the attributions.
        by: how the texts were told apart.
        keys: the names of each subject's texts, in order.
    """

    group: Group[AttributionEvidence]
    by: str
    keys: Mapping[str, Sequence[str]] = field(repr=False)

    @classmethod
    def of(cls, group: Group[AttributionEvidence]) -> _Paired:
        by, keys = text_keys([(each.digest, each.explanations) for each in group.members.values()])
        return cls(group, by, dict(zip(group.members, keys, strict=True)))

    def items(self, subject: str) -> dict[str, Attribution]:
        """Return a subject's explanations by the name of their text, as they may be kept."""
        explanations = keepable(self.group.members[subject].explanations)
        return dict(zip(self.keys[subject], explanations, strict=True))


def _scores(paired: Sequence[_Paired]) -> pd.DataFrame:
    frames = []
    for each in paired:
        for subject, evidence in each.group.members.items():
            scores, keys = evidence.scores, each.keys[subject]
            # A metric's rows are in the order of the explanations.
            place = scores.groupby("metric", sort=False).cumcount()
            named = {"subject": subject, "method": each.group.label, "text": [keys[i] for i in place]}
            frames.append(scores.assign(**named)[list(SCORE_COLUMNS)])
    kept = [each for each in frames if len(each)]
    return pd.concat(kept, ignore_index=True) if kept else frame(SCORE_COLUMNS)


@dataclass(frozen=True)
class _Agreements:
    """Rows of the frames of that name."""

    pairing: Rows = field(default_factory=list)
    agreement: Rows = field(default_factory=list)
    changed: Rows = field(default_factory=list)
    targets: Rows = field(default_factory=list)


def _agreements(paired: Sequence[_Paired], k: int, n_changed: int, level: float, seed: int) -> _Agreements:
    rows = _Agreements()
    for each in paired:
        for first, second in combinations(each.group.members, 2):
            named = {"method": each.group.label, "first": first, "second": second}
            a, b = each.items(first), each.items(second)
            found = agreement(a, b, k=k)
            rows.pairing.append({**named, "by": each.by, **_counts(found, a, b)})
            if len(found.texts):
                rows.agreement.extend({**named, **row} for row in _records(found.summary(level=level, seed=seed)))
            rows.changed.extend({**named, **row} for row in _changed(found, a, b, n_changed))
            for row in _records(found.targets):
                rows.targets.append({**named, **row, "text": a[row["text"]].text})
    return rows


def _records(rows: pd.DataFrame) -> Rows:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def _counts(found: Agreement, first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, int]:
    return {
        "shared": found.shared,
        "only_first": len(first) - found.shared,
        "only_second": len(second) - found.shared,
        "other_targets": len(found.targets),
        "other_elements": found.other_elements,
        "unranked": found.unranked,
    }


def _changed(
    found: Agreement, first: Mapping[str, Attribution], second: Mapping[str, Attribution], n: int
) -> Iterator[dict[str, Any]]:
    for row in _records(most_changed(found, n)):
        a, b = first[row["text"]], second[row["text"]]
        words = {"words_first": top_words(a), "words_second": top_words(b)}
        yield {**row, "text": a.text, "target": a.targets[0].title if a.targets else "", **words}


def _common_texts(paired: Sequence[_Paired]) -> TextDataset | None:
    """Return the texts that all subjects of a method were explained on, of the method that has most."""
    best: list[str] = []
    for each in paired:
        subjects = list(each.group.members)
        shared = set.intersection(*(set(each.keys[subject]) for subject in subjects))
        named = zip(each.keys[subjects[0]], each.group.members[subjects[0]].explanations, strict=True)
        # No model can read a text of which only the hash was kept.
        texts = [item.text for key, item in named if key in shared and not item.is_hidden]
        best = max(best, texts, key=len)
    return TextDataset("the texts in common", tuple(best)) if best else None


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
                "value": each.metrics.get(name, np.nan),
                "random": each.metrics.get(name + schema.RANDOM, np.nan),
                "run": each.run_id,
                "link": each.link,
            }


def _notes(
    subjects: Sequence[Subject],
    methods: Grouped[AttributionEvidence],
    families: Grouped[ConceptEvidence],
    pairing: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    pinned: dict[str, str] = {}
    for subject in subjects:
        if subject.pinned in pinned:
            yield f"{pinned[subject.pinned]} and {subject.label} are the same: {subject.pinned}."
        pinned.setdefault(subject.pinned, subject.label)
        yield from (f"{subject.label}: {remark}." for remark in subject.remarks)
    for group in methods.groups:
        yield from _other_parameters(group)
    unlike = [each.label for each in methods.groups if not each.alike]
    for label in unlike + [each.label for each in families.groups if not each.alike]:
        yield f"{label}: the methods or their settings differ, and so may what makes the difference."
    for row in pairing:
        if not row["shared"]:
            yield (
                f"{row['method']}: {row['first']} and {row['second']} have no text in common; their means are shown "
                "side by side, and no test can tell whether they differ."
            )
    for alone, older in ((methods.alone, methods.older), (families.alone, families.older)):
        for subject_label, titles in alone.items():
            yield f"Only {subject_label} has {', '.join(titles)}."
        for subject_label, count in older.items():
            yield f"{subject_label}: {count} more of the same kind, older or of other data, were left out."


def _other_parameters(group: Group[AttributionEvidence]) -> Iterator[str]:
    """Say which metrics were asked for otherwise, so that their values are not of one kind."""
    for metric in dict.fromkeys(name for each in group.members.values() for name in each.metric_settings):
        held = {subject: each.metric_settings.get(metric) for subject, each in group.members.items()}
        known = {subject: settings for subject, settings in held.items() if settings is not None}
        names = sorted({name for settings in known.values() for name in settings})
        for name in names:
            values = {subject: settings.get(name, "nothing") for subject, settings in known.items()}
            if len(set(values.values())) > 1:
                said = ", ".join(f"{value} for {subject}" for subject, value in values.items())
                yield f"{group.label}: {metric} is not the same metric everywhere: its {name} is {said}."
