"""The commands and their options. What they do is in the modules beside this one, imported when they are called."""

from __future__ import annotations

import errno
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import pipeline
from pipeline.cli.console import DATABASE_HELP, EXIT_FAILED, EXIT_STOPPED, JSON_HELP, complain, print_error
from pipeline.cli.words import program
from pipeline.core.redaction import redacted

WIDEST_HELP = 120
"""Columns of the help, at most: longer lines read badly."""


class _Group(TyperGroup):
    """Lists its commands with the whole first sentence of each. Typer's own list cuts them to one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [self.commands[name] for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(str(command.name), command.get_short_help_str(sys.maxsize)) for command in commands])


app = typer.Typer(
    name="nightshift",
    cls=_Group,
    help="Nightshift: a language model by day, a document index by night, on one GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST_HELP},
)
documents_app = typer.Typer(
    cls=_Group, help="The documents: list them, show one, send back what failed.", rich_markup_mode=None
)
models_app = typer.Typer(
    cls=_Group, help="The models that made vectors, and the one that search uses.", rich_markup_mode=None
)
jobs_app = typer.Typer(cls=_Group, help="The jobs: when the host is for what.", rich_markup_mode=None)
db_app = typer.Typer(cls=_Group, help="The database's tables.", no_args_is_help=True, rich_markup_mode=None)
mirror_app = typer.Typer(
    cls=_Group, help="Qdrant beside the database: what it holds and what it is owed.", rich_markup_mode=None
)
app.add_typer(documents_app, name="documents")
app.add_typer(models_app, name="models")
app.add_typer(jobs_app, name="jobs")
app.add_typer(db_app, name="db")
app.add_typer(mirror_app, name="mirror")

DatabaseOption = Annotated[str | None, typer.Option("--database", metavar="URL", help=DATABASE_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help=JSON_HELP)]
StateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="STATE",
        help="Only these: discovered, extracted, embedded, empty, encrypted or failed. May be repeated.",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option("--name", metavar="PART", help="Only those with PART in their name; case counts for nothing."),
]
MODEL_HELP = (
    "Its name, an alias, its file's name with or without the ending, its hf: name, or the start of its fingerprint."
)
LimitOption = Annotated[int | None, typer.Option("-n", "--limit", metavar="N", min=1, help="At most so many.")]

_LIKE_A_QUESTION = re.compile(r"-(?!-|k\d*$|h$).")
"""Begins with one dash, as a word does that is not wanted, and is no option of `search`."""

_INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

# The library that typer parses with comes with it since 0.26, and was a package of its own before.
_Misused = import_module(typer.BadParameter.__module__).ClickException


def run() -> int:
    """Run the command line; returns the exit code."""
    try:
        code = app(prog_name=program(), standalone_mode=False) or 0
        sys.stdout.flush()
    except _Misused as error:
        error.message = redacted(error.message + _how_to_ask(sys.argv[1:]))
        error.show()
        if "--json" in sys.argv:
            print_error(error.format_message())
        return int(error.exit_code)
    except typer.Abort:
        # After a question, whose line nobody ended where the input did.
        if not sys.stdin.isatty():
            sys.stderr.write("\n")
        complain("not confirmed, nothing was done")
        return EXIT_FAILED
    except OSError as error:
        if error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC):
            return _output_is_full(error)
        what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        problem = f"{what}{error.strerror or error}"
        complain(problem)
        if "--json" in sys.argv:
            print_error(problem)
        return EXIT_FAILED
    if code == _INTERRUPTED:
        complain("stopped")
        return EXIT_STOPPED
    return int(code)


def _how_to_ask(arguments: list[str]) -> str:
    """What to say besides of a question that was taken for options."""
    if arguments[:1] != ["search"] or not any(_LIKE_A_QUESTION.match(argument) for argument in arguments):
        return ""
    return '. To look for a text that begins with a dash, put it last, after `--`: search -k 3 -- "-word and more"'


def _output_is_full(error: OSError) -> int:
    # What is still buffered has nowhere to go, and Python would try again at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        complain(f"the output could not be written: {error.strerror}")
    return EXIT_FAILED


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nightshift {pipeline.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("run-now")
def run_now(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Files or folders, to look at anew. Without one: the inbox, and all that waits; folders that were "
            "named before are not looked at again.",
        ),
    ] = None,
    database: DatabaseOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="The embedding model: a GGUF file, hf:OWNER/REPO/FILE, or the name of one that is here.",
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing while it runs.")] = False,
    confirm_deletions: Annotated[
        bool,
        typer.Option(
            "--confirm-deletions",
            help="Delete the documents that are gone, however many; `status` says which wait for that.",
        ),
    ] = False,
    extract_only: Annotated[
        bool, typer.Option("--extract-only", help="Read the documents, and leave the vectors to another run.")
    ] = False,
) -> None:
    """Embed documents now, and say how it went.

    Ctrl-C finishes the batch in flight and stores it; a second one stops at once. Either way the
    next run goes on where this one stopped.

    Exit codes: 0 complete (single documents that cannot be read are listed), 1 failed, 2 wrong
    usage or settings, 3 stopped before the end.
    """
    from pipeline.cli import run

    run.run_command(
        paths or None,
        database=database,
        model=model,
        as_json=as_json,
        quiet=quiet,
        confirm_deletions=confirm_deletions,
        extract_only=extract_only,
    )


@app.command()
def daemon(
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", help="The port to listen on.")] = None,
    database: DatabaseOption = None,
) -> None:
    """Run the two shifts: serve, switch on schedule, ingest at night. Until SIGTERM or Ctrl-C.

    The port speaks OpenAI's API for both models, and /docs shows the rest. SIGHUP reads the job files.
    """
    from pipeline.cli import daemon as command

    command.daemon_command(host, port, database)


@app.command()
def switch(
    mode: Annotated[
        str,
        typer.Argument(metavar="MODE", help="generation, embedding, mixed, idle; or schedule, to follow it again."),
    ],
    hold: Annotated[str | None, typer.Option(metavar="TIME", help="Keep the mode so long, such as 2h or 90m.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Have the daemon change the mode now.

    It is kept until --hold is over, or else until the schedule's next change. A run by hand (`run-now`)
    switches all the same, to a mode with the embedding model; the held one comes back when it is done.
    """
    from pipeline.cli import switch as command

    command.switch_command(mode, hold, as_json=as_json)


@app.command()
def switches(
    limit: Annotated[int, typer.Option("-n", "--limit", metavar="N", min=1, help="How many.")] = 20,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """The last changes of mode: why, how long each phase took, memory and processes before and after."""
    from pipeline.cli import switches as command

    command.switches_command(database, limit, as_json=as_json)


@jobs_app.callback(invoke_without_command=True)
def _jobs(context: typer.Context, as_json: JsonOption = False) -> None:
    if context.invoked_subcommand is None:
        jobs_list(as_json=as_json)


@jobs_app.command("list")
def jobs_list(as_json: JsonOption = False) -> None:
    """Each job with its next times, and which mode is wanted now."""
    from pipeline.cli import jobs

    jobs.list_command(as_json=as_json)


@jobs_app.command("check")
def jobs_check(as_json: JsonOption = False) -> None:
    """What is wrong with the job files, by file and line. Exit code 1 where something is."""
    from pipeline.cli import jobs

    jobs.check_command(as_json=as_json)


@app.command()
def status(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """The host on one screen: daemon, mode and why, models, the run, what waits, what failed, disk."""
    from pipeline.cli import status as command

    command.show_status(database, as_json=as_json)


@app.command()
def plan(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """What waits, what fits into the next window, and in how many nights it is done."""
    from pipeline.cli import plan as command

    command.plan_command(database, as_json=as_json)


@app.command()
def report(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A run's id; the last one's by default.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown on a terminal too.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a run did, what failed and why, what needs a person, and what comes next.

    In a pipe it is Markdown.
    """
    from pipeline.cli import morning

    morning.report_command(run, database, as_json=as_json, markdown=markdown)


@app.command()
def tune(
    budget: Annotated[str, typer.Option(metavar="TIME", help="How long to measure, such as 90s or 10m.")] = "5m",
    engines: Annotated[
        bool, typer.Option("--engines", help="Compare the engines that are installed, and say which to use.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --engines: the same model as another engine reads it (a folder)."),
    ] = None,
    on_cpu: Annotated[bool, typer.Option("--cpu", help="On the processor, also where there is a GPU.")] = False,
    pause: Annotated[
        bool,
        typer.Option("--pause", help="Where a daemon runs: have it serve nothing meanwhile, and go on afterwards."),
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Measure nothing, and show what is kept.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Measure nothing, and drop what is kept.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The embedding model, instead of the one in the settings."),
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing while it measures.")] = False,
) -> None:
    """Measure which options embed the fastest on this host, and keep them: the next start uses them.

    Each combination runs in a process of its own, so that one that crashes is a result like any other.
    Ctrl-C ends it early and keeps what was measured. Options that are set by hand stay as they are.
    """
    if show or forget:
        from pipeline.cli import tunings

        if forget:
            tunings.forget_command(database, model, as_json=as_json)
        else:
            tunings.list_command(database, as_json=as_json)
        return
    from pipeline.cli import tune as command

    command.tune_command(
        budget,
        database=database,
        model=model,
        other_model=against,
        all_engines=engines or against is not None,
        on_cpu=on_cpu,
        pause=pause,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for, in your own words.")],
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, max=1000, help="How many results.")] = 5,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar="RANKING", help="vector (the meaning), text (the words) or fused (both; the default)."
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="PATH", help="Only what lies in this folder or file. May be repeated."),
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option(
            "--path", metavar="GLOB", help='Only files that match, as in .gitignore: "2026/*.pdf". May be repeated.'
        ),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only pdf, docx or text. May be repeated.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Only files changed then or later: 2026-01-31, or 7d for seven days ago."),
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Only files changed before that.")] = None,
    per_document: Annotated[
        int | None, typer.Option("--per-document", metavar="N", min=1, help="At most N passages of one document.")
    ] = None,
    documents: Annotated[
        bool, typer.Option("--documents", help="Find whole documents, by their own vectors, instead of passages.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help=f"By another model of the index. {MODEL_HELP}")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say how each result came to its place.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the passages that answer best, by what they mean and by the words that are in them.

    "Words in quotation marks" are looked for as they stand, and a -word is one that is not wanted.
    Where TEXT begins with a dash, put it last, after two of them: search -k 3 -- "-word and more"
    A link to the page is in --json (`link`), and behind the file's name on a terminal that shows links.
    """
    from pipeline.cli import search as command
    from pipeline.runner.searching import Asked

    asked = Asked(
        text,
        k,
        by=by,
        source=source or (),
        path=path or (),
        type=kind or (),
        after=after,
        before=before,
        per_document=per_document,
        model=model,
        explain=explain,
        documents=documents,
    )
    command.search_command(asked, database, as_json=as_json)


@app.command("verify")
def verify(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Files or folders whose files are compared. Without one: all sources."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what disagrees. Nobody else may be at work meanwhile.")
    ] = False,
    hash_all: Annotated[
        bool, typer.Option("--hash", help="Read every file, not only those that changed and a sample of the others.")
    ] = False,
    sample: Annotated[
        int,
        typer.Option("--sample", metavar="N", min=0, help="Vectors that are computed again, and files that are read."),
    ] = 32,
    no_embed: Annotated[bool, typer.Option("--no-embed", help="Compute no vectors again: no model is needed.")] = False,
    no_run: Annotated[
        bool, typer.Option("--no-run", help="With --repair: leave to a later run what only a run can mend.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that files, rows and vectors agree; print each disagreement, and with --repair mend it.

    Exit codes: 0 all agree, 1 something does not, or could not be looked at.
    """
    from pipeline.cli import verify as command

    command.verify_command(
        paths,
        database,
        mend=repair,
        hash_all=hash_all,
        sample=sample,
        embed=not no_embed,
        run=not no_run,
        as_json=as_json,
    )


@app.command("eval")
def evaluate(
    queries: Annotated[
        Path, typer.Argument(metavar="QUERIES.jsonl", help="Questions with the files and pages that answer them.")
    ],
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, max=1000, help="How many results count.")] = 10,
    by: Annotated[
        list[str] | None, typer.Option("--by", metavar="RANKING", help="Only vector, text or fused. May be repeated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help=f"Another model of the index. {MODEL_HELP}")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="A second model, to be compared with.")
    ] = None,
    against_database: Annotated[
        str | None, typer.Option("--against-database", metavar="URL", help="A second database, to be compared with.")
    ] = None,
    misses: Annotated[bool, typer.Option("--misses", help="List the questions that were not answered.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """How good search is, by questions whose answers are known: recall, MRR and nDCG of each ranking.

    With --against or --against-database two models or two indexes side by side.
    """
    from pipeline.cli import evaluate as command

    command.eval_command(
        queries,
        k=k,
        by=by or [],
        database=database,
        model=model,
        against=against,
        against_database=against_database,
        misses=misses,
        as_json=as_json,
    )


@app.command("export")
def export(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder to be made.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help=f"Only what this model made. {MODEL_HELP}")
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write documents, chunks and vectors as Parquet files, for other tools or another database."""
    from pipeline.cli import exchange

    exchange.export_command(folder, model, database, as_json=as_json)


@app.command("import")
def import_(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="What `export` made.")],
    roots: Annotated[
        list[str] | None,
        typer.Option("--root", metavar="OLD=NEW", help="Where a folder of documents lies here. May be repeated."),
    ] = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take over what `export` wrote, without embedding anything again. To do it again goes on where it stopped."""
    from pipeline.cli import exchange

    exchange.import_command(folder, roots or [], database, as_json=as_json)


@app.command()
def config(
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Each setting, its value, and where it was set."""
    from pipeline.cli.config import show_config
    from pipeline.cli.console import errors_explained, load_settings, out

    with errors_explained(as_json=as_json):
        show_config(load_settings(), out(), as_json=as_json, changed_only=changed)


@documents_app.callback(invoke_without_command=True)
def _documents(
    context: typer.Context,
    name: NameOption = None,
    state: StateOption = None,
    limit: LimitOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is None:
        documents_list(name=name, state=state, limit=limit, database=database, as_json=as_json)
    elif name is not None or state or limit or database or as_json:
        message = f"put the options after the command: documents {context.invoked_subcommand} ..."
        raise typer.BadParameter(message)


@documents_app.command("list")
def documents_list(
    name: NameOption = None,
    state: StateOption = None,
    limit: LimitOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List documents, with the reason for each that is not embedded."""
    from pipeline.cli import documents

    documents.list_command(state, name, database, limit, as_json=as_json)


@documents_app.command("show")
def documents_show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A number from the list, a path, or the end of one.")],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one document with its chunks."""
    from pipeline.cli import documents

    documents.show_command(name, database, as_json=as_json)


@documents_app.command("retry")
def documents_retry(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Numbers, paths, or ends of paths.")] = None,
    state: StateOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are empty, encrypted or failed.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the next run try documents again that failed."""
    from pipeline.cli import documents

    documents.retry_command(names or [], state, database, everything=everything, as_json=as_json)


@documents_app.command("forget")
def documents_forget(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A folder or file that is gone for good, a document's number, or the end of its path."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove documents from the index whose source is gone or emptied on purpose."""
    from pipeline.cli import documents

    documents.forget_command(name, database, yes=yes, as_json=as_json)


@models_app.callback(invoke_without_command=True)
def _models(context: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    if context.invoked_subcommand is None:
        models_list(database=database, as_json=as_json)
    elif database or as_json:
        message = f"put the options after the command: models {context.invoked_subcommand} ..."
        raise typer.BadParameter(message)


@models_app.command("list")
def models_list(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Each model, what it has made, and which one search uses."""
    from pipeline.cli import models

    models.list_command(database, as_json=as_json)


@models_app.command("use")
def models_use(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    anyway: Annotated[bool, typer.Option("--anyway", help="Even if documents have not been through it.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move search to a model in one step; it stays there until it is moved again.

    Exit code 1 where documents have not been through the model; nothing was changed.
    """
    from pipeline.cli import models

    models.use_command(name, database, anyway=anyway, as_json=as_json)


@models_app.command("prune")
def models_prune(
    name: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete what models made that search does not use.

    One that is being built only where it is named; never the one that search uses.
    """
    from pipeline.cli import models

    models.prune_command(name, database, yes=yes, as_json=as_json)


@mirror_app.callback(invoke_without_command=True)
def _mirror(context: typer.Context, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    if context.invoked_subcommand is None:
        from pipeline.cli import mirror

        mirror.show_command(database, as_json=as_json)
    elif database or as_json:
        message = f"put the options after the command: mirror {context.invoked_subcommand} ..."
        raise typer.BadParameter(message)


@mirror_app.command("sync")
def mirror_sync(
    database: DatabaseOption = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing while it delivers.")] = False,
) -> None:
    """Deliver to Qdrant all that it is owed, now. Runs and the daemon do so by themselves.

    Exit code 1 where something is left.
    """
    from pipeline.cli import mirror

    mirror.sync_command(database, as_json=as_json, quiet=quiet)


@mirror_app.command("forget")
def mirror_forget(
    drop: Annotated[bool, typer.Option("--drop", help="Delete Nightshift's collections there as well.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Owe Qdrant nothing any more, where it is not wanted any longer."""
    from pipeline.cli import mirror

    mirror.forget_command(database, drop=drop, yes=yes, as_json=as_json)


@db_app.command("upgrade")
def db_upgrade(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Bring the tables up to this version, and make them in an empty database."""
    from pipeline.cli import db

    db.upgrade_command(database, as_json=as_json)


@db_app.command("index")
def db_index(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Build what vectors are searched quickly by, now, for every model: PostgreSQL's indexes, or copies beside SQLite.

    Runs do this by themselves where it is worth it. Searches and runs go on meanwhile.
    """
    from pipeline.cli import db

    db.index_command(database, as_json=as_json)


@db_app.command("backup")
def db_backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; an earlier backup of that name is replaced.")],
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write all that a SQLite database holds into FILE, also while runs go on.

    PostgreSQL is backed up by its own pg_dump: see docs/operations.md, Backup and restore.
    """
    from pipeline.cli import db

    db.backup_command(file, database, as_json=as_json)


@db_app.command("restore")
def db_restore(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `db backup` wrote.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also where the database holds documents. Its file is kept beside it.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a backup in the place of a SQLite database. Nothing else may be at work meanwhile.

    Afterwards the backup is there whole, or everything is as it was.
    PostgreSQL is restored by its own pg_restore: see docs/operations.md, Backup and restore.
    """
    from pipeline.cli import db

    db.restore_command(file, database, force=force, as_json=as_json)


@db_app.command("revision")
def db_revision(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """The revision of the tables, and the one that this version needs."""
    from pipeline.cli import db

    db.revision_command(database, as_json=as_json)
