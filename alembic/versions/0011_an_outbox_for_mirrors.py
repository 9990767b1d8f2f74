"""What a mirror of the vectors is owed: written by triggers, in the transaction that changes what search sees.

Only where a mirror is registered, so that nothing grows where there is none. A row names a content by what it is made
of, because its number may be another's by the time that the row is read; rows are added and never changed for that,
so that transactions do not wait for each other, or for whoever delivers.
"""

import sqlalchemy as sa

from alembic import op

revision = "0011"
down_revision = "0010"

OWE = """
INSERT INTO outbox (fingerprint, sha256, kind, recipe)
SELECT m.fingerprint, c.sha256, c.kind, c.recipe FROM contents AS c JOIN models AS m ON m.id = c.model_id
WHERE c.id IN ({contents})
"""

MIRRORED = "EXISTS (SELECT 1 FROM mirrors)"

SEEN = "EXISTS (SELECT 1 FROM documents AS d WHERE d.current_id = NEW.id)"

TRIGGERS = {
    # table: what happens, when, of which contents
    "document_added": ("documents", "INSERT", "NEW.current_id IS NOT NULL", "NEW.current_id"),
    "document_gone": ("documents", "DELETE", "OLD.current_id IS NOT NULL", "OLD.current_id"),
    "document_changed": (
        "documents",
        "UPDATE OF source_id, path, mtime_ns, current_id",
        "(OLD.current_id IS NOT NULL OR NEW.current_id IS NOT NULL) AND (OLD.source_id <> NEW.source_id "
        "OR OLD.path <> NEW.path OR OLD.mtime_ns <> NEW.mtime_ns OR {current_id})",
        "OLD.current_id, NEW.current_id",
    ),
    "content_changed": (
        "contents",
        "UPDATE OF state, title, embedded_count",
        "OLD.state <> NEW.state OR OLD.embedded_count <> NEW.embedded_count OR {title}",
        f"SELECT NEW.id WHERE {SEEN}",
    ),
    "vector_changed": (
        "embeddings",
        "UPDATE OF vector",
        "OLD.vector <> NEW.vector",
        "SELECT d.current_id FROM documents AS d WHERE d.current_id = "
        "(SELECT k.content_id FROM chunks AS k WHERE k.id = NEW.chunk_id)",
    ),
    "source_moved": (
        "sources",
        "UPDATE OF root",
        "OLD.root <> NEW.root",
        "SELECT d.current_id FROM documents AS d WHERE d.source_id = NEW.id",
    ),
}


def upgrade() -> None:
    op.create_table(
        "mirrors",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("in_line_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("shown", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_mirrors"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sqlite_autoincrement=True,  # a number that was delivered is no later row's
    )
    op.create_index("ix_outbox_sha256", "outbox", ["sha256", "kind", "recipe", "fingerprint"])
    op.create_index("ix_outbox_fingerprint", "outbox", ["fingerprint", "id"])
    op.create_table(
        "mirrored",
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", "sha256", "kind", "recipe", name="pk_mirrored"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for name, (table, event, changed, contents) in TRIGGERS.items():
            condition = changed.format(
                current_id="OLD.current_id IS NOT NEW.current_id", title="OLD.title IS NOT NEW.title"
            )
            owe = OWE.format(contents=contents)
            op.execute(
                f"CREATE TRIGGER owe_{name} AFTER {event} ON {table} WHEN {MIRRORED} AND ({condition}) BEGIN {owe}; END"
            )
        return
    for name, (table, event, changed, contents) in TRIGGERS.items():
        condition = changed.format(
            current_id="OLD.current_id IS DISTINCT FROM NEW.current_id", title="OLD.title IS DISTINCT FROM NEW.title"
        )
        owe = OWE.format(contents=contents)
        op.execute(
            f"CREATE FUNCTION owe_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ "
            f"BEGIN IF {MIRRORED} THEN {owe}; END IF; RETURN NULL; END $$"
        )
        op.execute(
            f"CREATE TRIGGER owe_{name} AFTER {event} ON {table} FOR EACH ROW WHEN ({condition}) "
            f"EXECUTE FUNCTION owe_{name}()"
        )


def downgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    for name, (table, *_) in TRIGGERS.items():
        op.execute(f"DROP TRIGGER owe_{name}" if on_sqlite else f"DROP TRIGGER owe_{name} ON {table}")
        if not on_sqlite:
            op.execute(f"DROP FUNCTION owe_{name}()")
    op.drop_table("mirrored")
    op.drop_table("outbox")
    op.drop_table("mirrors")
