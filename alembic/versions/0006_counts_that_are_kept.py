"""Documents and chunks counted as they change, and indexes for what runs and plans ask for.

SQLite keeps the counts in tables, by triggers: they belong to the transaction that changes a row, whoever it is of.
On PostgreSQL transactions that meet would wait for each other there; it counts when it is asked, in views.
"""

import sqlalchemy as sa

from alembic import op

revision = "0006"
down_revision = "0005"

KEY = "source_id, unreadable, state, pending_model_id, pending_useful, current_model_id"

DOCUMENTS = """
SELECT d.source_id AS source_id, d.problem IS NOT NULL AS unreadable,
       COALESCE(p.state, c.state, 'discovered') AS state, COALESCE(p.model_id, 0) AS pending_model_id,
       p.id IS NOT NULL AND p.embedded_count > 0 AND p.state IN ('embedded', 'empty', 'encrypted', 'failed')
           AS pending_useful,
       COALESCE(c.model_id, 0) AS current_model_id, {count} AS documents
FROM documents AS d LEFT JOIN contents AS p ON p.id = d.pending_id LEFT JOIN contents AS c ON c.id = d.current_id
WHERE {which}
GROUP BY 1, 2, 3, 4, 5, 6
"""

CHUNKS = """
SELECT COALESCE(SUM(chunk_count), 0) AS chunks, COALESCE(SUM(embedded_count), 0) AS embedded FROM contents
WHERE id IN (SELECT COALESCE(pending_id, current_id) FROM documents)
"""

OF_CONTENT = "(d.pending_id = {0} OR (d.current_id = {0} AND d.pending_id IS NULL))"

USEFUL = "({0}.embedded_count > 0 AND {0}.state IN ('embedded', 'empty', 'encrypted', 'failed'))"


def upgrade() -> None:
    for name, columns, condition in (
        ("ix_contents_claimed", ["claimed_by"], "claimed_by IS NOT NULL"),
        ("ix_contents_read", ["kind", "id"], "token_count > 0"),
    ):
        op.create_index(name, "contents", columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))
    if op.get_bind().dialect.name != "sqlite":
        op.execute(f"CREATE VIEW document_counts AS {DOCUMENTS.format(count='COUNT(*)', which='true')}")
        op.execute(f"CREATE VIEW chunk_counts AS {CHUNKS}")
        return
    op.execute(
        "CREATE TABLE document_counts (source_id INTEGER NOT NULL, unreadable BOOLEAN NOT NULL, "
        "state VARCHAR(16) NOT NULL, pending_model_id INTEGER NOT NULL, pending_useful BOOLEAN NOT NULL, "
        f"current_model_id INTEGER NOT NULL, documents INTEGER NOT NULL, PRIMARY KEY ({KEY})) WITHOUT ROWID"
    )
    op.execute("CREATE TABLE chunk_counts (chunks INTEGER NOT NULL, embedded INTEGER NOT NULL)")
    op.execute(_count("", "true"))
    op.execute(f"INSERT INTO chunk_counts (chunks, embedded) {CHUNKS}")
    for name, trigger in _triggers().items():
        op.execute(f"CREATE TRIGGER {name} {trigger} END")


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for name in _triggers():
            op.execute(f"DROP TRIGGER {name}")
        op.execute("DROP TABLE chunk_counts")
        op.execute("DROP TABLE document_counts")
    else:
        op.execute("DROP VIEW chunk_counts")
        op.execute("DROP VIEW document_counts")
    op.drop_index("ix_contents_read", table_name="contents")
    op.drop_index("ix_contents_claimed", table_name="contents")


def _triggers() -> dict[str, str]:
    """What is counted is taken off before a row changes, and counted again as it is after that."""
    moved = (
        "WHEN OLD.source_id <> NEW.source_id OR (OLD.problem IS NULL) <> (NEW.problem IS NULL) "
        "OR OLD.pending_id IS NOT NEW.pending_id OR OLD.current_id IS NOT NEW.current_id"
    )
    document = "source_id, problem, pending_id, current_id ON documents"
    off = f"BEGIN {_count('-', 'd.id = OLD.id')}; {_chunks_of('-', 'OLD')};"
    on = f"BEGIN {_count('', 'd.id = NEW.id')}; {_chunks_of('+', 'NEW')};"
    other = f"WHEN OLD.state <> NEW.state OR {USEFUL.format('OLD')} <> {USEFUL.format('NEW')}"
    content = "state, embedded_count ON contents"
    of_it = OF_CONTENT.format("NEW.id")
    return {
        "count_new_document": f"AFTER INSERT ON documents {on}",
        "count_gone_document": f"BEFORE DELETE ON documents {off}",
        "count_document_before": f"BEFORE UPDATE OF {document} {moved} {off}",
        "count_document_after": f"AFTER UPDATE OF {document} {moved} {on}",
        "count_content_before": f"BEFORE UPDATE OF {content} {other} BEGIN {_count('-', of_it)};",
        "count_content_after": f"AFTER UPDATE OF {content} {other} BEGIN {_count('', of_it)};",
        "count_chunks": (
            "AFTER UPDATE OF chunk_count, embedded_count ON contents "
            "WHEN OLD.chunk_count <> NEW.chunk_count OR OLD.embedded_count <> NEW.embedded_count BEGIN "
            "UPDATE chunk_counts SET chunks = chunks + NEW.chunk_count - OLD.chunk_count, "
            "embedded = embedded + NEW.embedded_count - OLD.embedded_count "
            f"WHERE EXISTS (SELECT 1 FROM documents AS d WHERE {of_it});"
        ),
    }


def _count(sign: str, which: str) -> str:
    """Add documents to the counts, or take them off."""
    found = DOCUMENTS.format(count=f"{sign}COUNT(*)", which=which)
    return (
        f"INSERT INTO document_counts ({KEY}, documents) {found} "
        f"ON CONFLICT ({KEY}) DO UPDATE SET documents = documents + excluded.documents"
    )


def _chunks_of(sign: str, row: str) -> str:
    """Add the chunks of a document's content, or take them off; where no other document has it, for they count once."""
    content = f"COALESCE({row}.pending_id, {row}.current_id)"
    changed = ", ".join(
        f"{name} = {name} {sign} (SELECT {column} FROM contents WHERE id = {content})"
        for name, column in (("chunks", "chunk_count"), ("embedded", "embedded_count"))
    )
    return (
        f"UPDATE chunk_counts SET {changed} WHERE {content} IS NOT NULL AND NOT EXISTS "
        f"(SELECT 1 FROM documents AS d WHERE d.id <> {row}.id AND {OF_CONTENT.format(content)})"
    )
