"""What runs measured and reported, reports that are owed to somebody, and the order in which documents are taken up.

Models that search is not to return to by itself, and what tells that two chunks have one vector.
"""

import sqlalchemy as sa

from alembic import op

revision = "0003"
down_revision = "0002"


def _runs() -> list[sa.Column[object]]:
    return [
        sa.Column("task", sa.String(length=16), nullable=False, server_default="ingest"),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("device", sa.String(length=16), nullable=True),
        sa.Column("documents_read", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("documents_done", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("pages_read", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("characters", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("tokens_embedded", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("extract_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("embed_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("request_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("report", sa.JSON(), nullable=True),
    ]


def _contents() -> list[sa.Column[object]]:
    return [
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("modified_ns", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("token_count", sa.BigInteger(), nullable=False, server_default="0"),
    ]


def upgrade() -> None:
    # Columns with a default are added in place. Making a table anew would break what refers to it on SQLite.
    for column in _runs():
        op.add_column("runs", column)
    for column in _contents():
        op.add_column("contents", column)
    op.add_column("models", sa.Column("set_aside", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("chunks", sa.Column("digest", sa.LargeBinary(), nullable=True))
    # Of what waits only: for the rest neither its time nor its tokens are asked for.
    op.execute(
        "UPDATE contents SET modified_ns = COALESCE("
        "(SELECT MAX(documents.mtime_ns) FROM documents WHERE documents.pending_id = contents.id), 0) "
        "WHERE state IN ('discovered', 'extracted')"
    )
    op.execute(
        "UPDATE contents SET token_count = COALESCE("
        "(SELECT SUM(chunks.token_count) FROM chunks WHERE chunks.content_id = contents.id), 0) "
        "WHERE state = 'extracted'"
    )
    op.drop_index("ix_contents_state_id", table_name="contents")
    op.create_index("ix_contents_oldest", "contents", ["state", "priority", "modified_ns", "id"])
    op.create_index("ix_contents_newest", "contents", ["state", "priority", sa.text("modified_ns DESC"), "id"])
    op.create_table(
        "deliveries",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_deliveries_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_deliveries")),
    )


def downgrade() -> None:
    op.drop_table("deliveries")
    op.drop_index("ix_contents_newest", table_name="contents")
    op.drop_index("ix_contents_oldest", table_name="contents")
    op.create_index("ix_contents_state_id", "contents", ["state", "id"])
    op.drop_column("chunks", "digest")
    op.drop_column("models", "set_aside")
    for column in reversed(_contents()):
        op.drop_column("contents", column.name)
    for column in reversed(_runs()):
        op.drop_column("runs", column.name)
