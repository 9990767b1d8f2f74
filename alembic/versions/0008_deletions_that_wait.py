"""Documents whose files are gone, and that stay until a person says so."""

import sqlalchemy as sa

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("documents", sa.Column("gone_at", sa.DateTime(timezone=True), nullable=True))
    gone = sa.text("gone_at IS NOT NULL")
    op.create_index("ix_documents_gone", "documents", ["source_id"], sqlite_where=gone, postgresql_where=gone)


def downgrade() -> None:
    op.drop_index("ix_documents_gone", table_name="documents")
    op.drop_column("documents", "gone_at")
