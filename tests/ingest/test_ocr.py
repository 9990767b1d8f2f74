"""OCR with the real Tesseract, and with programs of its name that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pydantic import ValidationError

from pipeline.core.documents import DocumentKind
from pipeline.core.errors import Broken, Encrypted, NoText, NotRecognised, Unstable, UsageError
from pipeline.ingest.flow import ingest
from pipeline.ingest.pool import ExtractedChunks, ExtractionPool
from pipeline.ingest.tesseract import Ocr, Tesseract, find_tesseract
from pipeline.ingest.work import Limits
from pipeline.runner.target import recipe
from pipeline.settings import Settings
from pipeline.settings.fields import ExtractSettings
from pipeline.store import overview
from pipeline.store.database import Database
from tests.extract.sample_documents import pdf
from tests.ingest.mutation import mutants_of_pdf
from tests.ingest.scanned import scanned
from tests.ingest.test_flow import Instant, make_work
from tests.runs import Host

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.core.documents import Chunk

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
INBOX = ROOT / "data" / "inbox"
HANDBOOK = (INBOX / "heron-operations-handbook.pdf").read_bytes()
SAYS_A_WORD = "printf 'level\\t\\n5\\t1\\t1\\t1\\t1\\t1\\t1\\t1\\t9\\t9\\t90\\tword\\n'"
MUTANTS = 80
PICTURE = b"P5\n2 2\n255\n\0\xff\0\xff"

installed = pytest.mark.skipif(shutil.which("tesseract") is None, reason="Tesseract is not installed")


@pytest.fixture(scope="module")
def english() -> Ocr:
    return find_tesseract("eng", dpi=300, timeout_s=300)


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., Ocr]:
    """A program of that name which does what the shell is told."""

    def make(script: str, *, timeout_s: float = 300.0) -> Ocr:
        path = tmp_path / "bin" / "tesseract"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return Ocr(str(path), "tesseract 5.0.0", "eng", 100, timeout_s, turns=True)

    return make


def pool_with(ocr: Ocr | None, **changes: float) -> ExtractionPool:
    options: dict[str, Any] = {"model_path": MODEL, "limit": 256, "overlap": 32, "pdf_engine": "auto", "nice": 0}
    return ExtractionPool(1, ocr=ocr, **(options | changes))


async def read(ocr: Ocr | None, path: Path, data: bytes, **changes: float) -> ExtractedChunks:
    await asyncio.to_thread(path.write_bytes, data)
    async with pool_with(ocr, **changes) as pool:
        return await pool.extract(path, DocumentKind.PDF, hashlib.sha256(data).hexdigest())


async def ended(pid: int) -> None:
    """Wait until no such process runs."""
    async with asyncio.timeout(60):
        while True:
            with suppress(psutil.NoSuchProcess):
                if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                    await asyncio.sleep(0.02)
                    continue
            return


async def written(path: Path) -> list[int]:
    """The numbers in a file, once another process has written its line."""

    def content() -> str:
        return path.read_text() if path.exists() else ""

    async with asyncio.timeout(60):
        while not (await asyncio.to_thread(content)).endswith("\n"):  # noqa: ASYNC110 - it is written by another process
            await asyncio.sleep(0.02)
    return [int(word) for word in (await asyncio.to_thread(content)).split()]


def _touches(chunk: Chunk, number: int) -> bool:
    return (chunk.page_first or 0) <= number <= (chunk.page_last or 0)


@installed
@pytest.mark.parametrize("turned", [0, 90])
async def test_scanned_pages_have_their_text_in_its_place(english: Ocr, tmp_path: Path, turned: int) -> None:
    """In a worker, with its limits and without a network."""
    found = await read(english, tmp_path / "a.pdf", scanned(HANDBOOK, {2, 4}, turned=turned))
    assert found.ocr is not None
    assert list(found.ocr.pages) == [2, 4]
    assert found.ocr.engine == english.engine
    assert found.ocr.confidence is not None
    assert found.ocr.confidence > 80
    assert not found.ocr.failed
    assert not found.empty_pages
    on = {number: " ".join(chunk.text for chunk in found.chunks if _touches(chunk, number)) for number in (2, 3, 4)}
    assert "at most three hours" in " ".join(on[2].split())
    assert "from 700 to 450 watts" in " ".join(on[3].split())
    assert "forty days" in " ".join(on[4].split())


@installed
async def test_a_drawing_is_no_text(english: Ocr, tmp_path: Path) -> None:
    with pytest.raises(NoText, match="and OCR for eng finds none"):
        await read(english, tmp_path / "a.pdf", (INBOX / "delivery-note-scan.pdf").read_bytes())


@installed
async def test_a_document_of_scans_is_embedded_and_says_how_it_was_read(
    english: Ocr, tmp_path: Path, sqlite_url: str
) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "scan.pdf").write_bytes(scanned(pdf([["The night train to Tarnvik leaves from platform seven."], []])))
    (folder / "text.pdf").write_bytes(pdf([["The day train leaves from platform one."]]))
    store = Database.open(sqlite_url)
    try:
        async with pool_with(english) as pool:
            await ingest(make_work(store, pool, Instant(), folder, "one", Limits()))
        assert (await store.read(overview.count_documents, None))["embedded"] == 2
        with store.snapshot() as session:
            lines = {Path(line.file).name: line for line in overview.list_documents(session)}
            view = overview.show_document(session, lines["scan.pdf"].id)
            other = overview.show_document(session, lines["text.pdf"].id)
        assert view is not None
        assert other is not None
        assert "night train to Tarnvik" in view.chunks[0].text
        assert (view.chunks[0].page_first, view.chunks[0].page_last) == (1, 1)
        assert view.details["pages_ocr"] == [1]
        assert view.details["pages_without_text"] == [2]
        assert view.details["ocr"]["engine"] == english.engine
        assert view.details["ocr"]["languages"] == "eng"
        assert view.details["ocr"]["confidence"] > 80
        assert view.details["ocr"]["failed"] == {}
        assert "ocr" not in other.details
    finally:
        store.close()


@installed
def test_a_language_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(UsageError, match=r"does not have tlh \(Debian: apt install tesseract-ocr-tlh\); it has: .*eng"):
        find_tesseract("eng+tlh", dpi=300, timeout_s=60)


def test_a_program_that_is_not_there_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="which is not installed"):
        find_tesseract("eng", dpi=300, timeout_s=60)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo something else", "does not answer as Tesseract does"),
        ("exit 1", "does not answer as Tesseract does"),
        ("echo tesseract 3.05.01 >&2", "needs Tesseract 4 or newer, and .* is 3.05.01"),
        ('case $1 in --version) echo "tesseract v5.3.0.2022";; *) exit 1;; esac', "does not have eng .* it has: none"),
    ],
)
def test_a_program_that_is_no_tesseract_is_said_at_once(
    stand_in: Callable[..., Ocr], monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    monkeypatch.setenv("PATH", str(Path(stand_in(script).program).parent))
    with pytest.raises(UsageError, match=says):
        find_tesseract("eng", dpi=300, timeout_s=60)


def test_what_it_was_asked_for(stand_in: Callable[..., Ocr], monkeypatch: pytest.MonkeyPatch) -> None:
    ocr = stand_in('case $1 in --version) echo "tesseract v5.3.0";; *) printf "List (2):\\neng\\nchi_sim\\n";; esac')
    monkeypatch.setenv("PATH", str(Path(ocr.program).parent))
    found = find_tesseract("chi_sim+eng", dpi=200, timeout_s=7)
    assert found == Ocr(ocr.program, "tesseract 5.3.0", "chi_sim+eng", 200, 7, turns=False)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo 'Error in pixRead: no pix' >&2; exit 1", r"Tesseract failed \(exit code 1\): Error in pixRead: no pix"),
        ("kill -SEGV $$", r"Tesseract failed \(signal 11\)"),
        ("exit 0", "is no table"),
        ("echo nonsense", "is no table"),
        ("exec yes level", "has no end"),
        ("exec yes >&2", "took more than 2 s; raise extract.ocr_timeout"),
    ],
)
def test_a_page_that_it_fails_on(stand_in: Callable[..., Ocr], script: str, says: str) -> None:
    before = set(psutil.Process().children())
    recogniser = Tesseract(stand_in(script, timeout_s=2.0 if "yes >&2" in script else 300.0), lambda _: None, 0.5)
    with pytest.raises(NotRecognised, match=says):
        recogniser(PICTURE * 100_000, 300)
    assert set(psutil.Process().children()) <= before


def test_what_is_not_the_pages_doing(stand_in: Callable[..., Ocr]) -> None:
    with pytest.raises(Unstable, match=r"ended from outside \(SIGKILL\)"):
        Tesseract(stand_in("kill -KILL $$"), lambda _: None, 0.5)(PICTURE, 300)
    gone = stand_in("exit 0")
    Path(gone.program).unlink()
    with pytest.raises(Unstable, match="could not be started"):
        Tesseract(gone, lambda _: None, 0.5)(PICTURE, 300)


def test_it_has_one_thread_and_is_given_all_of_the_picture(stand_in: Callable[..., Ocr]) -> None:
    script = 'printf "level\\t%s %s %s " "$OMP_THREAD_LIMIT" "$(head -c 600000 | wc -c)" "$*"'
    answer = Tesseract(stand_in(script), lambda _: None, 0.5)(b"x" * 600_000, 150)
    arguments = ["stdin", "stdout", "-l", "eng", "--dpi", "150", "--psm", "1", "tsv"]
    assert answer.split() == ["level", "1", "600000", *arguments]


def test_it_tells_that_it_is_at_work(stand_in: Callable[..., Ocr], tmp_path: Path) -> None:
    """Each step buys time; the stand-in ends once there were three."""
    steps: list[int] = []

    def step(number: int) -> None:
        steps.append(number)
        if len(steps) == 3:
            (tmp_path / "enough").touch()

    script = f'until [ -e "{tmp_path}/enough" ]; do sleep 0.01; done; printf "level\\t"'
    assert Tesseract(stand_in(script), step, 0.05)(PICTURE, 300) == "level\t"
    assert sum(steps) >= 3


async def test_one_that_hangs_is_killed_with_its_children_and_costs_the_page(
    stand_in: Callable[..., Ocr], tmp_path: Path
) -> None:
    # Long enough to be started even on a busy machine.
    ocr = stand_in(f'sleep 1000 & echo $$ $! > "{tmp_path}/pids"; wait', timeout_s=5.0)
    text = [f"Line {number} of a page that has text in it." for number in range(12)]
    found = await read(ocr, tmp_path / "a.pdf", scanned(pdf([text, text]), {2}))
    assert found.ocr is not None
    assert found.ocr.failed == {2: "it took more than 5 s; raise extract.ocr_timeout"}
    assert found.empty_pages == (2,)
    assert "Line 11" in found.chunks[-1].text
    pids = await written(tmp_path / "pids")
    assert len(pids) == 2
    for pid in pids:
        await ended(pid)


async def test_a_page_may_take_longer_than_a_document(stand_in: Callable[..., Ocr], tmp_path: Path) -> None:
    """While it is at work its time is `ocr.timeout_s`, not what the rest of the document has."""
    ocr = stand_in(f"sleep 7; {SAYS_A_WORD}")
    data = scanned(pdf([["one"]]))
    found = await read(ocr, tmp_path / "a.pdf", data, timeout_s=5.0, timeout_per_mib_s=0.0, timeout_per_page_s=0.25)
    assert [chunk.text for chunk in found.chunks] == ["word"]


async def test_every_mutant_of_a_scan_ends(stand_in: Callable[..., Ocr], tmp_path: Path) -> None:
    """What is drawn for OCR is hostile, too."""
    ocr = stand_in(f"cat > /dev/null; {SAYS_A_WORD}")
    originals = [scanned(HANDBOOK, {1, 2}, dpi=40), (INBOX / "delivery-note-scan.pdf").read_bytes()]
    ends: Counter[str] = Counter()
    path = tmp_path / "mutant.pdf"
    async with pool_with(ocr, memory_limit_bytes=2**30) as pool:
        for mutant in itertools.islice(mutants_of_pdf(originals, 11), MUTANTS):
            await asyncio.to_thread(path.write_bytes, mutant)
            try:
                found = await pool.extract(path, DocumentKind.PDF, hashlib.sha256(mutant).hexdigest())
            except (Broken, Encrypted, NoText) as error:
                assert "took more than" not in error.reason, "it hangs"  # noqa: PT017
                ends[type(error).__name__] += 1
            else:
                ends["recognised" if found.ocr is not None and found.ocr.pages else "text"] += 1
    assert ends.total() == MUTANTS
    assert ends["recognised"] > MUTANTS // 20, ends


async def test_a_document_on_which_it_always_fails_is_failed(stand_in: Callable[..., Ocr], tmp_path: Path) -> None:
    with pytest.raises(Broken, match="no text on any of its 2 pages, and OCR failed on page 1: Tesseract failed"):
        await read(stand_in("exit 9"), tmp_path / "a.pdf", scanned(pdf([["one"], ["two"]])))


@pytest.mark.parametrize("way", ["cancelled", "killed"])
async def test_it_dies_with_its_worker(stand_in: Callable[..., Ocr], tmp_path: Path, way: str) -> None:
    ocr = stand_in(f'echo $$ > "{tmp_path}/pid"; exec sleep 1000')
    reading = asyncio.create_task(read(ocr, tmp_path / "a.pdf", scanned(pdf([["one"]]))))
    (pid,) = await written(tmp_path / "pid")
    if way == "cancelled":
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    else:
        worker = psutil.Process(pid).parent()
        assert worker is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(Unstable):
            await reading
    await ended(pid)


def host_without(tmp_path: Path, **settings: str) -> Host:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "scan.pdf").write_bytes(scanned(pdf([["one"]])))
    return Host(tmp_path, {"NIGHTSHIFT_EXTRACT_OCR": "eng", **settings})


def test_a_run_says_at_its_start_that_ocr_is_not_there(tmp_path: Path) -> None:
    host = host_without(tmp_path, PATH=str(tmp_path))
    result = host.run("run-now")
    assert result.returncode == 2
    assert "extract.ocr: OCR needs Tesseract, which is not installed" in " ".join(result.stderr.split())
    assert not (tmp_path / "logs").exists()


def test_turning_ocr_on_is_another_recipe_and_leaving_it_off_is_none() -> None:
    off = Settings(extract=ExtractSettings(ocr_dpi=200, ocr_timeout=5))
    assert recipe(off) == recipe(Settings())
    wanted = [ExtractSettings(ocr=languages, ocr_dpi=dpi) for languages in ("eng", "deu") for dpi in (200, 300)]
    assert len({recipe(off), *(recipe(Settings(extract=one)) for one in wanted)}) == 5
    slow, fast = (recipe(Settings(extract=ExtractSettings(ocr="eng", ocr_timeout=seconds))) for seconds in (5, 50))
    assert slow == fast


@pytest.mark.parametrize("languages", ["-x", "eng+", "eng deu", "../eng", "eng;rm", "+", "eng+-c"])
def test_languages_that_are_no_names(languages: str) -> None:
    with pytest.raises(ValidationError):
        ExtractSettings(ocr=languages)


@pytest.mark.parametrize("languages", ["", "eng", "deu+eng", "chi_sim", "script/Latin+eng"])
def test_languages_that_are_names(languages: str) -> None:
    assert ExtractSettings(ocr=languages).ocr == languages
