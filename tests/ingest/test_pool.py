from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from pipeline.backends.llama_cpp.tokenizer import GgufTokenizer
from pipeline.core.documents import DocumentKind
from pipeline.core.errors import (
    BackendStartFailed,
    Broken,
    Encrypted,
    ExtractionError,
    ModelError,
    NoText,
    Unstable,
    UsageError,
)
from pipeline.core.patience import BYTES_PER_STEP
from pipeline.ingest import confinement
from pipeline.ingest.flow import ingest
from pipeline.ingest.pool import ExtractedChunks, ExtractionPool, classify_exit, worker_environment
from pipeline.ingest.protocol import LONGEST_TEXT
from pipeline.ingest.work import Limits, utc_now
from pipeline.store import overview, runs
from pipeline.store.database import Database
from tests.ingest.test_flow import Instant, make_work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODEL = ROOT / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find the module next to this one."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    before = set(psutil.Process().children(recursive=True))
    tasks = asyncio.all_tasks()
    yield
    assert set(psutil.Process().children(recursive=True)) <= before
    assert {task.get_name() for task in asyncio.all_tasks() - tasks if "extraction" in task.get_name()} == set()


def pool(workers: int = 1, **changes: Any) -> ExtractionPool:
    options: dict[str, Any] = {
        "model_path": MODEL,
        "limit": 64,
        "overlap": 8,
        "pdf_engine": "auto",
        "extractor": "misbehaving:obey",
        "nice": 0,
    }
    return ExtractionPool(workers, **(options | changes))


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Any]:
    """Write what the document says into a file and have the pool read it."""
    count = iter(range(10_000))

    async def read(pool: ExtractionPool, says: str, kind: DocumentKind = DocumentKind.PDF) -> ExtractedChunks:
        path = tmp_path / f"{next(count)}.{kind.value}"
        digest = write(path, says)
        return await pool.extract(path, kind, digest, path.stat().st_size)

    return read


def write(path: Path, says: str) -> str:
    """The SHA-256 of what was written."""
    path.write_text(says)
    return hashlib.sha256(says.encode()).hexdigest()


def workers_of(parent: int | None = None) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):
            if "pipeline.ingest.worker" in child.cmdline():
                found.append(child)
    return found


async def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


async def test_a_document_becomes_chunks(read: Callable[..., Any]) -> None:
    text = "The lamp burns all night. " * 40
    async with pool() as reading:
        found = await read(reading, f"text {text}")
    assert len(found.chunks) > 3
    with GgufTokenizer(MODEL) as tokenizer:
        for number, chunk in enumerate(found.chunks):
            assert chunk.ordinal == number
            assert chunk.text == text[chunk.start : chunk.end]
            assert chunk.tokens == tokenizer.encode(chunk.text)
            assert len(chunk.tokens) <= 64
    assert found.characters == len(text)


async def test_pages_headings_and_metadata_arrive(read: Callable[..., Any]) -> None:
    async with pool() as reading:
        found = await read(reading, "pages")
    (chunk,) = found.chunks
    assert (chunk.page_first, chunk.page_last, chunk.headings) == (1, 3, ("Title",))
    assert (found.title, found.metadata) == ("A title", {"author": "Somebody \U0001f642"})
    assert (found.engine, found.page_count, found.empty_pages) == ("misbehaving", 3, (2,))


async def test_many_chunks_take_many_frames(read: Callable[..., Any]) -> None:
    async with pool() as reading:
        found = await read(reading, "text " + "The lamp burns all night. " * 4000)
    assert len(found.chunks) > 300
    assert [chunk.ordinal for chunk in found.chunks] == list(range(len(found.chunks)))


async def test_the_surroundings_of_a_worker(read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_API_KEY", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    async with pool(nice=7, pdf_engine="pypdf") as reading:
        found = await read(reading, "report", DocumentKind.DOCX)
    pid, session, nice, kind, name, engine, cuda, hip, threads, key = found.chunks[0].text.split(" ")
    assert pid == session
    assert int(pid) != os.getpid()
    assert int(nice) >= 7
    assert (kind, name, engine, cuda, hip, threads, key) == ("docx", "0.docx", "pypdf", "", "", "1", "unset")


@pytest.mark.parametrize("error", [Broken, Encrypted, NoText, Unstable])
async def test_the_errors_of_the_extractor_pass_and_its_worker_stays(
    read: Callable[..., Any], error: type[ExtractionError]
) -> None:
    async with pool() as reading:
        before = (await read(reading, "report")).chunks[0].text.split()[0]
        with pytest.raises(error, match=r"^as told$"):
            await read(reading, f"raise {error.__name__}")
        assert (await read(reading, "report")).chunks[0].text.split()[0] == before


@pytest.mark.parametrize(
    ("says", "error", "reason"),
    [
        ("bug", Broken, r"damaged: its content cannot be read \(KeyError\)"),
        ("segfault", Broken, r"^the PDF library crashed on it \(signal SIGSEGV\)$"),
        ("abort", Broken, r"crashed on it \(signal SIGABRT\); it may need more memory"),
        ("exit", Broken, r"the PDF library ended its reader \(exit code 3\)"),
        ("native-out-of-memory", Broken, r"needs more than 0\.2 GiB of memory"),
        ("out-of-memory", Broken, r"needs more than 0\.2 GiB of memory"),
        ("killed", Unstable, r"ended from outside \(SIGKILL\)"),
        ("garbage not a frame", Broken, "answered nonsense"),
        ("garbage \0\0\0\2{}", Broken, "answered nonsense"),
        ('garbage \0\0\0\x0c{"chunks":1}', Broken, "answered nonsense"),
        ('garbage \0\0\0\x0e{"chunks":[1]}', Broken, "answered nonsense"),
        ('garbage \0\0\0\x0f{"document":{}}', Broken, "answered nonsense"),
        ("unstorable", Broken, "answered nonsense"),
        ("silence", Broken, "the PDF library broke off on it"),
    ],
)
async def test_misbehaviour_costs_one_document(
    read: Callable[..., Any], says: str, error: type[ExtractionError], reason: str
) -> None:
    async with pool(memory_limit_bytes=200 * 2**20) as reading:
        await read(reading, "text before")
        with pytest.raises(error, match=reason):
            await read(reading, says)
        assert (await read(reading, "text after")).chunks[0].text == "after"
        assert len(workers_of()) == 1


@pytest.mark.parametrize("says", ["hang", "spin", "stop", "block"])
async def test_a_document_that_takes_too_long(read: Callable[..., Any], says: str) -> None:
    async with pool(timeout_s=0.5) as reading:
        await read(reading, "text before")
        (worker,) = workers_of()
        with pytest.raises(Broken, match=r"took more than 0 s|took more than 1 s"):
            await read(reading, says)
        assert not worker.is_running()
        assert (await read(reading, "text after")).chunks[0].text == "after"


async def test_a_large_file_gets_more_time(read: Callable[..., Any]) -> None:
    async with pool(timeout_s=0.0, timeout_per_mib_s=30.0) as reading:
        assert (await read(reading, "text " + "word " * 100_000)).characters == 500_000


async def test_pages_that_are_read_buy_time(read: Callable[..., Any]) -> None:
    """They take three seconds together, where a document may take two; whether that is too long is up to them."""
    says = "leaf 12 0.25 end" + " " * 24 * BYTES_PER_STEP
    async with pool(timeout_s=2.0, timeout_per_page_s=30.0) as reading:
        assert (await read(reading, says)).characters > 0
    async with pool(timeout_s=2.0, timeout_per_page_s=0.001) as reading:
        with pytest.raises(Broken, match="took more than"):
            await read(reading, says)


async def test_pages_that_were_quick_leave_nothing_to_one_that_hangs(read: Callable[..., Any]) -> None:
    """A thousand pages of an hour each were read at once: the next one still has no more than a document has."""
    filler = " " * 2000 * BYTES_PER_STEP
    async with pool(timeout_s=2.0, timeout_per_page_s=3600.0) as reading:
        with pytest.raises(Broken, match="took more than"):
            await read(reading, f"leaf 1000 0.001 hang{filler}")
        assert workers_of() == []


async def test_a_count_of_pages_buys_no_more_than_the_file_can_hold(read: Callable[..., Any]) -> None:
    async with pool(timeout_s=0.5, timeout_per_page_s=0.5) as reading:
        with pytest.raises(Broken, match="took more than"):
            await read(reading, "boast")


async def test_a_worker_has_no_network(read: Callable[..., Any], tmp_path: Path) -> None:
    """What the kernel refuses is refused to native code and to other programs, too."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        tempfile.TemporaryDirectory(prefix="ns") as folder,  # a path that fits a socket's address
        socket.socket(socket.AF_UNIX) as other,
    ):
        path = f"{folder}/s"
        other.bind(path)
        other.listen()
        port = listener.getsockname()[1]
        async with pool() as reading:
            told = (await read(reading, f"connect {port} {path}")).chunks[0].text
            held = reading.no_network
        attempts = told.split(", ")
        assert [attempts[0], attempts[3]] == ["python: PermissionError"] * 2
        assert held[-1] == confinement.AUDIT
        if confinement.SECCOMP in held:
            assert attempts[1:3] == attempts[4:6] == ["native: EACCES", "program: refused"]
        if len(held) > 1:
            assert attempts[2] == "program: refused"
        expected = 0 if len(held) > 1 else attempts[:3].count("program: through")
        assert knocks(listener) == expected
        # The listeners are sound: those who may reach them do.
        with socket.create_connection(("127.0.0.1", port)), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert (knocks(listener), knocks(other)) == (1, 1)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="seccomp is not used here"
)
async def test_the_kernel_holds_the_network(read: Callable[..., Any]) -> None:
    async with pool() as reading:
        await read(reading, "text one")
        assert reading.no_network == (confinement.SECCOMP, confinement.AUDIT)


def knocks(listener: socket.socket) -> int:
    """How many have connected since the last look; a connection on this host is there before its maker goes on."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


async def test_jobs_that_wait_go_on_while_others_hang_and_crash(read: Callable[..., Any]) -> None:
    """Many more documents than workers, every third one bad in its own way: each ends, the good ones in full."""
    bad = [
        "hang",
        "segfault",
        "block",
        "exit",
        "stop",
        "garbage no frame",
        "abort",
        "spin",
        "silence",
        "boast",
        "flood",
    ]
    async with pool(workers=3, timeout_s=1.0) as reading:
        says = [one for number, word in enumerate(bad) for one in (word, f"text {number}a", f"text {number}b")]
        results = await asyncio.gather(*(read(reading, one) for one in says), return_exceptions=True)
        assert len(workers_of()) <= 3
    for one, result in zip(says, results, strict=True):
        if one in bad:
            assert isinstance(result, Broken), one
            assert result.reason
        else:
            assert isinstance(result, ExtractedChunks), one
            assert result.chunks[0].text == one.removeprefix("text ")


async def test_a_document_with_more_text_than_any(tmp_path: Path) -> None:
    content = b"text " + b"x" * (LONGEST_TEXT + 1)
    path = tmp_path / "a.pdf"
    await asyncio.to_thread(path.write_bytes, content)
    async with pool() as reading:
        with pytest.raises(Broken, match="divide it"):
            await reading.extract(path, DocumentKind.PDF, hashlib.sha256(content).hexdigest())


async def test_copies_of_a_bad_file_are_opened_once(store: Database, tmp_path: Path) -> None:
    """By what it holds and not by its name: in one run, in a later one, and when more of them come."""
    marks, docs = tmp_path / "marks", tmp_path / "docs"
    docs.mkdir()
    for number in range(50):
        write(docs / f"{number}.pdf", f"marked {marks}")
    async with pool(workers=2) as reading:
        await ingest(make_work(store, reading, Instant(), docs, "first", Limits()))
        for number in range(50, 60):
            write(docs / f"{number}.pdf", f"marked {marks}")
        with store.begin() as session:
            runs.finish_run(session, "first", "complete", None, utc_now())
        await ingest(make_work(store, reading, Instant(), docs, "second", Limits()))
    assert marks.read_text() == "opened\n"
    counts = await store.read(overview.count_documents)
    assert (counts["failed"], counts["total"]) == (60, 60)


async def test_a_neighbour_of_a_crash_is_not_lost(read: Callable[..., Any]) -> None:
    async with pool(workers=2) as reading:
        results = await asyncio.gather(
            *(read(reading, says) for says in ["text one", "segfault", "text two", "exit", "text three"]),
            return_exceptions=True,
        )
        assert [result.chunks[0].text for result in results if isinstance(result, ExtractedChunks)] == [
            "one",
            "two",
            "three",
        ]
        assert [type(result) for result in results if isinstance(result, BaseException)] == [Broken, Broken]
        assert len(workers_of()) <= 2


async def test_no_more_workers_than_wanted(read: Callable[..., Any]) -> None:
    async with pool(workers=2) as reading:
        assert workers_of() == []
        found = await asyncio.gather(*(read(reading, "report") for _ in range(12)))
        assert len({result.chunks[0].text.split()[0] for result in found}) <= 2


async def test_an_earlier_document_is_not_held_against_a_later_one(read: Callable[..., Any]) -> None:
    async with pool() as reading:
        await read(reading, "text before")
        assert (await read(reading, "segfault-if-used")).chunks[0].text == "Fine in a new process."


async def test_an_idle_worker_that_died_is_replaced(read: Callable[..., Any]) -> None:
    async with pool() as reading:
        await read(reading, "text before")
        (worker,) = workers_of()
        worker.kill()
        assert (await read(reading, "text after")).chunks[0].text == "after"


async def test_a_worker_is_replaced_after_so_many_documents(read: Callable[..., Any]) -> None:
    async with pool(documents_per_worker=2) as reading:
        pids = [(await read(reading, "report")).chunks[0].text.split()[0] for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_what_a_library_prints_does_no_harm(read: Callable[..., Any]) -> None:
    async with pool() as reading:
        for _ in range(3):
            assert (await read(reading, "noise quiet")).chunks[0].text == "quiet"
        assert len(workers_of()) == 1


async def test_a_cancelled_document_takes_its_worker_along(read: Callable[..., Any]) -> None:
    async with pool() as reading:
        task = asyncio.create_task(read(reading, "hang"))
        await wait_until(lambda: len(workers_of()) == 1)
        (worker,) = workers_of()
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not worker.is_running()
        assert (await read(reading, "text after")).chunks[0].text == "after"


async def test_a_killed_worker_takes_its_children_along(read: Callable[..., Any], tmp_path: Path) -> None:
    note = tmp_path / "pid"
    async with pool(timeout_s=1.5) as reading:
        with pytest.raises(Broken):
            await read(reading, f"orphan {note}")
    await wait_until(lambda: not psutil.pid_exists(int(note.read_text())) or is_zombie(int(note.read_text())))


async def test_close_ends_what_is_being_read(read: Callable[..., Any]) -> None:
    reading = pool(workers=2)
    tasks = [asyncio.create_task(read(reading, "hang")) for _ in range(2)]
    await wait_until(lambda: len(workers_of()) == 2)
    await asyncio.sleep(1.0)
    await reading.close()
    assert workers_of() == []
    for task in tasks:
        with pytest.raises(UsageError, match="closed"):
            await task
    with pytest.raises(UsageError, match="closed"):
        await read(reading, "text more")


async def test_close_while_workers_start(read: Callable[..., Any]) -> None:
    reading = pool()
    task = asyncio.create_task(read(reading, "hang"))
    await wait_until(lambda: len(workers_of()) == 1)
    await reading.close()
    with pytest.raises(UsageError, match="closed"):
        await task


async def test_files_that_are_gone_changed_or_no_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    async with pool() as reading:
        with pytest.raises(Unstable, match="no longer there"):
            await reading.extract(path, DocumentKind.PDF, "0" * 64)
        with pytest.raises(Unstable, match="from disk"):
            await reading.extract(tmp_path, DocumentKind.PDF, "0" * 64)
        write(path, "text new")
        with pytest.raises(Unstable, match="changed while it was being read"):
            await reading.extract(path, DocumentKind.PDF, "0" * 64)
        assert len(workers_of()) == 1


async def test_a_pipe_in_the_place_of_the_file_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    os.mkfifo(path)
    async with pool() as reading:
        with pytest.raises(Unstable, match="no file any more"):
            await reading.extract(path, DocumentKind.PDF, "0" * 64)
        assert len(workers_of()) == 1


async def test_a_worker_that_never_gets_the_bytes_says_nothing_against_the_document(
    read: Callable[..., Any], tmp_path: Path
) -> None:
    """It is stopped where it would be stuck in the kernel, on a share whose server is gone."""
    async with pool(timeout_s=1.0) as reading:
        await read(reading, "text one")
        (stuck,) = workers_of()
        stuck.suspend()
        with pytest.raises(Unstable, match="its disk did not give it within"):
            await read(reading, "text two")
        assert (await read(reading, "text three")).chunks[0].text == "three"
        assert stuck not in workers_of()


async def test_an_odd_file_name(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xf0\x9f\x99\x82\n.pdf"))
    digest = write(path, "text found")
    async with pool() as reading:
        found = await reading.extract(path, DocumentKind.PDF, digest)
    assert found.chunks[0].text == "found"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"limit": 600, "overlap": 0}, UsageError, "it takes 512"),
        ({"overlap": 40}, UsageError, "overlap of 40"),
        ({"model_path": HERE / "test_pool.py"}, ModelError, "not a GGUF"),
        ({"extractor": "misbehaving:nothing"}, BackendStartFailed, "did not start: AttributeError"),
    ],
)
async def test_a_worker_that_cannot_start_says_why(
    read: Callable[..., Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    async with pool(**changes) as reading:
        with pytest.raises(error, match=message):
            await read(reading, "text")


def test_a_pool_of_none_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        pool(0)


PARENT = """
import asyncio, hashlib, sys
from pathlib import Path
from pipeline.core.documents import DocumentKind
from pipeline.ingest.pool import ExtractionPool

async def main(model, document):
    pool = ExtractionPool(
        2, model_path=Path(model), limit=64, overlap=8, pdf_engine="auto", extractor="misbehaving:obey"
    )
    digest = hashlib.sha256(Path(document).read_bytes()).hexdigest()
    await asyncio.gather(*(pool.extract(Path(document), DocumentKind.PDF, digest) for _ in range(2)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("says", ["hang", "spin"])
async def test_no_worker_outlives_a_killed_parent(tmp_path: Path, says: str) -> None:
    document = tmp_path / "a.pdf"
    write(document, says)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    command = [sys.executable, "-c", PARENT, str(MODEL), str(document)]
    parent = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        await wait_until(lambda: len(workers_of(parent.pid)) == 2)
        workers = workers_of(parent.pid)
        await asyncio.sleep(1.5)
        assert all(worker.is_running() for worker in workers)
    finally:
        parent.kill()
        await parent.wait()
    await wait_until(lambda: not any(worker.is_running() and not is_zombie(worker.pid) for worker in workers))


def is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_what_the_end_of_a_worker_means() -> None:
    pdf = DocumentKind.PDF
    assert "SIGTERM" in classify_exit(-signal.SIGTERM, pdf, b"", 2**31).reason
    assert classify_exit(-signal.SIGSEGV, DocumentKind.DOCX, b"", 2**31).reason.startswith("the DOCX library crashed")
    assert classify_exit(-62, pdf, b"", 2**31).reason == "the PDF library crashed on it (signal 62)"
    assert classify_exit(-6, pdf, b"std::bad_alloc", 2**31).reason == "needs more than 2.0 GiB of memory"


def test_the_environment_of_a_worker() -> None:
    found = worker_environment({"PATH": "/bin", "NIGHTSHIFT_DATABASE_URL": "secret", "PYTHONPATH": "/x"})
    assert found["PATH"] == "/bin"
    assert found["PYTHONPATH"] == f"{ROOT}{os.pathsep}/x"
    assert "NIGHTSHIFT_DATABASE_URL" not in found
