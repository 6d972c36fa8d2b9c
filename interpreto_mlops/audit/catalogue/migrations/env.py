"""What alembic runs for each command: the connection comes from who calls it, inside a transaction of its own."""

from __future__ import annotations

from alembic import context

from interpreto_mlops.audit.catalogue.migrating import options

context.configure(**options(context.config.attributes["connection"]))
with context.begin_transaction():
    context.run_migrations()
