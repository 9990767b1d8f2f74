"""Runs the migrations over the connection that the program hands in, or over NIGHTSHIFT_DATABASE_URL for `alembic`."""

from __future__ import annotations

import os

from alembic import context
from pipeline.store.database import make_engine
from pipeline.store.tables import Table


def run(connection: object) -> None:
    context.configure(
        connection=connection,  # type: ignore[arg-type]  # what the program put into `attributes` has no type
        target_metadata=Table.metadata,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_in = context.config.attributes.get("connection")
if handed_in is not None:
    run(handed_in)
else:
    engine = make_engine(os.environ.get("NIGHTSHIFT_DATABASE_URL", "sqlite:///data/nightshift.db"))
    with engine.begin() as opened:
        run(opened)
