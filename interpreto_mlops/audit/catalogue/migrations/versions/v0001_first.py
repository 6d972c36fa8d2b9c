"""The first tables; the log refuses to be changed, by triggers.

There is no way back: it would throw the log away.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
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
    _runs()
    _models()
    _kept()
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)
    head = sa.table("catalogue_log_head", sa.column("id"), sa.column("sequence"), sa.column("hash"))
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": "0" * 64}])


def _runs() -> None:
    op.create_table(
        "catalogue_run",
        sa.Column("id", _KEY, autoincrement=True, nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("experiment_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=True),
        sa.Column("model_uri", sa.Text(), nullable=True),
        sa.Column("model_id", sa.Text(), nullable=True),
        sa.Column("model_fingerprint", sa.Text(), nullable=True),
        sa.Column("layer", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=True),
        sa.Column("dataset", sa.Text(), nullable=True),
        sa.Column("dataset_digest", sa.Text(), nullable=True),
        sa.Column("started_at", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalogue_run")),
        sa.UniqueConstraint("run_id", name=op.f("uq_catalogue_run_run_id")),
    )
    op.create_index(op.f("ix_catalogue_run_model_fingerprint"), "catalogue_run", ["model_fingerprint"])
    op.create_index(op.f("ix_catalogue_run_model_id"), "catalogue_run", ["model_id"])
    op.create_index(op.f("ix_catalogue_run_model_uri"), "catalogue_run", ["model_uri"])
    op.create_table(
        "catalogue_sample",
        sa.Column("run", _KEY, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("text_index", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run"], ["catalogue_run.id"], name=op.f("fk_catalogue_sample_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run", "place", name=op.f("pk_catalogue_sample")),
    )
    op.create_index(op.f("ix_catalogue_sample_sha256"), "catalogue_sample", ["sha256"])
    op.create_table(
        "catalogue_attribution",
        sa.Column("run", _KEY, autoincrement=False, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("target_index", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("generated", sa.Boolean(), nullable=False),
        sa.Column("element", sa.Integer(), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run", "place", "target_index", "rank", name=op.f("pk_catalogue_attribution")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_catalogue_attribution_run_word_target_rank"),
        "catalogue_attribution",
        ["run", "word", "target", "rank"],
    )
    op.create_table(
        "catalogue_score",
        sa.Column("run", _KEY, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["run"], ["catalogue_run.id"], name=op.f("fk_catalogue_score_run"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run", "name", name=op.f("pk_catalogue_score")),
    )


def _models() -> None:
    op.create_table(
        "catalogue_dictionary",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=True),
        sa.Column("layer", sa.Text(), nullable=True),
        sa.Column("n_concepts", sa.Integer(), nullable=True),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("base_uri", sa.Text(), nullable=True),
        sa.Column("base_id", sa.Text(), nullable=True),
        sa.Column("base_sha256", sa.Text(), nullable=True),
        sa.Column("data_digest", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_catalogue_dictionary")),
    )
    op.create_index(op.f("ix_catalogue_dictionary_base_sha256"), "catalogue_dictionary", ["base_sha256"])
    op.create_index(op.f("ix_catalogue_dictionary_run_id"), "catalogue_dictionary", ["run_id"])
    op.create_table(
        "catalogue_concept",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("concept", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("density", sa.Double(), nullable=True),
        sa.Column("max_activation", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["catalogue_dictionary.model_id"],
            name=op.f("fk_catalogue_concept_model_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_id", "concept", name=op.f("pk_catalogue_concept")),
    )
    op.create_table(
        "catalogue_activation",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("concept", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("text_index", sa.BigInteger(), nullable=False),
        sa.Column("word", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=True),
        sa.Column("activation", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"],
            ["catalogue_dictionary.model_id"],
            name=op.f("fk_catalogue_activation_model_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_id", "concept", "rank", name=op.f("pk_catalogue_activation")),
    )
    op.create_table(
        "catalogue_version",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("store", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_catalogue_version")),
    )
    op.create_index(op.f("ix_catalogue_version_model_id"), "catalogue_version", ["model_id"])


def _kept() -> None:
    op.create_table(
        "catalogue_setting",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_catalogue_setting")),
    )
    op.create_table(
        "catalogue_log",
        sa.Column("sequence", _KEY, autoincrement=False, nullable=False),
        sa.Column("at", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("store", sa.Text(), nullable=True),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_catalogue_log")),
        sa.UniqueConstraint("hash", name=op.f("uq_catalogue_log_hash")),
    )
    op.create_index(op.f("ix_catalogue_log_object_sequence"), "catalogue_log", ["object", "sequence"])
    op.create_table(
        "catalogue_log_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalogue_log_head")),
    )
