"""All tables, as the first twelve revisions made them together: a database at 0012 of before is the same as a new one.

Counts of documents and chunks: SQLite keeps them in tables, by triggers, in the transaction that changes a row. On
PostgreSQL transactions that meet would wait for each other there, so views count when they are asked.

Words: SQLite's index over `chunk_words` is FTS5's, kept by triggers; PostgreSQL has a GIN index.

The outbox: triggers write what a mirror of the vectors is owed, but only where a mirror is registered, so that nothing
grows where there is none. A row names a content by what it is made of, because its number may be another's by the time
that the row is read. Rows are added and never changed by triggers, so that transactions do not wait for each other.
"""

import sqlite3

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from alembic import op
from pipeline.core.errors import SchemaError

revision = "0012"
down_revision = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PATH_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    if on_sqlite:
        _check_fts5()
    else:
        op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _library()
    _chunks(on_sqlite=on_sqlite)
    _runs_and_modes()
    _mirrors()
    if on_sqlite:
        _counts_on_sqlite()
        _words_on_sqlite()
        _outbox_on_sqlite()
    else:
        _counts_on_postgresql()
        _outbox_on_postgresql()


def downgrade() -> None:
    raise NotImplementedError("there is no revision before this one")


def _check_fts5() -> None:
    if not op.get_bind().scalar(sa.text("SELECT COUNT(*) FROM pragma_module_list WHERE name = 'fts5'")):
        raise SchemaError(
            f"this Python's SQLite {sqlite3.sqlite_version} "
            "was built without FTS5, which search by words needs: use another Python, or PostgreSQL"
        )


# Tables. Columns stand in the order in which they came to be, so that the tables are the same as those of before.


def _library() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("set_aside", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("fingerprint", name="uq_models_fingerprint"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process_started", sa.Float(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("heartbeat_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("sources", sa.JSON(), nullable=False),
        sa.Column("chunks_embedded", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("job", sa.Text(), nullable=True),
        sa.Column("window_start", TIME, nullable=True),
        sa.Column("window_end", TIME, nullable=True),
        sa.Column("stop_at", TIME, nullable=True),
        sa.Column("task", sa.String(16), nullable=False, server_default="ingest"),
        sa.Column("fingerprint", sa.String(64), nullable=True),
        sa.Column("device", sa.String(16), nullable=True),
        sa.Column("documents_read", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("documents_done", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("pages_read", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("characters", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("tokens_embedded", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("extract_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("embed_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("request_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("report", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_state", "runs", ["state"])
    op.create_table(
        "sources",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("looked_at_by", sa.String(32), nullable=True),
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("mark", sa.String(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_sources"),
        sa.UniqueConstraint("root", name="uq_sources_root"),
    )
    op.create_table(
        "source_hosts",
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("looked_at", TIME, nullable=False),
        _refers("source_hosts", "source_id", "sources", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("source_id", "host", name="pk_source_hosts"),
    )
    op.create_table(
        "contents",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("retry_at", TIME, nullable=True),
        sa.Column("claimed_by", sa.String(32), nullable=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("page_count", sa.Integer(), nullable=False),
        sa.Column("characters", sa.BigInteger(), nullable=False),
        sa.Column("chunk_count", sa.Integer(), nullable=False),
        sa.Column("embedded_count", sa.Integer(), nullable=False),
        sa.Column("failed_count", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("embedded_at", TIME, nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("modified_ns", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("token_count", sa.BigInteger(), nullable=False, server_default="0"),
        _refers("contents", "claimed_by", "runs"),
        _refers("contents", "model_id", "models"),
        sa.PrimaryKeyConstraint("id", name="pk_contents"),
        sa.UniqueConstraint("sha256", "kind", "model_id", "recipe", name="uq_contents_sha256_kind_model_id_recipe"),
    )
    op.create_index("ix_contents_oldest", "contents", ["state", "priority", "modified_ns", "id"])
    op.create_index("ix_contents_newest", "contents", ["state", "priority", sa.text("modified_ns DESC"), "id"])
    _index_some("ix_contents_claimed", "contents", ["claimed_by"], "claimed_by IS NOT NULL")
    _index_some("ix_contents_read", "contents", ["kind", "id"], "token_count > 0")
    _index_some("ix_contents_lengths", "contents", ["chunk_count", "token_count"], "chunk_count > 0")
    op.create_table(
        "documents",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("path", PATH_TEXT, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=True),
        sa.Column("current_id", BIG_ID, nullable=True),
        sa.Column("pending_id", BIG_ID, nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("found_at", TIME, nullable=False),
        sa.Column("gone_at", TIME, nullable=True),
        _refers("documents", "current_id", "contents"),
        _refers("documents", "pending_id", "contents"),
        _refers("documents", "source_id", "sources", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_documents"),
        sa.UniqueConstraint("source_id", "path", name="uq_documents_source_id_path"),
    )
    for column in ("current_id", "pending_id", "sha256"):
        op.create_index(f"ix_documents_{column}", "documents", [column])
    _index_some("ix_documents_gone", "documents", ["source_id"], "gone_at IS NOT NULL")


def _chunks(*, on_sqlite: bool) -> None:
    op.create_table(
        "chunks",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("content_id", BIG_ID, nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("start_char", sa.BigInteger(), nullable=False),
        sa.Column("end_char", sa.BigInteger(), nullable=False),
        sa.Column("page_first", sa.Integer(), nullable=True),
        sa.Column("page_last", sa.Integer(), nullable=True),
        sa.Column("headings", sa.JSON(), nullable=False),
        sa.Column("token_count", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("prefix", sa.Text(), nullable=False, server_default=""),
        _refers("chunks", "content_id", "contents", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_chunks"),
        sa.UniqueConstraint("content_id", "ordinal", name="uq_chunks_content_id_ordinal"),
    )
    op.create_table(
        "pending_chunks",
        sa.Column("chunk_id", BIG_ID, nullable=False),
        sa.Column("content_id", BIG_ID, nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.Column("in_stretch", sa.Boolean(), nullable=False, server_default=sa.false()),
        _refers("pending_chunks", "chunk_id", "chunks", ondelete="CASCADE"),
        _refers("pending_chunks", "content_id", "contents", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chunk_id", name="pk_pending_chunks"),
    )
    op.create_index("ix_pending_chunks_content_id", "pending_chunks", ["content_id"])
    op.create_table(
        "pending_stretches",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("content_id", BIG_ID, nullable=False),
        sa.Column("tokens", sa.LargeBinary(), nullable=False),
        sa.Column("spans", sa.LargeBinary(), nullable=False),
        _refers("pending_stretches", "content_id", "contents", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_pending_stretches"),
    )
    op.create_index("ix_pending_stretches_content_id", "pending_stretches", ["content_id"])
    _vectors(on_sqlite=on_sqlite)
    op.create_table(
        "chunk_words",
        sa.Column("chunk_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("words", sa.Text().with_variant(postgresql.TSVECTOR(), "postgresql"), nullable=False),
        _refers("chunk_words", "chunk_id", "chunks", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("chunk_id", name="pk_chunk_words"),
    )
    if not on_sqlite:
        op.create_index("ix_chunk_words_words", "chunk_words", ["words"], postgresql_using="gin")


def _vectors(*, on_sqlite: bool) -> None:
    """Vectors are bytes on SQLite. SQLAlchemy does not know pgvector's type, so the tables are written out."""
    number, vector = ("INTEGER", "BLOB") if on_sqlite else ("BIGINT", "vector")
    for table, parent, columns in (
        ("embeddings", "chunk", f"content_id {number} NOT NULL, model_id INTEGER NOT NULL"),
        ("content_embeddings", "content", "method VARCHAR(16) NOT NULL"),
    ):
        op.execute(
            f"CREATE TABLE {table} ({parent}_id {number} NOT NULL, {columns}, vector {vector} NOT NULL, "
            f"CONSTRAINT pk_{table} PRIMARY KEY ({parent}_id), CONSTRAINT fk_{table}_{parent}_id_{parent}s "
            f"FOREIGN KEY ({parent}_id) REFERENCES {parent}s (id) ON DELETE CASCADE)"
        )
        if not on_sqlite:
            # Vectors stay in their rows as long as they fit into a page: each that is elsewhere costs a look-up.
            op.execute(f"ALTER TABLE {table} ALTER COLUMN vector SET STORAGE MAIN")
    if on_sqlite:
        # The last number that a chunk had, so that none is used twice. PostgreSQL has its sequence for that.
        op.execute("CREATE TABLE chunk_numbers (last INTEGER NOT NULL)")
        op.execute("INSERT INTO chunk_numbers (last) VALUES (0)")
    else:
        op.execute("CREATE INDEX ix_embeddings_content_id ON embeddings (content_id)")


def _runs_and_modes() -> None:
    op.create_table(
        "deliveries",
        sa.Column("run_id", sa.String(32), nullable=False),
        sa.Column("due_at", TIME, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("delivered_at", TIME, nullable=True),
        _refers("deliveries", "run_id", "runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name="pk_deliveries"),
    )
    op.create_table(
        "mode_switches",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("from_mode", sa.String(16), nullable=False),
        sa.Column("to_mode", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("phases", sa.JSON(), nullable=False),
        sa.Column("memory_before", sa.BigInteger(), nullable=True),
        sa.Column("memory_after", sa.BigInteger(), nullable=True),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("pids_before", sa.JSON(), nullable=False),
        sa.Column("pids_after", sa.JSON(), nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False),
        sa.Column("cut", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("host", sa.Text(), nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("id", name="pk_mode_switches"),
    )
    op.create_table(
        "holds",
        # Numbered by whoever sets one: a row that comes with its number does not count a sequence up.
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("until", TIME, nullable=True),
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.UniqueConstraint("host", name="uq_holds_host"),
        sa.PrimaryKeyConstraint("id", name="pk_holds"),
    )
    op.create_table(
        "job_states",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("known_since", TIME, nullable=False),
        sa.Column("last_started", TIME, nullable=True),
        sa.Column("last_finished", TIME, nullable=True),
        sa.Column("last_outcome", sa.String(16), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("host", "name", name="pk_job_states"),
    )
    op.create_table(
        "loads",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("seconds_max", sa.Float(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("measured_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("host", "fingerprint", "kind", "device", name="pk_loads"),
    )
    op.create_table(
        "tunings",
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("build", sa.Text(), nullable=False),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("tokens_per_second", sa.Float(), nullable=False),
        sa.Column("trials", sa.JSON(), nullable=False),
        sa.Column("measured_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", "device", "build", "engine", name="pk_tunings"),
    )


def _mirrors() -> None:
    op.create_table(
        "mirrors",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("due_at", TIME, nullable=True),
        sa.Column("in_line_at", TIME, nullable=True),
        sa.Column("looked_at", TIME, nullable=True),
        sa.Column("shown", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_mirrors"),
    )
    op.create_table(
        "outbox",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("recipe", sa.String(64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("due_at", TIME, nullable=True),
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


def _refers(table: str, column: str, parent: str, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{parent}"
    return sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=name, ondelete=ondelete)


def _index_some(name: str, table: str, columns: list[str], condition: str) -> None:
    """An index over the rows of a condition."""
    op.create_index(name, table, columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))


# Counts of documents and chunks

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


def _counts_on_postgresql() -> None:
    op.execute(f"CREATE VIEW document_counts AS {DOCUMENTS.format(count='COUNT(*)', which='true')}")
    op.execute(f"CREATE VIEW chunk_counts AS {CHUNKS}")


def _counts_on_sqlite() -> None:
    op.execute(
        "CREATE TABLE document_counts (source_id INTEGER NOT NULL, unreadable BOOLEAN NOT NULL, "
        "state VARCHAR(16) NOT NULL, pending_model_id INTEGER NOT NULL, pending_useful BOOLEAN NOT NULL, "
        f"current_model_id INTEGER NOT NULL, documents INTEGER NOT NULL, PRIMARY KEY ({KEY})) WITHOUT ROWID"
    )
    op.execute("CREATE TABLE chunk_counts (chunks INTEGER NOT NULL, embedded INTEGER NOT NULL)")
    op.execute("INSERT INTO chunk_counts (chunks, embedded) VALUES (0, 0)")
    for name, trigger in _counting().items():
        op.execute(f"CREATE TRIGGER {name} {trigger} END")


def _counting() -> dict[str, str]:
    """Triggers that take what is counted off before a row changes, and count it again as it is after that."""
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


# Words of chunks

# The words are normalized already, and those of any script are kept as they are by this tokenizer: to it, every
# character that is not ASCII belongs to a word.
INDEX = (
    "CREATE VIRTUAL TABLE chunk_words_index USING fts5(words, content='chunk_words', content_rowid='chunk_id', "
    "tokenize='ascii')"
)

OFF = "INSERT INTO chunk_words_index (chunk_words_index, rowid, words) VALUES ('delete', OLD.chunk_id, OLD.words)"
ON = "INSERT INTO chunk_words_index (rowid, words) VALUES (NEW.chunk_id, NEW.words)"

INDEXING = {
    "index_new_words": f"AFTER INSERT ON chunk_words BEGIN {ON};",
    "index_gone_words": f"AFTER DELETE ON chunk_words BEGIN {OFF};",
    "index_changed_words": f"AFTER UPDATE ON chunk_words BEGIN {OFF}; {ON};",
}


def _words_on_sqlite() -> None:
    op.execute(INDEX)
    op.execute("CREATE VIRTUAL TABLE chunk_words_terms USING fts5vocab('chunk_words_index', 'row')")
    for name, trigger in INDEXING.items():
        op.execute(f"CREATE TRIGGER {name} {trigger} END")


# The outbox

OWE = """
INSERT INTO outbox (fingerprint, sha256, kind, recipe)
SELECT m.fingerprint, c.sha256, c.kind, c.recipe FROM contents AS c JOIN models AS m ON m.id = c.model_id
WHERE c.id IN ({contents})
"""

MIRRORED = "EXISTS (SELECT 1 FROM mirrors)"

SEEN = "EXISTS (SELECT 1 FROM documents AS d WHERE d.current_id = NEW.id)"

OWING = {
    # table: what happens, when, of which contents
    "document_added": ("documents", "INSERT", "NEW.current_id IS NOT NULL", "NEW.current_id"),
    "document_gone": ("documents", "DELETE", "OLD.current_id IS NOT NULL", "OLD.current_id"),
    "document_changed": (
        "documents",
        "UPDATE OF source_id, path, mtime_ns, current_id",
        "(OLD.current_id IS NOT NULL OR NEW.current_id IS NOT NULL) AND (OLD.source_id <> NEW.source_id "
        "OR OLD.path <> NEW.path OR OLD.mtime_ns <> NEW.mtime_ns OR OLD.current_id {differs} NEW.current_id)",
        "OLD.current_id, NEW.current_id",
    ),
    "content_changed": (
        "contents",
        "UPDATE OF state, title, embedded_count",
        "OLD.state <> NEW.state OR OLD.embedded_count <> NEW.embedded_count OR OLD.title {differs} NEW.title",
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


def _outbox_on_sqlite() -> None:
    for name, (table, event, changed, contents) in OWING.items():
        condition, owe = changed.format(differs="IS NOT"), OWE.format(contents=contents)
        op.execute(
            f"CREATE TRIGGER owe_{name} AFTER {event} ON {table} WHEN {MIRRORED} AND ({condition}) BEGIN {owe}; END"
        )


def _outbox_on_postgresql() -> None:
    for name, (table, event, changed, contents) in OWING.items():
        condition, owe = changed.format(differs="IS DISTINCT FROM"), OWE.format(contents=contents)
        op.execute(
            f"CREATE FUNCTION owe_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ "
            f"BEGIN IF {MIRRORED} THEN {owe}; END IF; RETURN NULL; END $$"
        )
        op.execute(
            f"CREATE TRIGGER owe_{name} AFTER {event} ON {table} FOR EACH ROW WHEN ({condition}) "
            f"EXECUTE FUNCTION owe_{name}()"
        )
