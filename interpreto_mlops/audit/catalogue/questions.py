"""Named questions: each a function of the database and its parameters, answered as a frame, through an index."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import pandas as pd
from sqlalchemy import Connection, Executable, Select, func, select, union

from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.log import Action, LogEntry
from interpreto_mlops.audit.catalogue.tables import (
    AttributionRow,
    ConceptRow,
    DictionaryRow,
    LogRow,
    RunRow,
    SampleRow,
    VersionRow,
)
from interpreto_mlops.audit.catalogue.texts import hidden_name, hidden_word, plain_name, plain_word
from interpreto_mlops.audit.catalogue.writing import TOP_WORDS
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.registry import Registry

Question = Callable[..., pd.DataFrame]
_Places: TypeAlias = "Select[int, int, str, int, float]"
QUESTIONS: Registry[Question] = Registry("question")

_VERSION = re.compile(r"^(?:models:/)?(?P<name>[^/:@]+)/(?P<version>\d+)$")
_MODEL_ID = re.compile(r"^models:/(?P<id>m-[0-9a-f]{32})$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_FORMS = "models:/name/3, models:/m-<id>, or the sha256 of the model"
_REMEDY = "rebuild the catalogue if MLflow has some"
_NO_EVIDENCE = ("FAILED", "KILLED")
_EVERYTHING = 10**9


@dataclass(frozen=True)
class Parameter:
    """A parameter of a question.

    Arguments:
        name: as it is given.
        kind: `str`, `int` or `float`.
        required: whether the question needs it.
        default: its value where it is not given.
    """

    name: str
    kind: type
    required: bool
    default: Any = None


def parameters(question: str) -> list[Parameter]:
    """Return the parameters of a question, in order.

    Raises:
        UnknownNameError: no such question.
    """
    function = QUESTIONS.get(question)
    hints = typing.get_type_hints(function)
    found = []
    for name, each in list(inspect.signature(function).parameters.items())[1:]:
        kinds = [kind for kind in (typing.get_args(hints[name]) or (hints[name],)) if kind is not type(None)]
        required = each.default is inspect.Parameter.empty
        found.append(Parameter(name, kinds[0], required, None if required else each.default))
    return found


def ask(database: Database, question: str, given: Mapping[str, Any]) -> pd.DataFrame:
    """Answer a question; see `Catalogue.ask`.

    Numbers may be given as text, as a command line has them.
    """
    known = {each.name: each for each in parameters(question)}
    for name in given:
        if name not in known:
            raise UnknownNameError(f"parameter of the question {question!r}", name, known)
    values = {name: _value(known[name], value) for name, value in given.items() if value is not None}
    if missing := [name for name, each in known.items() if each.required and name not in values]:
        raise InputError(f"the question {question!r} needs {', '.join(map(repr, missing))}")
    return QUESTIONS.get(question)(database, **values)


def _value(parameter: Parameter, value: Any) -> Any:
    try:
        return parameter.kind(value)
    except (TypeError, ValueError):
        what = {int: "a whole number", float: "a number"}.get(parameter.kind, "text")
        raise InputError(f"{parameter.name} must be {what}, not {value!r}") from None


@QUESTIONS.register("texts_with_word")
def texts_with_word(
    database: Database,
    word: str,
    version: str,
    target: str | None = None,
    k: int = 5,
    method: str | None = None,
    limit: int = 1000,
) -> pd.DataFrame:
    """In which texts is a word among the k that speak most for a class under a version of a model?

    Words that speak against the class are not among them, however few speak for it. Upper and lower case are the same.

    Arguments:
        word: as it stands in the texts.
        version: `models:/name/3`, `models:/m-…`, or the sha256 of the model's content.
        target: the class by its name; by default any.
        k: how many words of a text count, at most the 20 that the catalogue keeps.
        method: of the attributions; by default any.
        limit: the most texts, those with the largest scores first; 0 for all.

    Returns:
        One row for each text, target, method and run: text_index, text (None where the catalogue hides it),
        text_sha256, target, rank and score (the best where the word stands there several times), method, dataset,
        run_id.

    Raises:
        InputError: the catalogue has no attributions of that version, which is another thing than no such text.
    """
    if not 1 <= k <= TOP_WORDS:
        raise InputError(f"k must be 1 to {TOP_WORDS}, as many words as the catalogue keeps of a text, not {k!r}")
    if limit < 0:
        raise InputError(f"limit must not be negative, not {limit!r}")
    with database.reading() as connection:
        runs = _runs_with_attributions(connection, version, method)
        found = _places_of_word(runs, word, target, k, method).limit(limit or _EVERYTHING).subquery()
        statement = (
            select(
                SampleRow.text_index,
                SampleRow.text,
                SampleRow.sha256.label("text_sha256"),
                found.c.target,
                found.c.rank,
                found.c.score,
                SampleRow.method,
                RunRow.dataset,
                RunRow.run_id,
            )
            .join(RunRow, RunRow.id == found.c.run)
            .join(SampleRow, (SampleRow.run == found.c.run) & (SampleRow.place == found.c.place))
            .order_by(found.c.score.desc(), found.c.run, found.c.place, found.c.target)
        )
        return _frame(connection, statement)


@QUESTIONS.register("changed_labels")
def changed_labels(database: Database, before: str, after: str) -> pd.DataFrame:
    """Which concepts have another label in one version of a dictionary than in another?

    Concepts are compared by their numbers, so the versions should be of one dictionary whose labels were made anew: one
    that was learnt anew numbers its concepts as it likes.

    Arguments:
        before, after: `models:/name/1` or `models:/m-…`.

    Returns:
        One row for each such concept: concept, change (`changed`, `new`, `gone`), before, after, and where the labels
        are from: origin_before, origin_after.

    Raises:
        InputError: the catalogue has no labels of one of them.
    """
    with database.reading() as connection:
        frames = [_labels(connection, version) for version in (before, after)]
    both = frames[0].merge(frames[1], on="concept", how="outer", suffixes=("_before", "_after"), indicator="side")
    both = both.rename(columns={"label_before": "before", "label_after": "after"})
    both["change"] = both["side"].astype(str).map({"both": "changed", "right_only": "new", "left_only": "gone"})
    different = both[(both["side"] != "both") | (both["before"] != both["after"])]
    columns = ["concept", "change", "before", "after", "origin_before", "origin_after"]
    return different[columns].sort_values("concept").reset_index(drop=True)


@QUESTIONS.register("dictionaries_of")
def dictionaries_of(database: Database, sha256: str) -> pd.DataFrame:
    """Which dictionaries are of a base model, by the sha256 of its content?

    Arguments:
        sha256: of the base model, as `interpreto.model.fingerprint` has it.

    Returns:
        One row for each logged dictionary and registered version of it, the newest first: model_id, name and version
        (none where it is not registered), method, layer, n_concepts, base_uri, data_digest, run_id, created_at.

    Raises:
        InputError: no sha256.
    """
    if not _SHA256.match(sha256):
        raise InputError(f"the sha256 of a model has 64 hexadecimal digits, unlike {sha256!r}")
    statement = (
        select(
            DictionaryRow.model_id,
            VersionRow.name,
            VersionRow.version,
            DictionaryRow.method,
            DictionaryRow.layer,
            DictionaryRow.n_concepts,
            DictionaryRow.base_uri,
            DictionaryRow.data_digest,
            DictionaryRow.run_id,
            DictionaryRow.created_at,
        )
        .outerjoin(VersionRow, VersionRow.model_id == DictionaryRow.model_id)
        .where(DictionaryRow.base_sha256 == sha256)
        .order_by(DictionaryRow.created_at.desc(), DictionaryRow.model_id, VersionRow.version)
    )
    with database.reading() as connection:
        return _frame(connection, statement).astype({"version": "Int64", "n_concepts": "Int64"})


@QUESTIONS.register("alias_moves")
def alias_moves(database: Database, name: str, alias: str, days: float = 30.0) -> pd.DataFrame:
    """Who moved an alias, from which version to which, and was the new one's evidence fresh then?

    Evidence is a finished run of attributions, concepts or a probe that explains that version, by its address, its
    logged model or its content; fresh is what ended at most so many days before the alias was moved. Evidence that
    MLflow has lost since, and the catalogue with its next `rebuild`, does not count.

    Arguments:
        name: of the registered model.
        alias: of its versions.
        days: that evidence stays fresh.

    Returns:
        One row for each move, the oldest first: sequence (in the log), at, actor, action, before, after, fresh, days
        (the age of the newest evidence then; none where there was none), evidence (its run).
    """
    subject = f"models:/{name}@{alias}"
    actions = (Action.MOVE_ALIAS.value, Action.PROMOTE.value)
    statement = select(LogRow.__table__).where(LogRow.object == subject).order_by(LogRow.sequence)
    rows = []
    with database.reading() as connection:
        found = connection.execute(statement).mappings().all()
        evidence: dict[str, list[tuple[str, str]]] = {}
        for entry in (LogEntry.of(row) for row in found if row["action"] in actions):
            after = str((entry.after or {}).get("uri", ""))
            if after not in evidence:
                evidence[after] = _evidence(connection, after)
            rows.append(_move(entry, evidence[after], days))
    columns = ["sequence", "at", "actor", "action", "before", "after", "fresh", "days", "evidence"]
    return pd.DataFrame(rows, columns=columns)


def _move(entry: LogEntry, evidence: list[tuple[str, str]], days: float) -> dict[str, Any]:
    ended, run_id = max(((at, run) for at, run in evidence if at <= entry.at), default=(None, None))
    age = None if ended is None else _moment(entry.at) - _moment(ended)
    return {
        "sequence": entry.sequence,
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "before": (entry.before or {}).get("uri"),
        "after": (entry.after or {}).get("uri"),
        "fresh": age is not None and age <= timedelta(days=days),
        "days": None if age is None else age.total_seconds() / 86400,
        "evidence": run_id,
    }


def _moment(text: str) -> datetime:
    # Python 3.10 does not read the Z.
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _runs_with_attributions(connection: Connection, version: str, method: str | None) -> list[int]:
    explained = select(SampleRow.place).where(SampleRow.run == RunRow.id)
    if method is not None:
        explained = explained.where(SampleRow.method == method)
    statement = select(RunRow.id).where(
        RunRow.id.in_(_run_keys(connection, version)), RunRow.status.not_in(_NO_EVIDENCE), explained.exists()
    )
    found = [int(key) for key in connection.scalars(statement)]
    if not found:
        by = "" if method is None else f" by {method!r}"
        raise InputError(f"the catalogue has no attributions{by} of {version!r}; {_REMEDY}")
    return found


def _places_of_word(runs: list[int], word: str, target: str | None, k: int, method: str | None) -> _Places:
    """Select the texts and targets for which a word is among the k that speak most, those with the best scores first.

    The word may stand in a text several times, and a language model may have written a target several times.
    """
    row = AttributionRow
    rank, score = func.min(row.rank), func.max(row.score)
    statement = select(row.run, row.place, row.target, rank.label("rank"), score.label("score")).where(
        row.run.in_(runs), row.word.in_((plain_word(word), hidden_word(word))), row.rank <= k, row.score > 0
    )
    if target is not None:
        statement = statement.where(row.target.in_((plain_name(target), hidden_name(target))))
    if method is not None:
        same = (SampleRow.run == row.run) & (SampleRow.place == row.place)
        statement = statement.join(SampleRow, same).where(SampleRow.method == method)
    place = (row.run, row.place, row.target)
    return statement.group_by(*place).order_by(score.desc(), *place)


def _evidence(connection: Connection, version: str) -> list[tuple[str, str]]:
    """Return when the finished explanations of a version ended, and their runs; none where it names no version."""
    if not (_VERSION.match(version) or _MODEL_ID.match(version)):
        return []
    statement = select(RunRow.ended_at, RunRow.run_id).where(
        RunRow.id.in_(_run_keys(connection, version)),
        RunRow.kind.not_in(("audit", "report")),
        RunRow.status == "FINISHED",
        RunRow.ended_at.is_not(None),
    )
    return [(str(at), str(run_id)) for at, run_id in connection.execute(statement)]


def _run_keys(connection: Connection, version: str) -> list[int]:
    """Return the runs that explain a model: by its address, by its logged model, or by its content."""
    parts = [select(RunRow.id).where(RunRow.model_uri == version)]
    if match := _MODEL_ID.match(version):
        parts.append(select(RunRow.id).where(RunRow.model_id == match["id"]))
    elif _SHA256.match(version):
        parts.append(select(RunRow.id).where(RunRow.model_fingerprint == version))
    elif match := _VERSION.match(version):
        this = (VersionRow.name == match["name"]) & (VersionRow.version == int(match["version"]))
        parts = [
            select(RunRow.id).where(RunRow.model_uri == f"models:/{match['name']}/{match['version']}"),
            select(RunRow.id).join(VersionRow, VersionRow.model_id == RunRow.model_id).where(this),
            select(RunRow.id).join(VersionRow, VersionRow.fingerprint == RunRow.model_fingerprint).where(this),
        ]
    else:
        raise InputError(f"cannot read the version {version!r}; write {_FORMS}")
    return [int(key) for key in connection.scalars(union(*parts))]


def _labels(connection: Connection, version: str) -> pd.DataFrame:
    if match := _MODEL_ID.match(version):
        key = match["id"]
    elif match := _VERSION.match(version):
        this = (VersionRow.name == match["name"]) & (VersionRow.version == int(match["version"]))
        key = connection.scalar(select(VersionRow.model_id).where(this)) or ""
    else:
        raise InputError(f"cannot read the version {version!r}; write models:/name/3 or models:/m-<id>")
    statement = select(ConceptRow.concept, ConceptRow.label, ConceptRow.origin).where(ConceptRow.model_id == key)
    found = _frame(connection, statement)
    if found.empty:
        raise InputError(f"the catalogue has no labels of {version!r}; {_REMEDY}")
    return found


def _frame(connection: Connection, statement: Executable) -> pd.DataFrame:
    result = connection.execute(statement)
    return pd.DataFrame(result.all(), columns=list(result.keys()))
