"""Folders as they really are: what a scan sees of them, and what it says of what it cannot see."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core.changes import Found
from pipeline.core.documents import DocumentKind
from pipeline.core.errors import SourceMissing
from pipeline.core.globs import path_filter
from pipeline.core.kinds import kind_of_content, kind_of_name
from pipeline.ingest.files import LARGEST_FILE, look_again, scan
from pipeline.ingest.hashing import StillWritten, read_files
from pipeline.ingest.names import real_path, stored_name
from pipeline.store.library import ReadFile, UnreadableFile

PDF = b"%PDF-1.7\n"
DOCX = b"PK\x03\x04 and more"


def put(path: Path, data: bytes = PDF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found(root: Path, folder: str = "", **globs: list[str]) -> list[str]:
    return [file.path for file in scan(str(root), folder, path_filter(**globs)).found]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.pdf", DocumentKind.PDF),
        ("A.PDF", DocumentKind.PDF),
        ("a.b.DocX", DocumentKind.DOCX),
        ("a.docm", DocumentKind.DOCX),
        ("a.text", DocumentKind.TEXT),
        *((name, None) for name in ("a.dotx", "a.doc", "a", ".pdf", ".a.pdf", "~$a.docx", ".~lock.a.docx#", "._a.pdf")),
        *((name, None) for name in ("a.pdf.part", "a.pdf.crdownload", "a.pdf.tmp", "~WRL0001.tmp", "a.pdf~")),
    ],
)
def test_a_name_says_whether_anybody_looks_at_a_file(name: str, kind: DocumentKind | None) -> None:
    assert kind_of_name(name) is kind


def test_the_content_says_what_it_is() -> None:
    assert kind_of_content(DOCX, DocumentKind.PDF) is DocumentKind.DOCX
    assert kind_of_content(b"\n" * 1000 + PDF, DocumentKind.DOCX) is DocumentKind.PDF
    assert kind_of_content(b"\n" * 1020 + PDF, DocumentKind.DOCX) is DocumentKind.DOCX  # the header is cut off
    assert kind_of_content(b"", DocumentKind.PDF) is DocumentKind.PDF
    assert kind_of_content(PDF, DocumentKind.TEXT) is DocumentKind.TEXT


def test_hidden_unfinished_and_excluded_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.pdf", "B.DOCX", "sub/c.docm", ".git/d.pdf", "~$a.docx", "e.pdf.part", "@eaDir/f.pdf", "sub/g.pdf"):
        put(tmp_path / name)
    assert found(tmp_path) == ["@eaDir/f.pdf", "B.DOCX", "a.pdf", "sub/c.docm", "sub/g.pdf"]
    assert found(tmp_path, exclude=["@eaDir/", "*.docx"]) == ["a.pdf", "sub/c.docm", "sub/g.pdf"]
    assert found(tmp_path, include=["sub/*.pdf"]) == ["sub/g.pdf"]
    put(tmp_path / "sub/handed-in.text")
    assert found(tmp_path, include=["*.docm"]) == ["sub/c.docm", "sub/handed-in.text"]
    (tmp_path / "sub/handed-in.text").unlink()
    assert scan(str(tmp_path), "", path_filter(exclude=["@eaDir/", "*.docx"])).passed_over == 2
    assert found(tmp_path, "sub") == ["sub/c.docm", "sub/g.pdf"]
    assert found(tmp_path, "sub/g.pdf") == ["sub/g.pdf"]


def test_loops_of_links_end_and_nothing_is_found_twice(tmp_path: Path) -> None:
    put(tmp_path / "z/a.pdf")
    outside = put(tmp_path.with_name(tmp_path.name + "-outside") / "b.pdf").parent
    (tmp_path / "a-link-to-z").symlink_to("z")
    (tmp_path / "z/up").symlink_to("..")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "ping").symlink_to("pong")
    (tmp_path / "pong").symlink_to("ping")
    (tmp_path / "self.pdf").symlink_to("self.pdf")
    for name in ("out2", "out1"):
        (tmp_path / name).symlink_to(outside)
    seen = scan(str(tmp_path))
    # What is really there goes by its own name, and of two links the first counts.
    assert [file.path for file in seen.found] == ["out1/b.pdf", "z/a.pdf"]
    assert seen.unlisted == {}
    assert [(file.path, file.problem) for file in seen.unreadable] == [("self.pdf", "a link to nothing")]
    shutil.rmtree(outside)


def test_a_folder_that_became_a_link_is_the_same_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "sub/a.pdf")
    before = scan(str(root)).found
    (root / "sub").rename(tmp_path / "elsewhere")
    (root / "sub").symlink_to(tmp_path / "elsewhere")
    assert scan(str(root)).found == before


def test_names_that_are_not_text_are_found_stored_and_opened(tmp_path: Path) -> None:
    real = put(tmp_path / os.fsdecode(b"r\xe9sum\xe9/caf\xe9.pdf"))
    (one,) = scan(str(tmp_path)).found
    one.path.encode()  # what no database would take raises here
    assert real_path(str(tmp_path), one.path) == real
    (read,) = read_files(str(tmp_path), [one])
    assert isinstance(read, ReadFile)
    # A source whose own name is such is found as well.
    root = stored_name(str(real.parent))
    assert [file.path for file in scan(root).found] == [one.path.rpartition("/")[2]]


BYTE, CHARACTER = os.fsdecode(b"\x80"), "\uf780"


@pytest.mark.parametrize(
    ("names", "document", "others"),
    [
        ([f"{BYTE}.pdf", f"{CHARACTER}.pdf"], f"{CHARACTER}.pdf", ["\\x80.pdf"]),
        ([f"{BYTE}{BYTE}.pdf", f"{BYTE}{CHARACTER}.pdf"], f"{BYTE}{BYTE}.pdf", ["\\x80\\uf780.pdf"]),
        ([f"{BYTE}{CHARACTER}.pdf", f"{CHARACTER}{BYTE}.pdf"], f"{BYTE}{CHARACTER}.pdf", ["\\uf780\\x80.pdf"]),
        ([f"{BYTE}.pdf", f"{CHARACTER}.pdf", "\\x80.pdf"], f"{CHARACTER}.pdf", ["_\\x80.pdf"]),
        ([f"{BYTE}/a.pdf", f"{CHARACTER}/b.pdf"], f"{CHARACTER}/b.pdf", ["\\x80"]),
        ([f"sub/{BYTE}.pdf", f"sub/{CHARACTER}.pdf"], f"sub/{CHARACTER}.pdf", ["sub/\\x80.pdf"]),
    ],
)
def test_of_names_that_are_stored_alike_one_is_a_document(
    tmp_path: Path, names: list[str], document: str, others: list[str]
) -> None:
    for name in [*names, "other.pdf"]:
        put(tmp_path / name, PDF + os.fsencode(name))
    seen = scan(str(tmp_path))
    paths = [file.path for file in seen.found]
    assert len(paths) == len(set(paths)) == len(names) + 1 - len(others)
    assert stored_name(document) in paths
    assert "other.pdf" in paths
    assert [file.path for file in seen.unreadable] == others
    assert all("rename it" in file.problem for file in seen.unreadable)
    only_other = scan(str(tmp_path), "", path_filter(include=["other.*"]))
    assert [file.path for file in only_other.unreadable if file.path.endswith(".pdf")] == []
    # What is read under the path is the file that was found.
    by_path = {read.path: read for read in read_files(str(tmp_path), seen.found) if isinstance(read, ReadFile)}
    assert by_path[stored_name(document)].sha256 == hashlib.sha256(PDF + os.fsencode(document)).hexdigest()


def test_a_name_of_bytes_in_a_folder_of_such_characters_is_opened(tmp_path: Path) -> None:
    for name in (f"{BYTE}/{CHARACTER}.pdf", f"{CHARACTER}2/{BYTE}.pdf", f"{BYTE}{CHARACTER}.pdf"):
        put(tmp_path / name, PDF + os.fsencode(name))
        assert real_path(str(tmp_path), stored_name(name)) == tmp_path / name
    seen = scan(str(tmp_path))
    assert (len(seen.found), seen.unreadable) == (3, [])
    assert sum(isinstance(read, ReadFile) for read in read_files(str(tmp_path), seen.found)) == 3


def test_a_path_that_an_index_cannot_hold_costs_its_own_file(tmp_path: Path) -> None:
    folder = "/".join(["\uac00" * 80] * 5)
    for name in ("a.pdf", "b.pdf"):
        put(tmp_path / folder / name)
    put(tmp_path / "other.pdf")
    seen = scan(str(tmp_path), longest=1000)
    assert [file.path for file in seen.found] == ["other.pdf"]
    first, second = seen.unreadable
    assert first.path != second.path
    assert max(len(file.path.encode()) for file in seen.unreadable) < 1000
    assert "rename it, or a folder above it" in first.problem
    assert len(scan(str(tmp_path)).found) == 3


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "folder.pdf").mkdir()
    put(tmp_path / "folder.pdf/a.pdf")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
        listener.bind("socket.pdf")  # by its name only: the path of a socket may have a hundred bytes
    seen = scan(str(tmp_path))
    assert [file.path for file in seen.found] == ["folder.pdf/a.pdf"]
    assert {file.path for file in seen.unreadable} == {"pipe.pdf", "socket.pdf"}


def test_a_hole_of_any_size_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "hole.pdf").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    seen = scan(str(tmp_path))
    assert (seen.found, [file.path for file in seen.unreadable]) == ([], ["hole.pdf"])


@pytest.fixture
def too_deep(tmp_path: Path) -> Iterator[Path]:
    """A folder whose path is longer than the system takes, which not even root can list by it."""
    put(tmp_path / "a.pdf")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        name = "d" * 200
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    yield tmp_path
    shutil.rmtree(tmp_path / ("d" * 200))


def test_a_folder_that_cannot_be_listed_is_said_and_hides_nothing_else(too_deep: Path) -> None:
    seen = scan(str(too_deep))
    assert [file.path for file in seen.found] == ["a.pdf"]
    ((folder, why),) = seen.unlisted.items()
    assert folder.startswith("d" * 200)
    assert "too long" in why


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="is not there"):
        scan(str(tmp_path / "nowhere"))
    put(tmp_path / "a.pdf")
    with pytest.raises(SourceMissing, match="is not there"):
        scan(str(tmp_path), "sub")
    with pytest.raises(SourceMissing):
        scan(str(tmp_path / "a.pdf"))


def test_a_source_that_goes_away_while_it_is_looked_at_is_an_error(tmp_path: Path) -> None:
    """As when a share is unmounted: its folders seem to be gone, and an empty one is in its place."""
    root = tmp_path / "root"
    for name in ("a/b.pdf", "c/d.pdf"):
        put(root / name)
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 2:
            root.rename(tmp_path / "away")
            root.mkdir()

    with pytest.raises(SourceMissing, match="went away"):
        scan(str(root), beat=beat)
    assert beats > 2


def test_a_folder_that_is_deleted_while_it_is_looked_at_is_gone(tmp_path: Path) -> None:
    put(tmp_path / "a/b.pdf")
    put(tmp_path / "c.pdf")
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1
        if beats == 2:
            shutil.rmtree(tmp_path / "a")

    seen = scan(str(tmp_path), beat=beat)
    assert ([file.path for file in seen.found], seen.unlisted) == (["c.pdf"], {})


def test_a_link_to_a_folder_that_is_away_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "share").symlink_to(tmp_path / "not mounted")
    assert scan(str(tmp_path)).dangling == {"share": "a link to nothing"}


def test_files_are_read_as_what_they_are(tmp_path: Path) -> None:
    put(tmp_path / "really.docx", PDF)
    put(tmp_path / "really.pdf", DOCX)
    read = list(read_files(str(tmp_path), scan(str(tmp_path)).found))
    assert [one.kind for one in read if isinstance(one, ReadFile)] == [DocumentKind.PDF, DocumentKind.DOCX]


def test_a_file_that_grows_while_it_is_read_has_no_hash(tmp_path: Path) -> None:
    path = put(tmp_path / "a.pdf", b"x" * (3 << 20))
    beats = 0

    def grow() -> None:
        nonlocal beats
        beats += 1
        with path.open("ab") as file:  # as much as is read of it: without end
            file.write(b"y" * (1 << 20))
        assert beats < 20

    (read,) = read_files(str(tmp_path), scan(str(tmp_path)).found, grow)
    assert isinstance(read, StillWritten)
    assert read.file == look_again(str(tmp_path), "a.pdf")


def test_a_file_that_shrinks_while_it_is_read_has_no_hash(tmp_path: Path) -> None:
    path = put(tmp_path / "a.pdf", b"x" * (3 << 20))
    cut = iter([False, True])

    def shrink() -> None:
        if next(cut, False):
            os.truncate(path, 5)

    (read,) = read_files(str(tmp_path), scan(str(tmp_path)).found, shrink)
    assert isinstance(read, StillWritten)


def test_what_took_a_files_place_after_the_scan_holds_nobody_up(tmp_path: Path) -> None:
    paths = [put(tmp_path / name) for name in ("a-gone.pdf", "b-pipe.pdf", "c-folder.pdf", "d-good.pdf", "sub/e.pdf")]
    files = scan(str(tmp_path)).found
    for path in paths[:3]:
        path.unlink()
    os.mkfifo(paths[1])
    paths[2].mkdir()
    shutil.rmtree(tmp_path / "sub")
    (tmp_path / "sub").write_bytes(b"a file now")
    pipe, folder, good = read_files(str(tmp_path), files)
    assert isinstance(pipe, UnreadableFile)
    assert isinstance(folder, UnreadableFile)
    assert isinstance(good, ReadFile)
    assert (pipe.path, folder.path, good.path) == ("b-pipe.pdf", "c-folder.pdf", "d-good.pdf")
    assert look_again(str(tmp_path), "a-gone.pdf") is None
    assert look_again(str(tmp_path), "b-pipe.pdf") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path) -> None:
    put(tmp_path / "a.pdf").chmod(0)
    (read,) = read_files(str(tmp_path), scan(str(tmp_path)).found)
    assert isinstance(read, UnreadableFile)
    assert "Permission denied" in read.problem


def test_a_file_that_not_even_root_may_read_says_so(tmp_path: Path) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("there is no /proc")
    (tmp_path / "memory.pdf").symlink_to("/proc/self/mem")  # a regular file whose first page is not there
    file = Found("memory.pdf", 1, 1)
    (read,) = read_files(str(tmp_path), [file])
    assert not isinstance(read, ReadFile)
