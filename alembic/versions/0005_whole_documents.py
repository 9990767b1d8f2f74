"""What waits to be computed in one go: whole documents, and stretches of them that give their chunks vectors."""

import sqlalchemy as sa

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    # A column with a default is added in place. Making a table anew would break what refers to it on SQLite.
    op.add_column("pending_chunks", sa.Column("in_stretch", sa.Boolean(), nullable=False, server_default=sa.false()))
    big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "pending_stretches",
        sa.Column("id", big_id, nullable=False),
        sa.Column("content_id", big_id, nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.Column("spans", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["content_id"], ["contents.id"], name=op.f("fk_pending_stretches_content_id_contents"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pending_stretches")),
    )
    op.create_index(op.f("ix_pending_stretches_content_id"), "pending_stretches", ["content_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_pending_stretches_content_id"), table_name="pending_stretches")
    op.drop_table("pending_stretches")
    op.drop_column("pending_chunks", "in_stretch")
