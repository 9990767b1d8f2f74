"""What a person sees of a run, rendered on consoles of many kinds."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.cli.view import LiveView, PlainView, QuietView, duration, make_view, printable, render, shorten, unescaped
from pipeline.ingest.progress import Progress

HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\n\u202egnp.\x00[red]report\udcff.pdf"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int = 80) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    environment = {"TERM": "xterm-256color"}
    return Console(file=out, force_terminal=True, width=width, height=30, _environ=environment), out


def pipe(encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    return Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), force_terminal=False), raw


def some_progress(current: str = "report.pdf") -> Progress:
    progress = Progress(started_monotonic=0.0, phase="working", documents_total=80, current=current)
    progress.document_read(1500)
    progress.document_done()
    progress.chunks_embedded(1200, now=10.0)
    return progress


def screen(progress: Progress, width: int, now: float = 20.0) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(render(progress, now, console))
    return captured.get().splitlines()


class TestLive:
    def test_shows_what_matters(self) -> None:
        progress = some_progress()
        progress.document_failed("locked.pdf", "encrypted", "needs a password")
        documents, chunks, pace, now, failed, failure = screen(progress, 80)
        assert re.fullmatch(r"documents +[━╸]* +2 of 80", documents)
        assert re.fullmatch(r"chunks +[━╸]+ +1,200 of 1,500", chunks)
        assert pace == "60.0 chunks/s, about 16 min 20 s left, 20 s so far"
        assert now == "now: report.pdf"
        assert failed == "could not be read: 1, the last:"
        assert failure.strip() == "locked.pdf: encrypted: needs a password"

    def test_the_newest_failures_come_first_and_are_few(self) -> None:
        progress = some_progress()
        for number in range(50):
            progress.document_failed(f"{number}.pdf", "failed", "broken")
        lines = screen(progress, 80)
        assert [line.strip() for line in lines[-3:]] == [f"{n}.pdf: failed: broken" for n in (49, 48, 47)]

    def test_before_anything_is_known(self) -> None:
        lines = screen(Progress(started_monotonic=19.0), 80)
        assert lines[0].endswith("0 of 0")
        assert lines[2] == "looking for documents, 1 s so far"

    @pytest.mark.parametrize("width", [1, 2, 3, 5, 10, 20, 33, 38, 40, 60, 79, 200])
    def test_no_line_is_wider_than_the_terminal(self, width: int) -> None:
        progress = some_progress(current="아주/긴/경로/" * 40 + "보고서.pdf")
        progress.document_failed("a/very/long/path/" * 30 + "report.pdf", "failed", "a reason that goes on " * 10)
        lines = screen(progress, width)
        assert len(lines) == 6
        assert max(cell_len(line) for line in lines) <= width

    def test_a_long_path_keeps_its_file_name_and_the_reason_is_seen(self) -> None:
        progress = some_progress()
        progress.document_failed("a/very/long/path/" * 30 + "report.pdf", "encrypted", "needs a password")
        assert screen(progress, 80)[-1].endswith("report.pdf: encrypted: needs a password")

    def test_a_reason_that_does_not_fit_shows_that_it_goes_on(self) -> None:
        progress = some_progress()
        progress.document_failed("scan.pdf", "empty", "no text on any of its pages " * 5)
        assert screen(progress, 60)[-1].endswith("...")
        assert screen(progress, 60)[-1].startswith("  scan.pdf: empty: no text")

    def test_a_run_that_goes_on_says_that_it_counts_what_was_left(self) -> None:
        progress = some_progress()
        progress.resumed = True
        assert "1 of 80 in this run" in screen(progress, 80)[0]

    def test_the_last_frame_names_no_document(self) -> None:
        progress = some_progress()
        progress.phase = "finishing"
        assert not [line for line in screen(progress, 80) if line.startswith("now:")]

    def test_nothing_is_drawn_before_there_is_something_to_show(self) -> None:
        console, out = terminal()
        clock = Clock()
        with make_view(console, clock=clock) as view:
            view.update(Progress(started_monotonic=0.0))
            assert out.getvalue() == ""
            clock.now = 2.0
            view.update(Progress(started_monotonic=0.0))
            assert "looking for documents" in out.getvalue()

    def test_draws_and_leaves_the_last_state_standing(self) -> None:
        console, out = terminal()
        clock = Clock()
        with make_view(console, clock=clock) as view:
            assert isinstance(view, LiveView)
            view.update(some_progress())
            view.note("a note\nof two lines")
            clock.now = 3.0
            view.update(some_progress("other.pdf"))
        drawn = out.getvalue()
        assert "now: report.pdf" in drawn
        assert drawn.index("a note") < drawn.index("of two lines") < drawn.index("now: other.pdf")
        assert drawn.endswith("\x1b[?25h")

    def test_a_hostile_name_sends_the_terminal_nothing(self) -> None:
        console, out = terminal(200)
        progress = some_progress(current=HOSTILE)
        progress.document_failed(HOSTILE, "failed", HOSTILE)
        with make_view(console, clock=Clock()) as view:
            view.update(progress)
            view.note(HOSTILE)
        drawn = out.getvalue()
        assert set(re.findall(r"\x1b(?!\[)", drawn)) == set()
        allowed = r"\x1b\[(\?25[lh]|[\d;]*m|2K|1A)"
        left = re.sub(allowed, "", drawn)
        assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f\u202e\udcff]", left)
        assert "[red]report" in left


class TestPlain:
    def run(self, times: list[float]) -> list[str]:
        console, raw = pipe()
        clock = Clock()
        with make_view(console, clock=clock) as view:
            assert isinstance(view, PlainView)
            for clock.now in times:
                progress = some_progress()
                progress.chunks_done = 1200 + int(clock.now)
                view.update(progress)
        return raw.getvalue().decode().splitlines()

    def test_a_line_every_few_seconds_and_one_at_the_end(self) -> None:
        lines = self.run([quarter / 4 for quarter in range(4 * 12)])
        seen = [re.sub(r".*chunks ([\d,]+) of.*", r"\1", line) for line in lines]
        assert seen == ["1,200", "1,205", "1,210", "1,211"]

    def test_a_line_says_everything(self) -> None:
        (line,) = self.run([20.0])
        assert line == (
            "documents 1 of 80, chunks 1,220 of 1,500, "
            "61.0 chunks/s, about 32 min 27 s left, 20 s so far, now report.pdf"
        )

    def test_no_line_is_broken_however_long(self) -> None:
        console, raw = pipe()
        with make_view(console, clock=Clock()) as view:
            view.update(some_progress("x" * 500 + ".pdf"))
            view.note("y" * 501)
        assert [len(line) > 500 for line in raw.getvalue().decode().splitlines()] == [True, True]

    def test_each_failure_once_at_once(self) -> None:
        console, raw = pipe()
        clock = Clock()
        progress = some_progress()
        with make_view(console, clock=clock) as view:
            view.update(progress)
            for number in range(3):
                clock.now += 0.25
                progress.document_failed(f"{number}.pdf", "failed", "broken")
                view.update(progress)
                view.update(progress)
            progress.document_failed("last.pdf", "empty", "no text")
        lines = [line for line in raw.getvalue().decode().splitlines() if not line.startswith("documents")]
        assert lines == [*(f"{n}.pdf: failed: broken" for n in range(3)), "last.pdf: empty: no text"]

    def test_more_failures_than_are_kept_are_counted(self) -> None:
        console, raw = pipe()
        progress = some_progress()
        with make_view(console, clock=Clock()) as view:
            for number in range(50):
                progress.document_failed(f"{number}.pdf", "failed", "broken")
            view.update(progress)
        lines = raw.getvalue().decode().splitlines()
        assert lines[0] == "30 more documents could not be read"
        assert lines[1:21] == [f"{n}.pdf: failed: broken" for n in range(30, 50)]

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "euc-kr"])
    def test_any_name_on_any_encoding_is_one_line_of_text(self, encoding: str) -> None:
        console, raw = pipe(encoding)
        progress = some_progress(HOSTILE + "한국어")
        progress.document_failed(HOSTILE + "한국어", "failed", "broken")
        with make_view(console, clock=Clock()) as view:
            view.update(progress)
        lines = raw.getvalue().decode(encoding).split("\n")
        assert len(lines) == 3
        assert all(line.isprintable() for line in lines)
        assert "한국어" in lines[0] or encoding in ("ascii", "latin-1")

    def test_a_run_without_work_shows_nothing(self) -> None:
        console, raw = pipe()
        clock = Clock()
        with make_view(console, clock=clock) as view:
            for clock.now in (0.0, 6.0):
                view.update(Progress(started_monotonic=0.0))
        assert raw.getvalue() == b""

    def test_an_update_that_never_came(self) -> None:
        console, raw = pipe()
        with make_view(console, clock=Clock()):
            pass
        assert raw.getvalue() == b""


class TestWhere:
    def test_quiet_says_nothing(self) -> None:
        console, out = terminal()
        with make_view(console, quiet=True) as view:
            assert isinstance(view, QuietView)
            view.update(some_progress())
            view.note("a note")
        assert out.getvalue() == ""

    def test_with_json_standard_output_is_left_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        with make_view(Console(), as_json=True, clock=Clock()) as view:
            view.update(some_progress())
            view.note("a note")
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "documents 1 of 80" in captured.err
        assert "a note" in captured.err

    def test_a_dumb_terminal_gets_lines(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
        assert isinstance(make_view(console), PlainView)

    def test_an_error_in_the_run_passes_through(self) -> None:
        console, out = terminal()
        view = make_view(console, clock=Clock())
        view.update(some_progress())
        with pytest.raises(ZeroDivisionError), view:
            raise ZeroDivisionError
        assert out.getvalue().endswith("\x1b[?25h")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("보고서 (최종).pdf", "보고서 (최종).pdf"),
        ("a\tb\nc", r"a\tb\nc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202efdp", r"\u202efdp"),
        ("caf\udce9 caf\uf7e9", r"caf\xe9 caf\xe9"),
        ("می‌خواهم 👩‍🔬", "می‌خواهم 👩‍🔬"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("name", ["a\nb\t.pdf", "caf\uf7e9.pdf", "\x1b[2J.pdf", "\u202egnp.pdf", r"plain\zip"])
def test_a_name_can_be_typed_as_it_is_shown(name: str) -> None:
    assert unescaped(printable(name)) == name


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("report.pdf", 10, "report.pdf"),
        ("long-report.pdf", 12, "lon...rt.pdf"),
        ("보고서보고서.pdf", 12, "보...서.pdf"),
        ("report", 3, "..."),
        ("report", 1, "."),
    ],
)
def test_shorten(text: str, width: int, short: str) -> None:
    assert shorten(text, width) == short
    assert cell_len(short) <= width


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min"),
        (75, "1 min 15 s"),
        (3600, "1 h"),
        (3661, "1 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
