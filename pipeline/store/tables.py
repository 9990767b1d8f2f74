r"""The tables.

Identity is not content. A *document* is a path in a *source*; a *content* is what some bytes
become under one recipe (a model and its chunk settings). Copies share a content, a rename
touches only its document, and a changed file gets a second content beside the one that is
still searched:

    sources 1--n documents --- current_id ---> contents 1--n chunks 1--1 embeddings | pending_chunks
                           \-- pending_id --^         1--1 content_embeddings
                                                      1--n pending_stretches
    runs 1--n contents (claimed_by: the run that is at work on it)

`current_id` is what search sees. `pending_id` is what is being made; it becomes current in the
transaction that finishes it.

What the daemon remembers refers to nothing of this: `mode_switches`, `holds`, `loads`, `tunings`,
`job_states`.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    or_,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column

from pipeline.store.vector_type import Vector

BigId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in an INTEGER primary key, which is 64 bits wide there."""

PathText = Text().with_variant(Text(collation="C"), "postgresql")
"""Paths are compared by their characters' codes, as SQLite does, so that a folder is a range."""


_CLAIMED = text("claimed_by IS NOT NULL")
GONE = text("gone_at IS NOT NULL")
HAS_CHUNKS = text("chunk_count > 0")
HAS_TOKENS = text("token_count > 0")
"""Word for word in the index and in whoever asks: SQLite takes a part of a table's index for nothing else."""


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware UTC time. SQLite forgets the zone, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Refuse naive times: they mean something else on another host."""
        if value is not None and value.tzinfo is None:
            msg = "a time without a zone cannot be stored"
            raise ValueError(msg)
        return None if value is None else value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def may_be_tried(
    at: InstrumentedAttribute[dt.datetime | None], now: dt.datetime, longest: dt.timedelta
) -> ColumnElement[bool]:
    """Whether the time of the next try has come, or there is none.

    longest: the longest wait there is. A time that is further away was noted by a clock that was ahead.
    """
    return or_(at.is_(None), at <= now, at > now + longest)


class Table(DeclarativeBase):
    """The base of every table; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ModelRow(Table):
    """An embedding model, known by the SHA-256 of its file; `active` marks the one that search uses.

    set_aside: a person moved search away from it, and it does not come back by itself.
    """

    __tablename__ = "models"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(Text)
    path: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    dimension: Mapped[int] = mapped_column(Integer)
    active: Mapped[bool] = mapped_column(default=False)
    set_aside: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class SourceRow(Table):
    """A folder of documents, by its absolute path, which is the same folder on every host that has it.

    looked_at_by: the run that looks at its files; it counts for as long as that run lives.
    mark: what is written in the folder, where it is a host's own (its inbox, its texts), so that another host's
    folder at the same path is told from it. folder: its path, where `root` is that of another host's, and so not it.
    """

    __tablename__ = "sources"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    root: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    looked_at_by: Mapped[str | None] = mapped_column(String(32))
    folder: Mapped[str | None] = mapped_column(Text)
    mark: Mapped[str | None] = mapped_column(String(32))


class SourceHostRow(Table):
    """A host that has a source, and when a run of it looked there last."""

    __tablename__ = "source_hosts"

    source_id: Mapped[int] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"), primary_key=True)
    host: Mapped[str] = mapped_column(Text, primary_key=True)
    looked_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class DocumentRow(Table):
    """A file: `path` is relative to its source's root, with `/` between its parts.

    size and mtime_ns are those of the bytes that `sha256` was made of; mtime_ns is -1 where the
    file was so young that another write could hide behind the same time.
    problem: why the file could not even be read; it then counts as failed.
    gone_at: when the file was first seen to be gone, where its deletion waits for a person.
    """

    __tablename__ = "documents"
    __table_args__ = (
        UniqueConstraint("source_id", "path"),
        Index("ix_documents_gone", "source_id", sqlite_where=GONE, postgresql_where=GONE),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    source_id: Mapped[int] = mapped_column(ForeignKey("sources.id", ondelete="CASCADE"))
    path: Mapped[str] = mapped_column(PathText)
    size: Mapped[int] = mapped_column(BigInteger)
    mtime_ns: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64), index=True)
    current_id: Mapped[int | None] = mapped_column(ForeignKey("contents.id"), index=True)
    pending_id: Mapped[int | None] = mapped_column(ForeignKey("contents.id"), index=True)
    problem: Mapped[str | None] = mapped_column(Text)
    found_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    gone_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class ContentRow(Table):
    """What some bytes become under one recipe.

    recipe: hash of whatever changes the chunks (engine, chunk settings, code versions).
    stage, reason: where and why it ended, for a state that is not `embedded`.
    chunk_count, embedded_count, failed_count: kept with each batch, so that progress and status
    never have to count chunks.
    token_count: of all its chunks together; 0 where it is not known.
    priority, modified_ns: what waits is taken up by them: the lowest priority first, then by its file's time.
    """

    __tablename__ = "contents"
    __table_args__ = (
        UniqueConstraint("sha256", "kind", "model_id", "recipe"),
        Index("ix_contents_oldest", "state", "priority", "modified_ns", "id"),
        Index("ix_contents_newest", "state", "priority", text("modified_ns DESC"), "id"),
        Index("ix_contents_claimed", "claimed_by", sqlite_where=_CLAIMED, postgresql_where=_CLAIMED),
        Index(
            "ix_contents_lengths", "chunk_count", "token_count", sqlite_where=HAS_CHUNKS, postgresql_where=HAS_CHUNKS
        ),
        Index("ix_contents_read", "kind", "id", sqlite_where=HAS_TOKENS, postgresql_where=HAS_TOKENS),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    recipe: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    retry_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    claimed_by: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    title: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    page_count: Mapped[int] = mapped_column(Integer, default=0)
    characters: Mapped[int] = mapped_column(BigInteger, default=0)
    chunk_count: Mapped[int] = mapped_column(Integer, default=0)
    embedded_count: Mapped[int] = mapped_column(Integer, default=0)
    failed_count: Mapped[int] = mapped_column(Integer, default=0)
    token_count: Mapped[int] = mapped_column(BigInteger, default=0)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    modified_ns: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    embedded_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class ChunkRow(Table):
    """A piece of a content, from character `start_char` to before `end_char` of its text.

    A chunk has a row in `pending_chunks` or in `embeddings`, or it has an `error`: just one of the three.
    digest: of its token ids (see `reuse`); none where its vector is made of more than these.
    prefix: the header of the table that it begins inside of; its vector is of both, one after the other.
    """

    __tablename__ = "chunks"
    __table_args__ = (UniqueConstraint("content_id", "ordinal"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    content_id: Mapped[int] = mapped_column(ForeignKey("contents.id", ondelete="CASCADE"))
    ordinal: Mapped[int] = mapped_column(Integer)
    start_char: Mapped[int] = mapped_column(BigInteger)
    end_char: Mapped[int] = mapped_column(BigInteger)
    page_first: Mapped[int | None] = mapped_column(Integer)
    page_last: Mapped[int | None] = mapped_column(Integer)
    headings: Mapped[list[str]] = mapped_column(JSON)
    token_count: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    digest: Mapped[bytes | None] = mapped_column(LargeBinary)
    prefix: Mapped[str] = mapped_column(Text, default="", server_default="")


class ChunkWordsRow(Table):
    """The words of a chunk, of its headings and of its prefix, as search by words finds them (`core.words.indexed`).

    SQLite has FTS5's index `chunk_words_index` over them, kept by triggers, and their counts in `chunk_words_terms`.
    """

    __tablename__ = "chunk_words"
    __table_args__ = (Index(None, "words", postgresql_using="gin").ddl_if(dialect="postgresql"),)

    chunk_id: Mapped[int] = mapped_column(ForeignKey("chunks.id", ondelete="CASCADE"), primary_key=True)
    words: Mapped[str] = mapped_column(Text().with_variant(TSVECTOR(), "postgresql"))


class PendingChunkRow(Table):
    """A chunk that waits for its vector: the queue. The transaction that stores the vector deletes the row.

    tokens: little-endian int32 token ids, special tokens included: text is tokenized once, when it is chunked.
    in_stretch: its vector comes from a stretch of its document's text, in `pending_stretches`.
    """

    __tablename__ = "pending_chunks"

    chunk_id: Mapped[int] = mapped_column(ForeignKey("chunks.id", ondelete="CASCADE"), primary_key=True)
    content_id: Mapped[int] = mapped_column(ForeignKey("contents.id", ondelete="CASCADE"), index=True)
    tokens: Mapped[bytes] = mapped_column(LargeBinary)
    in_stretch: Mapped[bool] = mapped_column(default=False, server_default=false())


class PendingStretchRow(Table):
    """A document's text, or a stretch of it, that waits to be computed in one go.

    tokens: little-endian int32 token ids, special tokens included. spans: little-endian int64 [n, 3], each a chunk's
    id and from where to before where in `tokens` it reaches; the id 0 is the document itself. Without spans the
    vector of all of it, made as every vector is, is the document's own.
    """

    __tablename__ = "pending_stretches"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    content_id: Mapped[int] = mapped_column(ForeignKey("contents.id", ondelete="CASCADE"), index=True)
    tokens: Mapped[bytes] = mapped_column(LargeBinary)
    spans: Mapped[bytes] = mapped_column(LargeBinary)


class EmbeddingRow(Table):
    """The vector of a chunk: little-endian float32, unit length, of its content's model.

    content_id, model_id: copies of the chunk's and its content's, which never change. They refer to nothing: the
    chunk's end is the row's, and what would be looked up for a second such rule is not worth an index.
    """

    __tablename__ = "embeddings"
    __table_args__ = (Index("ix_embeddings_content_id", "content_id").ddl_if(dialect="postgresql"),)

    chunk_id: Mapped[int] = mapped_column(ForeignKey("chunks.id", ondelete="CASCADE"), primary_key=True)
    content_id: Mapped[int] = mapped_column(BigId)
    model_id: Mapped[int] = mapped_column(Integer)
    vector: Mapped[bytes] = mapped_column(Vector)


class ContentEmbeddingRow(Table):
    """The vector of a whole document.

    method: `model`, which computed all of the text at once; or `mean`, the token-weighted mean of its chunks.
    """

    __tablename__ = "content_embeddings"

    content_id: Mapped[int] = mapped_column(ForeignKey("contents.id", ondelete="CASCADE"), primary_key=True)
    method: Mapped[str] = mapped_column(String(16))
    vector: Mapped[bytes] = mapped_column(Vector)


class RunRow(Table):
    """One execution. It holds what it claimed for as long as its heart beats.

    pid, process_started: who it is on `host`; see `runs.Process`.
    job, window_start, window_end: the job that it is a run of, and that job's window; none for one by hand.
    stop_at: when it is to stop so that the next mode serves at the window's end.
    task: `ingest`, or `extract` for one that only reads. fingerprint, device: what it embedded with, and where.
    documents_read, pages_read, characters: what it read in `extract_seconds`, the time in which anything was read.
    tokens_embedded: in `embed_seconds`, the time in which anything was embedded; the slowest request took
    `request_seconds`.
    report: what it came to, for people; none for one that did not end by itself.
    """

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    process_started: Mapped[float] = mapped_column(Float)
    started_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    sources: Mapped[list[str]] = mapped_column(JSON)
    chunks_embedded: Mapped[int] = mapped_column(Integer, default=0)
    error: Mapped[str | None] = mapped_column(Text)
    job: Mapped[str | None] = mapped_column(Text)
    window_start: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    window_end: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    stop_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    task: Mapped[str] = mapped_column(String(16), default="ingest")
    fingerprint: Mapped[str | None] = mapped_column(String(64))
    device: Mapped[str | None] = mapped_column(String(16))
    documents_read: Mapped[int] = mapped_column(Integer, default=0)
    documents_done: Mapped[int] = mapped_column(Integer, default=0)
    pages_read: Mapped[int] = mapped_column(Integer, default=0)
    characters: Mapped[int] = mapped_column(BigInteger, default=0)
    tokens_embedded: Mapped[int] = mapped_column(BigInteger, default=0)
    extract_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    embed_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    request_seconds: Mapped[float] = mapped_column(Float, default=0.0)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class MirrorRow(Table):
    """Another home of the vectors. location: where it is; at another place everything is owed to it again.

    due_at: of the next try, after `attempts` that failed with `error`. in_line_at: when nothing was owed last.
    looked_at: when what it held from before was last noted in `mirrored`; none: it has yet to be.
    shown: the fingerprint of the model that its alias stands for.
    """

    __tablename__ = "mirrors"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    location: Mapped[str] = mapped_column(Text)
    created_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    error: Mapped[str | None] = mapped_column(Text)
    due_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    in_line_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    looked_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    shown: Mapped[str | None] = mapped_column(String(64))


class OutboxRow(Table):
    """A content that a mirror is to bring in line with what search sees; there is one for each change of it.

    Written by triggers, and named by what it is made of: its row in `contents` may be gone, or another's.
    due_at: of the next try, after `attempts` that failed with `error`; none: now.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_sha256", "sha256", "kind", "recipe", "fingerprint"),
        Index("ix_outbox_fingerprint", "fingerprint", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    recipe: Mapped[str] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(Integer, server_default="0")
    error: Mapped[str | None] = mapped_column(Text)
    due_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)


class MirroredRow(Table):
    """A content of which a mirror may hold points: those with ordinals below `points`, and no others."""

    __tablename__ = "mirrored"

    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    recipe: Mapped[str] = mapped_column(String(64), primary_key=True)
    points: Mapped[int] = mapped_column(Integer)


class ModeSwitchRow(Table):
    """One switch of the mode of a host; its fields are those of `switches.StoredSwitch`."""

    __tablename__ = "mode_switches"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    host: Mapped[str] = mapped_column(Text, server_default="")
    from_mode: Mapped[str] = mapped_column(String(16))
    to_mode: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(16))
    detail: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str] = mapped_column(String(16))
    phases: Mapped[dict[str, float]] = mapped_column(JSON)
    memory_before: Mapped[int | None] = mapped_column(BigInteger)
    memory_after: Mapped[int | None] = mapped_column(BigInteger)
    device: Mapped[str | None] = mapped_column(Text)
    pids_before: Mapped[list[int]] = mapped_column(JSON)
    pids_after: Mapped[list[int]] = mapped_column(JSON)
    in_flight: Mapped[int] = mapped_column(Integer)
    cut: Mapped[int] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(Text)


class HoldRow(Table):
    """The mode that an operator holds on a host, which has one at most; `until` none is until it is taken back."""

    __tablename__ = "holds"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    host: Mapped[str] = mapped_column(Text, unique=True)
    mode: Mapped[str] = mapped_column(String(16))
    until: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    set_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    set_by: Mapped[str] = mapped_column(Text)


class LoadRow(Table):
    """How long a model took to load on a host: the last time, and an estimate hardly exceeded (see `loads`)."""

    __tablename__ = "loads"

    host: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    device: Mapped[str] = mapped_column(Text, primary_key=True)
    seconds: Mapped[float] = mapped_column(Float)
    seconds_max: Mapped[float] = mapped_column(Float)
    count: Mapped[int] = mapped_column(Integer)
    measured_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class TuningRow(Table):
    """What `tune` measured for a model on a device, by one build of an engine.

    options: the best ones, over the defaults; empty where the defaults are. trials: every one, as
    `tunings.StoredTuning` says.
    """

    __tablename__ = "tunings"

    fingerprint: Mapped[str] = mapped_column(Text, primary_key=True)
    device: Mapped[str] = mapped_column(Text, primary_key=True)
    build: Mapped[str] = mapped_column(Text, primary_key=True)
    engine: Mapped[str] = mapped_column(String(32), primary_key=True)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    tokens_per_second: Mapped[float] = mapped_column(Float)
    trials: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    measured_at: Mapped[dt.datetime] = mapped_column(UtcDateTime)


class JobStateRow(Table):
    """What became of a job of a host; its fields are those of `jobs.StoredJobState`."""

    __tablename__ = "job_states"

    host: Mapped[str] = mapped_column(Text, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    known_since: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    last_started: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    last_finished: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    last_outcome: Mapped[str | None] = mapped_column(String(16))
    failures: Mapped[int] = mapped_column(Integer)
