"""The commands and their options. What they do is in the modules beside this one, imported when they are called."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Annotated

import typer

import pipeline
from pipeline.cli.console import DATABASE_HELP, EXIT_FAILED, EXIT_STOPPED, JSON_HELP, complain, print_error
from pipeline.cli.words import program

app = typer.Typer(
    name="nightshift",
    help="Nightshift: a language model by day, a document index by night, on one GPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
documents_app = typer.Typer(help="The documents: list them, show one, send back what failed.", rich_markup_mode=None)
models_app = typer.Typer(help="The models that made vectors, and the one that search uses.", rich_markup_mode=None)
jobs_app = typer.Typer(help="The jobs: when the host is for what.", rich_markup_mode=None)
db_app = typer.Typer(help="The database's tables.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(documents_app, name="documents")
app.add_typer(models_app, name="models")
app.add_typer(jobs_app, name="jobs")
app.add_typer(db_app, name="db")

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
MODEL_HELP = "Its name, its file's name, or the start of its fingerprint."
LimitOption = Annotated[int | None, typer.Option("-n", "--limit", metavar="N", min=1, help="At most so many.")]

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
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        return _output_is_full(error)
    if code == _INTERRUPTED:
        complain("stopped")
        return EXIT_STOPPED
    return int(code)


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
        typer.Option("--model", metavar="MODEL", help="The embedding model: a GGUF file or hf:OWNER/REPO/FILE."),
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
    """What is done, failing and waiting."""
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
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a run did, what failed and why, what needs a person, and what comes next."""
    from pipeline.cli import morning

    morning.report_command(run, database, as_json=as_json)


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
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Draw what was measured, as SVG.")] = None,
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
        plot=plot,
        as_json=as_json,
        quiet=quiet,
    )


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for, in your own words.")],
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, max=1000, help="How many results.")] = 5,
    documents: Annotated[
        bool, typer.Option("--documents", help="Find whole documents, by their own vectors, instead of passages.")
    ] = False,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the passages nearest in meaning.

    A link to the page is in --json (`link`), and behind the file's name on a terminal that shows links.
    """
    from pipeline.cli import search as command

    if documents:
        command.search_documents_command(text, k, database, as_json=as_json)
    else:
        command.search_command(text, k, database, as_json=as_json)


@app.command()
def config(as_json: JsonOption = False) -> None:
    """Each setting, its value, and where it was set."""
    from pipeline.cli.config import show_config
    from pipeline.cli.console import errors_explained, load_settings, out

    with errors_explained(as_json=as_json):
        show_config(load_settings(), out(), as_json=as_json)


@documents_app.callback(invoke_without_command=True)
def _documents(
    context: typer.Context,
    state: StateOption = None,
    limit: LimitOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is None:
        documents_list(state=state, limit=limit, database=database, as_json=as_json)
    elif state or limit or database or as_json:
        message = f"put the options after the command: documents {context.invoked_subcommand} ..."
        raise typer.BadParameter(message)


@documents_app.command("list")
def documents_list(
    state: StateOption = None,
    limit: LimitOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List documents, with the reason for each that is not embedded."""
    from pipeline.cli import documents

    documents.list_command(state, database, limit, as_json=as_json)


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


@db_app.command("upgrade")
def db_upgrade(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Bring the tables up to this version, and make them in an empty database."""
    from pipeline.cli import db

    db.upgrade_command(database, as_json=as_json)


@db_app.command("revision")
def db_revision(database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """The revision of the tables, and the one that this version needs."""
    from pipeline.cli import db

    db.revision_command(database, as_json=as_json)
