"""The catalogue's tables: what MLflow's runs and artifacts hold, laid out so that questions go through an index.

Everything but the log and the settings can be derived again. No table refers to one of MLflow's; the names do not
clash with those where both share a database.
"""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import BigInteger, Boolean, Double, ForeignKey, Index, Integer, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "interpreto"
VERSION_TABLE = "alembic_version_interpreto"

_Key = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """What the tables have in common."""

    type_annotation_map: ClassVar = {float: Double}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Setting(Base):
    """A choice that holds for everybody who uses the catalogue."""

    __tablename__ = "catalogue_setting"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class RunRow(Base):
    """A run that explains a model, audits it or reports on it."""

    __tablename__ = "catalogue_run"
    __table_args__ = (Index(None, "model_uri"), Index(None, "model_id"), Index(None, "model_fingerprint"))

    id: Mapped[int] = mapped_column(_Key, primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(Text, unique=True)
    store: Mapped[str] = mapped_column(Text)
    experiment_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str | None] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    suite: Mapped[str | None] = mapped_column(Text)
    model_uri: Mapped[str | None] = mapped_column(Text)
    model_id: Mapped[str | None] = mapped_column(Text)
    model_fingerprint: Mapped[str | None] = mapped_column(Text)
    layer: Mapped[str | None] = mapped_column(Text)
    method: Mapped[str | None] = mapped_column(Text)
    dataset: Mapped[str | None] = mapped_column(Text)
    dataset_digest: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[str | None] = mapped_column(Text)
    ended_at: Mapped[str | None] = mapped_column(Text)


class SampleRow(Base):
    """A text that a run explains by a method."""

    __tablename__ = "catalogue_sample"
    __table_args__ = (Index(None, "sha256"), Index(None, "run", "method"))

    run: Mapped[int] = mapped_column(_Key, ForeignKey("catalogue_run.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    text_index: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    text: Mapped[str | None] = mapped_column(Text)
    method: Mapped[str | None] = mapped_column(Text)


class AttributionRow(Base):
    """One of the words that speak most for a target, rank 1 being the first."""

    __tablename__ = "catalogue_attribution"
    __table_args__ = (
        Index(None, "run", "word", "target", "rank"),
        # SQLite then keeps the rows in the order of their key, and no second copy of it.
        {"sqlite_with_rowid": False},
    )

    # No foreign key: PostgreSQL would check it row by row, which halves the rate of writing.
    run: Mapped[int] = mapped_column(_Key, primary_key=True, autoincrement=False)
    place: Mapped[int] = mapped_column(Integer, primary_key=True)
    target_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    rank: Mapped[int] = mapped_column(Integer, primary_key=True)
    target: Mapped[str] = mapped_column(Text)
    generated: Mapped[bool] = mapped_column(Boolean)
    element: Mapped[int] = mapped_column(Integer)
    word: Mapped[str] = mapped_column(Text)
    score: Mapped[float] = mapped_column()


class ScoreRow(Base):
    """A metric of a run; no value where it could not be computed."""

    __tablename__ = "catalogue_score"

    run: Mapped[int] = mapped_column(_Key, ForeignKey("catalogue_run.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    value: Mapped[float | None] = mapped_column()


class DictionaryRow(Base):
    """A concept dictionary, by its logged model."""

    __tablename__ = "catalogue_dictionary"
    __table_args__ = (Index(None, "base_sha256"), Index(None, "run_id"))

    model_id: Mapped[str] = mapped_column(Text, primary_key=True)
    store: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    method: Mapped[str | None] = mapped_column(Text)
    layer: Mapped[str | None] = mapped_column(Text)
    n_concepts: Mapped[int | None] = mapped_column(Integer)
    width: Mapped[int | None] = mapped_column(Integer)
    base_uri: Mapped[str | None] = mapped_column(Text)
    base_id: Mapped[str | None] = mapped_column(Text)
    base_sha256: Mapped[str | None] = mapped_column(Text)
    data_digest: Mapped[str | None] = mapped_column(Text)
    sha256: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str | None] = mapped_column(Text)


class ConceptRow(Base):
    """A concept of a dictionary: its label, and where the label is from."""

    __tablename__ = "catalogue_concept"

    model_id: Mapped[str] = mapped_column(
        Text, ForeignKey("catalogue_dictionary.model_id", ondelete="CASCADE"), primary_key=True
    )
    concept: Mapped[int] = mapped_column(Integer, primary_key=True)
    label: Mapped[str] = mapped_column(Text)
    origin: Mapped[str] = mapped_column(Text)
    density: Mapped[float | None] = mapped_column()
    max_activation: Mapped[float | None] = mapped_column()


class ActivationRow(Base):
    """A place where a concept is strong, rank 1 being the strongest."""

    __tablename__ = "catalogue_activation"

    model_id: Mapped[str] = mapped_column(
        Text, ForeignKey("catalogue_dictionary.model_id", ondelete="CASCADE"), primary_key=True
    )
    concept: Mapped[int] = mapped_column(Integer, primary_key=True)
    rank: Mapped[int] = mapped_column(Integer, primary_key=True)
    text_index: Mapped[int] = mapped_column(BigInteger)
    word: Mapped[str] = mapped_column(Text)
    context: Mapped[str | None] = mapped_column(Text)
    activation: Mapped[float] = mapped_column()


class VersionRow(Base):
    """A version of a registered model.

    `fingerprint` is the content hash of a text model; a dictionary's version has none, for it names its base's.
    """

    __tablename__ = "catalogue_version"
    __table_args__ = (Index(None, "model_id"),)

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    store: Mapped[str] = mapped_column(Text)
    model_id: Mapped[str | None] = mapped_column(Text)
    run_id: Mapped[str | None] = mapped_column(Text)
    source: Mapped[str | None] = mapped_column(Text)
    fingerprint: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str | None] = mapped_column(Text)


class LogRow(Base):
    """An entry of the append-only log."""

    __tablename__ = "catalogue_log"
    __table_args__ = (Index(None, "object", "sequence"),)

    sequence: Mapped[int] = mapped_column(_Key, primary_key=True, autoincrement=False)
    at: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    object: Mapped[str] = mapped_column(Text)
    store: Mapped[str | None] = mapped_column(Text)
    before: Mapped[str | None] = mapped_column(Text)
    after: Mapped[str | None] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(Text, unique=True)


class LogHeadRow(Base):
    """The number and hash of the log's last entry, in a single row."""

    __tablename__ = "catalogue_log_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    sequence: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(Text)
