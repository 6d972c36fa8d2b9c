"""Rows into the catalogue: what one run holds is replaced as a whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, true, update

from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.audit.catalogue.artifacts import Concept
from interpreto_mlops.audit.catalogue.database import Database
from interpreto_mlops.audit.catalogue.tables import (
    SCHEMA,
    ActivationRow,
    AttributionRow,
    Base,
    ConceptRow,
    DictionaryRow,
    RunRow,
    SampleRow,
    ScoreRow,
    Setting,
    VersionRow,
)
from interpreto_mlops.audit.catalogue.texts import (
    PREFIX,
    hidden,
    hidden_label,
    hidden_name,
    hidden_word,
    plain_label,
    plain_name,
    plain_word,
    storable,
    taken_name,
    taken_word,
)
from interpreto_mlops.concepts.interpretation import DEAD, NO_WORD
from interpreto_mlops.errors import CatalogueError

Row = dict[str, Any]

# The words kept of each text and target, the first of its ranking.
TOP_WORDS = 20
TEXTS, STORE = "texts", "store"
KEPT, HASHED = "kept", "hashed"

_CHUNK = 10_000
_KNOWN_WORDS = 50_000


def keeps_texts(connection: Connection, *, hold: bool = True) -> bool:
    """Return whether texts are kept, and hold back who wants to hide them until the transaction's end."""
    statement = select(Setting.value).where(Setting.name == TEXTS)
    # FOR SHARE lets other writers go on.
    return connection.scalar(statement.with_for_update(read=True) if hold else statement) != HASHED


def claim(connection: Connection, store: str) -> None:
    """Make the catalogue that of a store, if it is nobody's yet, in a transaction that writes.

    Arguments:
        connection: of the transaction; nobody else can make the catalogue another store's before its end.
        store: the address that `store_address` returns.

    Raises:
        CatalogueError: the catalogue is another store's.
    """
    if not _is_of(connection, store, hold=True):
        statement = "INSERT INTO catalogue_setting (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING"
        connection.execute(text(statement), {"name": STORE, "value": store})
        # Somebody else may have been faster.
        _is_of(connection, store, hold=False)


def check_store(connection: Connection, store: str) -> None:
    """Raise the error of `claim` where that would raise it; a catalogue that is nobody's yet stays so."""
    _is_of(connection, store, hold=False)


def _is_of(connection: Connection, store: str, *, hold: bool) -> bool:
    statement = select(Setting.value).where(Setting.name == STORE)
    held = connection.scalar(statement.with_for_update(read=True) if hold else statement)
    if held not in (None, store):
        raise CatalogueError(
            f"this catalogue holds the evidence of the MLflow store at {held!r}, and takes none of that at {store!r}; "
            "give that store a catalogue of its own, or the address by which the catalogue knows it"
        )
    return held is not None


def bulk_insert(connection: Connection, model: type[Base], rows: Iterable[Row]) -> int:
    """Insert many rows, all with the same keys, in bounded memory; return how many."""
    stream, count = iter(rows), 0
    insert_chunk = _copy if connection.dialect.name == "postgresql" else _insert
    while chunk := list(islice(stream, _CHUNK)):
        insert_chunk(connection, model, chunk)
        count += len(chunk)
    return count


def _insert(connection: Connection, model: type[Base], rows: Sequence[Row]) -> None:
    connection.execute(insert(model), rows)


def _copy(connection: Connection, model: type[Base], rows: Sequence[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    names = list(rows[0])
    values = itemgetter(*names)
    # All names are those of our own tables and columns.
    statement = f"COPY {SCHEMA}.{model.__tablename__} ({', '.join(names)}) FROM STDIN"
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(values(row))


def replace_run(
    connection: Connection, run: Row, scores: Mapping[str, float | None], explanations: Iterable[Attribution]
) -> int:
    """Write a run with its scores and attributions in the place of what was there of it; return its key."""
    claim(connection, str(run["store"]))
    _alone(connection, f"run {run['run_id']}")
    delete_run(connection, str(run["run_id"]))
    (key,) = connection.execute(insert(RunRow).values(run).returning(RunRow.id)).one()
    bulk_insert(connection, ScoreRow, ({"run": key, "name": name, "value": value} for name, value in scores.items()))
    keep = keeps_texts(connection)
    # Words come again and again.
    word_of = lru_cache(_KNOWN_WORDS)(plain_word if keep else hidden_word)
    # One pass over the explanations: the two tables take turns.
    stream = enumerate(explanations)
    while chunk := list(islice(stream, 500)):
        bulk_insert(connection, SampleRow, (_sample(key, place, item, keep) for place, item in chunk))
        bulk_insert(
            connection,
            AttributionRow,
            (row for place, item in chunk for row in _attributions(key, place, item, keep, word_of)),
        )
    return int(key)


def _alone(connection: Connection, what: str) -> None:
    """Wait until nobody else replaces the same; of two that did, one would fail for what the other has written."""
    # On SQLite one transaction writes at a time.
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(what, 0))))


def delete_run(connection: Connection, run_id: str) -> None:
    """Remove a run and all that is of it."""
    key = connection.scalar(select(RunRow.id).where(RunRow.run_id == run_id))
    if key is not None:
        connection.execute(delete(AttributionRow).where(AttributionRow.run == key))
        connection.execute(delete(RunRow).where(RunRow.id == key))


def _sample(key: int, place: int, item: Attribution, keep: bool) -> Row:
    return {
        "run": key,
        "place": place,
        "text_index": item.index,
        "sha256": item.text_sha256,
        "text": storable(item.text) if keep and not item.is_hidden else None,
        "method": storable(item.method),
    }


def _attributions(key: int, place: int, item: Attribution, keep: bool, word_of: Callable[[str], str]) -> Iterator[Row]:
    if item.is_hidden:
        word_of = taken_word
    for index, target in enumerate(item.targets):
        # A class has a name that somebody gave it; other names hold words of texts.
        generated = target.is_text
        name_of = plain_name if not generated else taken_name if item.is_hidden else plain_name if keep else hidden_name
        name = name_of(target.name)
        for rank, element in enumerate(item.ranking(index)[:TOP_WORDS].tolist(), 1):
            yield {
                "run": key,
                "place": place,
                "target_index": index,
                "rank": rank,
                "target": name,
                "generated": generated,
                "element": element,
                "word": word_of(item.elements[element]),
                "score": float(item.scores[index, element]),
            }


def replace_dictionary(connection: Connection, dictionary: Row, concepts: Sequence[Concept]) -> None:
    """Write a dictionary with its concepts in the place of what was there of it."""
    claim(connection, str(dictionary["store"]))
    _alone(connection, f"dictionary {dictionary['model_id']}")
    keep = keeps_texts(connection)
    connection.execute(delete(DictionaryRow).where(DictionaryRow.model_id == dictionary["model_id"]))
    connection.execute(insert(DictionaryRow).values(dictionary))
    key = str(dictionary["model_id"])
    bulk_insert(connection, ConceptRow, (_concept(key, each, keep) for each in concepts))
    bulk_insert(connection, ActivationRow, (row for each in concepts for row in _activations(key, each, keep)))


def _concept(key: str, concept: Concept, keep: bool) -> Row:
    label_of = taken_name if concept.is_hidden else plain_label if keep else hidden_label
    return {
        "model_id": key,
        "concept": concept.number,
        "label": label_of(concept.label),
        "origin": storable(concept.origin),
        "density": concept.density,
        "max_activation": concept.max_activation,
    }


def _activations(key: str, concept: Concept, keep: bool) -> Iterator[Row]:
    word_of = taken_word if concept.is_hidden else plain_word if keep else hidden_word
    keep = keep and not concept.is_hidden
    for rank, context in enumerate(concept.contexts, 1):
        yield {
            "model_id": key,
            "concept": concept.number,
            "rank": rank,
            "text_index": context.text_index,
            "word": word_of(context.word),
            "context": storable(f"{context.before}{context.word}{context.after}") if keep else None,
            "activation": context.activation,
        }


def replace_version(connection: Connection, version: Row) -> None:
    """Write a registered version in the place of what was there of it."""
    claim(connection, str(version["store"]))
    _alone(connection, f"version {version['name']}/{version['version']}")
    same = (VersionRow.name == version["name"]) & (VersionRow.version == version["version"])
    connection.execute(delete(VersionRow).where(same))
    connection.execute(insert(VersionRow).values(version))


def hide_texts(database: Database) -> bool:
    """Replace all texts and words by their hashes, for ever; return whether they were there before.

    Labels and what a language model wrote are made of words, too. SQLite overwrites the texts in its file; PostgreSQL's
    old rows go with its next vacuum.
    """
    with database.writing() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"LOCK TABLE {Setting.__tablename__} IN EXCLUSIVE MODE"))
        else:
            driver: Any = connection.connection.driver_connection
            driver.create_function("interpreto_hidden", 1, hidden, deterministic=True)
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
        if not keeps_texts(connection):
            return False
        connection.execute(delete(Setting).where(Setting.name == TEXTS))
        connection.execute(insert(Setting).values(name=TEXTS, value=HASHED))
        _hide(connection)
    return True


def _hide(connection: Connection) -> None:
    connection.execute(update(SampleRow).values(text=None))
    connection.execute(update(ActivationRow).values(context=None))
    for model, column, which in (
        (AttributionRow, AttributionRow.word, true()),
        (AttributionRow, AttributionRow.target, AttributionRow.generated),
        (ActivationRow, ActivationRow.word, true()),
        (ConceptRow, ConceptRow.label, ConceptRow.label.not_in((DEAD, NO_WORD))),
    ):
        plain = which & column.not_like(f"{PREFIX}%")
        connection.execute(update(model).where(plain).values({column: _hash_in(connection, column)}))


def _hash_in(connection: Connection, column: Any) -> Any:
    if connection.dialect.name == "sqlite":
        return func.interpreto_hidden(column)
    return PREFIX + func.encode(func.sha256(func.convert_to(column, "UTF8")), "hex")
