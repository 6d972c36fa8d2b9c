"""The first tables; the log refuses to be changed, by triggers.

There is no way back: it would throw the log away.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Kind = sa.types.TypeEngine[Any]

_TEXT = sa.Text()
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SQLITE = (
    """CREATE TRIGGER catalogue_log_update BEFORE UPDATE ON catalogue_log
    BEGIN SELECT RAISE(ABORT, 'the log of the catalogue only grows'); END""",
    """CREATE TRIGGER catalogue_log_delete BEFORE DELETE ON catalogue_log
    BEGIN SELECT RAISE(ABORT, 'the log of the catalogue only grows'); END""",
    # INSERT OR REPLACE deletes without asking the triggers of DELETE.
    """CREATE TRIGGER catalogue_log_insert BEFORE INSERT ON catalogue_log
    WHEN NEW.sequence <> (SELECT sequence + 1 FROM catalogue_log_head)
    OR EXISTS (SELECT 1 FROM catalogue_log WHERE hash = NEW.hash)
    BEGIN SELECT RAISE(ABORT, 'the log of the catalogue only grows'); END""",
    """CREATE TRIGGER catalogue_log_head_insert BEFORE INSERT ON catalogue_log_head
    WHEN EXISTS (SELECT 1 FROM catalogue_log_head)
    BEGIN SELECT RAISE(ABORT, 'the log of the catalogue only grows'); END""",
    """CREATE TRIGGER catalogue_log_head_update BEFORE UPDATE ON catalogue_log_head
    WHEN NEW.id <> OLD.id OR NEW.sequence <> OLD.sequence + 1
    BEGIN SELECT RAISE(ABORT, 'the log of the catalogue only grows'); END""",
    """CREATE TRIGGER catalogue_log_head_delete BEFORE DELETE ON catalogue_log_head
    BEGIN SELECT RAISE(ABORT, 'the log of the catalogue only grows'); END""",
)

_POSTGRESQL = (
    """CREATE FUNCTION catalogue_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the log of the catalogue only grows'; END $$""",
    """CREATE TRIGGER catalogue_log_change BEFORE UPDATE OR DELETE OR TRUNCATE ON catalogue_log
    FOR EACH STATEMENT EXECUTE FUNCTION catalogue_refuse()""",
    """CREATE TRIGGER catalogue_log_head_update BEFORE UPDATE ON catalogue_log_head FOR EACH ROW
    WHEN (NEW.id <> OLD.id OR NEW.sequence <> OLD.sequence + 1) EXECUTE FUNCTION catalogue_refuse()""",
    """CREATE TRIGGER catalogue_log_head_delete BEFORE DELETE OR TRUNCATE ON catalogue_log_head
    FOR EACH STATEMENT EXECUTE FUNCTION catalogue_refuse()""",
)


def upgrade() -> None:
    """Make the tables, the log's triggers, and the head of the empty log."""
    for make in (_runs, _samples, _attributions, _scores, _dictionaries, _concepts, _activations, _versions):
        make()
    _settings()
    _log()
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
    head = sa.table("catalogue_log_head", sa.column("id"), sa.column("sequence"), sa.column("hash"))
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": "0" * 64}])


def _needed(kind: _Kind, *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=False) for name in names]


def _optional(kind: _Kind, *names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=True) for name in names]


def _key(table: str, *names: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*names, name=op.f(f"pk_{table}"))


def _part_of(table: str, name: str, whole: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([name], [whole], name=op.f(f"fk_{table}_{name}"), ondelete="CASCADE")


def _unique(table: str, name: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(name, name=op.f(f"uq_{table}_{name}"))


def _index(table: str, *names: str) -> None:
    op.create_index(op.f(f"ix_{table}_{'_'.join(names)}"), table, list(names))


def _runs() -> None:
    table = "catalogue_run"
    op.create_table(
        table,
        sa.Column("id", _NUMBER, autoincrement=True, nullable=False),
        *_needed(_TEXT, "run_id", "store", "experiment_id"),
        *_optional(_TEXT, "name"),
        *_needed(_TEXT, "kind", "status"),
        *_optional(_TEXT, "suite", "model_uri", "model_id", "model_fingerprint", "layer", "method"),
        *_optional(_TEXT, "dataset", "dataset_digest", "started_at", "ended_at"),
        _key(table, "id"),
        _unique(table, "run_id"),
    )
    for name in ("model_fingerprint", "model_id", "model_uri"):
        _index(table, name)


def _samples() -> None:
    table = "catalogue_sample"
    op.create_table(
        table,
        *_needed(_NUMBER, "run"),
        *_needed(sa.Integer(), "place"),
        *_needed(sa.BigInteger(), "text_index"),
        *_needed(_TEXT, "sha256"),
        *_optional(_TEXT, "text"),
        _part_of(table, "run", "catalogue_run.id"),
        _key(table, "run", "place"),
    )
    _index(table, "sha256")


def _attributions() -> None:
    table = "catalogue_attribution"
    op.create_table(
        table,
        sa.Column("run", _NUMBER, autoincrement=False, nullable=False),
        *_needed(sa.Integer(), "place", "target_index", "rank"),
        *_needed(_TEXT, "target"),
        *_needed(sa.Boolean(), "generated"),
        *_needed(sa.Integer(), "element"),
        *_needed(_TEXT, "word"),
        *_needed(sa.Double(), "score"),
        _key(table, "run", "place", "target_index", "rank"),
        sqlite_with_rowid=False,
    )
    _index(table, "run", "word", "target", "rank")


def _scores() -> None:
    table = "catalogue_score"
    op.create_table(
        table,
        *_needed(_NUMBER, "run"),
        *_needed(_TEXT, "name"),
        *_optional(sa.Double(), "value"),
        _part_of(table, "run", "catalogue_run.id"),
        _key(table, "run", "name"),
    )


def _dictionaries() -> None:
    table = "catalogue_dictionary"
    op.create_table(
        table,
        *_needed(_TEXT, "model_id", "store"),
        *_optional(_TEXT, "run_id"),
        *_needed(_TEXT, "name"),
        *_optional(_TEXT, "method", "layer"),
        *_optional(sa.Integer(), "n_concepts", "width"),
        *_optional(_TEXT, "base_uri", "base_id", "base_sha256", "data_digest", "sha256", "created_at"),
        _key(table, "model_id"),
    )
    _index(table, "base_sha256")
    _index(table, "run_id")


def _concepts() -> None:
    table = "catalogue_concept"
    op.create_table(
        table,
        *_needed(_TEXT, "model_id"),
        *_needed(sa.Integer(), "concept"),
        *_needed(_TEXT, "label", "origin"),
        *_optional(sa.Double(), "density", "max_activation"),
        _part_of(table, "model_id", "catalogue_dictionary.model_id"),
        _key(table, "model_id", "concept"),
    )


def _activations() -> None:
    table = "catalogue_activation"
    op.create_table(
        table,
        *_needed(_TEXT, "model_id"),
        *_needed(sa.Integer(), "concept", "rank"),
        *_needed(sa.BigInteger(), "text_index"),
        *_needed(_TEXT, "word"),
        *_optional(_TEXT, "context"),
        *_needed(sa.Double(), "activation"),
        _part_of(table, "model_id", "catalogue_dictionary.model_id"),
        _key(table, "model_id", "concept", "rank"),
    )


def _versions() -> None:
    table = "catalogue_version"
    op.create_table(
        table,
        *_needed(_TEXT, "name"),
        *_needed(sa.Integer(), "version"),
        *_needed(_TEXT, "store"),
        *_optional(_TEXT, "model_id", "run_id", "source", "fingerprint", "created_at"),
        _key(table, "name", "version"),
    )
    _index(table, "model_id")


def _settings() -> None:
    op.create_table("catalogue_setting", *_needed(_TEXT, "name", "value"), _key("catalogue_setting", "name"))


def _log() -> None:
    table, head = "catalogue_log", "catalogue_log_head"
    op.create_table(
        table,
        sa.Column("sequence", _NUMBER, autoincrement=False, nullable=False),
        *_needed(_TEXT, "at", "actor", "action", "object"),
        *_optional(_TEXT, "store", "before", "after"),
        *_needed(_TEXT, "previous", "hash"),
        _key(table, "sequence"),
        _unique(table, "hash"),
    )
    _index(table, "object", "sequence")
    op.create_table(
        head,
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        *_needed(sa.BigInteger(), "sequence"),
        *_needed(_TEXT, "hash"),
        _key(head, "id"),
    )
