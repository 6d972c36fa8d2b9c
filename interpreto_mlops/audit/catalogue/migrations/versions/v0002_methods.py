"""The method of each explained text: a run may explain its texts by several."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the method to the texts; those of before are of the only method of their run."""
    op.add_column("catalogue_sample", sa.Column("method", sa.Text(), nullable=True))
    op.execute(
        "UPDATE catalogue_sample SET method = "
        "(SELECT catalogue_run.method FROM catalogue_run WHERE catalogue_run.id = catalogue_sample.run)"
    )
    op.create_index(op.f("ix_catalogue_sample_run_method"), "catalogue_sample", ["run", "method"])
