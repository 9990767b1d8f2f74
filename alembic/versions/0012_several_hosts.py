"""What a host remembers is its own: holds, switches, jobs and loads know their host; sources know who looked at them.

What is there was written by one host: by the one of the last run, or else by this one. On SQLite it has no name.
"""

import socket

import sqlalchemy as sa

from alembic import op

revision = "0012"
down_revision = "0011"

_KEPT = "rows_on_their_way"

_HOLDS = "id, mode, until, set_at, set_by"
_JOB_STATES = "name, known_since, last_started, last_finished, last_outcome, failures"
_LOADS = "fingerprint, kind, device, seconds, seconds_max, count, measured_at"


def upgrade() -> None:
    connection = op.get_bind()
    last = sa.text("SELECT host FROM runs ORDER BY started_at DESC, id DESC LIMIT 1")
    # SQLite is of one host, which may be called something else tomorrow, as containers are.
    one = connection.dialect.name == "sqlite"
    host = "" if one else connection.scalar(last) or socket.gethostname()
    op.add_column("mode_switches", sa.Column("host", sa.Text(), nullable=False, server_default=""))
    connection.execute(sa.text("UPDATE mode_switches SET host = :host"), {"host": host})
    for table, make, columns in (
        ("holds", _holds, _HOLDS), ("job_states", _job_states, _JOB_STATES), ("loads", _loads, _LOADS)
    ):  # fmt: skip
        _take_out(table)
        make(of_hosts=True)
        _put_back(table, columns, f"{columns}, :host", "", into="host", host=host)
    op.add_column("sources", sa.Column("looked_at_by", sa.String(length=32), nullable=True))
    op.add_column("sources", sa.Column("folder", sa.Text(), nullable=True))
    op.add_column("sources", sa.Column("mark", sa.String(length=32), nullable=True))
    op.create_table(
        "source_hosts",
        sa.Column("source_id", sa.Integer(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["source_id"], ["sources.id"], name=op.f("fk_source_hosts_source_id_sources"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("source_id", "host", name=op.f("pk_source_hosts")),
    )
    looked = "INSERT INTO source_hosts (source_id, host, looked_at) SELECT id, :host, created_at FROM sources"
    connection.execute(sa.text(looked), {"host": host})


def downgrade() -> None:
    """Of what several hosts remember of the same, the last to be set, started or measured stays."""
    op.drop_table("source_hosts")
    op.drop_column("sources", "mark")
    op.drop_column("sources", "folder")
    op.drop_column("sources", "looked_at_by")
    _take_out("loads")
    _loads(of_hosts=False)
    _put_back("loads", _LOADS, _LOADS, _newest("fingerprint, kind, device", "measured_at"))
    _take_out("job_states")
    _job_states(of_hosts=False)
    _put_back("job_states", _JOB_STATES, _JOB_STATES, _newest("name", "COALESCE(last_started, known_since)"))
    _take_out("holds")
    _holds(of_hosts=False)
    _put_back("holds", _HOLDS, _HOLDS.replace("id", "1", 1), "ORDER BY set_at DESC, host LIMIT 1")
    op.drop_column("mode_switches", "host")


def _take_out(table: str) -> None:
    # A table of another primary key has to be made anew on SQLite. Word for word, so that no type changes a value.
    op.execute(f"CREATE TABLE {_KEPT} AS SELECT * FROM {table}")
    op.drop_table(table)


def _put_back(table: str, columns: str, values: str, which: str, *, into: str = "", host: str = "") -> None:
    listed = f"{columns}, {into}" if into else columns
    rows = f"INSERT INTO {table} ({listed}) SELECT {values} FROM {_KEPT} AS kept {which}"
    op.get_bind().execute(sa.text(rows), {"host": host} if into else {})
    op.drop_table(_KEPT)


def _newest(key: str, when: str) -> str:
    """Of the rows of a key only the newest."""
    numbered = f"SELECT *, ROW_NUMBER() OVER (PARTITION BY {key} ORDER BY {when} DESC, host) AS place FROM {_KEPT}"
    same = " AND ".join(f"newest.{column} = kept.{column}" for column in (*key.split(", "), "host"))
    return f"WHERE EXISTS (SELECT 1 FROM ({numbered}) AS newest WHERE newest.place = 1 AND {same})"


def _holds(*, of_hosts: bool) -> None:
    op.create_table(
        "holds",
        # Numbered by whoever sets one: a row that comes with its number does not count a sequence up.
        sa.Column("id", sa.Integer(), nullable=False, autoincrement=False),
        *_host(of_hosts),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.UniqueConstraint("host", name=op.f("uq_holds_host"))
        if of_hosts
        else sa.CheckConstraint("id = 1", name=op.f("ck_holds_only_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
    )


def _job_states(*, of_hosts: bool) -> None:
    op.create_table(
        "job_states",
        *_host(of_hosts),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("known_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_started", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_finished", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_outcome", sa.String(length=16), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(*(["host"] if of_hosts else []), "name", name=op.f("pk_job_states")),
    )


def _loads(*, of_hosts: bool) -> None:
    op.create_table(
        "loads",
        *_host(of_hosts),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("seconds_max", sa.Float(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("measured_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            *(["host"] if of_hosts else []), "fingerprint", "kind", "device", name=op.f("pk_loads")
        ),
    )


def _host(of_hosts: bool) -> list[sa.Column[str]]:
    return [sa.Column("host", sa.Text(), nullable=False)] if of_hosts else []
