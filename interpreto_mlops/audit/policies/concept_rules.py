"""Concepts that must not be among those that speak most for a class, by the words of their labels."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interpreto_mlops.audit.catalogue.texts import hidden_label
from interpreto_mlops.audit.policies.evidence import Evidence
from interpreto_mlops.audit.policies.pieces import Piece
from interpreto_mlops.audit.policies.schema import ConceptsRule
from interpreto_mlops.audit.policies.selecting import chosen, missing, nothing, unknown
from interpreto_mlops.audit.policies.terms import is_hash, occurrences, term_of, words_of
from interpreto_mlops.audit.policies.threshold_rules import about
from interpreto_mlops.audit.policies.verdicts import Outcome, RuleVerdict, Verdict, combine
from interpreto_mlops.errors import DataError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.store import Store

_WHAT = "dictionary with labels and the importance of its concepts"
_FILES = (schema.CONCEPTS_LABELS, schema.CONCEPTS_IMPORTANCE)
_TOLD = 10


def judge_concepts(rule: ConceptsRule, evidence: Evidence) -> RuleVerdict:
    """Judge whether a concept with a forbidden word in its label speaks most for a class, in any run's dictionary."""
    every = chosen(evidence, rule, "concepts")
    pieces = [piece for piece in every if piece.files >= set(_FILES)]
    outcomes = [_judged(rule, evidence, piece) for piece in pieces]
    if outcomes:
        outcomes += [_unlabelled(piece) for piece in every if not piece.files >= set(_FILES)]
    outcomes += missing(evidence, rule, pieces, _WHAT)
    # Where there is nothing else, that is said.
    outcomes += unknown(evidence) if outcomes else []
    return combine(rule, outcomes, nothing(evidence, rule, _WHAT))


def _unlabelled(piece: Piece) -> Outcome:
    why = f"{piece.title} has no labels, or no importance of its concepts"
    return Outcome(Verdict.UNDECIDED, why, (piece.place(),), about(piece))


def _judged(rule: ConceptsRule, evidence: Evidence, piece: Piece) -> Outcome:
    labels, importance = _read(evidence.store, piece)
    places = tuple(piece.place(path) for path in _FILES)
    known = sorted({str(name) for name in importance.loc[np.isfinite(importance["importance"]), "class"]})
    facts: dict[str, Any] = {**about(piece), "classes": known, "n_labels": len(labels)}
    asked = rule.classes or known
    hits = [hit for name in asked for hit in _hits(rule, importance[importance["class"] == name], labels)]
    if evidence.hides_texts:
        hits = [{**hit, "label": hidden_label(hit["label"])} for hit in hits]
    facts["hits"] = hits
    if hits:
        told = "; ".join("concept {concept} {label!r}, rank {rank} for {class!r}".format(**hit) for hit in hits[:_TOLD])
        more = f"; and {len(hits) - _TOLD} more" if len(hits) > _TOLD else ""
        said = f"among the {rule.top} concepts of {piece.title} that speak most for a class: {told}{more}"
        return Outcome(Verdict.FAILED, said, places, facts)
    unjudged = [name for name in asked if name not in known]
    if unjudged or not known or not labels:
        which = f"the class {unjudged[0]!r}" if unjudged else "any class"
        have = ", ".join(map(repr, known[:_TOLD])) or "none"
        why = f"{piece.title} says of no concept how much it speaks for {which}; it knows {have}"
        return Outcome(Verdict.UNDECIDED, why, places, facts)
    for concept, name in _unweighed(rule, importance, labels):
        label = hidden_label(labels[concept]) if evidence.hides_texts else labels[concept]
        why = f"{piece.title} does not say how much concept {concept}, {label!r}, speaks for {name!r}"
        return Outcome(Verdict.UNDECIDED, why, places, facts)
    readable = {concept for concept, label in labels.items() if not is_hash(label)}
    unlabelled = sorted(set(_top(rule, importance, asked)) - readable)
    if unlabelled:
        which = f"concept {unlabelled[0]}, which is among the {rule.top} that speak most"
        why = f"{piece.title} has no label for {which}, or one that is hidden"
        return Outcome(Verdict.UNDECIDED, why, places, facts)
    said = f"none of the {rule.top} concepts of {piece.title} that speak most for a class has such a label"
    return Outcome(Verdict.PASSED, said, places, facts)


def _unweighed(rule: ConceptsRule, importance: pd.DataFrame, labels: Mapping[int, str]) -> Iterator[tuple[int, str]]:
    """Yield the concepts with a forbidden or hidden label whose importance for a class is not known."""
    for name in rule.classes or sorted({str(each) for each in importance["class"]}):
        rows = importance[importance["class"] == name]
        known = set(rows.loc[np.isfinite(rows["importance"]), "concept"].astype(int))
        for concept in sorted(labels.keys() - known):
            if is_hash(labels[concept]) or _forbidden(rule, labels[concept]) is not None:
                yield concept, name


def _forbidden(rule: ConceptsRule, label: str) -> str | None:
    """Return the first of a rule's concepts that stands in a label."""
    words = words_of(label)
    return next((each for each in rule.concepts if any(True for _ in occurrences(words, term_of(each)))), None)


def _hits(rule: ConceptsRule, rows: pd.DataFrame, labels: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    for rank, row in enumerate(_ranked(rule, rows), 1):
        label = labels.get(int(row["concept"]), "")
        forbidden = _forbidden(rule, label)
        if forbidden is not None:
            yield {
                "concept": int(row["concept"]),
                "label": label,
                "forbidden": forbidden,
                "class": str(row["class"]),
                "rank": rank,
                "importance": float(row["importance"]),
            }


def _ranked(rule: ConceptsRule, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the concepts that speak for a class, the first ones, the most important first."""
    positive = rows[rows["importance"] > 0]
    best = positive.sort_values(["importance", "concept"], ascending=[False, True], kind="stable").head(rule.top)
    return [{str(name): value for name, value in row.items()} for row in best.to_dict("records")]


def _top(rule: ConceptsRule, importance: pd.DataFrame, classes: list[str]) -> Iterator[int]:
    for name in classes:
        for row in _ranked(rule, importance[importance["class"] == name]):
            yield int(row["concept"])


def _read(store: Store, piece: Piece) -> tuple[dict[int, str], pd.DataFrame]:
    """Return the labels by concept, and the importance of each concept for each class."""
    content = []
    with tempfile.TemporaryDirectory(prefix="interpreto-") as scratch:
        for path in _FILES:
            with store.guarded(f"fetch {path!r} of the run {piece.run_id!r}"):
                content.append(Path(store.client.download_artifacts(piece.run_id, path, scratch)).read_bytes())
    try:
        table = json.loads(content[0])
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        labels = {int(row["concept"]): str(row["label"]) for row in rows}
        frame = pd.read_parquet(io.BytesIO(content[1]))[["class", "concept", "importance"]]
        frame["importance"] = frame["importance"].astype(float)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read the concepts of the run {piece.run_id!r}: {first_line(error)}") from error
    return labels, frame
