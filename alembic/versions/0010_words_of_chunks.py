"""The words of chunks, and an index over them, for search by words.

What a word is, the program decides (core/words.py), so that it is the same on every database: the words of what is
there already are made here, chunk by chunk. SQLite keeps its index by triggers, in the transaction that changes a row.
"""

import sqlite3
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op
from pipeline.core.errors import SchemaError
from pipeline.core.words import indexed
from pipeline.store.lexemes import as_tsvector

revision = "0010"
down_revision = "0009"

AT_ONCE = 1000
"""Chunks whose texts are in memory at a time."""

chunks = sa.table(
    "chunks",
    sa.column("id", sa.BigInteger),
    sa.column("headings", sa.JSON),
    sa.column("prefix", sa.Text),
    sa.column("text", sa.Text),
)

# The words are normalized already, and those of any script are kept as they are by this tokenizer: to it, every
# character that is not ASCII belongs to a word.
INDEX = (
    "CREATE VIRTUAL TABLE chunk_words_index USING fts5(words, content='chunk_words', content_rowid='chunk_id', "
    "tokenize='ascii')"
)

OFF = "INSERT INTO chunk_words_index (chunk_words_index, rowid, words) VALUES ('delete', OLD.chunk_id, OLD.words)"
ON = "INSERT INTO chunk_words_index (rowid, words) VALUES (NEW.chunk_id, NEW.words)"

TRIGGERS = {
    "index_new_words": f"AFTER INSERT ON chunk_words BEGIN {ON};",
    "index_gone_words": f"AFTER DELETE ON chunk_words BEGIN {OFF};",
    "index_changed_words": f"AFTER UPDATE ON chunk_words BEGIN {OFF}; {ON};",
}


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "chunk_words",
        sa.Column("chunk_id", sa.Integer() if on_sqlite else sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("words", sa.Text() if on_sqlite else postgresql.TSVECTOR(), nullable=False),
        sa.PrimaryKeyConstraint("chunk_id", name="pk_chunk_words"),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunks.id"], name="fk_chunk_words_chunk_id_chunks", ondelete="CASCADE"),
    )
    some = sa.text("chunk_count > 0")
    op.create_index(
        "ix_contents_lengths", "contents", ["chunk_count", "token_count"], sqlite_where=some, postgresql_where=some
    )
    if on_sqlite:
        _index_on_sqlite()
        _fill(str)
    else:
        _fill(as_tsvector)  # an index over rows that are there already is made faster than one that grows with them
        op.create_index("ix_chunk_words_words", "chunk_words", ["words"], postgresql_using="gin")


def _index_on_sqlite() -> None:
    if not op.get_bind().scalar(sa.text("SELECT COUNT(*) FROM pragma_module_list WHERE name = 'fts5'")):
        raise SchemaError(
            f"this Python's SQLite {sqlite3.sqlite_version} "
            "was built without FTS5, which search by words needs: use another Python, or PostgreSQL"
        )
    op.execute(INDEX)
    op.execute("CREATE VIRTUAL TABLE chunk_words_terms USING fts5vocab('chunk_words_index', 'row')")
    for name, trigger in TRIGGERS.items():
        op.execute(f"CREATE TRIGGER {name} {trigger} END")


def _fill(stored_as: Callable[[str], str]) -> None:
    connection, last = op.get_bind(), 0
    kind = "TEXT" if connection.dialect.name == "sqlite" else "tsvector"
    insert = sa.text(f"INSERT INTO chunk_words (chunk_id, words) VALUES (:chunk_id, CAST(:words AS {kind}))")
    while True:
        found = connection.execute(sa.select(chunks).where(chunks.c.id > last).order_by(chunks.c.id).limit(AT_ONCE))
        rows: list[dict[str, Any]] = [
            {"chunk_id": row.id, "words": stored_as(indexed([*row.headings, row.prefix, row.text]))} for row in found
        ]
        if not rows:
            return
        connection.execute(insert, rows)
        last = rows[-1]["chunk_id"]


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for name in TRIGGERS:
            op.execute(f"DROP TRIGGER {name}")
        op.execute("DROP TABLE chunk_words_terms")
        op.execute("DROP TABLE chunk_words_index")
    op.drop_index("ix_contents_lengths", table_name="contents")
    op.drop_table("chunk_words")
