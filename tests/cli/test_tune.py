"""The `tune` command: a real search that is ended early, and what it leaves; and what a person sees of one."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import signal
from pathlib import Path

import pytest
import sqlalchemy as sa
from rich.cells import cell_len
from rich.console import Console

from pipeline.backends.embedding import EmbeddingBackend
from pipeline.backends.models import ModelFile, resolve
from pipeline.backends.options import EmbeddingOptions
from pipeline.cli.tune import as_object
from pipeline.cli.tune_view import conclusion, make_tune_view, print_result, table_of
from pipeline.core.tuning import Trial, judge, llama_cpp_space
from pipeline.runner.ownership import own_host
from pipeline.runner.sample import Sample, made_up
from pipeline.runner.tuned import with_tunings
from pipeline.runner.tuning import Engine, Tuning, table
from pipeline.store.database import Database
from pipeline.store.tables import ModelRow
from pipeline.store.tunings import keep_tuning, tunings_of
from tests.conftest import DEFAULT_MODEL
from tests.runs import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "inbox").mkdir()
    return Host(tmp_path, {"NIGHTSHIFT_EMBEDDING_MODEL": str(DEFAULT_MODEL)})


def test_ctrl_c_keeps_what_was_measured_and_the_next_start_uses_it(host: Host) -> None:
    process = host.spawn("tune", "--budget", "200s", "--json")
    assert process.stderr is not None
    measurements = 0
    for line in process.stderr:
        measurements += "tokens/s" in line
        if measurements == 2:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, (out, err)
    told = json.loads(out)
    (engine,) = told["engines"]
    assert told["stopped"]
    assert told["chunks"]["source"] == "made up"
    assert engine["kept"]
    assert sum(bool(trial["tokens_per_second"]) for trial in engine["trials"]) == 2
    assert [trial["own_choice"] for trial in engine["trials"]].count(True) == 1

    with Database.open(f"sqlite:///{host.database}") as store:
        file = resolve(str(DEFAULT_MODEL), host.data_dir)
        with store.snapshot() as session:
            (kept,) = tunings_of(session, file.fingerprint)
        assert (kept.device, kept.build, kept.engine) == (engine["device"], engine["build"], "llama-cpp")
        assert [trial["options"] for trial in kept.trials] == [trial["options"] for trial in engine["trials"]]
        with store.begin() as session:
            keep_tuning(session, dataclasses.replace(kept, options={"n_batch": 333, "contexts": 3, "threads": 1}))
        started = asyncio.run(_told(store, file, host.data_dir))
    assert (started["n_batch"], started["contexts"]) == (333, 3)
    assert started["tuned_at"] == kept.measured_at.isoformat(timespec="minutes")

    with Database.open(f"sqlite:///{host.database}") as store, store.begin() as session:
        session.execute(sa.update(ModelRow).values(active=True))
    (shown,) = host.run_json("status")["tunings"]
    assert (shown["engine"], shown["options"]["n_batch"]) == ("llama-cpp", 333)
    assert "n_batch 333" in host.run("status").stdout
    assert host.run_json("tune", "--forget") == {"forgotten": 1}
    assert host.run_json("tune", "--forget") == {"forgotten": 0}


async def _told(store: Database, file: ModelFile, folder: Path) -> dict[str, object]:
    options = await with_tunings(EmbeddingOptions(str(file.path)), store, file.fingerprint)
    async with EmbeddingBackend(options, file, folder) as backend:
        return dict(backend._own.told)


def test_nobody_is_measured_beside_another(host: Host) -> None:
    with own_host(host.data_dir, "run-now"):
        answer = host.run("tune")
    assert answer.returncode == 1
    assert "run-now (pid" in answer.stderr
    assert "would be measured too" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--budget", "soon"], "--budget soon"),
        (["--budget", "1s"], "nothing can be measured"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_done(host: Host, arguments: list[str], problem: str) -> None:
    answer = host.run("tune", *arguments)
    assert answer.returncode == 2
    assert problem in answer.stderr
    assert not host.database.exists()


def searched(
    *, faster: float = 1.5, crash: str = "the embedding server was ended by SIGSEGV\nggml: [red]oh[/red]"
) -> Tuning:
    """A search that has ended: one combination is faster than the engine's own choice, one crashed."""
    space = llama_cpp_space(on_gpu=False, cores=2, n_batch=384, contexts=2, threads=1, flash_attn="on")
    file = ModelFile(Path("/models/m.gguf"), "f", "m")
    engine = Engine("llama-cpp", file, 60.0, 1.0, "A processor, 2 cores", "0.3.36 (CPU)", space)
    neighbours = list(space.neighbours(space.start))
    for turn in range(6):
        engine.trials.append(Trial(space.start, 1000.0 + turn, seconds=1.0))
        engine.trials.append(Trial(neighbours[0], faster * (1000.0 + turn), seconds=1.0))
    engine.trials.append(Trial(neighbours[1], None, crash, 1.0))
    engine.verdict = judge(space, engine.trials)
    engine.kept = True
    return Tuning(60.0, model="m", sample=Sample(made_up(256), "made up"), engines=[engine])


def test_a_faster_combination_is_said_and_kept() -> None:
    tuning = searched()
    lines = "\n".join(conclusion(tuning))
    assert "batch 512" in lines
    assert "is 50% faster than its own choice" in lines
    assert "the next start uses it" in lines
    (engine,) = tuning.engines
    assert engine.best_options()["n_batch"] == 512
    rows = table(engine)
    assert [row["best"] for row in rows] == [True, False, False]
    assert "SIGSEGV" in rows[2]["problem"]
    assert rows[0]["tokens_per_second"] == 1504.5
    assert json.loads(json.dumps(as_object(tuning, [])))["fastest"] == "llama-cpp"


def test_where_nothing_is_faster_the_engines_own_choice_stays() -> None:
    tuning = searched(faster=1.001)
    assert "its own choice stays" in conclusion(tuning)[0]
    assert tuning.engines[0].best_options() == {}
    assert "the next start" not in "\n".join(conclusion(tuning))


def test_engines_are_compared_and_the_faster_one_is_named_with_what_to_set() -> None:
    tuning = searched()
    (ours,) = tuning.engines
    slower = dataclasses.replace(ours, kind="llama-server", trials=[Trial(ours.space.start, 500.0)])
    slower.verdict = judge(slower.space, slower.trials)
    tuning.engines.append(slower)
    lines = conclusion(tuning)
    assert "llama-cpp is 3.01 times as fast as llama-server." in lines
    assert "NIGHTSHIFT_EMBEDDING_BACKEND=llama-cpp" in lines[-1]
    assert "/models/m.gguf" in lines[-1]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_terminal_of_any_width_and_encoding_shows_it(width: int, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=stream, width=width, color_system=None, highlight=False)
    console.print(table_of(searched().engines[0], console, most=2))
    shown = raw.getvalue().decode(encoding)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    assert ("#" in shown) is (encoding == "ascii")


def test_a_log_is_printed_as_it_is_and_moves_no_cursor() -> None:
    tuning = searched(crash="died\n\x1b[2J[bold]not markup[/bold]")
    stream = io.StringIO()
    print_result(tuning, Console(file=stream, width=200), ["embedding.n_batch (nightshift.toml)"])
    shown = stream.getvalue()
    assert "[bold]not markup[/bold]" in shown
    assert "\x1b" not in shown
    assert "Set by you, and above what was kept: embedding.n_batch (nightshift.toml)." in shown


def test_a_pipe_gets_a_line_for_each_measurement_once() -> None:
    stream = io.StringIO()
    view = make_tune_view(Console(file=stream, width=200), quiet=False, as_json=False)
    tuning = searched()
    with view:
        view.update(tuning, 3.0)
        view.update(tuning, 4.0)
    assert len(stream.getvalue().splitlines()) == 13
    assert "failed: the embedding server was ended by SIGSEGV" in stream.getvalue()
